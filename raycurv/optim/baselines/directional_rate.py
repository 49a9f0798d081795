"""Rates from slope and curvature of the batch's objective along the direction of any optimizer.

The direction is the gradient, its average or Adam's, as in `red`. What a method makes of slope and curvature is in the
file of its paper: `gen`, `cdat`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raycurv.objective import Batch
from raycurv.optim.base import Params, StepReport, check_batch
from raycurv.optim.red import Rescaled, direction_name, move

_GUARD = 1e-8  # ε of RMSProp's preconditioner


def _one(epoch: int) -> float:
    """ℓ of `Rescaled`, which has no use here."""
    return 1.0


class DirectionalRate(Rescaled):
    """An optimizer whose rate follows slope and curvature along its direction.

    Args:
        family: name of the method, before the direction's.
        model_or_params: module or its parameters, one group.
        beta1: β₁ of the gradient's average; 0 is none.
        beta2: β₂ of the squares' average in RMSProp's preconditioner; None is none.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    def __init__(self, family: str, model_or_params: Params, *, beta1: float, beta2: float | None) -> None:
        self.name = f"{family}_{direction_name(beta1, beta2)}"
        super().__init__(
            self.name,
            model_or_params,
            _one,
            None,
            beta1=beta1,
            beta2=beta2,
            beta3=0.0,
            factor=1.0,
            eps=_GUARD,
        )

    def _first(self, zero: Tensor) -> dict[str, Tensor]:
        """State of the rate before the first step; `zero` is 0-d float64."""
        raise NotImplementedError

    def _needs_curvature(self, step: int) -> bool:
        """Whether this step, from 0, changes the rate."""
        return True

    def _changed(self, slope: Tensor, curvature: Tensor) -> dict[str, Tensor]:
        """State of the rate after ⟨Θ̇, g⟩ and ⟨∇²J Θ̇, Θ̇⟩ of this step, where the step goes against Θ̇."""
        raise NotImplementedError

    def _rate(self, state: dict[str, Tensor]) -> Tensor:
        """Rate of a step with this state."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """The gradient, the direction, in the method's steps the curvature along it, and the update."""
        check_batch(self, batch)
        objective, state = batch.objective, self.shared
        fresh = not state
        self._start(objective)
        if fresh:
            state.update(self._first(torch.zeros_like(state["counted"])))
        curved = self._needs_curvature(state["steps"])
        linear = batch.linearise(record=curved)
        gradient = linear.pull(linear.gradient)
        if objective.l2:
            gradient.flat.add_(objective.l2_gradient(objective.parameters).flat)
        accepted = self._accumulate(gradient)
        direction = self._direction(gradient)
        loss = linear.loss() + objective.l2_value(objective.parameters)
        slope, changed = gradient.dot(direction), {}
        if curved:
            changed = self._changed(slope, linear.taylor(direction).curvature)
        rate = self._rate({**state, **changed})
        numbers = torch.stack([loss, direction.dot(direction), rate, *changed.values()])
        finite = torch.isfinite(numbers).all() & accepted
        state.update({key: torch.where(finite, value, state[key]) for key, value in changed.items()})
        move(objective, direction, rate, finite)
        state["steps"] += 1
        return StepReport(loss, {"learning_rate": rate}, finite)
