"""A forward pass that is kept: J·z, Jᵀ·u and second derivatives on its activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from raycurv.curvature import Tape
from raycurv.objective.direction import Direction
from raycurv.objective.forward import without_autocast
from raycurv.objective.losses import LossAt

if TYPE_CHECKING:
    from raycurv.objective.batch import Batch
    from raycurv.objective.objective import Objective


@dataclass(frozen=True)
class Taylor:
    """Global means along a direction, 0-d float64 tensors: t ↦ J(Θ + t·direction).

    Attributes:
        value: J.
        slope: dJ/dt.
        curvature: d²J/dt².
        absolute_curvature: mean over the samples of |d²J_s/dt²|, J_s being a sample's loss with the L2 term.
    """

    value: Tensor
    slope: Tensor
    curvature: Tensor
    absolute_curvature: Tensor


class Linearisation:
    """A forward pass that is kept. Vectors in output space are derivatives of this worker's Σ w·ℓ.

    Attributes:
        outputs: of this worker's share, detached.
        tangent: J·z of the direction given to :meth:`Batch.linearise`, or None.
        partial: the tangents cover a part of the samples
            (:class:`~raycurv.objective.micro_batches.MicroBatchedLinearisation`).
    """

    partial = False

    def __init__(self, batch: Batch, tape: Tape | None, outputs: Tensor, ticket: Tensor | None) -> None:
        self.batch = batch
        self.outputs = outputs.detach()
        self.tangent: Tensor | None = None
        self._tape, self._ticket = tape, ticket
        self._graph: Tensor | None = outputs
        self._at: LossAt = batch.objective.loss.at(outputs, batch.targets)
        self._by_sample = batch.sample_weights.to(self._at.values.dtype).view(-1, *(1,) * (outputs.dim() - 1))

    @property
    def gradient(self) -> Tensor:
        """J_L: the derivative of Σ w·ℓ by the outputs."""
        return self._weigh(self._at.gradient)

    def hessian(self, u: Tensor) -> Tensor:
        """H_L·u."""
        return self._weigh(self._at.hessian(u.to(self._at.gradient.dtype)))

    def pull(self, cotangent: Tensor, *, keep: bool = False) -> Direction:
        """J_φ·u / Σw over all workers: the only gradient-sized all-reduce. The graph is gone afterwards.

        Args:
            cotangent: u.
            keep: keep the graph, to pull again; for methods that want many products with the same matrix.

        Raises:
            RuntimeError: it was pulled before, or a parameter that took part in the first batch did not in this one.
        """
        objective, collectives = self.batch.objective, self.batch.objective.collectives
        weight = self.batch.sample_weights.sum()
        if self._ticket is None:
            return self.pull_here(cotangent / weight.to(cotangent.dtype), keep=keep)
        traced = objective._traced
        armed, traced.armed = traced.armed, False
        if not armed:
            # DDP reduces one backward pass after a forward pass; of two passes kept at once, this is the second.
            pulled = self.pull_here(cotangent, keep=keep)
            collectives.sum(pulled.flat).div_(collectives.sum(weight.clone()).to(pulled.flat.dtype))
            return pulled
        # DDP takes the mean over the workers; the ticket's gradient brings the global weight along.
        for parameter in (*objective.parameters, objective._traced.carrier):
            parameter.grad = None
        graph, size = self._take_graph(keep), collectives.size
        carried = (weight * size).to(self._ticket.dtype).expand_as(self._ticket)
        cotangents = [(cotangent * size).to(graph.dtype), carried]
        torch.autograd.backward([graph, self._ticket], cotangents, retain_graph=keep)
        _check_reduced(objective)
        total = cast(Tensor, objective._traced.carrier.grad)
        pulled = objective.direction([parameter.grad for parameter in objective.parameters])
        pulled.flat.div_(total.to(pulled.flat.dtype))
        for parameter in (*objective.parameters, objective._traced.carrier):
            parameter.grad = None
        return pulled

    def pull_here(self, cotangent: Tensor, *, keep: bool = False) -> Direction:
        """J_φ·u over this worker's samples alone, neither divided nor reduced.

        Raises:
            RuntimeError: it was pulled before.
        """
        objective, graph = self.batch.objective, self._take_graph(keep)
        grads = torch.autograd.grad(
            graph, objective.parameters, cotangent.to(graph.dtype), allow_unused=True, retain_graph=keep
        )
        return objective.direction(grads)

    def _take_graph(self, keep: bool) -> Tensor:
        graph = self._graph
        self._graph = graph if keep else None
        if graph is None:
            raise RuntimeError(
                "pull can be called once per linearisation: its graph has been freed; pull(…, keep=True) keeps it"
            )
        return graph

    def push(self, direction: Sequence[Tensor | None]) -> Tensor:
        """J_φᵀ·z in the paper's notation: the tangent of this worker's outputs along `direction`."""
        with without_autocast(self.outputs):
            pushed = self._recorded().push(list(direction))
        return torch.zeros_like(self._at.gradient) if pushed is None else pushed.to(self._at.gradient.dtype)

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩ over this worker's outputs, 0-d float64; :meth:`means` makes it global.

        Rows of samples without weight do not count.
        """
        return (u * v).sum(-1).double().sum()  # double from the start takes ten times as long on many outputs

    def means(self, *sums: Tensor) -> Tensor:
        """Global means, in one all-reduce: of the loss (without the L2 term), then of each of these local sums."""
        return self.batch._means(self.loss_sum(), *sums)

    def loss_sum(self) -> Tensor:
        """Σ w·ℓ over this worker's samples, 0-d float64."""
        return self.batch._weighted(self._at.values)

    def taylor(self, direction: Sequence[Tensor], points: Sequence[Tensor] | None = None) -> Taylor:
        """Value, slope, curvature and absolute curvature along `direction`, on the kept activations."""
        objective = self.batch.objective
        points = objective.parameters if points is None else points
        return taylor_of(objective, self.batch._means(*self.taylor_sums(direction)), points, direction)

    def taylor_sums(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """Sums over this worker's samples of value, slope, curvature and absolute curvature.

        Without the L2 term, except for the last, where it stands inside the absolute value.
        """
        with without_autocast(self.outputs), torch.no_grad():
            return self.sums_along(direction, *self._recorded().second_order(list(direction)))

    def sums_along(self, direction: Sequence[Tensor], d: Tensor | None, dd: Tensor | None) -> list[Tensor]:
        """:meth:`taylor_sums` from the outputs' first and second derivatives along `direction`; None is zero."""
        objective, at, batch = self.batch.objective, self._at, self.batch
        zero = torch.zeros_like(at.gradient)
        d = zero if d is None else d.to(zero.dtype)
        slope = _per_sample(at.gradient * d)
        bend = _per_sample(at.hessian(d) * d)
        bend = bend if dd is None else bend + _per_sample(at.gradient * dd.to(zero.dtype))
        absolute = (bend.double() + _l2_bend(objective, direction)).abs()
        return [batch._weighted(x) for x in (at.values, slope, bend, absolute)]

    def _weigh(self, u: Tensor) -> Tensor:
        if self.batch.objective.weights is None and not self.batch.empty:
            return u
        return torch.where(self._by_sample != 0, self._by_sample * u, 0.0)

    def _recorded(self) -> Tape:
        if self._tape is None:
            raise RuntimeError("this forward pass was not recorded: linearise(record=True) keeps what push needs")
        return self._tape


def _check_reduced(objective: Objective) -> None:
    """Refuse gradients that DDP has not reduced because a parameter of their bucket got none.

    Raises:
        RuntimeError: a parameter took part in the first batch and not in this one.
    """
    if objective.unused_parameters:
        return
    missing = [n for n, p in zip(objective.names, objective.parameters, strict=True) if p.grad is None]
    if missing:
        raise RuntimeError(
            f"parameters {', '.join(missing[:5])} took part in the first batch and not in this one, so the workers' "
            "gradients cannot be summed: let the model use all its parameters in every batch (times 0 where needed)"
        )


def _per_sample(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1) if x.dim() > 1 else x


def taylor_of(objective: Objective, means: Tensor, points: Sequence[Tensor], direction: Sequence[Tensor]) -> Taylor:
    """The global means of :meth:`Linearisation.taylor_sums`, with the L2 term at `points`."""
    value, slope, bend, absolute = means
    if objective.l2:
        with torch.no_grad():
            slope = slope + objective.l2_gradient(direction).dot(objective.direction(points))
    return Taylor(value + objective.l2_value(points), slope, bend + _l2_bend(objective, direction), absolute)


@torch.no_grad()
def _l2_bend(objective: Objective, direction: Sequence[Tensor]) -> Tensor:
    """Second derivative of the L2 term along a direction."""
    if objective.l2 == 0:
        return torch.zeros((), dtype=torch.float64, device=objective.device)
    return objective.l2_gradient(direction).dot(objective.direction(direction))
