"""Run the benchmark suite as a sweep, and show its tables from stored outcomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from raycurv import recipes
from raycurv.benchmarks.suite import tables
from raycurv.benchmarks.suite.plan import PlannedPoint, SuitePlan, trials
from raycurv.benchmarks.suite.runs import SuiteRuns
from raycurv.benchmarks.suite.tasks import SuiteTask
from raycurv.data import storage
from raycurv.recipes.search import with_optimizer
from raycurv.results.outcomes import Outcome
from raycurv.service.cluster import Cluster
from raycurv.service.launch import launch
from raycurv.service.limits import Limits
from raycurv.service.outcome_log import OutcomeLog
from raycurv.service.sweep import Sweep, sweeping

NAME = "suite"
START_OPTIMIZER = "adam"  # of the runs whose weights a task starts from


def run(plan: SuitePlan, cluster: Cluster, limits: Limits) -> None:
    """Carry out the runs that are not done yet, task by task, and keep the tables beside the outcomes.

    Args:
        plan: tasks, methods and seeds.
        cluster: resources of one run, folders, MLflow.
        limits: limits of every run.

    Raises:
        ValueError: data are missing, a run is not allowed, or the sweep exists already and `resume` is not set.
        CapacityError: the cluster can never give what a run needs.
        LaunchError: a run that gives the weights to start from failed.
        TrackingError: MLflow cannot be used.
        Stopped: the user stopped the suite; what is done is kept.
    """
    starts = _starts(plan.tasks, cluster)
    first = [trial for task in plan.tasks for trial in trials(task, plan.first(task), starts.get(task.name))]
    with sweeping(NAME, first, cluster, limits) as sweep:
        for task in plan.tasks:
            _run(sweep, task, plan.first(task), starts)
            _run(sweep, task, plan.final(task, _runs(sweep.log)), starts)
            done = _runs(sweep.log)
            sweep.notify("\n" + tables.progress(plan, done))
            sweep.artifacts.write("suite.md", tables.page(plan, done))


def stored(cluster: Cluster, sweeps: Sequence[str] = ()) -> list[Outcome]:
    """Outcomes of suites that have run, or are running; nothing is trained.

    Args:
        cluster: folder of all runs, and the name of the sweep.
        sweeps: names of the sweeps where a suite ran in parts; by default that of `cluster`.

    Raises:
        ValueError: a sweep has none.
    """
    found: list[Outcome] = []
    for name in sweeps or (cluster.run_name or NAME,):
        path = Path(cluster.runs) / "sweeps" / name / "outcomes.jsonl"
        done = OutcomeLog(path).done
        if not done:
            raise ValueError(f"there are no outcomes at {path}: run the suite first, or give its --runs and --run-name")
        found += done.values()
    return found


def _starts(tasks: Sequence[SuiteTask], cluster: Cluster) -> dict[str, str]:
    """Train the runs whose weights tasks start from, where that is not done; returns their checkpoints by task.

    All suites of a folder of runs share them.
    """
    starts = {}
    for task in tasks:
        if task.start is not None:
            config = with_optimizer(recipes.build(task.start, {}), START_OPTIMIZER, {})
            name = f"{NAME}-start-{config.name}"
            launch([config], dataclasses.replace(cluster, run_name=name, resume="auto"))
            starts[task.name] = storage.join(cluster.checkpoints, name)
    return starts


def _run(sweep: Sweep, task: SuiteTask, points: Sequence[PlannedPoint], starts: Mapping[str, str]) -> None:
    if points:
        sweep.run(trials(task, points, starts.get(task.name)))


def _runs(log: OutcomeLog) -> SuiteRuns:
    return SuiteRuns(log.done.values())
