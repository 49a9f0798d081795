"""Tracked runs back as outcomes, whoever made them and when: metrics in bulk where the store allows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Run

from raycurv.service.tracking import TAG, TrackingError, explained
from raycurv.train.outcomes import Outcome, Point, Status

EPOCH_LOSS = "train/epoch_loss"
# What is measured once an epoch, of the raw and of the averaged weights.
PER_EPOCH = (EPOCH_LOSS, "test/loss", "test/accuracy", "averaged/test/loss", "averaged/test/accuracy")
_STATUS: dict[str, Status] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "failed"}
_PAGE = 1000


@dataclass(frozen=True)
class _Value:
    """One value of a metric."""

    run: str
    name: str
    value: float
    step: int
    seconds: float  # since 1970


def outcomes(uri: str, experiment: str) -> list[Outcome]:
    """Every run of an experiment that has ended, oldest first; parents of launches and sweeps are left out.

    Raises:
        TrackingError: there is no such experiment, nothing in it has ended, or MLflow cannot be reached.
    """
    with explained(uri):
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            names = ", ".join(sorted(e.name for e in client.search_experiments())) or "none"
            raise TrackingError(f"MLflow at {uri} has no experiment {experiment!r}; it has: {names}")
        runs = [run for run in _runs(client, found.experiment_id) if TAG + "optimizer" in run.data.tags]
        ended = [run for run in runs if run.info.status in _STATUS]
        if not ended:
            raise TrackingError(f"experiment {experiment!r} has no run that has ended; train something first")
        by_run: dict[str, list[_Value]] = {}
        for value in _values(client, uri, [run.info.run_id for run in ended]):
            by_run.setdefault(value.run, []).append(value)
    return [_outcome(run, by_run.get(run.info.run_id, [])) for run in ended]


def links(uri: str, experiment: str) -> dict[str, str]:
    """Name of every run → its page, where MLflow is a server; empty otherwise.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    if not uri.startswith("http"):
        return {}
    with explained(uri):
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        runs = (
            [] if found is None else [r for r in _runs(client, found.experiment_id) if TAG + "run_name" in r.data.tags]
        )
    base = uri.rstrip("/")
    return {
        run.data.tags[TAG + "run_name"]: f"{base}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        for run in runs
    }


def _runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs(
            [experiment], order_by=["attributes.start_time ASC"], max_results=_PAGE, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _values(client: MlflowClient, uri: str, runs: Sequence[str]) -> Iterator[_Value]:
    """The values of :data:`PER_EPOCH` and of the runs' seconds.

    Yields:
        One after the other, those of a metric in the order of their steps.
    """
    names = (*PER_EPOCH, "result/seconds")
    if not uri.startswith("sqlite:///"):
        for run in runs:
            for name in names:
                for m in client.get_metric_history(run, name):
                    yield _Value(run, name, m.value, m.step, m.timestamp / 1000)
        return
    # The client asks for one metric of one run at a time, which takes minutes for hundreds of runs.
    path = quote(uri.removeprefix("sqlite:///"))
    marks = ", ".join("?" * len(names))
    question = f"SELECT run_uuid, key, value, step, timestamp, is_nan FROM metrics WHERE key IN ({marks}) ORDER BY step"
    wanted = set(runs)
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        for run, name, value, step, timestamp, is_nan in connection.execute(question, names):
            if run in wanted:
                yield _Value(run, name, float("nan") if is_nan else value, step, timestamp / 1000)
    finally:
        connection.close()


def _outcome(run: Run, values: Sequence[_Value]) -> Outcome:
    tags = {name.removeprefix(TAG): value for name, value in run.data.tags.items() if name.startswith(TAG)}
    seconds = next((v for v in values if v.name == "result/seconds"), None)
    began = run.info.start_time / 1000 if seconds is None else seconds.seconds - seconds.value
    status = tags.get("status", _STATUS[run.info.status])
    return Outcome(
        name=tags["run_name"],
        recipe=tags["recipe"],
        optimizer=tags["optimizer"],
        setting=tags.get("setting", _setting(run)),
        seed=int(tags["seed"]),
        stage=tags.get("stage", "final"),
        status=status,  # type: ignore[arg-type]  # one of the words of Status, written by a sweep
        reason=tags.get("reason", ""),
        points=tuple(_points(values, began)),
        steps=max((v.step for v in values), default=0),
        seconds=(run.info.end_time - run.info.start_time) / 1000 if seconds is None else seconds.value,
        operations=run.data.metrics.get("result/operations", 0.0),
        labels={name: tags[name] for name in ("network", "sweep", "launch") if name in tags},
    )


def _points(values: Sequence[_Value], began: float) -> Iterator[Point]:
    steps: dict[int, list[_Value]] = {}
    for value in values:
        if value.name in PER_EPOCH:
            steps.setdefault(value.step, []).append(value)
    for epoch, (step, found) in enumerate(sorted(steps.items()), 1):
        yield Point(float(epoch), step, found[0].seconds - began, {v.name: v.value for v in found})


def _setting(run: Run) -> str:
    prefix = "optimizer_settings."
    given = {k.removeprefix(prefix): v for k, v in run.data.params.items() if k.startswith(prefix)}
    return " ".join(f"{name}={value}" for name, value in sorted(given.items()))
