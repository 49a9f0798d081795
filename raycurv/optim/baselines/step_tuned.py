"""Step-Tuned SGD: a step size from the difference of two gradients of the same batch.

*Second-order step-size tuning of SGD for non-convex optimization* (Castera, Bolte, Févotte, Pauwels; 2021, in Neural
Processing Letters 2022), Algorithm 2; the baseline of RED's Figures 11 and 12. One step on a batch is two of SGD,

    η_k = α γ_k / (k + 1)^{1/2 + δ}
    θ_{k+½} = θ_k − η_k ∇J(θ_k),    θ_{k+1} = θ_{k+½} − η_k ∇J(θ_{k+½})

and the difference of their gradients, averaged over the batches, gives the curvature along the step:

    G_k = β G_{k−1} + (1 − β) (∇J(θ_{k+½}) − ∇J(θ_k)),    Ĝ_k = G_k / (1 − β^{k+1}),    Δθ = θ_{k+½} − θ_k
    γ_{k+1} = ‖Δθ‖² / ⟨Ĝ_k, Δθ⟩ if that is positive, else ν, kept in [m̃, M̃];    γ_0 = 1

Symbols: α ``learning_rate``, ν ``concave_factor``, β ``memory``, m̃ and M̃ ``smallest_factor`` and ``largest_factor``,
δ ``decay``.

What the paper leaves open, and deviations:

- α is searched on a grid in both papers. Default 0.1, from which γ reaches rates between 0.05 and 0.2 in the beginning.
- A step costs two gradients. The logged loss is that at θ_k.
- Where a loss or gradient is not finite at either point, nothing moves, neither θ nor γ, G and k, and it is reported.
  A step of zero leaves γ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raycurv.arguments import require, require_positive
from raycurv.objective import Batch, Objective
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, check_batch, one_group
from raycurv.optim.registry import register


@register("step_tuned_sgd")
class StepTunedSGD(StepOptimizer):
    """Step-Tuned SGD (see the module's text); the defaults but the rate are the paper's.

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        learning_rate: α, the setting ``lr`` of the parameter group, which torch's schedulers can change.
        concave_factor: ν, factor for directions without positive curvature.
        memory: β, in [0, 1).
        smallest_factor: m̃.
        largest_factor: M̃.
        decay: δ, in [0, ½).

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        learning_rate: float = 0.1,  # α
        concave_factor: float = 2.0,  # ν
        memory: float = 0.9,  # β
        smallest_factor: float = 0.5,  # m̃
        largest_factor: float = 2.0,  # M̃
        decay: float = 0.001,  # δ
    ) -> None:
        name = "step_tuned_sgd"
        require_positive(f"{name}: learning_rate", learning_rate)
        require_positive(f"{name}: concave_factor", concave_factor)
        require(f"{name}: memory", memory, 0 <= memory < 1, "in [0, 1)")
        require_positive(f"{name}: smallest_factor", smallest_factor)
        largest = smallest_factor <= largest_factor < math.inf
        require(f"{name}: largest_factor", largest_factor, largest, "finite and at least smallest_factor")
        require(f"{name}: decay", decay, 0 <= decay < 0.5, "in [0, 0.5)")
        super().__init__(one_group(name, model_or_params), {"lr": learning_rate})
        self.learning_rate, self.concave_factor, self.memory, self.decay = learning_rate, concave_factor, memory, decay
        self.smallest_factor, self.largest_factor = smallest_factor, largest_factor

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """Two half steps on one batch, and the factor of the next step."""
        check_batch(self, batch)
        objective, state = batch.objective, self.shared
        if not state:
            state.update(self._initial(objective))
        factor = state["factor"]
        rate = self.param_groups[0]["lr"] * factor / (state["steps"] + 1) ** (0.5 + self.decay)
        start = objective.direction(objective.parameters).flat
        loss, first = batch.value_and_gradient()
        half = first.flat * -rate.to(first.flat.dtype)
        torch._foreach_add_(objective.parameters, Direction(half, objective.parameters))
        second_loss, second = batch.value_and_gradient()
        end = start + half - rate.to(half.dtype) * second.flat
        finite = torch.isfinite(loss) & torch.isfinite(second_loss) & torch.isfinite(end).all()
        end = torch.where(finite, end, start)
        torch._foreach_copy_(objective.parameters, Direction(end, objective.parameters))
        for key, value in self._tuned(half, second.flat - first.flat).items():
            state[key] = torch.where(finite, value, state[key])
        return StepReport(loss, {"learning_rate": rate, "factor": factor}, finite)

    def _initial(self, objective: Objective) -> dict[str, Tensor]:
        zero = torch.zeros((), dtype=torch.float64, device=objective.device)
        differences = torch.zeros_like(objective.direction(objective.parameters).flat)
        return {"steps": zero, "factor": zero + 1, "differences": differences}

    def _tuned(self, half: Tensor, difference: Tensor) -> dict[str, Tensor]:
        """k, γ and G after a half step that changed the gradient by `difference`."""
        state = self.shared
        steps = state["steps"] + 1
        mean = self.memory * state["differences"] + (1 - self.memory) * difference
        curvature = torch.dot(mean, half).double() / (1 - self.memory**steps)
        squared = torch.dot(half, half).double()
        factor = torch.where(curvature > 0, squared / curvature, self.concave_factor)
        factor = torch.where(squared > 0, factor.clamp(self.smallest_factor, self.largest_factor), state["factor"])
        return {"steps": steps, "factor": factor, "differences": mean}
