"""SPS: stochastic gradient descent with Polyak's step size.

*Stochastic Polyak Step-size for SGD: An Adaptive Learning Rate for Fast Convergence* (Loizou, Vaswani, Laradji,
Lacoste-Julien; 2021). With f the objective of the batch and f* a lower bound of it, SPS_max takes the rate

    γ_k = min{ (f(x_k) − f*) / (c ‖∇f(x_k)‖²),  γ_b },    x_{k+1} = x_k − γ_k ∇f(x_k)

and the smoothed bound that the paper uses for networks, with batches of b out of n samples,

    γ_b = τ^{b/n} γ_{k−1}

so that the rate grows at most by τ in an epoch.

Symbols: c ``scale``, f* ``lower_bound``, τ ``growth``, γ_{−1} ``largest_first_rate``.

What the paper leaves open, and deviations:

- c is ½, where the theory begins and which is exact on a parabola through f*; the paper's networks took 0.2.
- f* is 0: every loss here is at least that, and so is the L2 term, as in the paper.
- n/b is the number of steps in an epoch; without a horizon 500, as in the published code.
- The first bound is 1, as in the published code.
- A gradient of zero moves nothing and leaves the bound; a loss below f* gives the rate 0.
- A loss or gradient that is not finite moves nothing and is reported.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raycurv.arguments import require, require_positive
from raycurv.objective import Batch
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport, check_batch, one_group
from raycurv.optim.baselines.schedules import growth_per_step
from raycurv.optim.registry import register


def polyak_rate(loss: Tensor, squared_norm: Tensor, lower_bound: float, scale: float) -> Tensor:
    """(f − f*) / (c ‖∇f‖²); infinite where the gradient is zero, so that a bound decides."""
    gap = (loss - lower_bound).clamp(min=0)
    return torch.where(squared_norm > 0, gap / (scale * squared_norm), math.inf)


@register("sps")
class SPS(StepOptimizer):
    """SPS_max with the smoothed bound (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        horizon: its steps per epoch give n/b.
        scale: c.
        lower_bound: f*.
        growth: τ, at least 1; infinity removes the bound after the first step.
        largest_first_rate: γ_{−1}, bound of the first step before it grows.

    Raises:
        ValueError: a setting out of bounds, or several parameter groups.
    """

    def __init__(
        self,
        model_or_params: Params,
        *,
        horizon: Horizon | None = None,
        scale: float = 0.5,  # c
        lower_bound: float = 0.0,  # f*
        growth: float = 2.0,  # τ
        largest_first_rate: float = 1.0,
    ) -> None:
        require_positive("sps: scale", scale)
        require("sps: lower_bound", lower_bound, math.isfinite(lower_bound), "finite")
        require("sps: growth", growth, growth >= 1, "at least 1")
        require_positive("sps: largest_first_rate", largest_first_rate)
        super().__init__(one_group("sps", model_or_params), {})
        self.scale, self.lower_bound, self.largest_first_rate = scale, lower_bound, largest_first_rate
        self.growth, self._growth_per_step = growth, growth_per_step(growth, horizon)

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """One gradient, and a step of Polyak's length along it."""
        check_batch(self, batch)
        objective, state = batch.objective, self.shared
        loss, gradient = batch.value_and_gradient()
        squared = torch.linalg.vector_norm(gradient.flat, dtype=torch.float64).square()
        last = state.get("rate", torch.full_like(loss, self.largest_first_rate))
        rate = torch.minimum(polyak_rate(loss, squared, self.lower_bound, self.scale), self._growth_per_step * last)
        finite = torch.isfinite(loss) & torch.isfinite(squared)
        gradient.flat.mul_(rate)
        torch._foreach_sub_(objective.parameters, gradient.keep_if(finite))
        state["rate"] = torch.where(finite & (squared > 0), rate, last)
        return StepReport(loss, {"learning_rate": rate}, finite)
