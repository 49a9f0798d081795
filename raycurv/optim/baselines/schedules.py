"""Schedules of the learning rate for methods that have one, on `torch.optim.lr_scheduler` where torch has them.

With k the steps taken so far, T the steps of the run, n those of an epoch, W = warmup·T and τ the given learning rate:

| schedule | rate of the next step | settings |
|---|---|---|
| `constant` | τ | |
| `exponential` | τ·d^⌊k/n⌋, once an epoch as RED's baselines have it | d `schedule_decay`, 0.99 |
| `multi_step` | τ·d^(milestones passed), which are shares of T | `milestones` (0.5, 0.75), d `schedule_decay`, 0.1 |
| `cosine` | up to τ along a line, then τ·(1 + cos(π(k − W)/(T − W)))/2 | `warmup` 0.05, the share of T that goes up |
| `linear` | up to τ along a line, then τ·(T − k)/(T − W) | `warmup` 0.05 |
| `one_cycle` | τ/25 up to τ, then down to τ/250,000, both along a cosine | `warmup` 0.3 |
| `robbins_monro` | τ/(1 + k/k₀) | k₀ `half_life` times n, 1 epoch: after it the rate has halved |

The defaults of `multi_step` are those of NTLR's SGD baseline, the ends of `one_cycle` torch's own; the momentum is not
cycled, so that every method can have the schedule. In `cosine` and `linear` the rate is τ·(k + 1)/(W + 1) while k < W,
so that it is 0 in no step. All but `constant` depend on the length of the run. After its last step the rate stays
constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, LRScheduler, MultiStepLR, OneCycleLR

from raycurv.arguments import require, require_positive
from raycurv.optim.base import Horizon

Build = Callable[[Optimizer, Horizon, dict[str, Any]], LRScheduler]


@dataclass(frozen=True)
class Schedule:
    """Settings of a schedule, shared by all methods that have one; None is the schedule's own default.

    Attributes:
        schedule: name of the schedule, from the table above.
        schedule_decay: d, in (0, 1]; for `exponential` and `multi_step`.
        milestones: increasing shares of the run, in (0, 1); for `multi_step`.
        warmup: share of the run in which the rate grows, in [0, 1); for `cosine`, `linear` and `one_cycle`.
        half_life: epochs after which the rate has halved; for `robbins_monro`.

    Raises:
        ValueError: the schedule is unknown, or a number is out of bounds or does not belong to this schedule.
    """

    schedule: str = "constant"
    schedule_decay: float | None = None  # d
    milestones: tuple[float, ...] | None = None
    warmup: float | None = None
    half_life: float | None = None  # k₀, in epochs

    def __post_init__(self) -> None:
        require("schedule", self.schedule, self.schedule in _KINDS, f"one of {', '.join(_KINDS)}")
        defaults = _KINDS[self.schedule].defaults
        for name, value in self._given().items():
            allowed = f"left out: the numbers of this schedule are {', '.join(defaults) or 'none'}"
            require(f"{self.schedule}: {name}", value, name in defaults, allowed)
        found = {"schedule_decay": 1.0, "milestones": (), "warmup": 0.5, "half_life": 1.0, **self.numbers}
        decay, warmup, points = found["schedule_decay"], found["warmup"], found["milestones"]
        require(f"{self.schedule}: schedule_decay", decay, 0 < decay <= 1, "in (0, 1]")
        require(f"{self.schedule}: warmup", warmup, 0 <= warmup < 1, "in [0, 1)")
        rising = sorted(set(points)) == list(points) and all(0 < share < 1 for share in points)
        require(f"{self.schedule}: milestones", points, rising, "increasing shares of the run, each in (0, 1)")
        require_positive(f"{self.schedule}: half_life", found["half_life"])

    @property
    def numbers(self) -> dict[str, Any]:
        """Numbers of the schedule, including defaults."""
        return {**_KINDS[self.schedule].defaults, **self._given()}

    def on(self, inner: Optimizer, horizon: Horizon | None) -> ScheduledRate | None:
        """Apply the schedule to an optimizer; None for a constant rate.

        Raises:
            ValueError: the schedule depends on the length of the run, and `horizon` is None.
        """
        kind = _KINDS[self.schedule]
        if kind.build is None:
            return None
        if horizon is None:
            raise ValueError(
                f"schedule {self.schedule!r} depends on the length of the run: give horizon=Horizon(epochs, "
                "steps_per_epoch, training_samples), or take schedule='constant'"
            )
        stride = horizon.steps_per_epoch if kind.by_epoch else 1
        return ScheduledRate(kind.build(inner, horizon, self.numbers), stride, horizon.steps)

    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "schedule" and value is not None}


class ScheduledRate:
    """A scheduler of torch that advances after every step of its optimizer.

    Args:
        scheduler: scheduler of the rates in the optimizer's parameter groups.
        stride: optimizer steps per step of the scheduler.
        length: steps of the run; afterwards the rate stays constant.
    """

    def __init__(self, scheduler: LRScheduler, stride: int, length: int) -> None:
        self.scheduler, self.stride, self.length = scheduler, stride, length
        self.steps = 0
        # torch warns at the first step of a scheduler whose optimizer it has not wrapped, as after a copy. Here the
        # order of calls is right by construction.
        scheduler._step_count += 1

    def advance(self) -> None:
        """Set the rate of the next step."""
        self.steps += 1
        if self.steps % self.stride == 0 and self.steps < self.length:
            self.scheduler.step()

    def state_dict(self) -> dict[str, int]:
        """Position in the schedule; the rates are in the optimizer's parameter groups, the length in the horizon."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a position, also in a run that is longer now."""
        self.steps = state["steps"]
        self.scheduler.last_epoch = min(self.steps, self.length - 1) // self.stride


@dataclass(frozen=True)
class _Kind:
    """Builder of a schedule, its numbers with defaults, and whether it advances once an epoch."""

    build: Build | None
    defaults: dict[str, Any]
    by_epoch: bool = False


@dataclass(frozen=True)
class _Hyperbola:
    """k ↦ 1/(1 + k/k₀); a class, because functions of a local scope cannot be pickled."""

    half: float  # k₀, in steps

    def __call__(self, step: int) -> float:
        return 1 / (1 + step / self.half)


@dataclass(frozen=True)
class _WarmupAndDecay:
    """k ↦ (k + 1)/(W + 1) while k < W, then the decay at (k − W)/(T − W)."""

    warmup: int  # W, in steps
    steps: int  # T
    decay: Callable[[float], float]

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return self.decay((step - self.warmup) / (self.steps - self.warmup))

    @classmethod
    def on(
        cls, inner: Optimizer, horizon: Horizon, numbers: dict[str, Any], decay: Callable[[float], float]
    ) -> LambdaLR:
        warmup = min(round(numbers["warmup"] * horizon.steps), horizon.steps - 1)
        return LambdaLR(inner, cls(warmup, horizon.steps, decay))


def _half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _line(progress: float) -> float:
    return 1 - progress


def _cosine(inner: Optimizer, horizon: Horizon, numbers: dict[str, Any]) -> LRScheduler:
    return _WarmupAndDecay.on(inner, horizon, numbers, _half_cosine)


def _linear(inner: Optimizer, horizon: Horizon, numbers: dict[str, Any]) -> LRScheduler:
    return _WarmupAndDecay.on(inner, horizon, numbers, _line)


def _exponential(inner: Optimizer, horizon: Horizon, numbers: dict[str, Any]) -> LRScheduler:
    return ExponentialLR(inner, numbers["schedule_decay"])


def _multi_step(inner: Optimizer, horizon: Horizon, numbers: dict[str, Any]) -> LRScheduler:
    steps = [round(share * horizon.steps) for share in numbers["milestones"]]
    return MultiStepLR(inner, steps, numbers["schedule_decay"])


def _one_cycle(inner: Optimizer, horizon: Horizon, numbers: dict[str, Any]) -> LRScheduler:
    peaks = [group["lr"] for group in inner.param_groups]
    return OneCycleLR(inner, peaks, horizon.steps, pct_start=numbers["warmup"], cycle_momentum=False)


def _robbins_monro(inner: Optimizer, horizon: Horizon, numbers: dict[str, Any]) -> LRScheduler:
    return LambdaLR(inner, _Hyperbola(numbers["half_life"] * horizon.steps_per_epoch))


_KINDS = {
    "constant": _Kind(None, {}),
    "exponential": _Kind(_exponential, {"schedule_decay": 0.99}, by_epoch=True),
    "multi_step": _Kind(_multi_step, {"milestones": (0.5, 0.75), "schedule_decay": 0.1}),
    "cosine": _Kind(_cosine, {"warmup": 0.05}),
    "linear": _Kind(_linear, {"warmup": 0.05}),
    "one_cycle": _Kind(_one_cycle, {"warmup": 0.3}),
    "robbins_monro": _Kind(_robbins_monro, {"half_life": 1.0}),
}


# Settings of a variant whose schedule is `cosine`; `warmup` stays free.
COSINE: dict[str, Any] = {"schedule": "cosine", "schedule_decay": None, "milestones": None, "half_life": None}

STEPS_PER_EPOCH = 500  # without a horizon, as in the published code of SPS and SLS


def growth_per_step(by_epoch: float, horizon: Horizon | None) -> float:
    """The factor of one step whose power over an epoch is `by_epoch`: τ^{b/n} for batches of b out of n samples."""
    return by_epoch ** (1 / (STEPS_PER_EPOCH if horizon is None else horizon.steps_per_epoch))
