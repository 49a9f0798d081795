"""Score of time to target: performance profiles and their integral, as AlgoPerf has them.

*Benchmarking Neural Network Training Algorithms* (Dahl et al. 2023, arXiv 2306.07179), section 4: with c(s, w) the cost
of method s to the target of task w, infinite where it is missed, and r(s, w) = c(s, w) / min over s' of c(s', w), the
profile is ρ_s(τ) = share of tasks with r(s, w) ≤ τ, and the score is the mean of ρ_s over τ from 1 to τ_max = 4.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from raycurv.arguments import require
from raycurv.results.performance_profile import PerformanceProfile

LARGEST = 4.0  # τ_max
SIGNIFICANT = 2.0  # smallest (mean difference)·√n / spread that counts as a difference

Costs = Mapping[str, Mapping[str, float]]


def profiles_of(costs: Costs) -> list[PerformanceProfile]:
    """Performance profiles of methods.

    Args:
        costs: method → task → cost to the target, infinite where it was missed. A task that a method has not run is
            left out of its profile.

    Raises:
        ValueError: a cost is not positive.
    """
    best: dict[str, float] = {}
    for found in costs.values():
        for task, cost in found.items():
            require(f"cost of {task!r}", cost, cost > 0, "positive, or infinite where the target was missed")
            best[task] = min(cost, best.get(task, math.inf))
    return [
        PerformanceProfile(name, tuple(sorted(_ratio(cost, best[task]) for task, cost in found.items())))
        for name, found in costs.items()
        if found
    ]


def _ratio(cost: float, best: float) -> float:
    return math.inf if math.isinf(cost) else cost / best


def score(profile: PerformanceProfile, largest: float = LARGEST) -> float:
    """Mean of the profile over τ from 1 to `largest`; 1 is the best on every task, 0 is never within the factor.

    The profile is a sum of steps, so the integral is exact: a ratio r adds the share (largest − r)/(largest − 1).
    """
    return statistics.fmean(max(0.0, largest - ratio) / (largest - 1) for ratio in profile.ratios)


def separation(differences: Sequence[float]) -> float:
    """(mean difference)·√n over the standard deviation of n paired differences.

    Returns:
        The quotient; infinite for equal differences other than 0, 0 if all are 0, NaN for fewer than two.
    """
    if len(differences) < 2:
        return math.nan
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread == 0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean * math.sqrt(len(differences)) / spread
