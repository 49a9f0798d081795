"""Ag-Adam: Adam's direction with the learning rates of ALERA.

*Stochastic Gradient Descent: Going As Fast As Possible But Not Faster* (Schoenauer Sebag, Schoenauer, Sebag; 2017). The
rates η of the tensors follow the moving average p of normalised gradients (eq. 2 to 6, see `salera`); the parameters
move by

    θ ← θ − η m̂/(√v̂ + ε)

What the paper leaves open, besides the points listed in `salera`:

- p is an average of gradients, as in ALERA; the paper does not say.
- η₀ is 1e-3, as in Adam; the paper's best is not given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raycurv.arguments import require, require_positive
from raycurv.curvature.rules import chunk_size
from raycurv.objective import Objective
from raycurv.objective.direction import Direction
from raycurv.optim.base import Horizon, Params
from raycurv.optim.registry import register
from raycurv.optim.salera import ALERA


@register("ag_adam")
class AgAdam(ALERA):
    """Ag-Adam: rates of ALERA, direction m̂/(√v̂ + ε) of Adam (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: not used.
        learning_rate: η₀.
        memory: α, in (0, 1).
        gain: C; 0 is plain Adam.
        beta1: decay rate of the first moment.
        beta2: decay rate of the second moment.
        epsilon: ε.
        clip_gradient: largest global norm of the gradient, or None.
        rates_by_tensor: whether to report the rate of each tensor too, as ``learning_rate/<name>``.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    name = "ag_adam"

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        learning_rate: float = 1e-3,
        memory: float = 0.001,
        gain: float = 3e-6,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        clip_gradient: float | None = None,
        rates_by_tensor: bool = False,
    ) -> None:
        require(f"{self.name}: beta1", beta1, 0 <= beta1 < 1, "in [0, 1)")
        require(f"{self.name}: beta2", beta2, 0 <= beta2 < 1, "in [0, 1)")
        require_positive(f"{self.name}: epsilon", epsilon)
        super().__init__(
            model_or_params,
            learning_rate=learning_rate,
            memory=memory,
            gain=gain,
            clip_gradient=clip_gradient,
            rates_by_tensor=rates_by_tensor,
        )
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon

    def _initial(self, objective: Objective) -> dict[str, Tensor]:
        found = super()._initial(objective)
        moments = {key: torch.zeros_like(found["path"]) for key in ("first", "second")}
        return found | moments | {"taken": torch.zeros((), dtype=torch.float64, device=objective.device)}

    def _direction(self, gradient: Direction, norms: Tensor, accepted: Tensor) -> tuple[Direction, Tensor]:
        state, g = self.shared, gradient.flat
        state["taken"] += accepted
        count, taken = accepted.double(), state["taken"].clamp(min=1)
        correction = (1 - self.beta2**taken).sqrt()
        numbers = ((1 - self.beta1) * count, 1 - (1 - self.beta2) * count, self.epsilon * correction)
        weight, keep, guard, factor = (x.to(g.dtype) for x in (*numbers, correction / (1 - self.beta1**taken)))
        # Chunk by chunk, so that the operations on one find it in the cache.
        vectors = (g, state["first"], state["second"])
        for x, first, second in zip(*(vector.split(chunk_size(g)) for vector in vectors), strict=True):
            first.lerp_(x, weight)
            second.mul_(keep).addcmul_(x, x, value=1 - self.beta2)
            # m̂/(√v̂ + ε) over the gradient, which is no longer needed; before the first step 0/ε.
            torch.sqrt(second, out=x).add_(guard)
            torch.div(first, x, out=x).mul_(factor)
        return gradient, torch.stack(torch._foreach_norm(gradient)).double()
