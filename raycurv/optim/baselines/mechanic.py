"""Mechanic: a learned scale of another optimizer's steps, from its author's package (extra ``modern``).

*Mechanic: A Learning Rate Tuner* (Cutkosky, Defazio and Mehta 2023). The parameters are θ₀ + s·Δ with the sum Δ of the
inner optimizer's steps; the scale s is learned online. The rate of the inner optimizer hardly matters. Updates and
defaults are those of the package mechanic-pytorch, but for ``store_delta=True``: Δ is kept, since the difference of
the parameters is lost to rounding in the first steps, in which s is 1e-8.

- A step whose loss or gradient is not finite is not taken.
- The package reads s from the device in every step.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor

from raycurv.optim.baselines.extras import extra
from raycurv.optim.baselines.first_order import FirstOrder, baseline

_KEY = "_mechanic"  # of the package's own state among that of the parameters


class Mechanic(FirstOrder):
    """An optimizer made by ``mechanic_pytorch.mechanize``.

    Args:
        inner: optimizer whose class is made by ``mechanize``.
        clip_gradient: largest global norm of the gradient, or None.
        schedule: schedule of the rates of `inner`, or None.
    """

    synchronises = True

    def _take_step(self, loss: Tensor, finite: Tensor) -> None:
        if bool(finite):
            self.inner.step()

    def _rate(self) -> Tensor | None:
        own = cast("dict[Any, Any]", self.state).get(_KEY)
        return None if own is None else own["s"].sum() * self.param_groups[0]["lr"]

    def state_dict(self) -> dict[str, Any]:
        """State of the inner optimizer and of the scale; the package keys part of the latter by parameter."""
        state = super().state_dict()
        own = state["state"].pop(_KEY, {})
        shared = {key: value for key, value in own.items() if isinstance(key, str)}
        points = [own[parameter] for parameter in self._parameters() if parameter in own]
        return {**state, "mechanic": {"shared": shared, "points": points}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the inner optimizer and of the scale."""
        super().load_state_dict(state_dict)
        own = copy.deepcopy(state_dict["mechanic"])
        if not own["shared"]:
            return
        device = self._parameters()[0].device
        points = dict(zip(self._parameters(), own["points"], strict=True))
        for state in (own["shared"], *own["points"]):
            state.update({key: value.to(device) for key, value in state.items() if isinstance(value, Tensor)})
        cast("dict[Any, Any]", self.state)[_KEY] = {**own["shared"], **points}


@baseline("mechanic_adam", Mechanic)
def mechanic_adam(
    parameters: list[Any], *, learning_rate: float = 1.0, beta1: float = 0.9, beta2: float = 0.999
) -> torch.optim.Optimizer:
    """Adam with the scale of Mechanic; `learning_rate` is Adam's."""
    with extra("modern"):
        from mechanic_pytorch import mechanize
    return mechanize(torch.optim.Adam, store_delta=True)(parameters, lr=learning_rate, betas=(beta1, beta2))
