"""Line search for the strong Wolfe conditions by cubic interpolation.

Nocedal and Wright, *Numerical Optimization*, algorithms 3.5 (bracketing) and 3.6 (zoom), eq. 3.59 (the minimum of the
cubic through two values and two slopes). With φ(t) the objective along the direction, a step t is accepted when

    φ(t) ≤ φ(0) + c₁·t·φ′(0)    and    |φ′(t)| ≤ c₂·|φ′(0)|
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_MARGIN = 0.1  # an interpolated step stays away from the ends of its bracket by this share of it
_EXPANSION = 2.0  # growth of the step while the objective still falls steeply


@dataclass(frozen=True)
class LinePoint:
    """Objective and slope at a step along the direction.

    Attributes:
        step: t.
        value: φ(t).
        slope: φ′(t).
    """

    step: float
    value: float
    slope: float


def strong_wolfe(
    evaluate: Callable[[float], LinePoint],
    start: LinePoint,
    first: float,
    *,
    decrease: float = 1e-4,  # c₁
    curvature: float = 0.9,  # c₂
    evaluations: int = 30,
) -> LinePoint | None:
    """A step that satisfies the strong Wolfe conditions.

    Args:
        evaluate: function that returns φ and φ′ at a step.
        start: point at step 0, with a negative slope.
        first: first step to try.
        decrease: c₁.
        curvature: c₂.
        evaluations: number of evaluations after which the best step with sufficient decrease is taken.

    Returns:
        The accepted trial, or None if no step was found that lowers the objective enough.
    """
    search = _Search(evaluate, start, decrease, curvature, evaluations)
    previous, step = start, first
    while search.left:
        trial = search.at(step)
        if not search.decreases(trial) or (previous is not start and trial.value >= previous.value):
            return search.zoom(previous, trial)
        if search.flat(trial):
            return trial
        if trial.slope >= 0:
            return search.zoom(trial, previous)
        previous, step = trial, _EXPANSION * step
    return search.best


class _Search:
    """Number of evaluations left, and best point with sufficient decrease."""

    def __init__(
        self,
        evaluate: Callable[[float], LinePoint],
        start: LinePoint,
        decrease: float,
        curvature: float,
        evaluations: int,
    ) -> None:
        self.evaluate, self.start = evaluate, start
        self.decrease, self.curvature, self.left = decrease, curvature, evaluations
        self.best: LinePoint | None = None

    def at(self, step: float) -> LinePoint:
        self.left -= 1
        trial = self.evaluate(step)
        if self.decreases(trial) and (self.best is None or trial.value < self.best.value):
            self.best = trial
        return trial

    def decreases(self, trial: LinePoint) -> bool:
        """The first condition; False where the objective is NaN or infinite."""
        bound = self.start.value + self.decrease * trial.step * self.start.slope
        return math.isfinite(trial.slope) and trial.value <= bound

    def flat(self, trial: LinePoint) -> bool:
        """The second condition."""
        return abs(trial.slope) <= -self.curvature * self.start.slope

    def zoom(self, low: LinePoint, high: LinePoint) -> LinePoint | None:
        """Shrink the bracket between `low`, the best so far, and `high` until a step satisfies both conditions."""
        while self.left and low.step != high.step:
            trial = self.at(_inside(low, high))
            if not self.decreases(trial) or trial.value >= low.value:
                high = trial
                continue
            if self.flat(trial):
                return trial
            if trial.slope * (high.step - low.step) >= 0:
                high = low
            low = trial
        return self.best


def cubic_minimum(a: LinePoint, b: LinePoint) -> float:
    """Minimum of the cubic through both values and slopes (eq. 3.59); NaN if it has none."""
    d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    root = d1 * d1 - a.slope * b.slope
    if not root >= 0:
        return math.nan
    d2 = math.copysign(math.sqrt(root), b.step - a.step)
    denominator = b.slope - a.slope + 2 * d2
    return b.step - (b.step - a.step) * (b.slope + d2 - d1) / denominator if denominator else math.nan


def _inside(a: LinePoint, b: LinePoint) -> float:
    """Minimum of the cubic, kept inside the bracket; the middle of the bracket if there is none."""
    low, high = sorted((a.step, b.step))
    step = cubic_minimum(a, b)
    if not math.isfinite(step):
        return (low + high) / 2
    margin = _MARGIN * (high - low)
    return min(max(step, low + margin), high - margin)
