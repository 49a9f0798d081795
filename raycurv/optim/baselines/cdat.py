"""CDAT: a fixed multiple of the learning rate that the curvature along the step suggests.

*Stepping on the Edge: Curvature Aware Learning Rate Tuners* (Roulet, Agarwala, Grill, Swirszcz, Blondel and Pedregosa
2024, arXiv 2407.06183). With u the update of any optimizer at a rate of 1, such as −g or Adam's,

    n = max(−⟨∇f, u⟩, 0)             n̄ ← β·n̄ + (1 − β)·n
    d = |⟨u, ∇²f u⟩| + ε             d̄ ← β·d̄ + (1 − β)·d
    w ← w + η·u    with    η = σ·n̄/d̄

σ = 1 is greedy: with β = 0 it takes the minimum of the quadratic model along u. σ = 2 keeps the run on the edge of
stability: on a quadratic, with β = 0, a step leaves the objective as it was. With β > 0 it may diverge there, since the
curvature of a quadratic cannot fall. The paper finds a σ near 2 best for full batches; with small batches the
best σ depends on their size. With 64 of scikit-learn's digits in a batch (two seeds, 308 steps), a tanh MLP ended along
Adam's direction at a loss of 0.02 and 0.03 with σ = 1, and of 7.1 and 2.5 with σ = 2.

Symbols: σ ``scale``, β ``memory``; β₁ ``beta1`` and β₂ ``beta2`` of the direction.

What is chosen here, and deviations:

- σ is 2, β is 0.9 and ε 1e-12. Both averages begin with 0, which cancels in η.
- f is the objective of the batch with its L2 term; slope and curvature are exact.
- A loss or derivative that is not finite moves nothing and leaves the averages.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raycurv.arguments import require, require_positive
from raycurv.optim.base import Horizon, Params
from raycurv.optim.baselines.directional_rate import DirectionalRate
from raycurv.optim.registry import register_variant

_SMALLEST_CURVATURE = 1e-12  # ε


class CDAT(DirectionalRate):
    """Curvature dynamics aware tuning (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        scale: σ.
        memory: β, in [0, 1).
        beta1: β₁ of the gradient's average; 0 is none.
        beta2: β₂ of the squares' average in RMSProp's preconditioner; None is none.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        scale: float = 2.0,  # σ
        memory: float = 0.9,  # β
        beta1: float = 0.0,
        beta2: float | None = None,
    ) -> None:
        super().__init__("cdat", model_or_params, beta1=beta1, beta2=beta2)
        require_positive(f"{self.name}: scale", scale)
        require(f"{self.name}: memory", memory, 0 <= memory < 1, "in [0, 1)")
        self.scale, self.memory = scale, memory

    def _first(self, zero: Tensor) -> dict[str, Tensor]:
        return {"slope": zero, "curvature_size": zero.clone()}

    def _changed(self, slope: Tensor, curvature: Tensor) -> dict[str, Tensor]:
        new = {"slope": slope.clamp(min=0), "curvature_size": curvature.abs() + _SMALLEST_CURVATURE}
        return {key: torch.lerp(value, self.shared[key], self.memory) for key, value in new.items()}

    def _rate(self, state: dict[str, Tensor]) -> Tensor:
        return self.scale * state["slope"] / state["curvature_size"]


register_variant("cdat_sgd", CDAT, "CDAT along the gradient.", fixed={"beta1": 0.0, "beta2": None})
register_variant(
    "cdat_momentum", CDAT, "CDAT along the averaged gradient.", fixed={"beta2": None}, defaults={"beta1": 0.9}
)
register_variant("cdat_adam", CDAT, "CDAT along Adam's direction.", fixed={}, defaults={"beta1": 0.9, "beta2": 0.999})
