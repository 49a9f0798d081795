"""A forward pass that is kept: J·z, Jᵀ·u and second derivatives on its activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from raycurv.curvature import Tape
from raycurv.curvature.losses import LossAt
from raycurv.directions import Direction
from raycurv.objective.forward import without_autocast

if TYPE_CHECKING:
    from raycurv.objective.batch import Batch
    from raycurv.objective.problem import Objective


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
    """

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

    def pull(self, cotangent: Tensor) -> Direction:
        """J_φ·u / Σw over all workers: the only gradient-sized all-reduce. Once; the graph is gone afterwards.

        Raises:
            RuntimeError: it was pulled before, or a parameter that took part in the first batch did not in this one.
        """
        graph, self._graph = self._graph, None
        if graph is None:
            raise RuntimeError("pull can be called once per linearisation: its graph has been freed")
        objective, collectives = self.batch.objective, self.batch.objective.collectives
        weight = self.batch.sample_weights.sum()
        if self._ticket is None:
            scaled = (cotangent / weight.to(cotangent.dtype)).to(graph.dtype)
            grads = torch.autograd.grad(graph, objective.parameters, scaled, allow_unused=True)
            return objective.direction(grads)
        traced = objective._traced
        armed, traced.armed = traced.armed, False
        if not armed:
            # DDP reduces one backward pass after a forward pass; of two passes kept at once, this is the second.
            grads = torch.autograd.grad(graph, objective.parameters, cotangent.to(graph.dtype), allow_unused=True)
            pulled = objective.direction(grads)
            collectives.sum(pulled.flat).div_(collectives.sum(weight.clone()).to(pulled.flat.dtype))
            return pulled
        # DDP takes the mean over the workers; the ticket's gradient brings the global weight along.
        for parameter in (*objective.parameters, objective._traced.carrier):
            parameter.grad = None
        size = collectives.size
        carried = (weight * size).to(self._ticket.dtype).expand_as(self._ticket)
        torch.autograd.backward([graph, self._ticket], [(cotangent * size).to(graph.dtype), carried])
        _check_reduced(objective)
        total = cast(Tensor, objective._traced.carrier.grad)
        pulled = objective.direction([parameter.grad for parameter in objective.parameters])
        pulled.flat.div_(total.to(pulled.flat.dtype))
        for parameter in (*objective.parameters, objective._traced.carrier):
            parameter.grad = None
        return pulled

    def push(self, direction: Sequence[Tensor | None]) -> Tensor:
        """J_φᵀ·z in the paper's notation: the tangent of this worker's outputs along `direction`."""
        with without_autocast(self.outputs):
            pushed = self._recorded().push(list(direction))
        return torch.zeros_like(self._at.gradient) if pushed is None else pushed.to(self._at.gradient.dtype)

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩ over this worker's outputs, 0-d float64; :meth:`means` makes it global.

        Rows of samples without weight do not count.
        """
        return (u.double() * v.double()).sum()

    def means(self, *sums: Tensor) -> Tensor:
        """Global means, in one all-reduce: of the loss (without the L2 term), then of each of these local sums."""
        return self.batch._means(self.batch._weighted(self._at.values), *sums)

    def taylor(self, direction: Sequence[Tensor], points: Sequence[Tensor] | None = None) -> Taylor:
        """Value, slope, curvature and absolute curvature along `direction`, on the kept activations."""
        objective, at, batch = self.batch.objective, self._at, self.batch
        points = objective.parameters if points is None else points
        with without_autocast(self.outputs), torch.no_grad():
            d, dd = self._recorded().second_order(list(direction))
        zero = torch.zeros_like(at.gradient)
        d = zero if d is None else d.to(zero.dtype)
        slope = _per_sample(at.gradient * d)
        bend = _per_sample(at.hessian(d) * d)
        bend = bend if dd is None else bend + _per_sample(at.gradient * dd.to(zero.dtype))
        l2_slope, l2_bend = _l2_along(objective, points, direction)
        means = self.means(*(batch._weighted(x) for x in (slope, bend, (bend.double() + l2_bend).abs())))
        return Taylor(means[0] + objective.l2_value(points), means[1] + l2_slope, means[2] + l2_bend, means[3])

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


def _l2_along(objective: Objective, points: Sequence[Tensor], direction: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Slope and second derivative of the L2 term along a direction."""
    zero = torch.zeros((), dtype=torch.float64, device=objective.device)
    if objective.l2 == 0:
        return zero, zero
    with torch.no_grad():
        scaled, d = objective.l2_gradient(direction), objective.direction(direction)
        return scaled.dot(objective.direction(points)), scaled.dot(d)
