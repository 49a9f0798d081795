"""Tracked runs as pandas tables: one with a row for every run, and one with a row for every value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from raycurv.tracking.run_page import configuration
from raycurv.tracking.stored_runs import (
    EPOCH_LOSS,
    PER_EPOCH,
    ExperimentRuns,
    epochs_at,
    name_of,
    seconds_of,
    setting_of,
    tags_of,
)
from raycurv.tracking.stores import StoredRun, Values
from raycurv.train.metric_names import larger_is_better

_STATUS = {"KILLED": "stopped", "SCHEDULED": "waiting"}
_RESULTS = {name: f"result/{name}" for name in ("operations", "images_per_second", "step_seconds", "startup_seconds")}
_IDENTITY = ("name", "recipe", "optimizer", "setting", "seed", "stage", "status")
# Tags with a column of their own. The other tags of MLflow and of the driver are of no use in a table.
_ORIGIN = ("network", "sweep", "launch", "workers", "device", "commit", "dirty")


def runs(tracked: ExperimentRuns) -> pd.DataFrame:
    """One row for every run, oldest first, including failed and running ones.

    Columns:

    - identity and result: ``run_id``, ``name``, ``recipe``, ``optimizer``, ``setting``, ``seed``, ``stage``,
      ``status``, ``reason``, ``started``, ``seconds``, ``steps``, ``epochs``, ``operations``, ``images_per_second``,
      ``step_seconds``, ``startup_seconds``;
    - origin of the run: ``network``, ``sweep``, ``launch``, ``workers``, ``device``, ``commit``, ``dirty``;
    - the last value of every metric of evaluations, and the best of all epochs as ``best test/accuracy``, except of
      metrics of one's own, whose best is not known;
    - every field of the configuration, as ``config.batch_size``, ``config.optimizer_settings.learning_rate``, ….
    """
    values = tracked.values(tracked.per_epoch)
    where = values.of_run()
    rows = [_row(run, values, where[run.id]) for run in tracked.runs]
    table = pd.DataFrame(rows, columns=list(dict.fromkeys([*_COLUMNS, *(name for row in rows for name in row)])))
    table["started"] = pd.to_datetime(table["started"], unit="s", utc=True)
    for column in [name for name in table if str(name).startswith("config.")]:
        table[column] = _as_numbers(table[column])
    empty = [name for name in table if name not in _ALWAYS and table[name].isna().all()]
    return table.drop(columns=empty)


def metrics(
    tracked: ExperimentRuns, wanted: Sequence[str] | None = None, chosen: Iterable[str] | None = None
) -> pd.DataFrame:
    """One row for every value of some metrics, sorted by run, metric and step.

    Args:
        tracked: the experiment.
        wanted: names of the metrics; by default all but the system metrics.
        chosen: ids of the runs; by default all.

    Returns:
        Columns ``run_id``, ``name``, ``recipe``, ``optimizer``, ``setting``, ``seed``, ``stage``, ``status``,
        ``metric`` (categories), ``step``, ``epoch``, ``seconds`` since the run began, ``value``.

    Raises:
        ValueError: no run has one of the ids or metrics.
    """
    mine = _chosen(tracked, chosen)
    known = sorted({name for run in mine for name in run.latest})
    names = [name for name in known if not name.startswith("system/")] if wanted is None else list(wanted)
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"no run has a metric {missing[0]!r}; there are {', '.join(known) or 'none'}")
    values = tracked.values(names, mine)
    ends = tracked.values([EPOCH_LOSS], mine)
    where, evaluated = values.of_run(), ends.of_run()
    epoch, began = np.empty(len(values.step)), np.empty(len(values.step))
    for run in mine:
        epoch[where[run.id]] = epochs_at(run, ends.step[evaluated[run.id]], values.step[where[run.id]])
        began[where[run.id]] = tracked.began[run.id]
    identity = {name: pd.Categorical([_identity(run)[name] for run in mine]) for name in _IDENTITY}
    return pd.DataFrame(
        {
            "run_id": pd.Categorical.from_codes(values.run, [run.id for run in mine]),
            **{name: column[values.run] for name, column in identity.items()},
            "metric": pd.Categorical.from_codes(values.name, names),
            "step": values.step,
            "epoch": epoch,
            "seconds": values.time - began,
            "value": values.value,
        }
    )


def _chosen(tracked: ExperimentRuns, chosen: Iterable[str] | None) -> list[StoredRun]:
    if chosen is None:
        return tracked.runs
    by_id = {run.id: run for run in tracked.runs}
    wanted = list(chosen)
    if missing := [run for run in wanted if run not in by_id]:
        raise ValueError(f"experiment {tracked.experiment!r} has no run with the id {missing[0]!r}")
    return [by_id[run] for run in wanted]


def _row(run: StoredRun, values: Values, mine: slice) -> dict[str, Any]:
    tags = tags_of(run)
    row = {"run_id": run.id, **_identity(run), "reason": tags.get("reason", ""), "started": run.began}
    row |= {"seconds": seconds_of(run), "steps": _steps(run), "epochs": 0.0}
    row |= {column: run.latest.get(metric, np.nan) for column, metric in _RESULTS.items()}
    row |= {name: tags[name] for name in _ORIGIN if name in tags}
    names, found, steps = values.name[mine], values.value[mine], values.step[mine]
    for index, metric in enumerate(values.names):
        if (of_metric := found[names == index]).size:
            row[metric] = of_metric[-1]
            if (larger := larger_is_better(metric)) is not None:
                row[f"best {metric}"] = _best(of_metric, larger)
    if len(ends := steps[names == values.names.index(EPOCH_LOSS)]):
        row["epochs"] = epochs_at(run, ends, ends[-1:])[0]
    return row | {f"config.{name}": value for name, value in configuration(run.params).items()}


def _steps(run: StoredRun) -> int:
    """Updates made; the steps of system metrics count samples."""
    return max((step for name, step in run.last_step.items() if not name.startswith("system/")), default=0)


def _identity(run: StoredRun) -> dict[str, Any]:
    tags = tags_of(run)
    seed = tags.get("seed", "")
    return {
        "name": name_of(run),
        "recipe": tags.get("recipe", "unknown"),
        "optimizer": tags["optimizer"],
        "setting": setting_of(run),
        "seed": int(seed) if seed.isdecimal() else 0,
        "stage": tags.get("stage", "final"),
        "status": tags.get("status", _STATUS.get(run.status, run.status.lower())),
    }


def _best(values: np.ndarray, larger: bool) -> float:
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan")
    return float(known.max() if larger else known.min())


def _as_numbers(column: pd.Series) -> pd.Series:
    try:
        return pd.to_numeric(column)
    except ValueError:  # some values are words
        return column


_METRICS = tuple(name for metric in PER_EPOCH for name in (metric, f"best {metric}"))
_COLUMNS = ("run_id", *_IDENTITY, "reason", "started", "seconds", "steps", "epochs", *_RESULTS, *_ORIGIN, *_METRICS)
# Every other column is left out of the table if no run has a value for it.
_ALWAYS = {name for name in _COLUMNS if name not in _ORIGIN and "averaged/" not in name}
