"""Batch normalisation with the statistics of the global batch, and its derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from raycurv.curvature.norms import Mean, Normalised, affine, channel_shape, in_operator_shapes
from raycurv.curvature.rules import Call, Derivative
from raycurv.curvature.tape import Tape

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
        squares = (wide - mean.view(channel_shape(x))).square().sum(dims)
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
        x, shape = x.detach(), channel_shape(x)
        centre, r = statistics.mean.view(shape), statistics.r.view(shape)
        call = Call(None, "batch_norm", (x, weight, bias), {}, [])
        scale = None if weight is None else weight.detach().view(shape)
        means = self.workers.means(statistics.count, shape)
        return in_operator_shapes(affine(Normalised(x, centre, r, means), scale), call, shape)


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
        shape = channel_shape(x)
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
        shape = channel_shape(x)
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
