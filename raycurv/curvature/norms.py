"""Derivatives of normalisation layers.

With x̂ = (x − μ)·r, r = (σ² + ε)^-½ and means over the normalised dimensions, a path x' = d, x'' = 0 gives

    x̂'  = r (d − mean d − x̂ c),        c = mean(x̂ d)
    x̂'' = −2 r c x̂' − r x̂ mean(x̂' (d − mean d))

and for y = w x̂ + b:  y' = w x̂' + w' x̂ + b',  y'' = w x̂'' + 2 w' x̂'.  torch's nested forward mode gives wrong values.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raycurv.curvature import rules
from raycurv.curvature.rules import Call, Derivative, Tangent, aten, rule, total

Mean = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Normalised:
    """The normalised tensor x̂ = (x − centre)·r, as its factors.

    Attributes:
        x: the input.
        centre: μ, to broadcast against x.
        r: (σ² + ε)^-½, to broadcast against x.
        mean: function of tensors in the shape of x; returns their means over the elements that are normalised
            together, to broadcast against x.
        chunk_dim: dimension whose slices are normalised independently, or None.
        fused: ``fused(d, x, centre, r)`` computes x̂' along d in one kernel; None if there is none.
    """

    x: Tensor
    centre: Tensor
    r: Tensor
    mean: Mean
    chunk_dim: int | None = None
    fused: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None

    def value(self) -> Tensor:
        """x̂."""
        return (self.x - self.centre).mul_(self.r)

    def first(self, d: Tensor) -> Tensor:
        """x̂' along d, in few temporaries: r (d − mean d − (x − μ) r² mean((x − μ) d))."""
        if self.fused is not None:
            return self.fused(d, self.x, self.centre, self.r)
        offset = self.x - self.centre
        d = d.to(offset.dtype)  # the statistics of half-precision tensors are float32
        mean_d, c = self.first_moments(offset, d)
        return (d - mean_d).addcmul_(offset, -self.r * self.r * c).mul_(self.r)

    def first_moments(self, offset: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """mean d and mean((x − μ) d), where `offset` is x − μ."""
        mean_d, c = self.mean(d, offset * d)
        return mean_d, c

    def both(self, d: Tensor, dd: Tangent) -> tuple[Tensor, Tensor, Tensor]:
        """x̂, x̂' and x̂'' along a path with x' = d and x'' = dd."""
        x_hat = self.value()
        if self.fused is not None:
            first = self.first(d)
            c, c_first = self.mean(x_hat * d, first * d)  # the mean of x̂' is 0
            along_dd = torch.zeros_like(x_hat) if dd is None else self.first(dd)
            return x_hat, first, along_dd.addcmul_(x_hat, -self.r * c_first).addcmul_(first, -2 * self.r * c)
        d = d.to(x_hat.dtype)
        if dd is None:
            mean_d, c = self.mean(d, x_hat * d)
            second = None
        else:
            dd = dd.to(x_hat.dtype)
            mean_d, c, mean_dd, c_dd = self.mean(d, x_hat * d, dd, x_hat * dd)
            second = dd - mean_dd
        centred = d - mean_d
        first = torch.addcmul(centred, x_hat, -c).mul_(self.r)
        (c_first,) = self.mean(centred.mul_(first))
        if second is None:
            second = x_hat * -c_first
        else:
            second.addcmul_(x_hat, -(c_first + c_dd))
        return x_hat, first, second.addcmul_(first, -2 * c).mul_(self.r)

    def chunks(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Divide x, and tensors that broadcast against it, into chunks small enough to stay in the cache.

        Yields:
            A function that takes one chunk of a tensor.
        """
        size = None if self.chunk_dim is None or not self.x.is_contiguous() else self.x.shape[self.chunk_dim]
        step = size and max(1, rules.chunk_size(self.x) * size // max(1, self.x.numel()))
        if size is None or step is None or step >= size:
            yield lambda t: t
            return
        for start in range(0, size, step):
            yield functools.partial(self._chunk, start=start, length=min(step, size - start))

    def _chunk(self, t: Tensor, start: int, length: int) -> Tensor:
        assert self.chunk_dim is not None
        return t.narrow(self.chunk_dim, start, length) if t.shape[self.chunk_dim] > 1 else t


def affine(
    normalised: Normalised, weight: Tensor | None, fused: Callable[[Tensor], Tensor] | None = None
) -> Derivative:
    """The derivative of w x̂ + b.

    Args:
        normalised: x̂.
        weight: w, in a shape that broadcasts against x; None is 1. Tangents come in such shapes too.
        fused: computes w x̂' in one kernel.
    """
    x, centre, r = normalised.x, normalised.centre, normalised.r

    def first(dx: Tangent, dw: Tangent, db: Tangent) -> Tangent:
        if dx is None:
            tangent = None if dw is None else normalised.value().mul_(dw)
            return tangent if db is None else db if tangent is None else tangent.add_(db)
        tangent = fused(dx) if fused is not None else normalised.first(dx)
        if fused is None and weight is not None:
            tangent = tangent.mul_(weight)
        if dw is not None:
            slope = (r * dw).to(tangent.dtype)
            tangent = tangent.addcmul_(x, slope).sub_(centre * slope)
        return tangent if db is None else tangent.add_(db)

    def both(d: Sequence[Tangent], dd: Sequence[Tangent], reusable: Sequence[Tangent]) -> tuple[Tangent, Tangent]:
        dx, ddx = d[0], dd[0]
        if dx is None:
            return first(*d), first(*dd) if any(t is not None for t in dd) else None
        outs = [torch.empty_like(x) if t is None else t for t in reusable]
        for chunk in normalised.chunks():
            inside = dataclasses.replace(normalised, x=chunk(x), centre=chunk(centre), r=chunk(r))
            x_hat, slope, second = inside.both(chunk(dx), None if ddx is None else chunk(ddx))
            w, dw, db, ddw, ddb = (None if t is None else chunk(t) for t in (weight, d[1], d[2], dd[1], dd[2]))
            second = second if w is None else second.mul_(w)
            second = second if dw is None else second.addcmul_(slope, 2 * dw)
            chunk(outs[1]).copy_(_add_affine(second, x_hat, ddw, ddb))
            slope = slope if w is None else slope.mul_(w)
            chunk(outs[0]).copy_(_add_affine(slope, x_hat, dw, db))
        return outs[0], outs[1]

    return Derivative(first, both=both)


def _add_affine(tangent: Tensor, x_hat: Tensor, dw: Tangent, db: Tangent) -> Tensor:
    """tangent + dw x̂ + db, in place of `tangent`."""
    tangent = tangent if dw is None else tangent.addcmul_(x_hat, dw)
    return tangent if db is None else tangent.add_(db)


def in_operator_shapes(
    derivative: Derivative, call: Call, weights: Sequence[int], inside: Sequence[int] | None = None
) -> Derivative:
    """The derivative for tangents of (x, weight, bias) in the operator's shapes, without those that are None.

    Args:
        derivative: derivative for x in the shape `inside`, and for weight and bias in the shape `weights`.
        call: execution of the operator.
        weights: a shape that broadcasts against `inside`.
        inside: the shape of x in `derivative`; None is the operator's.
    """
    present = [
        isinstance(argument, Tensor) for argument in call.args if argument is None or isinstance(argument, Tensor)
    ]
    outside = call.args[0].shape
    inside = outside if inside is None else inside

    def split(d: Sequence[Tangent]) -> list[Tangent]:
        given = iter(d)
        dx, dw, db = (next(given, None) if holds else None for holds in [*present, False, False][:3])
        return [None if dx is None else dx.reshape(inside), *(None if t is None else t.view(weights) for t in (dw, db))]

    def joined(result: Tangent) -> Tangent:
        return None if result is None else result.expand(inside).reshape(outside)

    def first(*d: Tangent) -> Tangent:
        return joined(derivative.first(*split(d)))

    def quadratic(*d: Tangent) -> Tangent:
        assert derivative.quadratic is not None
        return joined(derivative.quadratic(*split(d)))

    def both(d: Sequence[Tangent], dd: Sequence[Tangent], reusable: Sequence[Tangent]) -> tuple[Tangent, Tangent]:
        assert derivative.both is not None
        memory = [None if t is None else t.view(inside) for t in reusable]
        slope, second = derivative.both(split(d), split(dd), memory)
        return joined(slope), joined(second)

    return Derivative(
        first,
        quadratic if derivative.quadratic is not None else None,
        both if derivative.both is not None else None,
    )


def channel_shape(x: Tensor) -> tuple[int, ...]:
    """Shape in which one value per channel broadcasts over x, (1, C, 1, …)."""
    return (1, -1, *(1,) * (x.dim() - 2))


def _mean_over(dims: Sequence[int]) -> Mean:
    return lambda *values: tuple(value.mean(dims, keepdim=True) for value in values)


@rule(
    *("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_with_update"),
    "_native_batch_norm_legit",
    outputs=1,
)
def _batch_norm(call: Call) -> Derivative:
    x, weight = call.args[0], call.args[1]
    training = call.args[5] if call.name != "_batch_norm_with_update" else True
    shape = channel_shape(x)
    scale = None if weight is None else weight.view(shape)
    if not training:
        mean, variance, eps = call.args[3], call.args[4], call.args[7]
        r = torch.rsqrt(variance + eps).view(shape)
        centre = mean.view(shape)
        return in_operator_shapes(_fixed(x, centre, r, scale), call, shape)
    save_mean, save_r = call.out[1], call.out[2]
    centre, r = save_mean.view(shape), save_r.view(shape)
    dims = [i for i in range(x.dim()) if i != 1]

    def fused(d: Tensor) -> Tensor:
        # The Jacobian of x̂ is symmetric and the weight is constant over each mean: the backward kernel computes J·d.
        return aten.native_batch_norm_backward.default(
            d, x, weight, None, None, save_mean, save_r, True, 0.0, [True, False, False]
        )[0]

    normalised = Normalised(x, centre, r, _mean_over(dims), chunk_dim=1)
    inner = affine(normalised, scale, fused if call.name == "native_batch_norm" else None)
    return in_operator_shapes(inner, call, shape)


def _fixed(x: Tensor, centre: Tensor, r: Tensor, weight: Tensor | None) -> Derivative:
    """Normalisation by running statistics: linear in x."""
    scale = r if weight is None else r * weight

    def first(dx: Tangent, dw: Tangent, db: Tangent) -> Tangent:
        result = total(None if dx is None else dx * scale, None if dw is None else (x - centre) * (r * dw))
        return db if result is None else result if db is None else result + db

    def quadratic(dx: Tangent, dw: Tangent, db: Tangent) -> Tangent:
        return None if dx is None or dw is None else 2 * dx * (r * dw)

    return Derivative(first, quadratic)


@rule("native_layer_norm", outputs=1)
def _layer_norm(call: Call) -> Derivative:
    x, shape, weight = call.args[:3]
    mean, r = call.out[1], call.out[2]
    dims = list(range(x.dim() - len(shape), x.dim()))
    weights = (*(1,) * dims[0], *shape)
    scale = None if weight is None else weight.view(weights)
    chunk_dim = 0 if dims[0] > 0 else None

    def fused(d: Tensor, x: Tensor, centre: Tensor, r: Tensor) -> Tensor:
        # The Jacobian of x̂ is symmetric: the kernel of the backward pass computes J·d.
        d = d.to(x.dtype)
        return aten.native_layer_norm_backward.default(d, x, shape, centre, r, None, None, [True, False, False])[0]

    plain = x.dtype == mean.dtype and x.dtype == r.dtype  # statistics of half-precision tensors are float32
    normalised = Normalised(x, mean, r, _mean_over(dims), chunk_dim, fused if plain else None)
    return in_operator_shapes(affine(normalised, scale), call, weights)


@rule("native_group_norm", outputs=1)
def _group_norm(call: Call) -> Derivative:
    x, weight, _, samples, channels, _, groups, _ = call.args
    inside, weights = (samples, groups, channels // groups, -1), (1, groups, channels // groups, 1)
    mean, r = (out.view(samples, groups, 1, 1) for out in call.out[1:])
    scale = None if weight is None else weight.view(weights)
    x = x.reshape(inside)
    return in_operator_shapes(affine(Normalised(x, mean, r, _mean_over([2, 3]), 0), scale), call, weights, x.shape)
