"""Auto: steps along Adam's direction whose length the following mini-batches decide; no number from the user.

Let Θ̇ₖ be Adam's direction at step k (see `red`) and aₖ the length of the step Θ ← Θ − aₖΘ̇ₖ. The next mini-batch is
independent of the one that Θ̇ₖ was made of. At its own gradient g and its losses J_s it measures, along Θ̇ₖ,

    slope ⟨g, Θ̇ₖ⟩      curvature h = mean over the samples of ⟨∇²J_s Θ̇ₖ, Θ̇ₖ⟩

⟨g, Θ̇ₖ⟩ + aₖh is the slope where the step began. The length is κ times the minimum of the quadratic model of all steps
so far, in which those of late have more weight, step k the weight k + 101:

    R = κ·max(0, mean of ⟨g, Θ̇ₖ⟩ + mean of aₖh) / (mean of |h|)

A slope that is measured with the gradient that Θ̇ was made of, as RED's, counts the noise of the batch twice: with
batches below some 16 samples the step becomes too long. Here no term shares a sample with its direction. With κ < 2, R
stays where steps make progress and falls where they only follow noise: a step of the length a at which progress ends
has the slope ah/2 at its beginning, so that R = κa/2 < a.

|h| is of the batch's mean: where single samples have curvatures of both signs, as in deep networks and those with
attention, the mean of their absolute values halved the step. A rise of 10 steps in place of 30 doubled the final loss
of a transformer, whose curvature is small at the initial weights and grows at once.

The first step measures only; the next ones rise to R until step 30. After that nothing depends on the length of the
run. Evaluated are averaged weights, ``evaluation_weights()``, in which step k has a weight proportional to k⁹: the last
tenth of the run counts for two thirds. So a run may end or go on at any step. Curvature is computed in the first 20
steps and then in every fifth, when the average is updated too: the mean step of a long run costs 1.2 to 1.3 plain
gradients.

ε of Adam's denominator is 10⁻⁶ of the root mean square of its other part, so that the scale of the loss has no
influence. There is no decoupled weight decay: how strong it should be depends on the data, which no number-free rule
has been found to measure; an L2 term belongs to the objective.

Symbols: κ ``RELAXATION``, aₖ ``learning_rate`` among the scalars of a step, β₁ ``beta1``, β₂ ``beta2``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from raycurv.arguments import require_positive
from raycurv.objective import Batch, Objective, Taylor
from raycurv.objective.direction import Direction
from raycurv.optim.averaged_red import constant_one
from raycurv.optim.base import Horizon, Params, StepReport, check_batch
from raycurv.optim.red import Rescaled, move
from raycurv.optim.registry import register

RELAXATION = 1.5  # κ
_FIRST_STEPS, _INTERVAL = 20, 5  # steps with curvature: the first ones, then one of so many
_WARMUP_STEPS = 30
_OFFSET = 100  # steps whose measurements have about the same weight
_POWER = 9  # of the step in the weights of the average
_GUARD = 1e-6  # ε over the root mean square of √ṽ
# Sums over the steps, with weights: of ⟨g, Θ̇⟩, of these weights, of a·h, of |h|, of the last two's weights.
_SUMS = 5


@register("auto")
class Auto(Rescaled):
    """Steps along Adam's direction whose length later mini-batches decide; nothing to tune (see the module's text).

    Evaluate and save within ``with optimizer.evaluation_weights():``. A network with batch normalisation needs running
    statistics of these weights, for instance by ``torch.optim.swa_utils.update_bn``; ``raycurv train`` does it.

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used; no length of the run is needed.
        beta1: β₁ of the gradient's average.
        beta2: β₂ of the squares' average in RMSProp's preconditioner.
        start: factor of the step's length in the first 20 steps, for tests alone.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    evaluates_other_weights = True

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        beta1: float = 0.8,
        beta2: float = 0.999,
        start: float = 1.0,
    ) -> None:
        require_positive("auto: start", start)
        super().__init__(
            "auto", model_or_params, constant_one, None, beta1=beta1, beta2=beta2, beta3=0.0, factor=1.0, eps=_GUARD
        )
        self.start = start

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """Measure along the direction before, then step along the new one."""
        check_batch(self, batch)
        objective = batch.objective
        self._start(objective)
        state = self.shared
        measured = is_measured(state["steps"])
        linear = batch.linearise(record=measured)
        gradient = linear.pull(linear.gradient)
        if objective.l2:
            gradient.flat.add_(objective.l2_gradient(objective.parameters).flat)
        accepted = self._accumulate(gradient)
        before = Direction(state["direction"], gradient)
        taylor = linear.taylor(before) if measured else None
        value = linear.loss() + objective.l2_value(objective.parameters) if taylor is None else taylor.value
        if state["steps"]:
            self._measure(gradient.dot(before), taylor, accepted & torch.isfinite(value))
        rate = self._warmup() * self.rate()
        direction = self._direction(gradient)
        finite = torch.isfinite(torch.stack([value, direction.dot(direction), rate])).all() & accepted
        state["direction"].copy_(direction.flat)
        state["length"] = torch.where(finite, rate, 0.0)
        move(objective, direction, rate, finite)
        state["steps"] += 1
        if measured:
            self._average(objective)
        slope, curvature = self._means()
        return StepReport(value, {"learning_rate": rate, "slope": slope, "curvature": curvature}, finite)

    def rate(self) -> Tensor:
        """R as it stands, 0-d float64; 0 where no step has found curvature, and where all were steps of ascent."""
        slope, curvature = self._means()
        return torch.where(curvature == 0, 0.0, RELAXATION * slope.clamp(min=0) / curvature)

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """While entered, the model holds the average."""
        average = self.shared.get("average") if "global" in self.state else None
        if average is None:
            yield
            return
        parameters: list[Tensor] = self.param_groups[0]["params"]
        kept = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            torch._foreach_copy_(parameters, list(Direction(average, parameters)))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, kept)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, also one of version 0.1, from which the length of the steps is taken."""
        super().load_state_dict(state_dict)
        if "global" in self.state and "sums" not in self.shared:
            self._convert()

    def _start(self, objective: Objective) -> float:
        fresh = not self.shared
        scale = super()._start(objective)
        if fresh:
            like = self.shared["counted"]
            self.shared["sums"] = like.new_zeros(_SUMS)
            self.shared["length"] = like.new_zeros(())  # a of the step before
            self.shared["direction"] = torch.zeros_like(self.shared["gradient"])  # Θ̇ of the step before
            self.shared["average"] = None
            self.shared["averaged"] = 0  # steps until the last update of the average
        return scale

    def _guard(self, root: Tensor) -> Tensor:
        root_mean_square = torch.linalg.vector_norm(root) / root.numel() ** 0.5
        return (self.eps * root_mean_square).clamp(min=torch.finfo(root.dtype).tiny)  # where all gradients are 0

    def _measure(self, slope: Tensor, taylor: Taylor | None, valid: Tensor) -> None:
        """Add slope and curvature along the direction before to the sums, unless a number is not finite."""
        state, zero = self.shared, torch.zeros_like(slope)
        terms = [slope, zero + 1, zero, zero, zero]
        if taylor is not None:
            terms[2:] = [state["length"] * taylor.curvature, taylor.curvature.abs(), zero + 1]
        new = state["sums"] + (state["steps"] + _OFFSET) * torch.stack(terms)
        state["sums"] = torch.where(valid & torch.isfinite(new).all(), new, state["sums"])

    def _means(self) -> tuple[Tensor, Tensor]:
        """Mean slope where the steps began, and mean absolute curvature."""
        slopes, weight, shifts, curvatures, measured = self.shared["sums"]
        return slopes / weight.clamp(min=1) + shifts / measured.clamp(min=1), curvatures / measured.clamp(min=1)

    def _warmup(self) -> float:
        step = self.shared["steps"]
        return min(1.0, (step + 1) / _WARMUP_STEPS) * (self.start if step < _FIRST_STEPS else 1.0)

    def _average(self, objective: Objective) -> None:
        """The average of the weights, those of step k with a weight proportional to the derivative of k¹⁰."""
        state, steps = self.shared, self.shared["steps"]
        if state["average"] is None:
            state["average"] = torch.cat([parameter.detach().flatten() for parameter in objective.parameters])
        else:
            share = 1 - (state["averaged"] / steps) ** (_POWER + 1)
            average = list(Direction(state["average"], objective.parameters))
            torch._foreach_lerp_(average, list(objective.parameters), share)
        state["averaged"] = steps

    def _convert(self) -> None:
        state = self.shared
        slope = state.pop("slope_sum" if "slope_sum" in state else "slope")
        curvature = state.pop("curvature_sum" if "curvature_sum" in state else "bend")
        # As if all steps so far had been measured.
        weight = torch.full_like(slope, state["steps"] * (_OFFSET + state["steps"] / 2))
        zero = torch.zeros_like(slope)
        state["sums"] = torch.stack([slope / RELAXATION * weight, weight, zero, curvature * weight, weight])
        state["length"], state["direction"] = zero, torch.zeros_like(state["gradient"])
        state["average"], state["averaged"] = None, state["steps"]


def is_measured(step: int) -> bool:
    """Whether the step number `step`, from 0, computes curvature along the direction before."""
    return step > 0 and (step < _FIRST_STEPS or step % _INTERVAL == 0)
