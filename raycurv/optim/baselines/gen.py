"""GeN: Newton's method along the direction of any optimizer.

*Gradient descent with generalized Newton's method* (Bu and Xu, ICLR 2025, arXiv 2407.02772). With G the gradient of the
batch, H its Hessian and g the direction of any optimizer, the quadratic model of J(w − η·g) has its minimum at

    η* = ⟨G, g⟩ / ⟨g, H g⟩

Where both are positive, in every Φ-th step before it is taken,

    η ← γ·η + (1 − γ)·min(max(η*, η/2), 2η)        w ← w − η·g

Symbols: first η ``learning_rate``, γ ``smoothing``, Φ ``interval``; β₁ ``beta1`` and β₂ ``beta2`` of the direction.

What is chosen here, and deviations:

- ⟨G, g⟩ and ⟨g, H g⟩ are exact. The paper fits a parabola to the losses at w − η·g, w and w + η·g, and refuses fits
  with R² ≤ 0.99, a test that an exact derivative does not need.
- All is asked of the batch of the step. The authors' package takes the losses of the next batch.
- The bounds η/2 and 2η are those of the package, and so is γ = 0.9. The package's factor 1 − t/T is left out.
- Φ is 4, the smallest that the package recommends for speed. The first η is 0.01 along the gradient and its average,
  and 1e-3 along Adam's direction.
- J has its L2 term. A loss or derivative that is not finite moves nothing and leaves η.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raycurv.arguments import require, require_positive, require_whole
from raycurv.optim.base import Horizon, Params
from raycurv.optim.baselines.directional_rate import DirectionalRate
from raycurv.optim.registry import register_variant

_LARGEST_CHANGE = 2.0  # of η*, as a factor of η


def smoothed_rate(rate: Tensor, slope: Tensor, curvature: Tensor, smoothing: float) -> Tensor:
    """η after a step with these derivatives; the same η where either is not positive."""
    wanted = torch.clamp(slope / curvature, rate / _LARGEST_CHANGE, rate * _LARGEST_CHANGE)
    return torch.where((slope > 0) & (curvature > 0), torch.lerp(wanted, rate, smoothing), rate)


class GeN(DirectionalRate):
    """The generalized Newton's method (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        learning_rate: first η.
        smoothing: γ, in [0, 1).
        interval: Φ, steps from one change of η to the next.
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
        learning_rate: float = 0.01,  # η
        smoothing: float = 0.9,  # γ
        interval: int = 4,  # Φ
        beta1: float = 0.0,
        beta2: float | None = None,
    ) -> None:
        super().__init__("gen", model_or_params, beta1=beta1, beta2=beta2)
        require_positive(f"{self.name}: learning_rate", learning_rate)
        require(f"{self.name}: smoothing", smoothing, 0 <= smoothing < 1, "in [0, 1)")
        require_whole(f"{self.name}: interval", interval, 1)
        self.learning_rate, self.smoothing, self.interval = learning_rate, smoothing, interval

    def _first(self, zero: Tensor) -> dict[str, Tensor]:
        return {"rate": zero + self.learning_rate}

    def _needs_curvature(self, step: int) -> bool:
        return step % self.interval == 0

    def _changed(self, slope: Tensor, curvature: Tensor) -> dict[str, Tensor]:
        return {"rate": smoothed_rate(self.shared["rate"], slope, curvature, self.smoothing)}

    def _rate(self, state: dict[str, Tensor]) -> Tensor:
        return state["rate"]


register_variant("gen_sgd", GeN, "GeN along the gradient.", fixed={"beta1": 0.0, "beta2": None})
register_variant(
    "gen_momentum", GeN, "GeN along the averaged gradient.", fixed={"beta2": None}, defaults={"beta1": 0.9}
)
register_variant(
    "gen_adam",
    GeN,
    "GeN along Adam's direction.",
    fixed={},
    defaults={"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999},
)
