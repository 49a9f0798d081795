"""Levenberg-Marquardt: damped Gauss-Newton steps with a dense matrix, for tiny networks.

Marquardt, *An Algorithm for Least-Squares Estimation of Nonlinear Parameters* (1963); Moré, *The Levenberg-Marquardt
algorithm: implementation and theory* (1978). With G = J_φ H_L J_φᵀ and D = diag(G), a step solves

    (G + λD) p = −∇J

A step that lowers the batch's objective is taken and λ divided by ν; otherwise λ is multiplied by ν and the step solved
again, within the same iteration. Scaling by D (Moré's scaling, CurveBall section 2.1) makes the step independent of the
parameters' units. λ → 0 is Gauss-Newton, λ → ∞ a short scaled gradient step.

Deviations:

- D is taken anew at every step (Moré keeps the largest seen).
- λ follows Marquardt's rule (λ₀ = 0.01, ν = 10) in place of Moré's trust region.
- Any loss with a positive semi-definite H_L serves, not only squares.
- An iteration ends where the model predicts a decrease below the rounding of the objective, and λ stays as it was. At a
  minimum no step can lower the objective, so Marquardt's λ would grow to infinity there and never come back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raycurv.arguments import require, require_positive
from raycurv.objective import Batch
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, check_batch, one_group
from raycurv.optim.baselines.dense_curvature import Quadratic, check_size, gauss_newton, move
from raycurv.optim.registry import register

_SMALLEST_DAMPING = 1e-15  # keeps λ from underflowing on long runs; far below any effect


def damped_step(model: Quadratic, damping: float) -> Tensor | None:
    """−(G + λD)⁻¹ ∇J, solved in the scaling where D is one; None if rounding leaves the matrix indefinite.

    Parameters without influence on the outputs (a zero on the diagonal) stay where they are.
    """
    diagonal = model.matrix.diagonal()
    scale = torch.where(diagonal > 0, diagonal.clamp(min=0).rsqrt(), 0.0)
    scaled = scale[:, None] * model.matrix * scale
    scaled.diagonal().add_(damping).masked_fill_(diagonal <= 0, 1.0)
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if failed:
        return None
    return -scale * torch.cholesky_solve((scale * model.gradient)[:, None], factor)[:, 0]


def predicted_decrease(model: Quadratic, step: Tensor) -> Tensor:
    """−∇Jᵀp − ½ pᵀGp: decrease of the objective in the model without damping, 0-d."""
    return -(model.gradient @ step + 0.5 * step @ model.matrix @ step)


@register("levenberg_marquardt")
class LevenbergMarquardt(StepOptimizer):
    """Levenberg-Marquardt with Marquardt's damping rule (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        damping: λ₀.
        factor: ν, factor by which λ falls after a success and grows after a failure.
        attempts: steps tried in one iteration before the parameters stay where they are.
        max_parameters: largest number of parameters; larger networks are refused.

    Raises:
        ValueError: more parameters than that, several groups, or a setting out of bounds.
    """

    synchronises = True

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        damping: float = 1e-2,  # λ₀
        factor: float = 10.0,  # ν
        attempts: int = 20,
        max_parameters: int = 1000,
    ) -> None:
        require_positive("levenberg_marquardt: damping", damping)
        require("levenberg_marquardt: factor", factor, 1 < factor < math.inf, "finite and above 1")
        require("levenberg_marquardt: attempts", attempts, 1 <= attempts < math.inf, "finite and at least 1")
        super().__init__(one_group("levenberg_marquardt", model_or_params), {})
        check_size("levenberg_marquardt", sum(p.numel() for p in self.param_groups[0]["params"]), max_parameters)
        self.damping, self.factor, self.attempts, self.max_parameters = damping, factor, attempts, max_parameters

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One Gauss-Newton matrix, and damped steps until one lowers the batch's objective."""
        check_batch(self, batch)
        damping = float(self.shared.get("damping", self.damping))
        model = gauss_newton(batch)
        finite = model.finite()
        before = used = damping
        rounding = torch.finfo(batch.objective.dtype).eps * model.loss.abs()
        for _ in range(self.attempts if finite else 0):
            used = damping
            step = damped_step(model, damping)
            if step is not None and predicted_decrease(model, step) <= rounding:
                damping = before
                break
            if step is not None and self._lowers(batch, step, model.loss):
                move(batch.objective, step)
                damping = max(damping / self.factor, _SMALLEST_DAMPING)
                break
            damping *= self.factor
        self.shared["damping"] = damping
        return StepReport(model.loss, {"damping": torch.full_like(model.loss, used)}, finite)

    def _lowers(self, batch: Batch, step: Tensor, loss: Tensor) -> bool:
        direction = Direction(step.to(batch.objective.dtype), batch.objective.parameters)
        return bool(batch.values_along(direction, [1.0])[0] < loss)  # False for NaN
