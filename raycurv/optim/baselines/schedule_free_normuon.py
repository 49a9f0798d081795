"""SF-NorMuon: Schedule-Free steps along orthogonalised gradients with normalised rows.

*Anytime Training with Schedule-Free Spectral Optimization* (Apte et al. 2026, arXiv 2605.23061, algorithm 1). z is the
fast iterate, x the average of all z, which is evaluated, and y the point of the gradient, which the model holds in
training. For a parameter with m rows and n columns, and its gradient g at y, in the step number t, from 1:

    M ← μ·M + (1 − μ)·g          P = polar(M)
    v ← β₂·v + (1 − β₂)·(mean of P² over the columns)
    P̂ = P/(√v + ε), row by row
    η_t = η·min(t/T, 1)
    z ← z − η·λ·z − 0.2·η_t·√(m·n)/‖P̂‖·P̂
    x ← (1 − c)·x + c·z    with    c = η_t²/Σ η²
    y = β₁·x + (1 − β₁)·z

polar(M) is U·Vᵀ of the singular value decomposition of M, which Muon's iteration approximates: with
X = M/(‖M‖ + ε), five times X ← a·X + (b·A + c·A²)·X, where A = X·Xᵀ. Singular values come to between 0.7 and 1.2.

Symbols: η ``learning_rate``, β₁ ``interpolation``, β₂ ``beta2``, μ ``momentum``, λ ``weight_decay``, T
``warmup_steps``. ε is 1e-8.

What is chosen here, and deviations:

- The kernels of a convolution are rows. Embeddings and the last layer are matrices as any other.
- Biases and norms, of one dimension, take the step of Schedule-Free Adam at the same rate:
  z ← z − η·λ·z − η_t·g/(√(v/(1 − β₂ᵗ)) + ε) with v ← β₂·v + (1 − β₂)·g².
- The authors' code was not at hand; defaults are those that others quote for their algorithm. T is theirs for runs of
  tens of thousands of steps; here it is 100.
- The iteration runs in the dtype of the parameters, not in bfloat16.
- A loss or gradient that is not finite moves nothing and is not counted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raycurv.arguments import require, require_positive, require_whole
from raycurv.objective import Batch, Objective
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, Params, StepReport, check_batch, one_group
from raycurv.optim.baselines.evaluated_average import EvaluatedAverage
from raycurv.optim.registry import register

_GUARD = 1e-8  # ε
_STEP_SIZE = 0.2  # of an entry, in quadratic mean, at rate 1
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # a, b, c of Muon's iteration
_ITERATIONS = 5


def polar(matrix: Tensor) -> Tensor:
    """The matrix with singular values near 1, by Muon's iteration, (m, n)."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (torch.linalg.vector_norm(wide) + _GUARD)
    a, b, c = _POLYNOMIAL
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide is matrix else x.T


@register("schedule_free_normuon")
class ScheduleFreeNorMuon(EvaluatedAverage):
    """SF-NorMuon (see the module's text); the average of its iterates is evaluated.

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        learning_rate: η.
        interpolation: β₁, in [0, 1).
        beta2: β₂, in [0, 1).
        momentum: μ, in [0, 1).
        weight_decay: λ.
        warmup_steps: T; 0 is no warm-up.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        learning_rate: float = 0.01,  # η
        interpolation: float = 0.9,  # β₁
        beta2: float = 0.95,
        momentum: float = 0.8,  # μ
        weight_decay: float = 0.05,  # λ
        warmup_steps: int = 100,  # T
    ) -> None:
        name = "schedule_free_normuon"
        require_positive(f"{name}: learning_rate", learning_rate)
        for key, value in {"interpolation": interpolation, "beta2": beta2, "momentum": momentum}.items():
            require(f"{name}: {key}", value, 0 <= value < 1, "in [0, 1)")
        require(f"{name}: weight_decay", weight_decay, 0 <= weight_decay < math.inf, "finite and at least 0")
        require_whole(f"{name}: warmup_steps", warmup_steps, 0)
        super().__init__(one_group(name, model_or_params), {})
        self.learning_rate, self.interpolation, self.beta2 = learning_rate, interpolation, beta2
        self.momentum, self.weight_decay, self.warmup_steps = momentum, weight_decay, warmup_steps

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """The gradient at y, the step of z, and the average."""
        check_batch(self, batch)
        objective, state = batch.objective, self.shared
        y = objective.direction(objective.parameters).flat
        if not state:
            state.update(self._first_state(y, ("weight_sum",)))
        loss, gradient = batch.value_and_gradient()
        step = state["steps"] + 1
        rate = self.learning_rate * (step / self.warmup_steps if self.warmup_steps else step).clamp(max=1)
        new = {"steps": step, **self._iterate(objective, gradient.flat, step, rate.to(y.dtype))}
        new["weight_sum"] = state["weight_sum"] + rate.square()
        new["x"] = torch.lerp(state["x"], new["z"], (rate.square() / new["weight_sum"]).to(y.dtype))
        finite = self._take(objective, y, new, self.interpolation, loss)
        return StepReport(loss, {"learning_rate": rate}, finite)

    def _iterate(self, objective: Objective, gradient: Tensor, step: Tensor, rate: Tensor) -> dict[str, Tensor]:
        """z, M and v after this step; v is repeated over the columns."""
        state, parameters = self.shared, objective.parameters
        first = torch.lerp(gradient, state["m"], self.momentum)
        parts = zip(*(Direction(x, parameters) for x in (gradient, first, state["v"], state["z"])), strict=True)
        moved = [self._of_one(*part, step=step, rate=rate) for part in parts]
        z, second = (torch.cat([x.flatten() for x in column]) for column in zip(*moved, strict=True))
        return {"z": z, "m": first, "v": second}

    def _of_one(self, g: Tensor, m: Tensor, v: Tensor, z: Tensor, *, step: Tensor, rate: Tensor) -> tuple[Tensor, ...]:
        """z and v of one parameter."""
        z = z * (1 - self.learning_rate * self.weight_decay)
        if z.dim() < 2:
            v = torch.lerp(g.square(), v, self.beta2)
            return z - rate * g / ((v / (1 - self.beta2**step).to(v.dtype)).sqrt() + _GUARD), v
        p = polar(m.flatten(1)).view_as(m)
        rows = p.flatten(1).square().mean(1).view(-1, *(1,) * (m.dim() - 1))
        v = torch.lerp(rows.expand_as(v), v, self.beta2)
        scaled = p / (v.sqrt() + _GUARD)
        size = torch.linalg.vector_norm(scaled)
        factor = torch.where(size > 0, _STEP_SIZE * rate * math.sqrt(p.numel()) / size, 0.0)
        return z - factor * scaled, v
