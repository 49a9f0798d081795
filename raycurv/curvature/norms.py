"""Derivatives of normalisation layers, and batch normalisation over all workers.

With x̂ = (x − μ)·r, r = (σ² + ε)^-½ and means over the normalised dimensions, a path x' = d, x'' = 0 gives

    x̂'  = r (d − mean d − x̂ c),        c = mean(x̂ d)
    x̂'' = −2 r c x̂' − r x̂ mean(x̂' (d − mean d))

and for y = w x̂ + b:  y' = w x̂' + w' x̂ + b',  y'' = w x̂'' + 2 w' x̂'.  torch's nested forward mode gives wrong values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from raycurv.curvature import rules
from raycurv.curvature.rules import Call, Derivative, Tangent, aten, rule, total
from raycurv.curvature.tape import Tape

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
    """

    x: Tensor
    centre: Tensor
    r: Tensor
    mean: Mean
    chunk_dim: int | None = None

    def value(self) -> Tensor:
        """x̂."""
        return (self.x - self.centre).mul_(self.r)

    def first(self, d: Tensor) -> Tensor:
        """x̂' along d, in few temporaries: r (d − mean d − (x − μ) r² mean((x − μ) d))."""
        offset = self.x - self.centre
        d = d.to(offset.dtype)  # the statistics of half-precision tensors are float32
        mean_d, c = self.mean(d, offset * d)
        return (d - mean_d).addcmul_(offset, -self.r * self.r * c).mul_(self.r)

    def both(self, d: Tensor, dd: Tangent) -> tuple[Tensor, Tensor, Tensor]:
        """x̂, x̂' and x̂'' along a path with x' = d and x'' = dd."""
        x_hat = self.value()
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
        step = size and max(1, rules.CHUNK_SIZE * size // max(1, self.x.numel()))
        if size is None or step is None or step >= size:
            yield lambda t: t
            return
        for start in range(0, size, step):
            yield functools.partial(self._chunk, start=start, length=min(step, size - start))

    def _chunk(self, t: Tensor, start: int, length: int) -> Tensor:
        assert self.chunk_dim is not None
        return t.narrow(self.chunk_dim, start, length) if t.shape[self.chunk_dim] > 1 else t


def _affine(
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
            inside = Normalised(chunk(x), chunk(centre), chunk(r), normalised.mean)
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


def _in_operator_shapes(
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


def _channels(x: Tensor) -> tuple[int, ...]:
    return (1, -1, *(1,) * (x.dim() - 2))


def _mean_over(dims: Sequence[int]) -> Mean:
    return lambda *values: tuple(value.mean(dims, keepdim=True) for value in values)


@rule(
    "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_with_update", "_native_batch_norm_legit"
)
def _batch_norm(call: Call) -> Derivative:
    x, weight = call.args[0], call.args[1]
    training = call.args[5] if call.name != "_batch_norm_with_update" else True
    shape = _channels(x)
    scale = None if weight is None else weight.view(shape)
    if not training:
        mean, variance, eps = call.args[3], call.args[4], call.args[7]
        r = torch.rsqrt(variance + eps).view(shape)
        centre = mean.view(shape)
        return _in_operator_shapes(_fixed(x, centre, r, scale), call, shape)
    save_mean, save_r = call.out[1], call.out[2]
    centre, r = save_mean.view(shape), save_r.view(shape)
    dims = [i for i in range(x.dim()) if i != 1]

    def fused(d: Tensor) -> Tensor:
        # The Jacobian of x̂ is symmetric and the weight is constant over each mean: the backward kernel computes J·d.
        return aten.native_batch_norm_backward.default(
            d, x, weight, None, None, save_mean, save_r, True, 0.0, [True, False, False]
        )[0]

    normalised = Normalised(x, centre, r, _mean_over(dims), chunk_dim=1)
    inner = _affine(normalised, scale, fused if call.name == "native_batch_norm" else None)
    return _in_operator_shapes(inner, call, shape)


def _fixed(x: Tensor, centre: Tensor, r: Tensor, weight: Tensor | None) -> Derivative:
    """Normalisation by running statistics: linear in x."""
    scale = r if weight is None else r * weight

    def first(dx: Tangent, dw: Tangent, db: Tangent) -> Tangent:
        result = total(None if dx is None else dx * scale, None if dw is None else (x - centre) * (r * dw))
        return db if result is None else result if db is None else result + db

    def quadratic(dx: Tangent, dw: Tangent, db: Tangent) -> Tangent:
        return None if dx is None or dw is None else 2 * dx * (r * dw)

    return Derivative(first, quadratic)


@rule("native_layer_norm")
def _layer_norm(call: Call) -> Derivative:
    x, shape, weight = call.args[:3]
    mean, r = call.out[1], call.out[2]
    dims = list(range(x.dim() - len(shape), x.dim()))
    weights = (*(1,) * dims[0], *shape)
    scale = None if weight is None else weight.view(weights)
    chunk_dim = 0 if dims[0] > 0 else None
    return _in_operator_shapes(_affine(Normalised(x, mean, r, _mean_over(dims), chunk_dim), scale), call, weights)


@rule("native_group_norm")
def _group_norm(call: Call) -> Derivative:
    x, weight, _, samples, channels, _, groups, _ = call.args
    inside, weights = (samples, groups, channels // groups, -1), (1, groups, channels // groups, 1)
    mean, r = (out.view(samples, groups, 1, 1) for out in call.out[1:])
    scale = None if weight is None else weight.view(weights)
    x = x.reshape(inside)
    return _in_operator_shapes(_affine(Normalised(x, mean, r, _mean_over([2, 3]), 0), scale), call, weights, x.shape)


# --- batch normalisation over all workers ----------------------------------------------------------------------------

Sum = Callable[[Tensor], Tensor]


class SynchronisedBatchNorm(TorchFunctionMode):
    """While entered, ``F.batch_norm`` in training mode uses the statistics of the global batch.

    It replaces the function for every module that calls it, so that models need no change. Each layer takes one
    all-reduce per pass: of the sums and sums of squares forward, of two sums backward, of two for a tangent. (torch's
    SyncBatchNorm refuses the CPU and has no forward mode.)

    Args:
        sum_over_workers: function that all-reduces a tensor in place and returns it.
        empty: whether this worker's share has no sample; its blank sample then counts nothing.
        tape: tape that records the layers, or None.
    """

    def __init__(self, sum_over_workers: Sum, *, empty: bool = False, tape: Tape | None = None) -> None:
        super().__init__()
        self.workers = _Workers(sum_over_workers, empty)
        self.tape = tape

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace batch normalisation in training mode; execute every other function unchanged."""
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        given = [t for t in (input, weight, bias) if t is not None]
        slots = self.tape.slots(given, "batch_norm") if self.tape is not None else ()
        if self.tape is not None:
            with self.tape.paused():
                out, statistics = self._normalise(input, weight, bias, eps, running_mean)
        else:
            out, statistics = self._normalise(input, weight, bias, eps, running_mean)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(statistics.mean.to(running_mean.dtype), momentum)
                # A single value has variance 0: the product must not be 0 · ∞.
                unbiased = statistics.variance * (statistics.count / (statistics.count - 1).clamp(min=1))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        if self.tape is not None and any(slot is not None for slot in slots):
            derivative = self._derivative(input, weight, bias, statistics)
            self.tape.record("batch_norm", slots, out, derivative, custom=True)
        return out

    def _normalise(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, shift: Tensor | None
    ) -> tuple[Tensor, _Statistics]:
        statistics = self._statistics(x.detach(), eps, shift)
        return _Normalise.apply(x, weight, bias, statistics, self.workers), statistics

    def _statistics(self, x: Tensor, eps: float, shift: Tensor | None) -> _Statistics:
        """Mean and variance of every channel over the samples of all workers, in one all-reduce.

        Each worker sends its own mean and centred squares (Chan et al. 1983), because E[x²] − E[x]² would lose digits.
        The means are relative to the running mean, which all workers share.
        """
        dims = [i for i in range(x.dim()) if i != 1]
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        count = wide.new_tensor(x.numel() / x.shape[1])
        mean = wide.mean(dims)
        squares = (wide - mean.view(_channels(x))).square().sum(dims)
        common = torch.zeros_like(mean) if shift is None else shift.detach().to(mean.dtype).clone()
        offset = mean - common
        sums = torch.stack([count * offset, count * offset.square(), squares, count.expand_as(mean)])
        sums = self.workers.sum(sums)
        count = sums[3]
        offset = sums[0] / count
        between = (sums[1] - count * offset.square()).clamp(min=0)
        variance = (sums[2] + between) / count
        return _Statistics(common + offset, variance, torch.rsqrt(variance + eps), count)

    def _derivative(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: _Statistics) -> Derivative:
        x, shape = x.detach(), _channels(x)
        centre, r = statistics.mean.view(shape), statistics.r.view(shape)
        call = Call(None, "batch_norm", (x, weight, bias), {}, [])
        scale = None if weight is None else weight.detach().view(shape)
        means = self.workers.means(statistics.count, shape)
        return _in_operator_shapes(_affine(Normalised(x, centre, r, means), scale), call, shape)


@dataclass(frozen=True)
class _Workers:
    """The collective operation that a graph keeps. A reference to the tape, which keeps the graph, would be a cycle."""

    sum_over_workers: Sum
    empty: bool

    def sum(self, sums: Tensor) -> Tensor:
        return self.sum_over_workers(torch.zeros_like(sums) if self.empty else sums)

    def means(self, count: Tensor, shape: tuple[int, ...]) -> Mean:
        """Means over the samples of all workers, in one all-reduce."""

        def mean(*values: Tensor) -> tuple[Tensor, ...]:
            dims = [i for i in range(values[0].dim()) if i != 1]
            sums = self.sum(torch.stack([value.to(count.dtype).sum(dims) for value in values]))
            return tuple((row / count).to(values[0].dtype).view(shape) for row in sums)

        return mean


@dataclass(frozen=True)
class _Statistics:
    """μ, σ², r and the number of values of each channel, over all workers."""

    mean: Tensor
    variance: Tensor
    r: Tensor
    count: Tensor


class _Normalise(torch.autograd.Function):
    """w (x − μ) r + b with the global statistics; backward averages over all workers too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        statistics: _Statistics,
        workers: _Workers,
    ) -> Tensor:
        shape = _channels(x)
        ctx.save_for_backward(x, weight)
        ctx.statistics, ctx.workers, ctx.has_bias = statistics, workers, bias is not None
        scale = statistics.r if weight is None else statistics.r * weight
        shift = -statistics.mean * scale
        shift = shift if bias is None else shift + bias
        # Half-precision inputs in float32, as in torch's kernels: μ rounded to bfloat16 would shift every sample.
        return torch.addcmul(shift.view(shape), x.to(shift.dtype), scale.view(shape)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        shape = _channels(x)
        centre, r = ctx.statistics.mean.view(shape), ctx.statistics.r.view(shape)
        x_hat = (x - centre) * r
        g = g.to(x_hat.dtype)
        dims = [i for i in range(x.dim()) if i != 1]
        through = x_hat * g
        grad_weight = None if weight is None else through.sum(dims).to(weight.dtype)
        grad_bias = g.sum(dims) if ctx.has_bias else None
        mean_g, mean_through = ctx.workers.means(ctx.statistics.count, shape)(g, through)
        scale = r if weight is None else r * weight.view(shape)
        grad_x = (scale * (g - mean_g - x_hat * mean_through)).to(x.dtype)
        # The blank sample of a worker without samples must not receive the other workers' means.
        return torch.zeros_like(grad_x) if ctx.workers.empty else grad_x, grad_weight, grad_bias, None, None
