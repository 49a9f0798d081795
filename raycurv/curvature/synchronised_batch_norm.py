"""Batch normalisation with the statistics of the global batch, and its derivatives.

Along a path x' = d, x'' = dd, the derivatives of :mod:`~raycurv.curvature.norms` need the means of d, (x − μ)d, dd and
(x − μ)dd over the samples of all workers, and mean(x̂'(d − mean d)). The last one follows from others,

    mean(x̂'(d − mean d)) = r (var d − c²),        c = r mean((x − μ)d),

so that one sum over the workers brings all of them. Where d is known in the forward pass, as in a
:class:`~raycurv.curvature.forward_tape.ForwardTape` and a :class:`~raycurv.curvature.tape.PushingTape`, they travel
with the statistics of x themselves.

A worker sends sums about its own means, in float64, and the others combine them (Chan et al. 1983), because
E[x²] − E[x]² would lose digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from raycurv.curvature.norms import Mean, Normalised, affine, channel_shape, in_operator_shapes
from raycurv.curvature.rules import Call, Derivative, Tangent
from raycurv.curvature.tape import Tape

Sum = Callable[[Tensor], Tensor]


class SynchronisedBatchNorm(TorchFunctionMode):
    """While entered, ``F.batch_norm`` in training mode uses the statistics of the global batch.

    It replaces the function for every module that calls it, so that models need no change. Each layer takes one sum
    over the workers per pass: forward, backward, for a tangent, for first and second derivatives together. (torch's
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
        if self.tape is None:
            out, statistics, _ = self._normalise(input, weight, bias, eps, running_mean, None, None)
        else:
            slots = self.tape.slots(given, "batch_norm")
            d, dd = self.tape.tangents(slots[:1])
            with self.tape.paused():
                out, statistics, path = self._normalise(input, weight, bias, eps, running_mean, d[0], dd[0])
            if any(slot is not None for slot in slots):
                derivative = self._derivative(input, weight, bias, statistics, path)
                self.tape.record("batch_norm", slots, out, derivative, custom=True)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(statistics.mean.to(running_mean.dtype), momentum)
                # A single value has variance 0: the product must not be 0 · ∞.
                unbiased = statistics.variance * (statistics.count / (statistics.count - 1).clamp(min=1))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        return out

    def _normalise(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        shift: Tensor | None,
        d: Tangent,
        dd: Tangent,
    ) -> tuple[Tensor, _Statistics, _PathMoments | None]:
        statistics, path = self._statistics(x.detach(), eps, shift, d, dd)
        return _Normalise.apply(x, weight, bias, statistics, self.workers), statistics, path

    @torch.no_grad()
    def _statistics(
        self, x: Tensor, eps: float, shift: Tensor | None, d: Tangent, dd: Tangent
    ) -> tuple[_Statistics, _PathMoments | None]:
        """Statistics of every channel over the samples of all workers, and the moments along d, in one sum.

        Means are relative to the running mean, which all workers share.
        """
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        dims, shape = _sample_dims(x), channel_shape(x)
        local_mean = wide.mean(dims)
        centred = wide - local_mean.view(shape)
        count = torch.full_like(local_mean, x.numel() / x.shape[1], dtype=torch.float64)
        common = torch.zeros_like(count) if shift is None else shift.detach().double()
        offset = local_mean.double() - common
        rows = [count, count * offset, _total(centred.square(), dims) + count * offset.square()]
        rows += [] if d is None else _path_rows(centred, offset, d, dd)
        total, sums, squares, *path = self.workers.sum(torch.stack(rows))
        offset = sums / total
        variance = (squares / total - offset.square()).clamp(min=0)
        mean, r = (common + offset).to(wide.dtype), torch.rsqrt(variance + eps).to(wide.dtype)
        statistics = _Statistics(mean, variance, r, total)
        return statistics, None if d is None else _PathMoments.of(path, total, offset, wide.dtype, shape)

    def _derivative(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        statistics: _Statistics,
        path: _PathMoments | None,
    ) -> Derivative:
        x, shape = x.detach(), channel_shape(x)
        centre, r = statistics.mean.view(shape), statistics.r.view(shape)
        call = Call(None, "batch_norm", (x, weight, bias), {}, [])
        scale = None if weight is None else weight.detach().view(shape)
        normalised = _GloballyNormalised(
            x,
            centre,
            r,
            self.workers.means(statistics.count, shape),
            workers=self.workers,
            count=statistics.count,
            known=[] if path is None else [path],
        )
        return in_operator_shapes(affine(normalised, scale), call, shape)


@dataclass(frozen=True)
class _GloballyNormalised(Normalised):
    """The normalised tensor of this worker's samples, with means over the samples of all workers.

    Attributes:
        workers: the sum over the workers.
        count: number of values of each channel.
        known: moments that came with the statistics, for the first push; removed by it.
    """

    workers: _Workers = field(kw_only=True)
    count: Tensor = field(kw_only=True)
    known: list[_PathMoments] = field(kw_only=True)

    def first_moments(self, offset: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """mean d and mean((x − μ) d), in one sum over the workers at most."""
        if not self.known:
            return super().first_moments(offset, d)
        moments = self.known.pop()
        return moments.mean, moments.covariance

    def both(self, d: Tensor, dd: Tangent) -> tuple[Tensor, Tensor, Tensor]:
        """x̂, x̂' and x̂'' along a path with x' = d and x'' = dd, in one sum over the workers at most."""
        offset = self.x - self.centre
        d = d.to(offset.dtype)
        dd = None if dd is None else dd.to(offset.dtype)
        moments = self.known.pop() if self.known else self._moments(offset, d, dd)
        c, x_hat = self.r * moments.covariance, offset.mul_(self.r)
        first = (d - moments.mean).addcmul_(x_hat, -c).mul_(self.r)
        c_first = self.r * (moments.variance - c * c)
        if dd is None:
            second = x_hat * -c_first
        else:
            second = (dd - moments.mean_second).addcmul_(x_hat, -(c_first + self.r * moments.covariance_second))
        return x_hat, first, second.addcmul_(first, -2 * c).mul_(self.r)

    def _moments(self, offset: Tensor, d: Tensor, dd: Tangent) -> _PathMoments:
        rows = _path_rows(offset, torch.zeros_like(self.count), d, dd)
        sums = self.workers.sum(torch.stack(rows))
        return _PathMoments.of(list(sums), self.count, torch.zeros_like(self.count), offset.dtype, self.r.shape)


@dataclass(frozen=True)
class _PathMoments:
    """Means over the samples of all workers along a path x' = d, x'' = dd, to broadcast against x.

    Attributes:
        mean: mean d.
        covariance: mean((x − μ) d).
        variance: mean((d − mean d)²).
        mean_second: mean dd; 0 without dd.
        covariance_second: mean((x − μ) dd); 0 without dd.
    """

    mean: Tensor
    covariance: Tensor
    variance: Tensor
    mean_second: Tensor | float = 0.0
    covariance_second: Tensor | float = 0.0

    @classmethod
    def of(
        cls, sums: Sequence[Tensor], count: Tensor, offset: Tensor, dtype: torch.dtype, shape: Sequence[int]
    ) -> _PathMoments:
        """The moments from the sums of :func:`_path_rows` over all workers.

        Args:
            sums: rows, (C,) each.
            count: number of values.
            offset: mean of what x was taken relative to.
            dtype: dtype of the moments.
            shape: shape of the moments.
        """
        mean, covariance, square, *second = (row / count for row in sums)
        found = [mean, covariance - offset * mean, (square - mean.square()).clamp(min=0)]
        if second:
            found += [second[0], second[1] - offset * second[0]]
        return cls(*(moment.to(dtype).view(shape) for moment in found))


def _path_rows(centred: Tensor, offset: Tensor, d: Tensor, dd: Tangent) -> list[Tensor]:
    """This worker's sums of d, x·d, d², dd and x·dd, (C,) float64 each, where x = centred + offset.

    Args:
        centred: x − offset, in the shape of x; its own mean over this worker is 0, or `offset` is.
        offset: (C,) float64.
        d: tangent of x.
        dd: second derivative of x, or None.
    """
    dims, shape, count = _sample_dims(d), channel_shape(d), d.numel() / d.shape[1]
    d = d.to(centred.dtype)
    mean = d.mean(dims)
    squares = _total((d - mean.view(shape)).square_(), dims) + count * mean.double().square()
    rows = [count * mean.double(), _total(centred * d, dims) + offset * count * mean.double(), squares]
    if dd is not None:
        dd = dd.to(centred.dtype)
        total = _total(dd, dims)
        rows += [total, _total(centred * dd, dims) + offset * total]
    return rows


def _total(x: Tensor, dims: list[int]) -> Tensor:
    return x.sum(dims).double()


def _sample_dims(x: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [i for i in range(x.dim()) if i != 1]


@dataclass(frozen=True)
class _Workers:
    """The collective operation that a graph keeps. A reference to the tape, which keeps the graph, would be a cycle."""

    sum_over_workers: Sum
    empty: bool

    def sum(self, sums: Tensor) -> Tensor:
        return self.sum_over_workers(torch.zeros_like(sums) if self.empty else sums)

    def means(self, count: Tensor, shape: tuple[int, ...]) -> Mean:
        """Means over the samples of all workers, in one sum."""

        def mean(*values: Tensor) -> tuple[Tensor, ...]:
            dims = _sample_dims(values[0])
            sums = self.sum(torch.stack([_total(value, dims) for value in values]))
            return tuple((row / count).to(values[0].dtype).view(shape) for row in sums)

        return mean


@dataclass(frozen=True)
class _Statistics:
    """μ, σ², r and the number of values of each channel, over all workers; σ² and the number in float64."""

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
        dims = _sample_dims(x)
        through = x_hat * g
        grad_weight = None if weight is None else through.sum(dims).to(weight.dtype)
        grad_bias = g.sum(dims) if ctx.has_bias else None
        mean_g, mean_through = ctx.workers.means(ctx.statistics.count, shape)(g, through)
        scale = r if weight is None else r * weight.view(shape)
        grad_x = (scale * (g - mean_g - x_hat * mean_through)).to(x.dtype)
        # The blank sample of a worker without samples must not receive the other workers' means.
        return torch.zeros_like(grad_x) if ctx.workers.empty else grad_x, grad_weight, grad_bias, None, None
