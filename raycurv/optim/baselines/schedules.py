"""Schedules of the learning rate for methods that have one, on `torch.optim.lr_scheduler` where torch has them.

With k the steps taken so far, T the steps of the run, n those of an epoch and τ the learning rate that was given:

| schedule | rate of the next step | settings |
|---|---|---|
| `constant` | τ | |
| `exponential` | τ·d^⌊k/n⌋, once an epoch as RED's baselines have it | d `schedule_decay`, 0.99 |
| `multi_step` | τ·d^(milestones passed), which are shares of T | `milestones` (0.5, 0.75), d `schedule_decay`, 0.1 |
| `one_cycle` | τ/25 up to τ, then down to τ/250,000, both along a cosine | `warmup` 0.3, the share of T that goes up |
| `robbins_monro` | τ/(1 + k/k₀) | k₀ `half_life` times n, 1 epoch: after it the rate has halved |

The defaults of `multi_step` are those of NTLR's SGD baseline, the ends of `one_cycle` torch's own; the momentum is not
cycled, so that every method can have the schedule. All but `constant` must know the run's length. From its last step
on, the rate stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, LRScheduler, MultiStepLR, OneCycleLR

from raycurv.optim.base import Horizon
from raycurv.optim.bounds import require, require_positive

Build = Callable[[Optimizer, Horizon, dict[str, Any]], LRScheduler]


@dataclass(frozen=True)
class Schedule:
    """The settings of a schedule, shared by all methods that have one; None is the schedule's own default.

    Attributes:
        schedule: one of the names above.
        schedule_decay: d, in (0, 1]; of `exponential` and `multi_step`.
        milestones: shares of the run, increasing, in (0, 1); of `multi_step`.
        warmup: share of the run in which the rate grows, in (0, 1); of `one_cycle`.
        half_life: epochs after which the rate has halved; of `robbins_monro`.

    Raises:
        ValueError: the schedule is unknown, or a number is out of bounds or not one of this schedule's.
    """

    schedule: str = "constant"
    schedule_decay: float | None = None  # d
    milestones: tuple[float, ...] | None = None
    warmup: float | None = None
    half_life: float | None = None  # k₀, in epochs

    def __post_init__(self) -> None:
        require("schedule", "schedule", self.schedule, self.schedule in _KINDS, f"one of {', '.join(_KINDS)}")
        known = ", ".join(_KINDS[self.schedule].defaults) or "none"
        for name, value in self._given().items():
            require(self.schedule, name, value, name in known, f"left out: the numbers of this schedule are {known}")
        found = {"schedule_decay": 1.0, "milestones": (), "warmup": 0.5, "half_life": 1.0, **self.numbers}
        decay, warmup, points = found["schedule_decay"], found["warmup"], found["milestones"]
        require(self.schedule, "schedule_decay", decay, 0 < decay <= 1, "in (0, 1]")
        require(self.schedule, "warmup", warmup, 0 < warmup < 1, "in (0, 1)")
        rising = sorted(set(points)) == list(points) and all(0 < share < 1 for share in points)
        require(self.schedule, "milestones", points, rising, "increasing shares of the run, each in (0, 1)")
        require_positive(self.schedule, "half_life", found["half_life"])

    @property
    def numbers(self) -> dict[str, Any]:
        """The schedule's numbers, defaults filled in."""
        return {**_KINDS[self.schedule].defaults, **self._given()}

    def on(self, inner: Optimizer, horizon: Horizon | None) -> ScheduledRate | None:
        """The schedule at work on an optimizer; None for a constant rate.

        Raises:
            ValueError: the schedule must know the run's length, and `horizon` is None.
        """
        kind = _KINDS[self.schedule]
        if kind.build is None:
            return None
        if horizon is None:
            raise ValueError(
                f"schedule {self.schedule!r} must know the length of the run: give horizon=Horizon(epochs, "
                "steps_per_epoch, training_samples), or take schedule='constant'"
            )
        stride = horizon.steps_per_epoch if kind.by_epoch else 1
        return ScheduledRate(kind.build(inner, horizon, self.numbers), stride, _length(horizon))

    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "schedule" and value is not None}


class ScheduledRate:
    """A scheduler of torch, moved after every step of its optimizer.

    Args:
        scheduler: changes the rates of the optimizer's parameter groups.
        stride: steps of the optimizer for one of the scheduler.
        length: steps of the run; the rate of the last one stays.
    """

    def __init__(self, scheduler: LRScheduler, stride: int, length: int) -> None:
        self.scheduler, self.stride, self.length = scheduler, stride, length
        self.steps = 0
        # torch warns where the first step of a scheduler finds an optimizer that it has not wrapped, and a copied one
        # is not. The order of calls is right by construction.
        scheduler._step_count += 1

    def advance(self) -> None:
        """Set the rate of the next step."""
        self.steps += 1
        if self.steps % self.stride == 0 and self.steps < self.length:
            self.scheduler.step()

    def state_dict(self) -> dict[str, int]:
        """The position alone: the rates are in the optimizer's parameter groups, the length is the horizon's."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position, also in a run that is longer now."""
        self.steps = state["steps"]
        self.scheduler.last_epoch = min(self.steps, self.length - 1) // self.stride


@dataclass(frozen=True)
class _Kind:
    """How a schedule is built, its numbers with their defaults, and whether it moves once an epoch."""

    build: Build | None
    defaults: dict[str, Any]
    by_epoch: bool = False


@dataclass(frozen=True)
class _Hyperbola:
    """k ↦ 1/(1 + k/k₀); a class, because functions of a local scope cannot be pickled."""

    half: float  # k₀, in steps

    def __call__(self, step: int) -> float:
        return 1 / (1 + step / self.half)


def _exponential(inner: Optimizer, horizon: Horizon, numbers: dict[str, Any]) -> LRScheduler:
    return ExponentialLR(inner, numbers["schedule_decay"])


def _multi_step(inner: Optimizer, horizon: Horizon, numbers: dict[str, Any]) -> LRScheduler:
    steps = [round(share * _length(horizon)) for share in numbers["milestones"]]
    return MultiStepLR(inner, steps, numbers["schedule_decay"])


def _one_cycle(inner: Optimizer, horizon: Horizon, numbers: dict[str, Any]) -> LRScheduler:
    peaks = [group["lr"] for group in inner.param_groups]
    return OneCycleLR(inner, peaks, _length(horizon), pct_start=numbers["warmup"], cycle_momentum=False)


def _robbins_monro(inner: Optimizer, horizon: Horizon, numbers: dict[str, Any]) -> LRScheduler:
    return LambdaLR(inner, _Hyperbola(numbers["half_life"] * horizon.steps_per_epoch))


def _length(horizon: Horizon) -> int:
    return horizon.epochs * horizon.steps_per_epoch


_KINDS = {
    "constant": _Kind(None, {}),
    "exponential": _Kind(_exponential, {"schedule_decay": 0.99}, by_epoch=True),
    "multi_step": _Kind(_multi_step, {"milestones": (0.5, 0.75), "schedule_decay": 0.1}),
    "one_cycle": _Kind(_one_cycle, {"warmup": 0.3}),
    "robbins_monro": _Kind(_robbins_monro, {"half_life": 1.0}),
}


STEPS_PER_EPOCH = 500  # without a horizon; what the published code of SPS and SLS takes


def growth_per_step(by_epoch: float, horizon: Horizon | None) -> float:
    """The factor of one step whose power over an epoch is `by_epoch`: τ^{b/n} for batches of b out of n samples."""
    return by_epoch ** (1 / (STEPS_PER_EPOCH if horizon is None else horizon.steps_per_epoch))
