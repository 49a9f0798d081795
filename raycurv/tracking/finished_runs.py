"""Reuse of finished runs, found by the digest of their configuration."""

from __future__ import annotations

import dataclasses

from raycurv.results.outcomes import SCALARS, EvaluationPoint, Outcome
from raycurv.tracking.stored_runs import ExperimentRuns, tags_of
from raycurv.tracking.stores import Values, store_at
from raycurv.tracking.tracked_run import TAG

# Metrics at the end of an epoch that a paper's table may need beyond those of every comparison.
ALSO = ("training_set/loss", "training_set/accuracy", *SCALARS)
_ENDED = ("finished", "diverged")  # a run with another status may end differently when repeated


def by_digest(uri: str, experiment: str) -> dict[str, Outcome]:
    """Newest finished or diverged run of every configuration, by digest; empty if no run has ended.

    Raises:
        TrackingError: there is no such experiment, or MLflow cannot be reached.
    """
    tracked = ExperimentRuns(uri, experiment)
    if not any(run.ended is not None for run in tracked.runs):
        return {}
    pairs = [(run, o) for run, o in zip(tracked.ended, tracked.outcomes, strict=True) if o.status in _ENDED]
    digests = {run.id: tags_of(run).get("config", "") for run, _ in pairs}
    values = tracked.values(ALSO, [run for run, _ in pairs])
    where = values.of_run()
    return {
        digests[run.id]: dataclasses.replace(outcome, points=_points(outcome, values, where[run.id]))
        for run, outcome in pairs
        if digests[run.id]
    }


def names_of(uri: str, experiment: str, sweep: str) -> set[str]:
    """Names of all runs of a sweep in an experiment, given by its id, whatever their state.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    runs = store_at(uri).runs(experiment)
    return {run.tags[TAG + "run_name"] for run in runs if run.tags.get(TAG + "sweep") == sweep}


def _points(outcome: Outcome, values: Values, mine: slice) -> tuple[EvaluationPoint, ...]:
    """Evaluation points of the run, with the other metrics measured at their steps."""
    also: dict[int, dict[str, float]] = {}
    columns = (getattr(values, name)[mine].tolist() for name in ("name", "step", "value"))
    for name, step, value in zip(*columns, strict=True):
        also.setdefault(step, {})[values.names[name]] = value
    return tuple(dataclasses.replace(p, values={**p.values, **also.get(p.step, {})}) for p in outcome.points)
