"""Histories of tracked runs with all their steps, for figures. A few queries read an experiment."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np

from raycurv.results.histories import MetricTrace, RunHistory
from raycurv.results.outcomes import Outcome
from raycurv.tracking.stored_runs import ExperimentRuns, epochs_at
from raycurv.tracking.stores import StoredRun, Values


def histories(
    tracked: ExperimentRuns, metrics: Sequence[str], recipes: Container[str] | None = None
) -> list[RunHistory]:
    """Histories of the runs that have ended, oldest first.

    Args:
        tracked: the experiment.
        metrics: names of the metrics to read; a name that ends in ``/*`` stands for all with this prefix.
        recipes: recipes whose runs are read; by default all.

    Raises:
        TrackingError: nothing has ended, or MLflow cannot be read.
    """
    pairs = [
        (run, outcome)
        for run, outcome in zip(tracked.ended, tracked.outcomes, strict=True)
        if recipes is None or outcome.recipe in recipes
    ]
    known = dict.fromkeys(name for run, _ in pairs for name in run.latest)
    names = [name for name in known if any(_matches(name, metric) for metric in metrics)]
    values = tracked.values(names, [run for run, _ in pairs])
    where = values.of_run()
    return [
        RunHistory(outcome, _traces(run, outcome, values, where[run.id], tracked.began[run.id]))
        for run, outcome in pairs
    ]


def _matches(name: str, metric: str) -> bool:
    return name.startswith(metric[:-1]) if metric.endswith("/*") else name == metric


def _traces(run: StoredRun, outcome: Outcome, values: Values, mine: slice, began: float) -> dict[str, MetricTrace]:
    name, step, seconds = values.name[mine], values.step[mine].astype(float), values.time[mine] - began
    epochs = _epochs(run, outcome, step)
    found = {}
    for number in np.unique(name).tolist():
        chosen = np.flatnonzero(name == number)
        chosen = chosen[np.argsort(step[chosen], kind="stable")]
        last = np.append(np.diff(step[chosen]) > 0, True)  # a step logged twice counts once
        at = chosen[last]
        found[values.names[number]] = MetricTrace(step[at], epochs[at], seconds[at], values.value[mine][at])
    return found


def _epochs(run: StoredRun, outcome: Outcome, step: np.ndarray) -> np.ndarray:
    """Epochs passed at some steps: the ratio of epochs to steps at the last step with a logged epoch holds for all."""
    if last := run.last_step.get("epoch"):
        return step * run.latest["epoch"] / last
    return epochs_at(run, [point.step for point in outcome.points], step)
