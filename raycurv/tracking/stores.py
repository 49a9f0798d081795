"""Runs and metrics in bulk, by a few SELECTs from a data base of MLflow or by bulk calls to a server.

MLflow's client requests one metric of one run at a time, which takes minutes for hundreds of runs. The tables read here
are the same since MLflow 1.0, so data bases of other MLflow versions are readable too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import sqlalchemy as sql
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.rest_utils import http_request

from raycurv.tracking.client import TrackingError, explained

LARGEST = 1.797e308  # MLflow stores infinity as the largest double
RUNS_IN_A_CALL, VALUES_IN_A_CALL = 100, 25_000  # limits of a server
ROWS = 50_000  # fetched at a time, so that a million values need not be Python objects all at once
_PAGE = 1000
_BULK = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"


@dataclass(frozen=True)
class StoredRun:
    """One run as stored in MLflow.

    Attributes:
        id: id of the run.
        experiment: id of the experiment.
        label: name in MLflow's list.
        status: RUNNING, FINISHED, ….
        began: start of the run, in seconds since 1970.
        ended: end of the run, in seconds since 1970; None while it goes on.
        tags: all tags of the run.
        params: all parameters of the run.
        latest: newest value of every metric.
        last_step: step of every metric's newest value.
    """

    id: str
    experiment: str
    label: str
    status: str
    began: float
    ended: float | None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    last_step: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Values:
    """Metric values as columns of one length N, sorted by run, metric and step.

    Attributes:
        runs: ids of the runs, indexed by `run`.
        names: names of the metrics, indexed by `name`.
        run: (N,) index into `runs`.
        name: (N,) index into `names`.
        step: (N,) updates made.
        time: (N,) seconds since 1970.
        value: (N,) the values, NaN and infinities included.
    """

    runs: tuple[str, ...]
    names: tuple[str, ...]
    run: np.ndarray
    name: np.ndarray
    step: np.ndarray
    time: np.ndarray
    value: np.ndarray

    def of_run(self) -> dict[str, slice]:
        """Slice of each run's values, by id of the run."""
        bounds = np.searchsorted(self.run, np.arange(len(self.runs) + 1))
        return {run: slice(int(bounds[i]), int(bounds[i + 1])) for i, run in enumerate(self.runs)}


class RunStore(Protocol):
    """Queries to a store of MLflow."""

    notes: list[str]

    def experiments(self) -> dict[str, str]:
        """Id of every experiment that is not deleted, by name."""

    def runs(self, experiment: str) -> list[StoredRun]:
        """Runs of an experiment, given by its id, oldest first, without deleted ones."""

    def values(self, experiment: str, runs: Sequence[str], names: Sequence[str]) -> Values:
        """All values of some metrics of some runs of an experiment, given by its id."""


def store_at(uri: str) -> RunStore:
    """Open the store at a tracking URI for reading; nothing there is created or changed.

    Raises:
        TrackingError: there is no store, or it cannot be read.
    """
    if uri.startswith(("http://", "https://", "databricks")):
        return _Server(uri)
    if "://" not in uri or uri.startswith("file:"):
        raise TrackingError(
            f"the tracking URI is {uri!r}; runs are read from a data base (sqlite:///FILE, postgresql://…) or from a "
            "server (http://…); MLflow's folders of files go into a data base with `mlflow migrate-filestore`"
        )
    return _DataBase(uri)


class _DataBase:
    def __init__(self, uri: str) -> None:
        self.uri, self.notes = uri, list[str]()
        if uri.startswith("sqlite:///"):
            path = Path(uri.removeprefix("sqlite:///"))
            if not path.is_file():
                raise TrackingError(f"there is no MLflow data base at {path}: train something first, or name another")
            uri = f"sqlite:///file:{quote(str(path))}?mode=ro&uri=true"
        self._engine = sql.create_engine(uri)
        with self._connected() as connection:
            self._compare_versions(connection)

    def experiments(self) -> dict[str, str]:
        with self._connected() as connection:
            rows = connection.execute(
                sql.select(_EXPERIMENTS.c.name, _EXPERIMENTS.c.experiment_id).where(
                    _EXPERIMENTS.c.lifecycle_stage == "active"
                )
            )
            return {name: str(number) for name, number in rows}

    def runs(self, experiment: str) -> list[StoredRun]:
        c = _RUNS.c
        question = (
            sql.select(c.run_uuid, c.name, c.status, c.start_time, c.end_time)
            .where(*self._living(experiment))
            .order_by(c.start_time, c.run_uuid)
        )
        with self._connected() as connection:
            found = {
                key: StoredRun(
                    key, experiment, name or "", status, (start or 0) / 1000, None if end is None else end / 1000
                )
                for key, name, status, start, end in connection.execute(question)
            }
            mine = self._ids(experiment)
            for table, part in ((_TAGS, "tags"), (_PARAMS, "params")):
                columns = table.c.run_uuid, table.c.key, table.c.value
                for run, key, value in connection.execute(sql.select(*columns).where(table.c.run_uuid.in_(mine))):
                    getattr(found[run], part)[key] = value
            m = _LATEST.c
            question = sql.select(m.run_uuid, m.key, m.value, m.is_nan, m.step).where(m.run_uuid.in_(mine))
            for run, key, value, is_nan, step in connection.execute(question):
                found[run].latest[key] = _number(value, is_nan)
                found[run].last_step[key] = step
        return list(found.values())

    def values(self, experiment: str, runs: Sequence[str], names: Sequence[str]) -> Values:
        columns = _Columns(runs, names)
        m = _METRICS.c
        # The query names a few runs; for more it reads the whole experiment, and the other runs are dropped.
        among = list(runs) if len(runs) <= RUNS_IN_A_CALL else self._ids(experiment)
        question = sql.select(m.run_uuid, m.key, m.value, m.is_nan, m.step, m.timestamp)
        question = question.where(m.key.in_(list(names)), m.run_uuid.in_(among))
        with self._connected() as connection:
            # Use the driver's own cursor, because SQLAlchemy's rows take twice the time.
            cursor = connection.connection.cursor()
            cursor.execute(str(question.compile(self._engine, compile_kwargs={"literal_binds": True})))
            while rows := cursor.fetchmany(ROWS):
                columns.add(rows)
        return columns.sorted()

    def _living(self, experiment: str) -> tuple[Any, ...]:
        return _RUNS.c.experiment_id == int(experiment), _RUNS.c.lifecycle_stage == "active"

    def _ids(self, experiment: str) -> Any:
        return sql.select(_RUNS.c.run_uuid).where(*self._living(experiment))

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sql.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except sql.exc.SQLAlchemyError as error:
            first = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise TrackingError(
                f"the MLflow data base at {self.uri} cannot be read: {first[:300]}. Is it one of MLflow, and "
                "is the address right (--tracking-uri or MLFLOW_TRACKING_URI)?"
            ) from error

    def _compare_versions(self, connection: sql.Connection) -> None:
        from mlflow.store.db.utils import _get_latest_schema_revision

        revision = sql.Table("alembic_version", sql.MetaData(), sql.Column("version_num", sql.String))
        (found,) = connection.execute(sql.select(revision.c.version_num)).scalars().all() or ["none"]
        expected = _get_latest_schema_revision()
        if found != expected:
            self.notes.append(
                f"The data base was written by another version of MLflow (schema {found}, the one installed here has "
                f"{expected}): runs and metrics were read as they are, and nothing was changed. `mlflow ui` will want "
                "`mlflow db upgrade` first."
            )


class _Server:
    def __init__(self, uri: str) -> None:
        self.uri, self.notes = uri, list[str]()
        with explained(uri):
            self._client = MlflowClient(uri)
            self._client.search_experiments(max_results=1)

    def experiments(self) -> dict[str, str]:
        with explained(self.uri):
            return {e.name: str(e.experiment_id) for e in _pages(self._client.search_experiments)}

    def runs(self, experiment: str) -> list[StoredRun]:
        with explained(self.uri):
            order = ["attributes.start_time ASC"]
            found = list(_pages(self._client.search_runs, experiment_ids=[experiment], order_by=order))
        return [
            StoredRun(
                run.info.run_id, experiment, run.info.run_name or "", run.info.status,
                (run.info.start_time or 0) / 1000, None if run.info.end_time is None else run.info.end_time / 1000,
                dict(run.data.tags), dict(run.data.params),
                {name: _number(value) for name, value in run.data.metrics.items()},
                {metric.key: metric.step for metric in run.data._metric_objs},
            )
            for run in found
        ]  # fmt: skip

    def values(self, experiment: str, runs: Sequence[str], names: Sequence[str]) -> Values:
        columns = _Columns(runs, names)
        with explained(self.uri):
            for name in names:
                for rows in self._history(sorted(runs), name):
                    columns.add(rows)
        return columns.sorted()

    def _history(self, runs: Sequence[str], name: str) -> Iterator[list[tuple[Any, ...]]]:
        """Values of one metric. The server answers in the order of the runs and truncates long answers.

        Yields:
            Rows of run, name, value, whether it is NaN, step and milliseconds.
        """
        left = list(runs)
        while left:
            asked = left[:RUNS_IN_A_CALL]
            found = self._bulk(asked, name)
            cut = found is not None and len(found) >= VALUES_IN_A_CALL
            last = asked.index(found[-1]["run_id"]) if found and cut else len(asked)
            if found is None or last == 0:  # no such call, or a run that is too long for it
                metrics = self._client.get_metric_history(asked[0], name)
                yield [(asked[0], name, m.value, False, m.step, m.timestamp) for m in metrics]
                left = left[1:]
                continue
            complete = set(asked[:last])  # some values of the next run are missing
            yield [
                (m["run_id"], name, float(m["value"]), False, m["step"], m["timestamp"])
                for m in found
                if m["run_id"] in complete
            ]
            left = left[last:]

    def _bulk(self, runs: Sequence[str], name: str) -> list[dict[str, Any]] | None:
        """One answer of the endpoint for the server's own charts; None if the server has no such endpoint.

        Raises:
            MlflowException: the server refuses.
        """
        if self.notes:
            return None
        answer = http_request(
            self._client._tracking_client.store.get_host_creds(),
            _BULK,
            "GET",
            params={"run_id": list(runs), "metric_key": name, "max_results": VALUES_IN_A_CALL},
            raise_on_status=False,
        )
        if answer.status_code == 200:
            metrics: list[dict[str, Any]] = answer.json()["metrics"]
            return metrics
        if answer.status_code in (401, 403):
            raise MlflowException(f"the server does not let us read metrics (status {answer.status_code})")
        self.notes.append(
            f"The server at {self.uri} has no bulk call for metrics (status {answer.status_code}; another version of "
            "MLflow?): they were read run by run, which is slow."
        )
        return None


class _Columns:
    """Collector of rows into columns, without an object for each row."""

    def __init__(self, runs: Sequence[str], names: Sequence[str]) -> None:
        self.runs, self.names = tuple(runs), tuple(names)
        self._run = {run: i for i, run in enumerate(self.runs)}
        self._name = {name: i for i, name in enumerate(self.names)}
        self._parts: list[np.ndarray] = []

    def add(self, rows: Sequence[Any]) -> None:
        """Add rows of run, name, value, whether it is NaN, step and milliseconds."""
        if not rows:
            return
        run, name, value, is_nan, step, milliseconds = zip(*rows, strict=True)
        part = np.empty(len(rows), _ROW)
        part["run"] = [self._run.get(key, -1) for key in run]
        part["name"] = [self._name[key] for key in name]
        part["step"], part["time"] = step, np.array(milliseconds) / 1000
        part["value"] = _restored(np.array(value, float), np.array(is_nan, bool))
        self._parts.append(part[part["run"] >= 0])

    def sorted(self) -> Values:
        rows = np.concatenate(self._parts) if self._parts else np.empty(0, _ROW)
        self._parts.clear()
        order = np.lexsort((rows["time"], rows["step"], rows["name"], rows["run"]))
        return Values(
            self.runs, self.names, *(np.ascontiguousarray(rows[column][order]) for column in _ROW.names or ())
        )


_ROW = np.dtype([("run", "i4"), ("name", "i2"), ("step", "i8"), ("time", "f8"), ("value", "f8")])


def _restored(value: np.ndarray, is_nan: np.ndarray) -> np.ndarray:
    """Logged values, with NaN and infinities restored, since MLflow's data bases store neither."""
    value[is_nan] = np.nan
    value[np.abs(value) >= LARGEST] = np.inf * np.sign(value[np.abs(value) >= LARGEST])
    return value


def _number(value: float, is_nan: bool = False) -> float:
    return float(_restored(np.array([value], float), np.array([is_nan]))[0])


def _pages(search: Any, **question: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(**question, max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _table(name: str, columns: Mapping[str, Any]) -> sql.Table:
    return sql.Table(name, _METADATA, *(sql.Column(column, kind) for column, kind in columns.items()))


_METADATA = sql.MetaData()
_KEY_VALUE = {"run_uuid": sql.String, "key": sql.String, "value": sql.String}
_METRIC = {**_KEY_VALUE, "value": sql.Float, "step": sql.BigInteger, "timestamp": sql.BigInteger, "is_nan": sql.Boolean}
_EXPERIMENTS = _table("experiments", {"experiment_id": sql.Integer, "name": sql.String, "lifecycle_stage": sql.String})
_RUNS = _table(
    "runs",
    {
        **dict.fromkeys(("run_uuid", "name", "status", "lifecycle_stage"), sql.String),
        **dict.fromkeys(("experiment_id", "start_time", "end_time"), sql.BigInteger),
    },
)
_TAGS, _PARAMS = _table("tags", _KEY_VALUE), _table("params", _KEY_VALUE)
_LATEST, _METRICS = _table("latest_metrics", _METRIC), _table("metrics", _METRIC)
