"""Hessian-free: damped Gauss-Newton steps solved by conjugate gradients, from matrix-vector products.

*Deep learning via Hessian-free optimization* (Martens 2010), the method of CurveBall's Algorithm 2 and Figure 7. With
G = J_φ H_L J_φᵀ and the L2 term's Hessian, a step minimises

    q(p) = ∇Jᵀp + ½ pᵀ(G + λI)p

by conjugate gradients from ζ times the last solution, until (section 4.4)

    i > k,  q(x_i) < 0  and  (q(x_i) − q(x_{i−k})) / q(x_i) < kε,    k = max(10, 0.1 i),  ε = 5·10⁻⁴.

Of the iterates at i = ⌈1.3^j⌉ and the last one, walking back from the last, p is the one before the batch's objective
begins to grow (section 4.6). It is taken with the first length 0.8^i that satisfies Armijo's condition with c = 10⁻²,
and λ follows the reduction ratio (section 4.1)

    ϱ = (J(θ + p) − J(θ)) / (∇Jᵀp + ½ pᵀGp):    λ ← ⅔λ where ϱ > ¾,  λ ← ³⁄₂λ where ϱ < ¼

Symbols: λ₀ ``damping``, ζ ``memory``, largest number of iterations ``iterations``.

What the paper leaves open, and deviations:

- Gradient, curvature and objective are those of one and the same batch; Martens takes the gradient of the whole set.
- No preconditioner: Martens' needs the squared gradients of single samples.
- λ₀ is 1, ζ 0.95 (Martens and Sutskever 2012; the paper has 1), and the limit is 50 iterations where the paper has 250,
  whose batches are large. The quadratic model in ϱ is the undamped one.
- Where the start is worse than no step, q > 0, conjugate gradients begin at 0, so that p always goes downhill.
- Where no length satisfies Armijo's condition nothing moves, and λ grows. A gradient of zero moves nothing. A loss or
  gradient that is not finite moves nothing and is reported.
- A step costs a forward and a backward pass, a tangent and a backward pass for each iteration, and a forward pass for
  each value of the objective. Some fifteen iterates are kept: for small and medium networks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from raycurv.arguments import require, require_positive
from raycurv.objective import Batch
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, check_batch, one_group
from raycurv.optim.baselines.sls import armijo
from raycurv.optim.registry import register

_TOLERANCE = 5e-4  # ε
_DECREASE, _BACKTRACKING, _ATTEMPTS = 1e-2, 0.8, 60  # of Armijo's condition
_SPREAD = 1.3  # iterates are kept at its powers

Product = Callable[[Tensor], Tensor]


def conjugate_gradients(product: Product, gradient: Tensor, start: Tensor, iterations: int) -> tuple[list[Tensor], int]:
    """Minimise q(x) = gᵀx + ½ xᵀBx until q falls by less than kε in k iterations.

    Args:
        product: x ↦ Bx, positive definite.
        gradient: g, not zero.
        start: x₀; replaced by 0 if q(x₀) > 0.
        iterations: largest number of iterations.

    Returns:
        Iterates to choose from, in order, and the number of iterations.
    """
    x, residual = start, gradient
    if start.any():
        residual = product(start) + gradient
        if torch.dot(start, residual + gradient) > 0:
            x, residual = torch.zeros_like(start), gradient
    values, kept, powers = [_quadratic_value(x, residual, gradient)], [], _powers()
    keep_at, direction, squared = next(powers), -residual, torch.dot(residual, residual)
    for i in range(1, iterations + 1):
        mapped = product(direction)
        curvature = torch.dot(direction, mapped)
        if not curvature > 0:  # the residual is zero or rounding, or a product is not finite
            break
        length = squared / curvature
        x, residual = x + length * direction, residual + length * mapped
        values.append(_quadratic_value(x, residual, gradient))
        if i == keep_at:
            keep_at = next(powers)
            kept.append(x)
        if _converged(values):
            break
        before, squared = squared, torch.dot(residual, residual)
        direction = squared / before * direction - residual
    return [*kept, x] if not kept or kept[-1] is not x else kept, len(values) - 1


def _quadratic_value(x: Tensor, residual: Tensor, gradient: Tensor) -> float:
    """q(x) = ½ xᵀ(r + g), with the residual r = Bx + g."""
    return 0.5 * float(torch.dot(x, residual + gradient))


def _converged(values: list[float]) -> bool:
    i = len(values) - 1
    k = max(10, math.ceil(0.1 * i))
    return i > k and values[i] < 0 and (values[i] - values[i - k]) / values[i] < k * _TOLERANCE


def _powers() -> Iterator[int]:
    """Powers of 1.3, rounded up.

    Yields:
        ⌈1.3^j⌉, each once.
    """
    last = 0
    for j in itertools.count(1):
        if (power := math.ceil(_SPREAD**j)) > last:
            last = power
            yield power


@register("hessian_free")
class HessianFree(StepOptimizer):
    """Hessian-free optimisation (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        damping: λ₀.
        iterations: largest number of conjugate-gradient iterations in one step.
        memory: ζ, in [0, 1]; 0 starts every solution at zero.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    synchronises = True

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        damping: float = 1.0,  # λ₀
        iterations: int = 50,
        memory: float = 0.95,  # ζ
    ) -> None:
        require_positive("hessian_free: damping", damping)
        require("hessian_free: iterations", iterations, iterations >= 1, "at least 1")
        require("hessian_free: memory", memory, 0 <= memory <= 1, "in [0, 1]")
        super().__init__(one_group("hessian_free", model_or_params), {})
        self.damping, self.iterations, self.memory = damping, iterations, memory

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One linearisation, conjugate gradients, the best of their iterates, and a length for it."""
        check_batch(self, batch)
        damping = float(self.shared.get("damping", self.damping))
        model = _GaussNewton(batch)
        finite = torch.isfinite(model.loss) & torch.isfinite(model.gradient).all()
        found = {"learning_rate": 0.0, "iterations": 0.0, "reduction_ratio": 0.0}
        if finite and model.gradient.any():
            found = self._move(batch, model, damping)
        numbers = {"damping": damping, **found}
        return StepReport(model.loss, {key: torch.full_like(model.loss, x) for key, x in numbers.items()}, finite)

    def _move(self, batch: Batch, model: _GaussNewton, damping: float) -> dict[str, float]:
        state, gradient, loss = self.shared, model.gradient, float(model.loss)
        start = self.memory * state["solution"] if "solution" in state else torch.zeros_like(gradient)
        iterates, count = conjugate_gradients(
            lambda v: model.product(v) + damping * v, gradient, start, self.iterations
        )
        p, value = _best(batch, iterates)
        slope = float(torch.dot(gradient, p))
        predicted = slope + 0.5 * float(torch.dot(p, model.product(p)))
        ratio = (value - loss) / predicted if predicted < 0 else 0.0  # 0 where the numbers underflow
        direction = Direction(p, batch.objective.parameters)
        length = armijo(
            batch,
            direction,
            value=loss,
            slope=slope,
            first=1.0,
            decrease=_DECREASE,
            backtracking=_BACKTRACKING,
            attempts=_ATTEMPTS,
        )
        torch._foreach_add_(batch.objective.parameters, direction, alpha=length)
        state["solution"], state["damping"] = iterates[-1], damping * _factor(ratio)
        return {"learning_rate": length, "iterations": float(count), "reduction_ratio": ratio}


class _GaussNewton:
    """Gradient and Gauss-Newton products of the objective, from one kept forward pass; flat vectors."""

    def __init__(self, batch: Batch) -> None:
        self.objective = batch.objective
        self.linear = batch.linearise()
        pulled = self.linear.pull(self.linear.gradient, keep=True)
        self.loss = self.linear.loss() + self.objective.l2_value(self.objective.parameters)
        self.gradient = pulled.flat + self.objective.l2_gradient(self.objective.parameters).flat

    def product(self, vector: Tensor) -> Tensor:
        direction = Direction(vector, self.objective.parameters)
        pulled = self.linear.pull(self.linear.hessian(self.linear.push(direction)), keep=True)
        return pulled.flat + self.objective.l2_gradient(direction).flat


def _best(batch: Batch, iterates: list[Tensor]) -> tuple[Tensor, float]:
    """Walk back from the last iterate while the objective falls; returns that iterate and its objective."""
    best, lowest = iterates[-1], _at(batch, iterates[-1])
    for x in reversed(iterates[:-1]):
        value = _at(batch, x)
        if not value < lowest and math.isfinite(lowest):
            break
        best, lowest = x, value
    return best, lowest


def _at(batch: Batch, step: Tensor) -> float:
    return float(batch.values_along(Direction(step, batch.objective.parameters), [1.0])[0])


def _factor(ratio: float) -> float:
    """Factor of λ; NaN counts as a failure."""
    return 2 / 3 if ratio > 0.75 else 1.0 if ratio >= 0.25 else 1.5
