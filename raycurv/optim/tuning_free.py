"""Methods that need no number from the user: rates and damping that forget where they start.

**An averaged RED step** (`red_sgd_free`, `red_momentum_free`, `red_adam_free`, and `auto`, which is the last). RED's
step changes from batch to batch, and along Adam's direction, with ℓ = 1 − β₁, it is some twenty times too short. Here
it is the minimum of the quadratic model of all steps so far, weighted by their pace:

    R = Σ pace·⟨Θ̇, g⟩ / Σ pace·(mean over the samples of |⟨∇²J_s Θ̇, Θ̇⟩|)        Θ ← Θ − pace·R·Θ̇

The sums begin with the second step; the first step has its own quotient, at the initial weights, where it says least.
Terms are as large as gradients and curvatures are, so the steep first part of a run has the most weight, and later on
curvature that grows. The pace rises to 1 over the first tenth of the run (at initialisation alone the quotient is 4 to
20 times too large) and falls to 0 over its last quarter, as weights are averaged. Without a horizon it
rises for 100 steps and stays at 1; after the horizon it stays at 0. Curvature is asked for in the first 20 steps, then
in every fifth, and no more once the pace falls, so the mean step of a long run costs about 1.2 plain gradients.

Seen on five networks (one seed, 400 to 800 steps): β₁ of 0.7 and 0.8 was better than 0.9, 0.95, 0.5 and 0; absolute
curvature was better than the Gauss-Newton one where the activation is curved; quotients averaged one by one (geometric
mean) were too large on one network, and a factor ℓ of ½ or 2 lost up to 40 % or diverged.

**Hand-over** (`ntlr_sgd_free`, `alera_free`, `salera_free`, `llr_free`). A method that wants an initial rate gets R
after the first tenth of the run and at least 20 steps (100 without a horizon), in which the parameters move by the
averaged RED step along the method's own direction. R is read from the device once in a run. From there on the method is
as its paper has it: NTLR, whose rate nothing holds back, may diverge.

**LLR with a relative damping** (`llr_free`). The paper's 2500 in f′/(f″ + 2500) is a curvature, so it depends on the
scale of the loss. Here it is a multiple of the running mean of |f″|:

    η ← max(η − f′/(f″ + D), 0),    D = 30·max(mean of |f″|, |f″|)

A step goes a thirtieth of the way to the batch's own minimum, weighted by its curvature: η is a mean of such minima
over the last thirty or so steps, whatever the scale of the loss. The denominator is positive.

**CurveBall that forgets λ₀** (`curveball_free`): 0.95 in place of 0.999, so that λ changes by up to 29 % in a check.

``start`` is for tests alone: a factor of the first slope in R, and λ₀ of CurveBall, which is 1.

Where no step has seen curvature R is 0, and where all have seen ascent.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raycurv.objective import Batch, Objective
from raycurv.optim.base import Horizon, StepOptimizer, StepReport, check_batch
from raycurv.optim.bounds import require_positive
from raycurv.optim.curveball import CurveBall
from raycurv.optim.learned_rate import SecondOrderRate
from raycurv.optim.ntlr import ntlr_sgd
from raycurv.optim.red import Params, Rescaled, move
from raycurv.optim.registry import register
from raycurv.optim.salera import Alera, Salera

_RISE, _FALL = 0.1, 0.25  # shares of the run
_RISE_STEPS = 100  # without a horizon
_FIRST, _EVERY = 20, 5  # steps with curvature: the first ones, then one of so many
_BETA1, _BETA2 = 0.8, 0.999
_FORGETTING = 0.95  # of λ, where the paper has 0.999
_MEMORY = 30.0  # steps over which LLR's rate is a mean
_KEEP = 0.99  # of the running mean of |f″|


def pace_of(step: int, steps: int | None) -> float:
    """The factor of the step number `step`, from 0, of a run of `steps`: up, 1, down to 0."""
    rise = min(1.0, (step + 1) / rise_of(steps))
    return rise if steps is None else max(0.0, min(rise, (steps - step) / (_FALL * steps)))


def rise_of(steps: int | None) -> int:
    """Steps until the pace is 1."""
    return _RISE_STEPS if steps is None else max(1, round(_RISE * steps))


def settled_after(steps: int | None) -> int:
    """Steps until R is handed over: the rise, and in short runs 20 steps or half of them."""
    return rise_of(steps) if steps is None else max(rise_of(steps), min(_FIRST, steps // 2))


class Auto(Rescaled):
    """RED with the quotient of sums in place of each step's own (see the module's text).

    Args:
        name: in messages.
        model_or_params: a module or its parameters, one group.
        horizon: gives the pace its length.
        beta1: β₁ of the momentum; 0 is none.
        beta2: β₂ of RMSProp's preconditioner; None is none.
        start: for tests: factor of the first slope.

    Raises:
        ValueError: `start` is not positive, or several parameter groups.
    """

    def __init__(
        self,
        name: str,
        model_or_params: Params,
        horizon: Horizon | None,
        *,
        beta1: float = 0.0,
        beta2: float | None = None,
        start: float = 1.0,
    ) -> None:
        require_positive(name, "start", start)
        super().__init__(
            name, model_or_params, always_one, None, beta1=beta1, beta2=beta2, beta3=0.0, factor=1.0, eps=1e-8
        )
        self.steps = None if horizon is None else horizon.epochs * horizon.steps_per_epoch
        self.start = start

    @torch.no_grad()
    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """The gradient, the direction, in some steps the curvature along it, and the step that fits all of them."""
        check_batch(self, batch)
        objective = batch.objective
        self._start(objective)
        state = self.shared
        asked, pace = self._asks(self.shared["steps"]), pace_of(self.shared["steps"], self.steps)
        linear = batch.linearise(record=asked)
        gradient = linear.pull(linear.gradient)
        if objective.l2:
            gradient.flat.add_(objective.l2_gradient(objective.parameters).flat)
        known, first, second = self._follow(gradient), state["counted"] <= 1, state["counted"] == 2
        direction, new = self._direction(gradient), {}
        loss = linear.means()[0] + objective.l2_value(objective.parameters)
        if asked:
            factor, kept = 1 + (self.start - 1) * first.double(), 1 - second.double()
            new["slope"] = kept * state["slope"] + pace * factor * gradient.dot(direction)
            new["bend"] = kept * state["bend"] + pace * linear.taylor(direction).absolute_curvature
        quotient = _quotient(new.get("slope", state["slope"]), new.get("bend", state["bend"]))
        finite = torch.isfinite(torch.stack([loss, direction.dot(direction), quotient])).all() & known
        for name, value in new.items():
            self.shared[name] = torch.where(finite, value, state[name])
        move(objective, direction, pace * quotient, finite)
        self.shared["steps"] += 1
        return StepReport(loss, {"learning_rate": pace * quotient, "pace": torch.full_like(quotient, pace)}, finite)

    def rate(self) -> Tensor:
        """R as it stands, 0-d float64."""
        return _quotient(self.shared["slope"], self.shared["bend"])

    def _start(self, objective: Objective) -> float:
        fresh = not self.shared
        scale = super()._start(objective)
        if fresh:
            self.shared["slope"] = torch.zeros_like(self.shared["counted"])  # Σ ⟨Θ̇, g⟩
            self.shared["bend"] = torch.zeros_like(self.shared["counted"])  # Σ mean |⟨∇²J_s Θ̇, Θ̇⟩|
        return scale

    def _asks(self, step: int) -> bool:
        falls = self.steps is not None and step > (1 - _FALL) * self.steps
        return not falls and (step < _FIRST or step % _EVERY == 0)


def always_one(epoch: int) -> float:
    """ℓ = 1 in every epoch."""
    return 1.0


def _quotient(slope: Tensor, bend: Tensor) -> Tensor:
    """Where the quadratic model has its minimum, at least 0; 0 without curvature."""
    return torch.where(bend == 0, 0.0, (slope / bend).clamp(min=0))


class RelativeRate(SecondOrderRate):
    """LLR of second order, exact, damped by a multiple of the running mean of |f″| (see the module's text).

    Args:
        model_or_params: a module or its parameters, one group.
        learning_rate: η₀.

    Raises:
        ValueError: `learning_rate` is not positive, or several parameter groups.
    """

    name = "llr_free"

    def __init__(self, model_or_params: Params, *, learning_rate: float) -> None:
        super().__init__(model_or_params, learning_rate=learning_rate, floor=0.0)

    def _damping(self, curvature: Tensor, finite: Tensor) -> Tensor:
        size, state = curvature.abs(), self.shared
        known = state.get("mean_curvature", size)
        mean = torch.lerp(size, known, _KEEP)
        state["mean_curvature"] = torch.where(finite & torch.isfinite(mean), mean, known)
        return _MEMORY * torch.maximum(mean, size)


class SwitchingOptimizer(StepOptimizer):
    """An averaged RED step for the first tenth of a run, then a method with the rate that was found.

    Args:
        pilot: takes the first steps.
        build: ``build(parameters, learning_rate=…)`` makes the method.
    """

    def __init__(self, pilot: Auto, build: Callable[..., StepOptimizer]) -> None:
        super().__init__(pilot.param_groups, {})
        self.pilot, self.build = pilot, build
        self.method: StepOptimizer | None = None
        self.found: float | None = None

    def step(self, batch: Batch, *, validation: Batch | None = None) -> StepReport:  # type: ignore[override]
        """A step of the pilot or of the method; after the last of the pilot's, the rate is read from the device."""
        if self.method is not None:
            return self.method.step(batch)
        report = self.pilot.step(batch)
        if self.pilot.shared["steps"] >= settled_after(self.pilot.steps) and (rate := float(self.pilot.rate())) > 0:
            self._hand_over(rate)
        return report

    def _hand_over(self, rate: float) -> StepOptimizer:
        self.found, self.method = rate, self.build(self.param_groups[0]["params"], learning_rate=rate)
        self.pilot.state.clear()
        return self.method

    def state_dict(self) -> dict[str, Any]:
        """The state of the one that takes the steps, and the rate once it was found."""
        active = self.pilot if self.method is None else self.method
        return {"rate": self.found, "active": active.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the pilot or with the method, as the state was saved."""
        self.found, self.method = None, None
        rate = state_dict["rate"]
        active = self.pilot if rate is None else self._hand_over(rate)
        active.load_state_dict(copy.deepcopy(state_dict["active"]))


@register("red_sgd_free")
def red_sgd_free(model_or_params: Params, *, horizon: Horizon | None = None, start: float = 1.0) -> Auto:
    """An averaged RED step along the gradient; `start` is for tests."""
    return Auto("red_sgd_free", model_or_params, horizon, start=start)


@register("red_momentum_free")
def red_momentum_free(model_or_params: Params, *, horizon: Horizon | None = None, start: float = 1.0) -> Auto:
    """An averaged RED step along the averaged gradient; `start` is for tests."""
    return Auto("red_momentum_free", model_or_params, horizon, beta1=_BETA1, start=start)


@register("red_adam_free")
def red_adam_free(model_or_params: Params, *, horizon: Horizon | None = None, start: float = 1.0) -> Auto:
    """An averaged RED step along Adam's direction; `start` is for tests."""
    return Auto("red_adam_free", model_or_params, horizon, beta1=_BETA1, beta2=_BETA2, start=start)


register("auto")(red_adam_free)  # the best by the table "Nothing to tune" of the README


@register("curveball_free")
def curveball_free(model_or_params: Params, *, horizon: Horizon | None = None, start: float = 1.0) -> CurveBall:
    """CurveBall that forgets λ₀; `start` is λ₀, for tests."""
    require_positive("curveball_free", "start", start)
    return CurveBall(model_or_params, damping=start, damping_factor=_FORGETTING)


@register("ntlr_sgd_free")
def ntlr_sgd_free(model_or_params: Params, *, horizon: Horizon | None = None, start: float = 1.0) -> SwitchingOptimizer:
    """NTLR around SGD with a rate from curvature; `start` is for tests."""
    pilot = Auto("ntlr_sgd_free", model_or_params, horizon, start=start)
    return SwitchingOptimizer(pilot, partial(ntlr_sgd, horizon=horizon))


@register("alera_free")
def alera_free(model_or_params: Params, *, horizon: Horizon | None = None, start: float = 1.0) -> SwitchingOptimizer:
    """ALERA with a rate from curvature; `start` is for tests."""
    return SwitchingOptimizer(Auto("alera_free", model_or_params, horizon, start=start), Alera)


@register("salera_free")
def salera_free(model_or_params: Params, *, horizon: Horizon | None = None, start: float = 1.0) -> SwitchingOptimizer:
    """SALERA with a rate from curvature; `start` is for tests."""
    pilot = Auto("salera_free", model_or_params, horizon, start=start)
    return SwitchingOptimizer(pilot, partial(Salera, horizon=horizon))


@register("llr_free")
def llr_free(model_or_params: Params, *, horizon: Horizon | None = None, start: float = 1.0) -> SwitchingOptimizer:
    """LLR of second order with a rate from curvature and a damping without scale; `start` is for tests."""
    return SwitchingOptimizer(Auto("llr_free", model_or_params, horizon, start=start), RelativeRate)
