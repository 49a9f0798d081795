"""Derivatives of the normalisations, and batch normalisation over all workers.

With x̂ = (x − μ)·r, r = (σ² + ε)^-½ and the mean taken over the normalised dimensions, a path x' = d, x'' = 0 gives

    x̂'  = r (d − mean d − x̂ c),        c = mean(x̂ d)
    x̂'' = −2 r c x̂' − r x̂ mean(x̂' (d − mean d))

and for y = w x̂ + b:  y' = w x̂' + w' x̂ + b',  y'' = w x̂'' + 2 w' x̂'.  torch's nested forward mode gets these wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from raycurv.curvature.rules import Call, Derivative, Tangent, aten, rule, total
from raycurv.curvature.tape import Tape

Mean = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Normalised:
    """x̂ = (x − centre)·r, kept as its parts; `mean` takes tensors of x's shape to means that broadcast against x."""

    x: Tensor
    centre: Tensor
    r: Tensor
    mean: Mean

    def value(self) -> Tensor:
        """The normalised tensor itself."""
        return (self.x - self.centre).mul_(self.r)

    def first(self, d: Tensor) -> Tensor:
        """x̂' along d, in few temporaries: r (d − mean d − (x − μ) r² mean((x − μ) d))."""
        offset = self.x - self.centre
        d = d.to(offset.dtype)  # the statistics of half-precision tensors are float32
        mean_d, c = self.mean(d, offset * d)
        return (d - mean_d).addcmul_(offset, -self.r * self.r * c).mul_(self.r)

    def second(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """x̂' and x̂'' along d."""
        x_hat = self.value()
        d = d.to(x_hat.dtype)
        mean_d, c = self.mean(d, x_hat * d)
        centred = d - mean_d
        first = self.r * (centred - x_hat * c)
        (bend,) = self.mean(first * centred)
        return first, -2 * self.r * c * first - self.r * x_hat * bend


def _affine(
    normalised: Normalised, weight: Tensor | None, fused: Callable[[Tensor], Tensor] | None = None
) -> Derivative:
    """w x̂ + b for a weight and tangents already shaped to broadcast; `fused` computes w x̂' in one kernel."""
    x, centre, r = normalised.x, normalised.centre, normalised.r

    def first(dx: Tangent, dw: Tangent, db: Tangent) -> Tangent:
        if dx is None:
            moved = None if dw is None else normalised.value().mul_(dw)
            return moved if db is None else db if moved is None else moved.add_(db)
        moved = fused(dx) if fused is not None else normalised.first(dx)
        if fused is None and weight is not None:
            moved = moved.mul_(weight)
        if dw is not None:
            slope = (r * dw).to(moved.dtype)
            moved = moved.addcmul_(x, slope).sub_(centre * slope)
        return moved if db is None else moved.add_(db)

    def quadratic(dx: Tangent, dw: Tangent, db: Tangent) -> Tangent:
        if dx is None:
            return None
        slope, bend = normalised.second(dx)
        bend = bend if weight is None else bend * weight
        return bend if dw is None else bend.addcmul_(dw.expand_as(bend), slope, value=2)

    return Derivative(first, quadratic)


def _reshaped(derivative: Derivative, call: Call, shape: Sequence[int], out: Tensor) -> Derivative:
    """The derivative with tangents of (x, weight, bias) given as the operator has them, those absent left out."""
    present = [
        isinstance(argument, Tensor) for argument in call.args if argument is None or isinstance(argument, Tensor)
    ]

    def split(d: Sequence[Tangent]) -> tuple[Tangent, Tangent, Tangent]:
        given = iter(d)
        dx, dw, db = (next(given, None) if there else None for there in [*present, False, False][:3])
        return dx, None if dw is None else dw.view(shape), None if db is None else db.view(shape)

    def first(*d: Tangent) -> Tangent:
        result = derivative.first(*split(d))
        return None if result is None else result.expand(out.shape)

    def quadratic(*d: Tangent) -> Tangent:
        assert derivative.quadratic is not None
        return derivative.quadratic(*split(d))

    return Derivative(first, quadratic if derivative.quadratic is not None else None)


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
        return _reshaped(_fixed(x, centre, r, scale), call, shape, call.out[0])
    save_mean, save_r = call.out[1], call.out[2]
    centre, r = save_mean.view(shape), save_r.view(shape)
    dims = [i for i in range(x.dim()) if i != 1]

    def fused(d: Tensor) -> Tensor:
        # The Jacobian of x̂ is symmetric and the weight constant over what is averaged: the backward kernel is J itself.
        return aten.native_batch_norm_backward.default(
            d, x, weight, None, None, save_mean, save_r, True, 0.0, [True, False, False]
        )[0]

    normalised = Normalised(x, centre, r, _mean_over(dims))
    inner = _affine(normalised, scale, fused if call.name == "native_batch_norm" else None)
    return _reshaped(inner, call, shape, call.out[0])


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
    x, normalised, weight = call.args[:3]
    mean, r = call.out[1], call.out[2]
    dims = list(range(x.dim() - len(normalised), x.dim()))
    inner = _affine(Normalised(x, mean, r, _mean_over(dims)), weight)
    return _reshaped(inner, call, tuple(normalised), call.out[0])


@rule("native_group_norm")
def _group_norm(call: Call) -> Derivative:
    x, weight, _, samples, _, _, groups, _ = call.args
    shape = (samples, groups, -1)
    mean, r = (out.view(samples, groups, 1) for out in call.out[1:])
    by_channel = _channels(x)
    scale = None if weight is None else weight.view(by_channel)
    grouped = Normalised(x.reshape(shape), mean, r, _mean_over([2]))

    def first(dx: Tangent, dw: Tangent, db: Tangent) -> Tangent:
        moved = None if dx is None else grouped.first(dx.reshape(shape)).view(x.shape)
        moved = moved if moved is None or scale is None else moved * scale
        result = total(moved, None if dw is None else dw * grouped.value().view(x.shape))
        return db if result is None else result if db is None else result + db

    def quadratic(dx: Tangent, dw: Tangent, db: Tangent) -> Tangent:
        if dx is None:
            return None
        slope, bend = (t.view(x.shape) for t in grouped.second(dx.reshape(shape)))
        bend = bend if scale is None else bend * scale
        return bend if dw is None else bend + 2 * dw * slope

    return _reshaped(Derivative(first, quadratic), call, by_channel, call.out[0])


# --- batch normalisation over all workers ----------------------------------------------------------------------------

Sum = Callable[[Tensor], Tensor]


class SynchronisedBatchNorm(TorchFunctionMode):
    """While entered, ``F.batch_norm`` in training mode uses the statistics of the global batch.

    It serves every module and function that calls it, without rewriting the model. One all-reduce per layer and
    pass: the sums and
    sums of squares forward, two sums backward, two for a tangent. (torch's SyncBatchNorm refuses the CPU and has no
    forward mode.)

    Args:
        sum_over_workers: all-reduces a tensor in place and returns it.
        empty: this worker's share has no sample; the one it computes on counts nothing.
        tape: records the layers if tangents are wanted.
    """

    def __init__(self, sum_over_workers: Sum, *, empty: bool = False, tape: Tape | None = None) -> None:
        super().__init__()
        self.workers = _Workers(sum_over_workers, empty)
        self.tape = tape

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace batch normalisation in training mode; leave every other function alone."""
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
                # A single value has the variance 0: the quotient must not be 0 · ∞.
                unbiased = statistics.variance * (statistics.count / (statistics.count - 1).clamp(min=1))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        if self.tape is not None and any(slot is not None for slot in slots):
            derivative = self._derivative(input, weight, bias, out, statistics)
            self.tape.record("batch_norm", slots, out, derivative, own=True)
        return out

    def _normalise(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, shift: Tensor | None
    ) -> tuple[Tensor, _Statistics]:
        statistics = self._statistics(x.detach(), eps, shift)
        return _Normalise.apply(x, weight, bias, statistics, self.workers), statistics

    def _statistics(self, x: Tensor, eps: float, shift: Tensor | None) -> _Statistics:
        """Mean and variance of every channel over the samples of all workers, in one all-reduce.

        Each worker sends its own mean and centred squares (Chan et al. 1983), the means relative to a number that all
        workers share (the running mean), since E[x²] − E[x]² would lose digits.
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

    def _derivative(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, out: Tensor, statistics: _Statistics
    ) -> Derivative:
        x, shape = x.detach(), _channels(x)
        centre, r = statistics.mean.view(shape), statistics.r.view(shape)
        call = Call(None, "batch_norm", (x, weight, bias), {}, [])
        scale = None if weight is None else weight.detach().view(shape)
        means = self.workers.means(statistics.count, shape)
        return _reshaped(_affine(Normalised(x, centre, r, means), scale), call, shape, out.detach())


@dataclass(frozen=True)
class _Workers:
    """What the graph keeps of the mode. It must not keep the tape, which keeps the graph: nothing would be freed."""

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


class _Statistics:
    def __init__(self, mean: Tensor, variance: Tensor, r: Tensor, count: Tensor) -> None:
        self.mean, self.variance, self.r, self.count = mean, variance, r, count


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
        # Half-precision inputs in float32, as torch's own kernels do: μ rounded to bfloat16 would move every sample.
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
        # A worker without samples computes on a stand-in, which must not receive the others' means.
        return torch.zeros_like(grad_x) if ctx.workers.empty else grad_x, grad_weight, grad_bias, None, None
