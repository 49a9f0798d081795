"""The objective linearised at one point: products with J_φ and H_L, and second derivatives, from one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raycurv.curvature import PushingTape, Tape
from raycurv.objective.compiled_pass import Executed
from raycurv.objective.direction import Direction, inner_product
from raycurv.objective.forward import without_autocast
from raycurv.objective.loss_derivatives import LossAt

if TYPE_CHECKING:
    from raycurv.objective.batch import Batch
    from raycurv.objective.objective import Objective

_PIECE = 1 << 14  # products that a CPU adds up in float32


@dataclass(frozen=True)
class Taylor:
    """Derivatives of t ↦ J(Θ + t·direction): global means, 0-d float64 tensors.

    Attributes:
        value: J.
        slope: dJ/dt.
        curvature: d²J/dt².
        absolute_curvature: mean over the samples of |d²J_s/dt²|, where J_s is the loss of one sample with the L2 term.
    """

    value: Tensor
    slope: Tensor
    curvature: Tensor
    absolute_curvature: Tensor


class Linearisation:
    """One forward pass with its activations, made by :meth:`Batch.linearise`.

    Vectors in output space have the shape of the outputs, (B, …) for the B samples of this worker. They are
    derivatives of this worker's Σ w·ℓ: neither divided by Σw nor summed over the workers.

    Args:
        batch: the batch.
        outputs: outputs of the model, with their graph.
        tape: tape that has recorded the forward pass, or its compiled execution; None if nothing will be pushed.
        carrier: with several workers, the copy of DDP's `carrier`
            (:class:`~raycurv.objective.ddp.DataParallel`).

    Attributes:
        outputs: outputs of this worker's share, (B, …), detached.
        tangent: J·z for the direction given to :meth:`Batch.linearise`, or None.
        partial: whether tangents cover only some of the samples
            (:class:`~raycurv.objective.micro_batches.MicroBatchedLinearisation`).
    """

    partial = False

    def __init__(
        self, batch: Batch, outputs: Tensor, tape: Tape | Executed | None = None, *, carrier: Tensor | None = None
    ) -> None:
        self.batch = batch
        self.outputs = outputs.detach()
        self.tangent: Tensor | None = None
        self._tape, self._carrier = tape, carrier
        self._loss: Tensor | None = None  # known after a pull
        self._weighted_gradient: Tensor | None = None
        self._graph: Tensor | None = outputs
        self._at: LossAt = batch.objective.loss.at(outputs, batch.targets)
        self._by_sample = batch.sample_weights.to(self._at.values.dtype).view(-1, *(1,) * (outputs.dim() - 1))
        self._cotangent_scale = batch.loss_scale()

    @property
    def gradient(self) -> Tensor:
        """J_L: the derivative of Σ w·ℓ with respect to the outputs, (B, …)."""
        if self._weighted_gradient is None:
            self._weighted_gradient = self._times_weights(self._at.gradient, keep=True)
        return self._weighted_gradient

    def hessian(self, u: Tensor) -> Tensor:
        """H_L·u: the Hessian of Σ w·ℓ with respect to the outputs times `u`, (B, …)."""
        u = u.to(self._at.gradient.dtype)
        product = self._at.hessian(u)
        # Reverse mode may return u itself, or one number expanded.
        keep = product.untyped_storage()._cdata == u.untyped_storage()._cdata or not product.is_contiguous()
        return self._times_weights(product, keep=keep)

    def pull(self, cotangent: Tensor, *, keep: bool = False) -> Direction:
        """J_φ·u / Σw over the samples of all workers: one backward pass, one all-reduce of the gradient's size.

        Args:
            cotangent: u, (B, …).
            keep: keep the graph for further calls; otherwise it is freed.

        Raises:
            RuntimeError: the graph has been freed, or a parameter took part in the first batch and not in this one.
        """
        batch, data_parallel = self.batch, self.batch.objective.data_parallel
        sum_of_weights = batch.sample_weights.sum()
        if data_parallel is None or self._carrier is None:
            return batch.watched(self.pull_local(cotangent / sum_of_weights.to(cotangent.dtype), keep=keep))
        if data_parallel.reduces_next():
            graph, sums = self._take_graph(keep), (sum_of_weights, self.loss_sum())
            with batch.counted("backward"):
                gradient, self._loss = data_parallel.mean_gradient(
                    batch.objective, graph, self._carrier, self._scaled(cotangent), sums, keep=keep
                )
                return batch.watched(self._unscaled(gradient))
        pulled = self.pull_local(cotangent, keep=keep)
        return batch.watched(Direction(batch.global_mean(pulled.flat), pulled))

    def pull_local(self, cotangent: Tensor, *, keep: bool = False) -> Direction:
        """J_φ·u over the samples of this worker, neither divided nor reduced.

        Raises:
            RuntimeError: the graph has been freed.
        """
        return self._unscaled(self._backward(self._scaled(cotangent), keep=keep))

    def _scaled(self, cotangent: Tensor) -> Tensor:
        return cotangent if self._cotangent_scale is None else cotangent * self._cotangent_scale

    def _unscaled(self, gradient: Direction) -> Direction:
        """The gradient of a scaled cotangent divided by the scale, in place."""
        if self._cotangent_scale is not None:
            gradient.flat.div_(self._cotangent_scale)
        return gradient

    def _backward(self, cotangent: Tensor, *, keep: bool) -> Direction:
        """One backward pass; the scale of the cotangent stays in the result."""
        objective, graph = self.batch.objective, self._take_graph(keep)
        with self.batch.counted("backward"):
            gradients = torch.autograd.grad(
                graph, objective.parameters, cotangent.to(graph.dtype), allow_unused=True, retain_graph=keep
            )
        return objective.direction(gradients)

    def _take_graph(self, keep: bool) -> Tensor:
        graph = self._graph
        self._graph = graph if keep else None
        if graph is None:
            raise RuntimeError(
                "pull can be called once per linearisation: its graph has been freed; pull(…, keep=True) keeps it"
            )
        return graph

    def push(self, direction: Sequence[Tensor | None]) -> Tensor:
        """J·z (the paper's J_φᵀ·z): the tangent of this worker's outputs along `direction`, (B, …).

        Raises:
            RuntimeError: the forward pass was not recorded.
        """
        known = tuple(tangent is not None for tangent in direction)
        scaled, factor = self.batch.scaled_direction(direction, self._cotangent_scale)
        with without_autocast(self.outputs), self.batch.counted("tangent", known):
            return self._tangent_of_outputs(self._recorded().push(list(scaled)), factor)

    def first_tangent(self, direction: Sequence[Tensor | None], factor: Tensor | None) -> Tensor:
        """:meth:`push` of the direction that the tape may have pushed in the forward pass already, times `factor`."""
        if isinstance(self._tape, PushingTape):
            return self._tangent_of_outputs(self._tape.tangent, factor)
        return self.push(direction)

    def _tangent_of_outputs(self, pushed: Tensor | None, factor: Tensor | None) -> Tensor:
        if pushed is None:
            return torch.zeros_like(self._at.gradient)
        return _wide(pushed, self._at.gradient, factor)

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩ over this worker's outputs, 0-d float64; :meth:`means` makes it global.

        Exact where `u` or `v` is zero for samples of weight 0, as :attr:`gradient` and :meth:`hessian` are.
        """
        return inner_product(u.reshape(-1), v.reshape(-1), _PIECE)

    def means(self, *sums: Tensor) -> Tensor:
        """Global means of the loss without the L2 term and of each local sum, (1 + len(sums),), in one all-reduce."""
        return self.batch.means(self.loss_sum(), *sums)

    def loss(self) -> Tensor:
        """Global mean of the loss without the L2 term, 0-d float64; it comes with :meth:`pull`, else by a sum."""
        return self.means()[0] if self._loss is None else self._loss

    def loss_sum(self) -> Tensor:
        """Σ w·ℓ over this worker's samples, 0-d float64."""
        return self.batch.weighted_sum(self._at.values)

    def taylor(self, direction: Sequence[Tensor]) -> Taylor:
        """Value, slope, curvature and absolute curvature along `direction`, without another forward pass.

        Raises:
            RuntimeError: the forward pass was not recorded.
        """
        objective = self.batch.objective
        return taylor_of(objective, self.batch.means(*self.taylor_sums(direction)), objective.parameters, direction)

    def taylor_sums(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """Sums over this worker's samples of value, slope, curvature and absolute curvature, 0-d float64 each.

        The L2 term is left out, except inside the absolute value.
        """
        scaled, factor = self.batch.scaled_direction(direction, self._cotangent_scale)
        with without_autocast(self.outputs), torch.no_grad(), self.batch.counted("second order"):
            return self.sums_along(direction, *self._recorded().second_order(list(scaled)), factor)

    def sums_along(
        self,
        direction: Sequence[Tensor],
        first: Tensor | None,
        second: Tensor | None,
        factor: Tensor | None = None,
    ) -> list[Tensor]:
        """:meth:`taylor_sums` from the first and second derivative of the outputs.

        Args:
            direction: one tensor per parameter.
            first: first derivative along `factor` times `direction`; None is zero.
            second: second derivative along it; None is zero.
            factor: 0-d; None is 1.
        """
        objective, at, batch = self.batch.objective, self._at, self.batch
        zero = torch.zeros_like(at.gradient)
        d = zero if first is None else _wide(first, zero, factor)
        slope = _per_sample(at.gradient * d)
        curvature = _per_sample(at.hessian(d) * d)
        if second is not None:
            squared = None if factor is None else factor.square()
            curvature = curvature + _per_sample(at.gradient * _wide(second, zero, squared))
        absolute = (curvature.double() + _l2_curvature(objective, direction)).abs()
        return [batch.weighted_sum(x) for x in (at.values, slope, curvature, absolute)]

    def _times_weights(self, u: Tensor, *, keep: bool) -> Tensor:
        """w·u, and 0 for samples of weight 0 even where u is NaN; in the memory of u unless that is kept."""
        if not self.batch.objective.weighted and not self.batch.empty:
            return u
        weighted = u * self._by_sample if keep else u.mul_(self._by_sample)
        return weighted.masked_fill_(self._by_sample == 0, 0.0)

    def _recorded(self) -> Tape | Executed:
        if self._tape is None:
            raise RuntimeError("this forward pass was not recorded: linearise(record=True) keeps what push needs")
        return self._tape


def _wide(derivative: Tensor, like: Tensor, factor: Tensor | None) -> Tensor:
    """A derivative of the outputs in the dtype of J_L, divided by the factor of its direction."""
    wide = derivative.to(like.dtype)
    return wide if factor is None else wide / factor


def _per_sample(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1) if x.dim() > 1 else x


def taylor_of(objective: Objective, means: Tensor, points: Sequence[Tensor], direction: Sequence[Tensor]) -> Taylor:
    """Global means of :meth:`Linearisation.taylor_sums`, with the L2 term at `points` added."""
    value, slope, curvature, absolute = means
    if objective.l2:
        with torch.no_grad():
            slope = slope + objective.l2_gradient(direction).dot(objective.direction(points))
    return Taylor(value + objective.l2_value(points), slope, curvature + _l2_curvature(objective, direction), absolute)


@torch.no_grad()
def _l2_curvature(objective: Objective, direction: Sequence[Tensor]) -> Tensor:
    """Second derivative of the L2 term along a direction, 0-d float64."""
    if objective.l2 == 0:
        return torch.zeros((), dtype=torch.float64, device=objective.device)
    return objective.l2_gradient(direction).dot(objective.direction(direction))
