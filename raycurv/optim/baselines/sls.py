"""SLS: stochastic gradient descent with Armijo's line search on the batch.

*Painless Stochastic Gradient: Interpolation, Line-Search, and Convergence Rates* (Vaswani, Mishkin, Laradji, Schmidt,
Gidel, Lacoste-Julien; 2019). With f the objective of the batch, Algorithm 1 takes the first rate η, going down by β,
that satisfies

    f(w − η∇f(w)) ≤ f(w) − c·η·‖∇f(w)‖²        (eq. 1)

and begins the next search at γ^{b/n} η for batches of b out of n samples (Algorithm 2, option 2).

Symbols: c ``decrease``, β ``backtracking``, γ ``growth``, first η ``learning_rate``, η_max ``largest_rate``.

What the paper leaves open, and deviations:

- c = 0.1, β = 0.9, γ = 2, first η 1 and η_max 10 are those of the paper's experiments with networks and its code.
- n/b is the number of steps in an epoch; without a horizon 500, as in the published code.
- Where `attempts` rates fail, which happens where rounding hides every decrease, nothing moves and the next search
  begins at the rate of this one; the published code takes a step of 1e-6.
- A gradient of zero moves nothing and keeps the rate. A loss or gradient that is not finite moves nothing and is
  reported; a rate at which the objective is NaN or infinite does not satisfy the condition.
"""

from __future__ import annotations

import torch

from raycurv.arguments import require, require_positive
from raycurv.objective import Batch
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, check_batch, one_group
from raycurv.optim.baselines.schedules import growth_per_step
from raycurv.optim.registry import register


def armijo(
    batch: Batch,
    direction: Direction,
    *,
    value: float,
    slope: float,
    first: float,
    decrease: float,
    backtracking: float,
    attempts: int,
) -> float:
    """The first step of first·β^i that lowers the batch's objective enough, or 0.

    Args:
        batch: batch whose objective is evaluated.
        direction: direction of the search.
        value: objective at the parameters, f.
        slope: slope of the objective along `direction`; not positive.
        first: first step to try.
        decrease: c.
        backtracking: β.
        attempts: number of steps to try.
    """
    step = first
    for _ in range(attempts):
        if float(batch.values_along(direction, [step])[0]) <= value + decrease * step * slope:  # False for NaN
            return step
        step *= backtracking
    return 0.0


@register("sls")
class SLS(StepOptimizer):
    """SGD with Armijo's line search (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: its steps per epoch give n/b.
        learning_rate: η, first rate of the first search.
        decrease: c, in (0, 1).
        backtracking: β, in (0, 1).
        growth: γ, at least 1.
        largest_rate: η_max.
        attempts: number of rates tried in one search.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    synchronises = True

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        learning_rate: float = 1.0,  # η
        decrease: float = 0.1,  # c
        backtracking: float = 0.9,  # β
        growth: float = 2.0,  # γ
        largest_rate: float = 10.0,  # η_max
        attempts: int = 100,
    ) -> None:
        require_positive("sls: learning_rate", learning_rate)
        require("sls: decrease", decrease, 0 < decrease < 1, "in (0, 1)")
        require("sls: backtracking", backtracking, 0 < backtracking < 1, "in (0, 1)")
        require("sls: growth", growth, 1 <= growth < float("inf"), "finite and at least 1")
        require_positive("sls: largest_rate", largest_rate)
        require("sls: attempts", attempts, attempts >= 1, "at least 1")
        super().__init__(one_group("sls", model_or_params), {})
        self.learning_rate, self.largest_rate, self.growth = learning_rate, largest_rate, growth
        self._growth_per_step = growth_per_step(growth, horizon)
        self.decrease, self.backtracking, self.attempts = decrease, backtracking, attempts

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One gradient, and rates tried from large to small."""
        check_batch(self, batch)
        objective, state = batch.objective, self.shared
        loss, gradient = batch.value_and_gradient()
        squared = float(torch.linalg.vector_norm(gradient.flat, dtype=torch.float64).square())
        finite = torch.isfinite(loss) & (squared < float("inf"))
        last, rate = state.get("rate"), 0.0
        if finite and squared > 0:
            first = self.learning_rate if last is None else min(last * self._growth_per_step, self.largest_rate)
            descent = gradient.scaled(-1.0)
            rate = armijo(
                batch,
                descent,
                value=float(loss),
                slope=-squared,
                first=first,
                decrease=self.decrease,
                backtracking=self.backtracking,
                attempts=self.attempts,
            )
            torch._foreach_add_(objective.parameters, descent, alpha=rate)
            state["rate"] = rate or first
        return StepReport(loss, {"learning_rate": torch.full_like(loss, rate)}, finite)
