"""Averaged RED: RED's step from sums over all steps so far. It was `auto` up to version 0.1.

RED's step (see `red`) changes from batch to batch. Here it is the minimum of the quadratic model of all steps so far,
each weighted by the schedule s at that step:

    R = Σ s·⟨Θ̇, g⟩ / Σ s·(mean over the samples of |⟨∇²J_s Θ̇, Θ̇⟩|)        Θ ← Θ − s·R·Θ̇

The sums begin with the second step. The first step uses its own quotient, which is taken at the initial weights and is
the least representative. Terms scale with gradients and curvatures, so the steep first part of a run has the most
weight, and later on growing curvature. Where no step has found curvature R is 0, and where all were steps of ascent.

The schedule s rises to 1 over the first tenth of the run, because at initialisation the quotient alone is 4 to 20 times
too large, and falls to 0 over the last quarter, which acts as an average of the weights. Without a horizon it rises for
100 steps and stays at 1; after the horizon it stays at 0. Curvature is computed in the first 20 steps, then in every
fifth, and no more once s falls, so the mean step of a long run costs about 1.2 plain gradients.

Measured on five networks (one seed, 400 to 800 steps): β₁ of 0.7 and 0.8 was better than 0.9, 0.95, 0.5 and 0; absolute
curvature was better than the Gauss-Newton one where the activation is curved; quotients averaged one by one (geometric
mean) were too large on one network, and a factor ℓ of ½ or 2 lost up to 40 % or diverged.

The slope ⟨Θ̇, g⟩ is taken with the gradient that Θ̇ was made of, so the noise of the batch counts twice: at batches below
some 16 samples the step is too long. `auto` (see there) measures the slope with the next batch.

Symbols: s ``schedule`` and s·R ``learning_rate`` among the scalars of a step, β₁ ``beta1``, β₂ ``beta2``.

Registered are `red_adam_free` along Adam's direction, `red_momentum_free` along the averaged gradient and
`red_sgd_free` along the gradient, which finds the first rate for the methods in `tuning_free`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raycurv.arguments import require_positive
from raycurv.objective import Batch, Objective
from raycurv.optim.base import Horizon, Params, StepReport, check_batch
from raycurv.optim.red import Rescaled, direction_name, move
from raycurv.optim.registry import register_variant

FIRST_STEPS, _INTERVAL = 20, 5  # steps with curvature: the first ones, then one of so many
_WARMUP, _COOLDOWN = 0.1, 0.25  # shares of the run
_WARMUP_STEPS = 100  # without a horizon
_OLD_KEYS = {"slope": "slope_sum", "bend": "curvature_sum"}  # in states saved by version 0.1


def schedule_factor(step: int, steps: int | None) -> float:
    """s at the step number `step`, from 0, of a run of `steps`: rises to 1, stays, falls to 0."""
    rise = min(1.0, (step + 1) / warmup_steps(steps))
    return rise if steps is None else max(0.0, min(rise, (steps - step) / (_COOLDOWN * steps)))


def warmup_steps(steps: int | None) -> int:
    """Steps until s is 1."""
    return _WARMUP_STEPS if steps is None else max(1, round(_WARMUP * steps))


class AveragedRED(Rescaled):
    """RED with a quotient of sums in place of each step's own; nothing to tune (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: length of the schedule; without it the step size rises for 100 steps and stays.
        beta1: β₁ of the gradient's average; 0 is none.
        beta2: β₂ of the squares' average in RMSProp's preconditioner; None is none.
        start: factor of the first slope, for tests alone.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        beta1: float = 0.8,
        beta2: float | None = 0.999,
        start: float = 1.0,
    ) -> None:
        direction = direction_name(beta1, beta2)
        name = f"red_{direction}_free"
        require_positive(f"{name}: start", start)
        super().__init__(
            name, model_or_params, constant_one, None, beta1=beta1, beta2=beta2, beta3=0.0, factor=1.0, eps=1e-8
        )
        self.horizon, self.start = horizon, start
        self.follows_horizon = horizon is not None

    @property
    def steps(self) -> int | None:
        """Steps of the run; None without a horizon."""
        return None if self.horizon is None else self.horizon.steps

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """The gradient, the direction, in some steps the curvature along it, and the step that fits all of them."""
        check_batch(self, batch)
        objective = batch.objective
        self._start(objective)
        state = self.shared
        curved, factor = self._needs_curvature(state["steps"]), schedule_factor(state["steps"], self.steps)
        linear = batch.linearise(record=curved)
        gradient = linear.pull(linear.gradient)
        if objective.l2:
            gradient.flat.add_(objective.l2_gradient(objective.parameters).flat)
        accepted, first, second = self._accumulate(gradient), state["counted"] <= 1, state["counted"] == 2
        direction = self._direction(gradient)
        sums = {"slope_sum": state["slope_sum"], "curvature_sum": state["curvature_sum"]}
        loss = linear.loss() + objective.l2_value(objective.parameters)
        if curved:
            start, kept = 1 + (self.start - 1) * first.double(), 1 - second.double()
            curvature = linear.taylor(direction).absolute_curvature
            sums["slope_sum"] = kept * state["slope_sum"] + factor * start * gradient.dot(direction)
            sums["curvature_sum"] = kept * state["curvature_sum"] + factor * curvature
        quotient = _quotient(**sums)
        finite = torch.isfinite(torch.stack([loss, direction.dot(direction), quotient])).all() & accepted
        if curved:
            state.update({key: torch.where(finite, value, state[key]) for key, value in sums.items()})
        move(objective, direction, factor * quotient, finite)
        state["steps"] += 1
        scalars = {"learning_rate": factor * quotient, "schedule": torch.full_like(quotient, factor)}
        return StepReport(loss, scalars, finite)

    def rate(self) -> Tensor:
        """R as it stands, 0-d float64."""
        return _quotient(self.shared["slope_sum"], self.shared["curvature_sum"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, also of versions that called the sums `slope` and `bend`."""
        super().load_state_dict(state_dict)
        for old, new in _OLD_KEYS.items():
            if old in self.shared:
                self.shared[new] = self.shared.pop(old)

    def _start(self, objective: Objective) -> float:
        fresh = not self.shared
        scale = super()._start(objective)
        if fresh:
            self.shared["slope_sum"] = torch.zeros_like(self.shared["counted"])  # Σ s·⟨Θ̇, g⟩
            self.shared["curvature_sum"] = torch.zeros_like(self.shared["counted"])  # Σ s·mean |⟨∇²J_s Θ̇, Θ̇⟩|
        return scale

    def _needs_curvature(self, step: int) -> bool:
        falls = self.steps is not None and step > (1 - _COOLDOWN) * self.steps
        return not falls and (step < FIRST_STEPS or step % _INTERVAL == 0)


def constant_one(epoch: int) -> float:
    """ℓ = 1 in every epoch."""
    return 1.0


def _quotient(slope_sum: Tensor, curvature_sum: Tensor) -> Tensor:
    """Minimum of the quadratic model, at least 0; 0 without curvature."""
    return torch.where(curvature_sum == 0, 0.0, (slope_sum / curvature_sum).clamp(min=0))


_ADAM = {"beta1": 0.8, "beta2": 0.999}
_MOMENTUM, _SGD = {"beta1": 0.8, "beta2": None}, {"beta1": 0.0, "beta2": None}
register_variant("red_adam_free", AveragedRED, "An averaged RED step along Adam's direction.", fixed=_ADAM)
register_variant("red_momentum_free", AveragedRED, "An averaged RED step along the averaged gradient.", fixed=_MOMENTUM)
register_variant("red_sgd_free", AveragedRED, "An averaged RED step along the gradient.", fixed=_SGD)
