"""ScheduleFree+: Schedule-Free Adam with a learning rate from the loss.

*ScheduleFree+: Scaling Learning-Rate-Free & Schedule-Free Learning to Large Language Models* (Defazio 2026, arXiv
2605.19095). z is Adam's iterate, x the average of all z, which is evaluated, and y the point of the gradient, which the
model holds in training. With the loss f and the gradient g at y, in the step number t, from 1:

    p = min((t − 1)/T, 1)        1 − β̃ = (1 − β)^(1 − p)·(1 − β_max)^p
    e ← β_p·e + (1 − β_p)·√(π/2)·‖g‖₁
    α = γ·max(f + β̃·⟨g, z − x⟩, 0) / (e/(1 − β_pᵗ))
    m ← β₁·m + (1 − β₁)·g        v ← β₂·v + (1 − β₂)·g²
    z ← z − α²·λ·y − α·(m/(1 − β₁ᵗ)) / (√(v/(1 − β₂ᵗ)) + ε)
    c = w/Σw    with    w = tʳ·(largest α so far)²,    or c = 1 in the first C steps
    x ← (1 − c)·x + c·z
    y = β̃·x + (1 − β̃)·z

α is a Polyak step for a loss whose lower bound is 0.

Symbols: γ ``learning_rate``, β₁ ``beta1``, β₂ ``beta2``, β ``interpolation``, β_max ``last_interpolation``, T
``interpolation_steps``, β_p ``norm_memory``, r ``average_power``, C ``average_start``, λ ``weight_decay``. ε is 1e-8.

What is chosen here, and deviations:

- Defaults are those of the author's reference code. There T, C, r, β_p and λ are 0; with T = 0, β̃ stays β.
- Where β_p > 0, the reference code keeps the corrected e/(1 − β_pᵗ) for the next step; here e is kept, as printed.
- λ counts by α², so that useful values are far above those of AdamW; the reference code names 20 and 50.
- f is the objective of the batch, with its L2 term.
- A gradient of zero has the rate 0. A loss or gradient that is not finite moves nothing and is not counted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raycurv.arguments import require, require_positive, require_whole
from raycurv.objective import Batch
from raycurv.optim.base import Horizon, Params, StepReport, check_batch, one_group
from raycurv.optim.baselines.evaluated_average import EvaluatedAverage
from raycurv.optim.registry import register

_GUARD = 1e-8  # ε


def interpolation_at(step: Tensor, first: float, last: float, steps: int) -> Tensor:
    """β̃ of the step number `step`, from 1."""
    progress = ((step - 1) / steps).clamp(max=1) if steps else torch.zeros_like(step)
    return 1 - (1 - first) ** (1 - progress) * (1 - last) ** progress


def polyak_rate(loss: Tensor, correction: Tensor, norm: Tensor) -> Tensor:
    """max(f + correction, 0)/norm; 0 where the norm is 0."""
    return torch.where(norm > 0, (loss + correction).clamp(min=0) / norm, 0.0)


@register("schedule_free_plus")
class ScheduleFreePlus(EvaluatedAverage):
    """ScheduleFree+ around Adam (see the module's text); the average of its iterates is evaluated.

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        learning_rate: γ, factor of the rate.
        beta1: β₁, in [0, 1).
        beta2: β₂, in [0, 1).
        interpolation: β, in [0, 1).
        last_interpolation: β_max, in [0, 1).
        interpolation_steps: T, steps from β to β_max; 0 keeps β.
        norm_memory: β_p, in [0, 1).
        average_power: r.
        average_start: C, steps before the average begins.
        weight_decay: λ.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        learning_rate: float = 1.0,  # γ
        beta1: float = 0.9,
        beta2: float = 0.95,
        interpolation: float = 0.9,  # β
        last_interpolation: float = 0.965,  # β_max
        interpolation_steps: int = 0,  # T
        norm_memory: float = 0.0,  # β_p
        average_power: float = 0.0,  # r
        average_start: int = 0,  # C
        weight_decay: float = 0.0,  # λ
    ) -> None:
        name = "schedule_free_plus"
        require_positive(f"{name}: learning_rate", learning_rate)
        weights = {"beta1": beta1, "beta2": beta2, "interpolation": interpolation}
        weights |= {"last_interpolation": last_interpolation, "norm_memory": norm_memory}
        for key, value in weights.items():
            require(f"{name}: {key}", value, 0 <= value < 1, "in [0, 1)")
        for key, value in {"average_power": average_power, "weight_decay": weight_decay}.items():
            require(f"{name}: {key}", value, 0 <= value < math.inf, "finite and at least 0")
        require_whole(f"{name}: interpolation_steps", interpolation_steps, 0)
        require_whole(f"{name}: average_start", average_start, 0)
        super().__init__(one_group(name, model_or_params), {})
        self.learning_rate, self.beta1, self.beta2 = learning_rate, beta1, beta2
        self.interpolation, self.last_interpolation = interpolation, last_interpolation
        self.interpolation_steps, self.norm_memory = interpolation_steps, norm_memory
        self.average_power, self.average_start, self.weight_decay = average_power, average_start, weight_decay

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """The gradient at y, Polyak's rate, Adam's step of z, and the average."""
        check_batch(self, batch)
        objective, state = batch.objective, self.shared
        y = objective.direction(objective.parameters).flat
        if not state:
            state.update(self._first_state(y, ("norm", "largest_rate", "weight_sum")))
        loss, gradient = batch.value_and_gradient()
        step = state["steps"] + 1
        mixed = interpolation_at(step, self.interpolation, self.last_interpolation, self.interpolation_steps)
        rate, norm = self._rate(loss, gradient.flat, step, mixed)
        new = {"steps": step, "norm": norm, **self._iterate(gradient.flat, y, step, rate)}
        new |= self._average(new["z"], step, rate)
        finite = self._take(objective, y, new, mixed.to(y.dtype), loss, norm, rate)
        return StepReport(loss, {"learning_rate": rate}, finite)

    def _rate(self, loss: Tensor, gradient: Tensor, step: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """α, and the average e of the gradient's 1-norm."""
        state = self.shared
        size = math.sqrt(math.pi / 2) * torch.linalg.vector_norm(gradient, 1).double()
        norm = torch.lerp(size, state["norm"], self.norm_memory)
        correction = mixed * torch.dot(gradient, state["z"] - state["x"]).double()
        rate = polyak_rate(loss.double(), correction, norm / (1 - self.norm_memory**step))
        return self.learning_rate * rate, norm

    def _iterate(self, gradient: Tensor, y: Tensor, step: Tensor, rate: Tensor) -> dict[str, Tensor]:
        """z, m and v after this step."""
        state, dtype = self.shared, gradient.dtype
        first = torch.lerp(gradient, state["m"], self.beta1)
        second = torch.lerp(gradient.square(), state["v"], self.beta2)
        size = (second / (1 - self.beta2**step).to(dtype)).sqrt_().add_(_GUARD)
        z = state["z"] - (rate / (1 - self.beta1**step)).to(dtype) * first / size
        if self.weight_decay:
            z -= (rate.square() * self.weight_decay).to(dtype) * y
        return {"z": z, "m": first, "v": second}

    def _average(self, z: Tensor, step: Tensor, rate: Tensor) -> dict[str, Tensor]:
        """x after this step, and the sum of the weights."""
        state = self.shared
        largest = torch.maximum(state["largest_rate"], rate)
        weight = (step > self.average_start) * step**self.average_power * largest.square()
        total = state["weight_sum"] + weight
        share = torch.where(total > 0, weight / total, 1.0)
        x = torch.lerp(state["x"], z, share.to(z.dtype))
        return {"x": x, "largest_rate": largest, "weight_sum": total}
