"""Methods of the papers without a number to set: rates and damping that forget where they start.

**Hand-over** (`ntlr_sgd_free`, `alera_free`, `salera_free`, `llr_free`). A method that needs an initial rate gets the R
of `red_sgd_free` after the first tenth of the run and at least 20 steps (100 without a horizon). Until then the
parameters take averaged RED steps along the gradient. R is read from the device once in a run. After that the method
follows its paper, but for NTLR's rate, which stays at or below R: windows of few steps average out steps that go to and
fro, so that the paper's rate may grow without end (on least squares in batches of 10 it diverged for 10 of 12 seeds).

"Free" means that there is no number to set. It does not mean that no run fails: `curveball_free` may explode on small
batches, after some hundred steps.

**LLR with a relative damping** (`llr_free`). The paper's 2500 in f′/(f″ + 2500) is a curvature, so it depends on the
scale of the loss. Here it is a multiple of the running mean of |f″|:

    η ← max(η − f′/(f″ + D), 0),    D = 30·max(mean of |f″|, |f″|)

A step goes a thirtieth of the way to the batch's own minimum, weighted by its curvature: η is a mean of such minima
over the last thirty or so steps, whatever the scale of the loss. The denominator is positive. The running mean starts
at max(|f″|, |f′|/η) of the first batch, so that the first change is at most a 29th, however flat that batch is.

**CurveBall that forgets λ₀** (`curveball_free`): 0.95 in place of 0.999, so that λ changes by up to 29 % in a check.

``start`` is for tests alone: the factor of the first slope in R, and λ₀ of CurveBall, which is 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raycurv.arguments import require_positive
from raycurv.objective import Batch
from raycurv.optim.averaged_red import FIRST_STEPS, AveragedRED, warmup_steps
from raycurv.optim.base import Horizon, Params, StepOptimizer, StepReport
from raycurv.optim.curveball import CurveBall
from raycurv.optim.learned_rate import LLRSecondOrder
from raycurv.optim.ntlr import NTLR
from raycurv.optim.registry import register
from raycurv.optim.salera import ALERA, SALERA

_DAMPING_FACTOR = 0.95  # of λ per step, where the paper has 0.999
_MEMORY = 30.0  # steps over which LLR's rate is a mean
_KEEP = 0.99  # weight of the past in the running mean of |f″|


def handover_step(steps: int | None) -> int:
    """Steps until R is handed over: those in which `auto`'s schedule rises, in short runs 20 or half of the run."""
    return warmup_steps(steps) if steps is None else max(warmup_steps(steps), min(FIRST_STEPS, steps // 2))


class LLRRelativeDamping(LLRSecondOrder):
    """LLR of second order, exact, damped by a multiple of the running mean of |f″| (see the module's text).

    Args:
        model_or_params: module or its parameters, one group.
        learning_rate: η₀.

    Raises:
        ValueError: `learning_rate` is not positive, or several parameter groups.
    """

    name = "llr_free"

    def __init__(self, model_or_params: Params, *, learning_rate: float) -> None:
        super().__init__(model_or_params, learning_rate=learning_rate, floor=0.0)

    def _damping(self, slope: Tensor, curvature: Tensor, finite: Tensor) -> Tensor:
        size, state = curvature.abs(), self.shared
        first = torch.maximum(size, slope.abs() / state["rate"])
        before = state.get("mean_curvature", first)
        before = torch.where(torch.isfinite(before), before, first)
        mean = torch.lerp(size, before, _KEEP)
        state["mean_curvature"] = torch.where(finite & torch.isfinite(mean), mean, before)
        return _MEMORY * torch.maximum(mean, size)


class SwitchingOptimizer(StepOptimizer):
    """Averaged RED steps for the first tenth of a run, then a method with the learning rate that they found.

    Args:
        pilot: optimizer of the first steps.
        build: ``build(parameters, learning_rate=…)`` makes the method.
    """

    def __init__(self, pilot: AveragedRED, build: Callable[..., StepOptimizer]) -> None:
        super().__init__(pilot.param_groups, {})
        self.follows_horizon = pilot.follows_horizon
        self.pilot, self.build = pilot, build
        self.method: StepOptimizer | None = None
        self.found: float | None = None

    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """A step of the pilot or of the method; after the pilot's last one, the rate is read from the device."""
        if self.method is not None:
            return self.method.step(batch)
        report = self.pilot.step(batch)
        if self.pilot.shared["steps"] >= handover_step(self.pilot.steps) and (rate := float(self.pilot.rate())) > 0:
            self._hand_over(rate)
        return report

    def _hand_over(self, rate: float) -> StepOptimizer:
        self.found, self.method = rate, self.build(self.param_groups[0]["params"], learning_rate=rate)
        self.pilot.state.clear()
        return self.method

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer that takes the steps, and the rate once it is found."""
        active = self.pilot if self.method is None else self.method
        return {"rate": self.found, "active": active.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the pilot or with the method, whichever the state was saved from."""
        self.found, self.method = None, None
        rate = state_dict["rate"]
        active = self.pilot if rate is None else self._hand_over(rate)
        active.load_state_dict(copy.deepcopy(state_dict["active"]))


@register("curveball_free")
def curveball_free(model_or_params: Params, *, horizon: Horizon | None = None, start: float = 1.0) -> CurveBall:
    """CurveBall that forgets λ₀; `start` is λ₀, for tests."""
    require_positive("curveball_free: start", start)
    return CurveBall(model_or_params, damping=start, damping_factor=_DAMPING_FACTOR)


@register("ntlr_sgd_free")
def ntlr_sgd_free(model_or_params: Params, *, horizon: Horizon | None = None, start: float = 1.0) -> SwitchingOptimizer:
    """NTLR around SGD with a rate from curvature; `start` is for tests."""
    return SwitchingOptimizer(_pilot(model_or_params, horizon, start), partial(_bounded_ntlr, horizon=horizon))


def _bounded_ntlr(parameters: Params, *, learning_rate: float, horizon: Horizon | None) -> NTLR:
    """NTLR whose rate stays at or below the one from curvature."""
    return NTLR(parameters, horizon=horizon, learning_rate=learning_rate, largest_rate=learning_rate)


@register("alera_free")
def alera_free(model_or_params: Params, *, horizon: Horizon | None = None, start: float = 1.0) -> SwitchingOptimizer:
    """ALERA with a rate from curvature; `start` is for tests."""
    return SwitchingOptimizer(_pilot(model_or_params, horizon, start), ALERA)


@register("salera_free")
def salera_free(model_or_params: Params, *, horizon: Horizon | None = None, start: float = 1.0) -> SwitchingOptimizer:
    """SALERA with a rate from curvature; `start` is for tests."""
    return SwitchingOptimizer(_pilot(model_or_params, horizon, start), partial(SALERA, horizon=horizon))


@register("llr_free")
def llr_free(model_or_params: Params, *, horizon: Horizon | None = None, start: float = 1.0) -> SwitchingOptimizer:
    """LLR of second order with a rate from curvature and a damping without scale; `start` is for tests."""
    return SwitchingOptimizer(_pilot(model_or_params, horizon, start), LLRRelativeDamping)


def _pilot(model_or_params: Params, horizon: Horizon | None, start: float) -> AveragedRED:
    """Averaged RED steps along the gradient."""
    return AveragedRED(model_or_params, horizon=horizon, beta1=0.0, beta2=None, start=start)
