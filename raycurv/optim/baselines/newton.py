"""Newton's method with the exact Hessian and the absolute values of its eigenvalues, for tiny networks.

*Identifying and attacking the saddle point problem in high-dimensional non-convex optimization* (Dauphin et al.,
NeurIPS 2014): with H = V diag(h) Vᵀ,

    Θ ← Θ − t V diag(1 / (|h| + damping)) Vᵀ ∇J

so that directions of negative curvature are left by as much as directions of positive curvature are followed. This is
the row "Exact Hessian" of CurveBall's Table 1, whose damping and step control the paper does not give. Here t starts at
1 and is halved until the batch's objective falls enough (Nocedal and Wright, *Numerical Optimization*, algorithms 3.1
and 3.2): without that, full steps solve Rosenbrock in 4 iterations and never solve Rahimi-Recht.

Without damping, eigenvalues below the rounding of the largest are noise: along them nothing moves (pseudo-inverse).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raycurv.arguments import require
from raycurv.objective import Batch
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, check_batch, one_group
from raycurv.optim.baselines.dense_curvature import Quadratic, check_size, hessian, move
from raycurv.optim.registry import register

_DECREASE = 1e-4  # c₁: share of the decrease predicted by the slope that a step must reach


def newton_step(gradient: Tensor, eigenvalues: Tensor, vectors: Tensor, damping: float) -> Tensor:
    """−V diag(1 / (|h| + damping)) Vᵀ g, without the directions whose curvature is rounding.

    Args:
        gradient: g, (p,).
        eigenvalues: h, (p,).
        vectors: V, (p, p), one eigenvector per column.
        damping: number added to every absolute eigenvalue.
    """
    size = eigenvalues.abs()
    rounding = len(size) * torch.finfo(size.dtype).eps * size.max()
    scale = torch.where(size + damping > rounding, 1 / (size + damping), 0.0)
    return -vectors @ (scale * (vectors.T @ gradient))


@register("newton")
class Newton(StepOptimizer):
    """Newton steps with absolute eigenvalues (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        damping: number added to the absolute eigenvalues.
        halvings: largest number of halvings of t, after which the parameters stay; 0 takes every full step.
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
        damping: float = 1e-2,
        halvings: int = 30,
        max_parameters: int = 1000,
    ) -> None:
        require("newton: damping", damping, 0 <= damping < math.inf, "finite and at least 0")
        require("newton: halvings", halvings, 0 <= halvings < math.inf, "finite and at least 0")
        super().__init__(one_group("newton", model_or_params), {})
        check_size("newton", sum(p.numel() for p in self.param_groups[0]["params"]), max_parameters)
        self.damping, self.halvings, self.max_parameters = damping, halvings, max_parameters

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One eigendecomposition of the batch's Hessian, one step, shortened until it lowers the batch's objective."""
        check_batch(self, batch)
        model = hessian(batch)
        finite = model.finite()
        scalars: dict[str, Tensor] = {}
        if finite:
            eigenvalues, vectors = torch.linalg.eigh(model.matrix)
            step = newton_step(model.gradient, eigenvalues, vectors, self.damping)
            length = self._length(batch, model, step)
            scalars = {"learning_rate": torch.full_like(model.loss, length), "smallest_eigenvalue": eigenvalues[0]}
            finite = torch.isfinite(step).all()
            if finite and length:
                move(batch.objective, length * step)
        return StepReport(model.loss, scalars, finite)

    def _length(self, batch: Batch, model: Quadratic, step: Tensor) -> float:
        """The first t of 1, ½, ¼, … with J(Θ + t·step) ≤ J(Θ) + c₁·t·slope; 0 if there is none."""
        if self.halvings == 0:
            return 1.0
        direction = Direction(step.to(batch.objective.dtype), batch.objective.parameters)
        slope = float(model.gradient @ step)
        for halving in range(self.halvings + 1):
            length = 0.5**halving
            if batch.values_along(direction, [length])[0] <= model.loss + _DECREASE * length * slope:
                return length
        return 0.0
