"""Stored outcomes of the suite by task, method and seed, and what is measured of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Literal

from raycurv.arguments import format_settings
from raycurv.benchmarks.suite.methods import Settings, SuiteMethod
from raycurv.benchmarks.suite.tasks import TRAINING_LOSS, SuiteTask
from raycurv.results.outcomes import Outcome

Cost = Literal["operations", "seconds"]


class SuiteRuns:
    """Outcomes of the suite.

    Args:
        outcomes: stored outcomes; those of other recipes do no harm.
    """

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self._found: dict[tuple[str, str, str], dict[int, Outcome]] = {}
        for outcome in outcomes:
            key = (outcome.recipe, outcome.optimizer, outcome.setting)
            self._found.setdefault(key, {})[outcome.seed] = outcome

    def at(self, task: SuiteTask, optimizer: str, settings: Settings) -> dict[int, Outcome]:
        """Outcomes of one setting by seed."""
        return self._found.get((task.name, optimizer, _text(settings)), {})

    def of_task(self, task: SuiteTask) -> list[Outcome]:
        """All outcomes on a task."""
        return [o for (recipe, _, _), found in self._found.items() if recipe == task.name for o in found.values()]

    def of(self, task: SuiteTask, method: SuiteMethod) -> list[Outcome]:
        """Outcomes of a method on a task by seed; of a tuned one those at its best point, once its grid is done."""
        point = self.best_point(task, method) if method.grid else method.settings
        found = {} if point is None else self.at(task, method.optimizer, point)
        return [found[seed] for seed in sorted(found)]

    def search(self, task: SuiteTask, method: SuiteMethod) -> list[Outcome]:
        """Outcomes on the first seed of all points of a method's grid; empty for one without a grid."""
        found = (self.at(task, method.optimizer, point).get(0) for point in method.grid)
        return [outcome for outcome in found if outcome is not None]

    def best_point(self, task: SuiteTask, method: SuiteMethod) -> Settings | None:
        """Point of a grid that finishes on the first seed, reaches the target first, and ends with the best metric.

        None while a point is missing.
        """
        if len(self.search(task, method)) < len(method.grid):
            return None

        def rank(point: Settings) -> tuple[bool, float, float]:
            outcome = self.at(task, method.optimizer, point)[0]
            step, last = task.step_reached(outcome), outcome.last(task.metric)
            if outcome.status != "finished" or last is None or not math.isfinite(last):
                return True, math.inf, math.inf
            return False, math.inf if step is None else step, -last if task.rises else last

        return min(method.grid, key=rank)


def _text(settings: Settings) -> str:
    return format_settings(dict(sorted(settings.items())))


def cost_to_target(task: SuiteTask, outcome: Outcome, cost: Cost = "operations") -> float:
    """Operations, or step time in seconds, until a run is at the target; infinite where it never is.

    Step time is the number of steps times the median seconds of a step; NaN for a run whose steps were not timed.
    """
    step = task.step_reached(outcome)
    if step is None or outcome.steps == 0:
        return math.inf
    if cost == "operations":
        return outcome.operations * step / outcome.steps
    return step * outcome.step_seconds if outcome.step_seconds else math.nan


def median_cost(task: SuiteTask, outcomes: list[Outcome], cost: Cost = "operations") -> float:
    """Median over the seeds, infinite where half of them or more miss the target; NaN where a seed was not timed."""
    costs = [cost_to_target(task, outcome, cost) for outcome in outcomes]
    return math.nan if any(map(math.isnan, costs)) else statistics.median_high(costs)


def final_loss(task: SuiteTask, outcome: Outcome) -> float:
    """Training loss at the end, at least the task's floor; infinite for a run that did not finish."""
    loss = outcome.last(TRAINING_LOSS)
    if outcome.status != "finished" or loss is None or not math.isfinite(loss):
        return math.inf
    return max(loss, task.floor)


def mean_loss(task: SuiteTask, outcomes: list[Outcome]) -> float:
    """Geometric mean of :func:`final_loss` over the seeds."""
    losses = [final_loss(task, outcome) for outcome in outcomes]
    return math.inf if math.inf in losses else statistics.geometric_mean(losses)


def best_loss(task: SuiteTask, runs: SuiteRuns) -> float:
    """Smallest mean loss of any setting that ran on a task, tuned ones included."""
    settings: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in runs.of_task(task):
        settings.setdefault((outcome.optimizer, outcome.setting), []).append(outcome)
    return min((mean_loss(task, found) for found in settings.values()), default=math.inf)
