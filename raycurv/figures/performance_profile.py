"""Performance profiles (Dolan and Moré 2002): on how many problems is a method within a factor of the best?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raycurv.figures import style
from raycurv.results.outcomes import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PerformanceProfile:
    """One method.

    Attributes:
        name: of the optimizer, with its setting.
        ratios: its cost over the best cost, one for each problem, ascending; infinite where it did not get there.
    """

    name: str
    ratios: tuple[float, ...]

    def solved(self, factor: float) -> float:
        """Share of the problems that it solves within `factor` times the best cost."""
        return sum(ratio <= factor for ratio in self.ratios) / len(self.ratios)


def profiles(
    outcomes: Sequence[Outcome], metric: str = "train/epoch_loss", slack: float = 0.1
) -> list[PerformanceProfile]:
    """Seconds until a run is within `slack` of the lowest loss that anybody has on its problem.

    A problem is a recipe, or one network of a sweep over networks, with one seed.
    """
    problems: dict[tuple[str, str, int], dict[str, Outcome]] = {}
    for o in outcomes:
        if o.stage == "final":
            name = f"{o.optimizer} {o.setting}".strip()
            problems.setdefault((o.recipe, o.labels.get("network", ""), o.seed), {})[name] = o
    names = dict.fromkeys(name for found in problems.values() for name in found)
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for found in problems.values():
        values = [v for o in found.values() for p in o.points if math.isfinite(v := p.values.get(metric, math.nan))]
        target = min(values, default=math.nan) * (1 + slack)
        costs = {name: _seconds_to(found.get(name), metric, target) for name in names}
        best = min(costs.values())
        for name, cost in costs.items():
            ratios[name].append(cost / best if math.isfinite(cost) else math.inf)
    return [PerformanceProfile(name, tuple(sorted(found))) for name, found in ratios.items()]


def draw(found: Sequence[PerformanceProfile]) -> Figure:
    """The figure: share of problems over the factor.

    Raises:
        ValueError: there is no profile.
        ImportError: matplotlib is not installed.
    """
    if not found:
        raise ValueError("no run to draw a performance profile of")
    figure = style.figure_of(7, 4.5)
    axes = figure.subplots()
    largest = max([ratio for p in found for ratio in p.ratios if math.isfinite(ratio)] + [2.0])
    for index, profile in enumerate(found):
        factors = [1.0, *(ratio for ratio in profile.ratios if math.isfinite(ratio)), largest * 1.1]
        shares = [profile.solved(factor) for factor in factors]
        options = {**style.line(index), "markersize": 4, "linewidth": 1.4}
        (curve,) = axes.step(factors, shares, where="post", label=profile.name, **options)
        curve.set_gid(f"series-{index}-line")
    style.scale(axes, "x", True)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("seconds to the target / those of the fastest")
    axes.set_ylabel("share of problems solved")
    axes.grid(alpha=0.3)
    style.legend_below(figure, axes)
    return figure


def _seconds_to(outcome: Outcome | None, metric: str, target: float) -> float:
    points = () if outcome is None else outcome.points
    return next((max(p.seconds, 1e-9) for p in points if p.values.get(metric, math.inf) <= target), math.inf)
