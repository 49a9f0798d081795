"""NAdamW: Adam with Nesterov's momentum and decoupled weight decay, as AlgoPerf has it.

*Incorporating Nesterov Momentum into Adam* (Dozat 2016), in the form of Table 1 of *On Empirical Comparisons of
Optimizers for Deep Learning* (Choi et al. 2019, arXiv 1910.05446), with the decay of AdamW. For the gradient g in the
step number t, from 1:

    θ ← (1 − η·λ)·θ
    m ← β₁·m + (1 − β₁)·g        v ← β₂·v + (1 − β₂)·g²
    θ ← θ − η·(β₁·m + (1 − β₁)·g)/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε)

``torch.optim.NAdam`` is another method: its β₁ changes from step to step.

Symbols: η ``learning_rate``, β₁ ``beta1``, β₂ ``beta2``, λ ``weight_decay``; ε is 1e-8.

`nadamw_algoperf` has the fixed point of AlgoPerf's self-tuning baseline: η 0.0017486, β₁ 0.93266, β₂ 0.99552, λ 0.0812,
2 % of warm-up and a cosine. The fixed point came with a dropout of 0.1, which belongs to the network. AlgoPerf's first
step has a rate of 0; that of the schedule here has η/(W + 1) (see `schedules`).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from raycurv.optim.baselines.first_order import baseline
from raycurv.optim.baselines.schedules import COSINE
from raycurv.optim.registry import register_variant


class NAdamW(torch.optim.Optimizer):
    """NAdamW (see the module's text).

    Args:
        params: parameters or parameter groups.
        lr: η.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: λ.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float = 1e-8, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "steps": 0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients in ``.grad``."""
        for group in self.param_groups:
            group["steps"] += 1
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if moved:
                self._move(moved, group)

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        (beta1, beta2), rate = group["betas"], group["lr"]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update(m=torch.zeros_like(parameter), v=torch.zeros_like(parameter))
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        first, second = ([self.state[parameter][name] for parameter in parameters] for name in ("m", "v"))
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        ahead = torch._foreach_lerp(first, gradients, 1 - beta1)  # β₁m + (1 − β₁)g
        size = torch._foreach_sqrt(second)
        torch._foreach_div_(size, math.sqrt(1 - beta2 ** group["steps"]))
        torch._foreach_add_(size, group["eps"])
        torch._foreach_addcdiv_(parameters, ahead, size, -rate / (1 - beta1 ** group["steps"]))


@baseline("nadamw")
def nadamw(
    parameters: list[Any],
    *,
    learning_rate: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.01,
) -> torch.optim.Optimizer:
    """Adam with Nesterov's momentum and decoupled weight decay."""
    return NAdamW(parameters, learning_rate, (beta1, beta2), weight_decay=weight_decay)


ALGOPERF = {"learning_rate": 0.0017486387539278373, "beta1": 1 - 0.06733926164, "beta2": 0.9955159689799007}
register_variant(
    "nadamw_algoperf",
    nadamw,
    "NAdamW at the fixed point of AlgoPerf's self-tuning baseline, with its warm-up and cosine.",
    fixed={**COSINE, **ALGOPERF, "warmup": 0.02, "weight_decay": 0.08121616522670176},
)
