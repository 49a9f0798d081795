"""Tracked runs as pandas tables for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from raycurv.tracking.stored_runs import ExperimentRuns


def runs(experiment: str, tracking_uri: str | None = None) -> pd.DataFrame:
    """One row for every run of an experiment: its configuration, result and cost.

    Args:
        experiment: name of the experiment in MLflow.
        tracking_uri: tracking URI of MLflow; by default ``MLFLOW_TRACKING_URI``, or the data base in ``RAYCURV_RUNS``
            or ``~/raycurv-runs``, as for the jobs.

    Returns:
        Columns ``run_id``, ``name``, ``recipe``, ``optimizer``, ``setting``, ``seed``, ``stage``, ``status``,
        ``reason``, ``started``, ``seconds``, ``steps``, ``epochs``, ``operations``, ``images_per_second``, …; the last
        value of every metric that is measured once an epoch (``test/accuracy``), the best one of all epochs
        (``best test/accuracy``), and the configuration (``config.batch_size``, …).

    Raises:
        TrackingError: there is no such experiment, or MLflow cannot be reached.
        ImportError: MLflow is not installed.
    """
    from raycurv.tracking import frames

    return frames.runs(_tracked(experiment, tracking_uri))


def metrics(
    experiment: str,
    names: Sequence[str] | None = None,
    *,
    runs: pd.DataFrame | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """One row for every logged value: a tidy long table, ready to be grouped, pivoted and drawn.

    Args:
        experiment: name of the experiment in MLflow.
        names: names of the metrics; by default all but the system metrics.
        runs: some rows of :func:`runs`; by default all.
        tracking_uri: tracking URI of MLflow, with the default of :func:`runs`.

    Returns:
        Columns ``run_id``, ``name``, ``recipe``, ``optimizer``, ``setting``, ``seed``, ``stage``, ``status``,
        ``metric``, ``step``, ``epoch``, ``seconds`` (since the run began), ``value``.

    Raises:
        ValueError: no run has such a metric.
        TrackingError: there is no such experiment, or MLflow cannot be reached.
        ImportError: MLflow is not installed.
    """
    from raycurv.tracking import frames

    chosen = None if runs is None else [str(run) for run in runs["run_id"]]
    return frames.metrics(_tracked(experiment, tracking_uri), names, chosen)


def _tracked(experiment: str, uri: str | None) -> ExperimentRuns:
    """The experiment.

    Raises:
        ImportError: MLflow is not installed.
    """
    try:
        from raycurv.tracking import stored_runs
    except ImportError as error:
        raise ImportError("runs are read from MLflow: pip install 'raycurv[cluster]'") from error
    return stored_runs.ExperimentRuns(stored_runs.default_uri(uri), experiment)
