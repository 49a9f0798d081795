"""Runs of the suite: every method on every task and seed, then further seeds of tuned settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raycurv.arguments import format_settings, require_whole
from raycurv.benchmarks.suite.methods import Settings, SuiteMethod
from raycurv.benchmarks.suite.runs import SuiteRuns
from raycurv.benchmarks.suite.tasks import SuiteTask
from raycurv.recipes.search import SweepTrial, with_optimizer


@dataclass(frozen=True)
class PlannedPoint:
    """One run on a task.

    Attributes:
        optimizer: name of the registered optimizer.
        settings: settings of the optimizer.
        seed: seed of weights and data.
    """

    optimizer: str
    settings: Settings
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Identifies the run on its task."""
        return self.optimizer, format_settings(dict(sorted(self.settings.items()))), self.seed


@dataclass(frozen=True)
class SuitePlan:
    """Tasks, methods and seeds of a campaign.

    Attributes:
        tasks: tasks, in the order in which they run.
        methods: methods, in the order in which they run.
        seeds: number of seeds of every method on every task; a grid is searched on the first.

    Raises:
        ValueError: fewer than one seed, task or method.
    """

    tasks: tuple[SuiteTask, ...]
    methods: tuple[SuiteMethod, ...]
    seeds: int = 3

    def __post_init__(self) -> None:
        require_whole("SuitePlan.seeds", self.seeds, 1)
        if not self.tasks or not self.methods:
            raise ValueError("the suite needs at least one task and one method")

    def methods_on(self, task: SuiteTask) -> tuple[SuiteMethod, ...]:
        """Methods that run on a task: all, or on a costly one those for costly tasks."""
        return tuple(method for method in self.methods if method.costly or not task.costly)

    def first(self, task: SuiteTask) -> list[PlannedPoint]:
        """Every method at its one setting on all seeds, and every point of a grid on the first seed."""
        return _unique(
            PlannedPoint(method.optimizer, point, seed)
            for method in self.methods_on(task)
            for point in method.points
            for seed in range(1 if method.grid else self.seeds)
        )

    def final(self, task: SuiteTask, runs: SuiteRuns) -> list[PlannedPoint]:
        """The further seeds of the best point of every grid that has been searched."""
        found = [(method, runs.best_point(task, method)) for method in self.methods_on(task) if method.grid]
        return _unique(
            PlannedPoint(method.optimizer, point, seed)
            for method, point in found
            if point is not None
            for seed in range(1, self.seeds)
        )

    def expected(self, task: SuiteTask) -> int:
        """Number of runs on a task, with the further seeds of tuned settings."""
        tuned = sum(bool(method.grid) for method in self.methods_on(task))
        return len(self.first(task)) + tuned * (self.seeds - 1)

    def done(self, task: SuiteTask, runs: SuiteRuns) -> int:
        """Number of these that have ended."""
        points = _unique([*self.first(task), *self.final(task, runs)])
        return sum(point.seed in runs.at(task, point.optimizer, point.settings) for point in points)


def trials(task: SuiteTask, points: Sequence[PlannedPoint], start_from: str | None = None) -> list[SweepTrial]:
    """Trials of a sweep.

    Args:
        task: the task.
        points: its runs.
        start_from: checkpoints of the run that gives the weights to start from.

    Raises:
        ValueError: the data of the task are missing.
    """
    config = task.config(start_from)
    return [
        SweepTrial(
            dataclasses.replace(with_optimizer(config, point.optimizer, point.settings), seed=point.seed),
            point.settings,
        )
        for point in points
    ]


def _unique(points: Iterable[PlannedPoint]) -> list[PlannedPoint]:
    """Points without those that two methods share."""
    return list({point.key: point for point in points}.values())
