"""Performance profiles (Dolan and Moré 2002): share of problems that a method solves within a factor of the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raycurv.results.conditions import conditions, frozen
from raycurv.results.outcomes import Outcome


@dataclass(frozen=True)
class PerformanceProfile:
    """Performance profile of one method.

    Attributes:
        name: name of the optimizer, with its setting.
        ratios: cost over the best cost, one for each problem, ascending; infinite for an unsolved problem.
    """

    name: str
    ratios: tuple[float, ...]

    def solved(self, factor: float) -> float:
        """Share of the problems solved within `factor` times the best cost."""
        return sum(ratio <= factor for ratio in self.ratios) / len(self.ratios)


def performance_profiles(
    outcomes: Sequence[Outcome], metric: str = "train/epoch_loss", slack: float = 0.1
) -> list[PerformanceProfile]:
    """Performance profiles by the step time until a run is within `slack` of the lowest loss on its problem.

    A problem is a recipe under equal conditions (:mod:`raycurv.results.conditions`), with one seed. Where steps were
    not timed, the seconds since the start of the run take the place of step time.
    """
    problems: dict[tuple[object, ...], dict[str, Outcome]] = {}
    for o in outcomes:
        if o.stage == "final":
            name = f"{o.optimizer} {o.setting}".strip()
            problems.setdefault((o.recipe, frozen(conditions(o)), o.seed), {})[name] = o
    names = dict.fromkeys(name for found in problems.values() for name in found)
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for found in problems.values():
        values = [v for o in found.values() for p in o.points if math.isfinite(v := p.values.get(metric, math.nan))]
        target = min(values, default=math.nan) * (1 + slack)
        timed = all(o.step_seconds for o in found.values())
        costs = {name: _time_to(found.get(name), metric, target, timed) for name in names}
        best = min(costs.values())
        for name, cost in costs.items():
            ratios[name].append(cost / best if math.isfinite(cost) else math.inf)
    return [PerformanceProfile(name, tuple(sorted(found))) for name, found in ratios.items()]


def _time_to(outcome: Outcome | None, metric: str, target: float, timed: bool) -> float:
    if outcome is None:
        return math.inf
    reached = next((p for p in outcome.points if p.values.get(metric, math.inf) <= target), None)
    if reached is None:
        return math.inf
    return max(reached.step * outcome.step_seconds if timed else reached.seconds, 1e-9)
