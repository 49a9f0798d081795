"""LLR: the learning rate learned by gradient descent or by Newton's method.

*Gradient descent revisited via an adaptive online learning rate* (Ravaut, Gorti; 2018). With f(η) = L(w − ηg) and
g = ∇L(w), a step is w ← w − ηg, and the rate for the next one (eq. 3, 10, 12 and 13)

    first order:   η ← max(η − α f′(η), δ),                      f′(η(t)) = −⟨g(t), g(t+1)⟩
    second order:  η ← max(η − f′(η) / (f″(η) + δ/(4ε²)), δ)

With momentum on the rate (section 5.2) the change is v ← βv − …, η ← max(η + v, δ). On a validation batch (section 5.3)
f is the loss of that batch, while g stays the gradient of the training batch.

Symbols: η₀ ``learning_rate``, α ``meta_rate``, δ ``floor``, ε ``difference``, δ/(4ε²) ``damping``, β ``momentum``.

What the paper leaves open, and deviations:

- The paper takes f′ and f″ by finite differences from five losses, and adds δ = 1e-6 to the second difference
  f(η+2ε) + f(η−2ε) − 2f(η) where that is nearly zero. With ε = 1e-5 it is 4e-10·f″, so nearly always: the rule is the
  damped one above, with δ/(4ε²) = 2500. It is always added here. The damping has a scale of its own, that of ‖g‖² times
  the curvature along g; without it (0) the paper's rule divides by a curvature of either sign.
- By default f′ and f″ are exact: one forward pass at w − ηg with first and second derivatives along −g, at the cost of
  two losses. In float32 the second difference is far below the rounding of the losses; ``derivatives="differences"``
  therefore evaluates a float64 copy of the network, made in each step. Its dropout mask is the same on the CPU, where
  torch draws the same numbers for both precisions.
- Eq. 5 has one minus sign too many: f″ = gᵀHg.
- First order: g(t+1) is the gradient of the next batch, as in eq. 4, so that a step costs as much as an SGD step; a
  validation batch costs one more gradient, after the step.
- α: the paper has 1e-6 (MNIST) and 1e-9 (raw features), far below what changes a rate of 0.01 in a few epochs. The
  default is 1e-3, as in Baydin et al. (2018) for SGD. The rule depends on the scale of the loss, as the paper says.
- η₀: 0.01, the smaller of the paper's rates for CIFAR-10; from 0.1 it ended at the same rates, and the first step is
  taken before anything is learned.
- An η₀ below δ takes the place of δ: the paper starts the first order from 1e-7, which δ = 1e-6 would replace at the
  first update.
- The first steps have no safeguard: where SGD with the rate η₀ diverges at once (Rosenbrock), so do both orders.
- The validation batch leaves running statistics unchanged.
- A rate that is not finite is discarded. A step whose loss, derivatives or move are not finite is not taken.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from raycurv.arguments import require, require_positive
from raycurv.objective import Batch, Objective
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, check_batch, one_group
from raycurv.optim.gradient_clipping import clip_gradient_, require_clip_gradient
from raycurv.optim.registry import register


class LearnedRate(StepOptimizer):
    """Base of both orders: η, its momentum and its floor."""

    follows_gradient = True
    name: str

    def __init__(
        self,
        model_or_params: Params,
        learning_rate: float,
        momentum: float,
        floor: float,
        on_validation: bool,
        clip_gradient: float | None,
    ) -> None:
        require_positive(f"{self.name}: learning_rate", learning_rate)
        require(f"{self.name}: momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
        require(f"{self.name}: floor", floor, 0 <= floor < math.inf, "finite and at least 0")
        require_clip_gradient(self.name, clip_gradient)
        super().__init__(one_group(self.name, model_or_params), {})
        self.learning_rate, self.momentum, self.floor = learning_rate, momentum, floor
        self.needs_validation, self.clip_gradient = on_validation, clip_gradient

    @property
    def on_validation(self) -> bool:
        """Whether the rate is learned on a validation batch."""
        return self.needs_validation

    def _check(self, batch: Batch, validation: Batch | None) -> None:
        check_batch(self, batch)
        if not self.needs_validation:
            return
        if validation is None:
            raise ValueError(f"{self.name}: on_validation=True needs step(batch, validation=), held-out samples")
        check_batch(self, validation)

    def _start(self, objective: Objective) -> None:
        if not self.shared:
            rate = torch.tensor(self.learning_rate, dtype=torch.float64, device=objective.device)
            self.shared.update(rate=rate, velocity=torch.zeros_like(rate))

    def _learn(self, change: Tensor, finite: Tensor) -> None:
        """v ← βv + change, η ← max(η + v, δ)."""
        state = self.shared
        velocity = self.momentum * state["velocity"] + change
        learned = finite & torch.isfinite(velocity)
        rate = (state["rate"] + velocity).clamp(min=min(self.floor, self.learning_rate))
        state["rate"] = torch.where(learned, rate, state["rate"])
        state["velocity"] = torch.where(learned, velocity, state["velocity"])


@register("llr_first_order")
class LLRFirstOrder(LearnedRate):
    """Gradient descent on the rate (see the module's text for equations and deviations).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        learning_rate: η₀.
        meta_rate: α; 0 is plain SGD.
        momentum: β, momentum of the rate.
        floor: δ, the smallest rate, or η₀ where that is smaller.
        on_validation: whether to learn the rate on the validation batch, which ``step`` then needs.
        clip_gradient: largest global norm of the gradient, or None.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    name = "llr_first_order"

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        learning_rate: float = 0.01,
        meta_rate: float = 1e-3,
        momentum: float = 0.0,
        floor: float = 1e-6,
        on_validation: bool = False,
        clip_gradient: float | None = None,
    ) -> None:
        require(f"{self.name}: meta_rate", meta_rate, 0 <= meta_rate < math.inf, "finite and at least 0")
        super().__init__(model_or_params, learning_rate, momentum, floor, on_validation, clip_gradient)
        self.meta_rate = meta_rate

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One gradient; its inner product with the last one, or with the validation batch's, changes the rate."""
        self._check(batch, validation)
        self._start(batch.objective)
        state = self.shared
        loss, gradient = batch.value_and_gradient()
        clip_gradient_(gradient, self.clip_gradient)
        finite = torch.isfinite(loss) & torch.isfinite(torch.linalg.vector_norm(gradient.flat))
        if validation is not None and self.needs_validation:
            rate, finite = state["rate"], _move(batch.objective, gradient, -state["rate"], finite)
            with _statistics_kept(batch.objective.model):
                slope = -gradient.dot(validation.gradient())
            self._learn(-self.meta_rate * slope, finite)
        else:
            before = state.get("gradient", torch.zeros_like(gradient.flat))
            slope = -gradient.dot(Direction(before, gradient))
            self._learn(-self.meta_rate * slope, finite)
            rate, finite = state["rate"], _move(batch.objective, gradient, -state["rate"], finite)
            state["gradient"] = torch.where(finite, gradient.flat, before)
        return StepReport(loss, {"learning_rate": rate, "slope": slope}, finite)


@register("llr_second_order")
class LLRSecondOrder(LearnedRate):
    """Newton's method on the rate (see the module's text for equations and deviations).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        learning_rate: η₀.
        derivatives: "exact", or "differences" of five losses in float64.
        difference: ε.
        floor: δ, the smallest rate, or η₀ where that is smaller.
        damping: number added to f″; None takes the paper's, δ/(4ε²) = 2500 with these defaults.
        momentum: β, momentum of the rate.
        on_validation: whether to learn the rate on the validation batch, which ``step`` then needs.
        clip_gradient: largest global norm of the gradient, or None.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    name = "llr_second_order"

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        learning_rate: float = 0.01,
        derivatives: Literal["exact", "differences"] = "exact",
        difference: float = 1e-5,
        floor: float = 1e-6,
        damping: float | None = None,
        momentum: float = 0.0,
        on_validation: bool = False,
        clip_gradient: float | None = None,
    ) -> None:
        choices = ("exact", "differences")
        require(f"{self.name}: derivatives", derivatives, derivatives in choices, f"one of {choices}")
        require_positive(f"{self.name}: difference", difference)
        holds = damping is None or 0 <= damping < math.inf
        require(f"{self.name}: damping", damping, holds, "None or finite and at least 0")
        super().__init__(model_or_params, learning_rate, momentum, floor, on_validation, clip_gradient)
        self.derivatives, self.difference = derivatives, difference
        self.damping = floor / (4 * difference**2) if damping is None else damping

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One gradient, f′ and f″ at the rate, the step with it, and the rate of the next one."""
        self._check(batch, validation)
        self._start(batch.objective)
        rate = self.shared["rate"]
        loss, descent = batch.value_and_gradient()
        clip_gradient_(descent, self.clip_gradient)
        descent.flat.neg_()
        if validation is not None and self.needs_validation:
            with _statistics_kept(batch.objective.model):
                slope, curvature = self._along(validation, descent, rate)
        else:
            slope, curvature = self._along(batch, descent, rate)
        finite = _move(batch.objective, descent, rate, torch.isfinite(loss + slope + curvature))
        self._learn(-slope / (curvature + self._damping(slope, curvature, finite)), finite)
        return StepReport(loss, {"learning_rate": rate, "slope": slope, "curvature": curvature}, finite)

    def _damping(self, slope: Tensor, curvature: Tensor, finite: Tensor) -> float | Tensor:
        """The number added to f″."""
        return self.damping

    def _along(self, batch: Batch, descent: Direction, rate: Tensor) -> tuple[Tensor, Tensor]:
        """f′ and f″ at the rate."""
        if self.derivatives == "exact":
            taylor = batch.taylor_along(descent, at=rate)
            return taylor.slope, taylor.curvature
        e, double = self.difference, batch.in_double()
        steps = [rate + 2 * e, rate + e, rate, rate - e, rate - 2 * e]
        wide = [tensor.double() for tensor in descent]
        f = double.values_along(wide, torch.stack(steps))
        return (f[1] - f[3]) / (2 * e), (f[0] + f[4] - 2 * f[2]) / (4 * e**2)


def _move(objective: Objective, direction: Direction, rate: Tensor, finite: Tensor) -> Tensor:
    """Θ ← Θ + rate·direction where everything is finite; returns whether it is."""
    move = Direction(direction.flat * rate, objective.parameters)
    finite = finite & torch.isfinite(torch.linalg.vector_norm(move.flat))
    torch._foreach_add_(objective.parameters, move.keep_if(finite))
    return finite


@contextlib.contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Restore the running statistics at the end."""
    kept = [buffer.clone() for buffer in model.buffers()]
    yield
    for buffer, value in zip(model.buffers(), kept, strict=True):
        buffer.copy_(value)
