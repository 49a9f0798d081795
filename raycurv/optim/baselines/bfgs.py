"""BFGS with a dense inverse Hessian and a cubic line search, for tiny networks.

Nocedal and Wright, *Numerical Optimization*, algorithm 6.1 with the line search of algorithms 3.5 and 3.6. With the
estimate B of the inverse Hessian, one step is

    p = −B g,   s = t·p,   y = g(Θ + s) − g(Θ),   ϱ = 1 / yᵀs
    B ← (I − ϱ s yᵀ) B (I − ϱ y sᵀ) + ϱ s sᵀ                 (eq. 6.17)

and before the first update B is (yᵀs / yᵀy)·I (eq. 6.20).

With mini-batches both gradients of y are taken on the same batch, so that y holds curvature alone and yᵀs > 0 follows
from the line search. The plain form, which subtracts the gradients of two batches, is noisier.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raycurv.arguments import require
from raycurv.objective import Batch
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, check_batch, one_group
from raycurv.optim.baselines.dense_curvature import check_size
from raycurv.optim.baselines.line_search import LinePoint, strong_wolfe
from raycurv.optim.registry import register

_LEAST_CURVATURE = 1e-10  # of yᵀs / (‖y‖‖s‖): below it the pair is rounding and is skipped


def updated_inverse(inverse: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """Eq. 6.17: the symmetric matrix nearest to `inverse` that maps y to s."""
    rho = 1 / (y @ s)
    left = torch.eye(len(s), dtype=s.dtype, device=s.device) - rho * torch.outer(s, y)
    return left @ inverse @ left.T + rho * torch.outer(s, s)


@register("bfgs")
class BFGS(StepOptimizer):
    """BFGS with a strong-Wolfe line search (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        decrease: c₁ of the line search.
        curvature: c₂ of the line search; small values make it nearly exact.
        evaluations: number of values and gradients in one line search, at most.
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
        decrease: float = 1e-4,  # c₁
        curvature: float = 0.9,  # c₂
        evaluations: int = 30,
        max_parameters: int = 1000,
    ) -> None:
        require("bfgs: curvature", curvature, 0 < curvature < 1, "in (0, 1)")
        require(
            "bfgs: decrease", decrease, 0 < decrease < curvature, f"between 0 and curvature, which is {curvature!r}"
        )
        require("bfgs: evaluations", evaluations, evaluations >= 1, "at least 1")
        super().__init__(one_group("bfgs", model_or_params), {})
        check_size("bfgs", sum(p.numel() for p in self.param_groups[0]["params"]), max_parameters)
        self.decrease, self.curvature, self.evaluations = decrease, curvature, evaluations
        self.max_parameters = max_parameters

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One direction, one line search on the batch, one update of the inverse Hessian."""
        check_batch(self, batch)
        line = _Line(batch)
        finite = torch.isfinite(line.loss) & torch.isfinite(line.gradient).all()
        length = torch.zeros_like(line.loss)
        if finite and line.gradient.any():
            line.aim(self._direction(line.gradient))
            found = strong_wolfe(
                line.evaluate,
                line.start(),
                self._first_step(line.gradient),
                decrease=self.decrease,
                curvature=self.curvature,
                evaluations=self.evaluations,
            )
            line.go(found.step if found else 0.0)
            length += found.step if found else 0.0
            self._update(line, found)
        return StepReport(line.loss, {"learning_rate": length}, finite)

    def _direction(self, gradient: Tensor) -> Tensor:
        inverse = self.shared.get("inverse_hessian")
        direction = -gradient if inverse is None else -inverse @ gradient
        return direction if direction @ gradient < 0 else -gradient

    def _first_step(self, gradient: Tensor) -> float:
        """1 once B has a scale; before that a step of length at most 1."""
        return 1.0 if "inverse_hessian" in self.shared else min(1.0, float(1 / gradient.abs().sum()))

    def _update(self, line: _Line, found: LinePoint | None) -> None:
        state = self.shared
        if found is None:
            state.pop("inverse_hessian", None)  # the model does not hold here: restart with the gradient
            return
        s, y = found.step * line.direction, line.gradients[found.step] - line.gradient
        product = y @ s
        if not product > _LEAST_CURVATURE * y.norm() * s.norm():
            return
        identity = torch.eye(len(s), dtype=s.dtype, device=s.device)
        inverse = state.get("inverse_hessian", identity * (product / (y @ y)))
        state["inverse_hessian"] = updated_inverse(inverse, s, y)


class _Line:
    """The objective of one batch along a direction; evaluating a point moves the parameters there."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.origin = [parameter.clone() for parameter in batch.objective.parameters]
        self.loss, gradient = batch.value_and_gradient()
        self.gradient = gradient.flat.double()
        self.gradients: dict[float, Tensor] = {}

    def aim(self, direction: Tensor) -> None:
        self.direction = direction
        self._views = Direction(direction.to(self.batch.objective.dtype), self.batch.objective.parameters)

    def start(self) -> LinePoint:
        return LinePoint(0.0, float(self.loss), float(self.gradient @ self.direction))

    def evaluate(self, step: float) -> LinePoint:
        self.go(step)
        value, gradient = self.batch.value_and_gradient()
        self.gradients[step] = gradient.flat.double()
        return LinePoint(step, float(value), float(self.gradients[step] @ self.direction))

    def go(self, step: float) -> None:
        parameters = self.batch.objective.parameters
        torch._foreach_copy_(parameters, self.origin)
        torch._foreach_add_(parameters, list(self._views), alpha=step)
