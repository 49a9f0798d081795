"""MoMo-Adam: Adam whose learning rate is bounded by the loss, from its authors' package (extra ``modern``).

*MoMo: Momentum Models for Adaptive Learning Rates* (Schaipp, Ohana, Eickenberg, Defazio and Gower 2023). The rate of a
step is that at which a model of the averaged loss reaches the lower bound f*, and at most `learning_rate`. The authors
advise a constant `learning_rate` of 0.01. Updates and defaults are those of the package momo-opt.

- f* is 0: all losses here are at least that.
- A step whose loss or gradient is not finite is not taken.
- The package reads the rate from the device in every step, and does not show it: no rate is reported.
- The package keeps the average of ⟨g, θ⟩ in float32; here it has the dtype of the parameters, as after loading.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raycurv.optim.base import one_group
from raycurv.optim.baselines.extras import extra
from raycurv.optim.baselines.first_order import FirstOrder, baseline
from raycurv.optim.baselines.schedules import ScheduledRate


class MoMo(FirstOrder):
    """An optimizer of momo, whose step takes the loss.

    Args:
        inner: optimizer of the package momo.
        clip_gradient: largest global norm of the gradient, or None.
        schedule: schedule of the largest rates of `inner`, or None.
    """

    synchronises = True

    def __init__(self, inner: Any, clip_gradient: float | None = None, schedule: ScheduledRate | None = None) -> None:
        super().__init__(inner, clip_gradient, schedule)
        self._momo = inner
        inner.state.pop("step_size_list", None)  # of no parameter, and never filled

    def _take_step(self, loss: Tensor, finite: Tensor) -> None:
        if bool(finite):
            self._momo.step(loss=loss)
            for parameter, state in self.state.items():
                state["grad_dot_w"] = state["grad_dot_w"].to(parameter.dtype)

    def _rate(self) -> None:
        return None

    def state_dict(self) -> dict[str, Any]:
        """State of Adam, with the average of the loss."""
        shared = {"steps": self._momo._number_steps, "loss": self._momo.loss_avg}
        return {**super().state_dict(), "momo": shared}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of Adam, and the average of the loss."""
        super().load_state_dict(state_dict)
        loss = state_dict["momo"]["loss"]
        device = self._parameters()[0].device
        self._momo._number_steps = state_dict["momo"]["steps"]
        self._momo.loss_avg = loss.to(device, copy=True) if isinstance(loss, Tensor) else loss


@baseline("momo_adam", MoMo)
def momo_adam(
    parameters: list[Any],
    *,
    learning_rate: float = 1e-2,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
    lower_bound: float = 0.0,
) -> torch.optim.Optimizer:
    """MoMo-Adam; `learning_rate` is the largest rate, `lower_bound` is f*."""
    with extra("modern"):
        from momo import MomoAdam
    found = one_group("momo_adam", parameters)
    return MomoAdam(found, learning_rate, (beta1, beta2), weight_decay=weight_decay, lb=lower_bound)
