"""The only place that speaks to MLflow; only the driver imports it, and nothing here is on the path of a step."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from raycurv.tracking import provenance, run_names
from raycurv.tracking.outbox import Delivery, DeliveryRefused, Outbox, read_back
from raycurv.tracking.settings import TrackingSettings, resolve_uri
from raycurv.train.checkpoint import CheckpointError
from raycurv.train.configuration import RunConfig
from raycurv.train.records import Record

# A client of MLflow is patient by default: minutes for every call to a server that is not there.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",  # its own queue drops what it could not send
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import mlflow  # noqa: E402 - reads the environment
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

LARGEST_BATCH = 100  # parameters or tags in one call
LONGEST_PARAMETER, LONGEST_TAG, LONGEST_NAME = 6000, 5000, 250  # characters
HEARTBEAT_SECONDS = 30.0
DEAD_AFTER_SECONDS = 600.0  # without a heartbeat, for a driver on another machine
REFUSALS = frozenset(
    ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST", "INVALID_STATE")
)
TAG = "raycurv."


class TrackingError(RuntimeError):
    """MLflow cannot be used as asked; the message says why and what to do."""


def open_command(uri: str) -> str:
    """The command, or the address, that shows the runs."""
    beside = Path(sys.executable).parent / "mlflow"
    mlflow_command = shlex.quote(str(beside)) if beside.exists() else "mlflow"
    return uri if uri.startswith("http") else f"{mlflow_command} ui --backend-store-uri {shlex.quote(uri)}"


class TrackedRun:
    """One run in MLflow; its methods return at once."""

    def __init__(self, run: Run, outbox: Outbox, seen: Mapping[str, int]) -> None:
        self.id = str(run.info.run_id)
        self.experiment = str(run.info.experiment_id)
        self._outbox = outbox
        self._seen = dict(seen)

    def log(self, records: Iterable[Record]) -> None:
        """Track records, but those whose step is there already: a resumed run sends some twice."""
        for record in records:
            values = dict(record.values)
            if record.kind == "step":
                values.setdefault("epoch", record.epoch)
            self.metrics(values, record.step, record.time)
            if record.message:
                self.tags({"event": f"step {record.step}: {record.message}"})

    def metrics(self, values: Mapping[str, float], step: int, when: float) -> None:
        """Track numbers of one step."""
        new = {name: value for name, value in values.items() if step > self._seen.get(name, -1)}
        self._seen |= dict.fromkeys(new, step)
        metrics = tuple((name, float(value), int(when * 1000), step) for name, value in new.items())
        if metrics:
            self._outbox.put(Delivery("metrics", self.id, metrics=metrics))

    def next_step(self, name: str) -> int:
        """The step after the last of metric `name`."""
        return self._seen.get(name, -1) + 1

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags, in this project's name space."""
        self._outbox.put(Delivery("tags", self.id, {TAG + k: v[:LONGEST_TAG] for k, v in values.items()}))

    def text(self, name: str, text: str) -> None:
        """Write a file of text among the run's artifacts."""
        self._outbox.put(Delivery("text", self.id, {"name": name, "text": text}))

    def running(self) -> None:
        """The workers have begun with it."""
        self._outbox.put(Delivery("status", self.id, {"status": "RUNNING"}))

    def model(self, checkpoints: str) -> None:
        """Log the network of the newest of `checkpoints`."""
        self._outbox.put(Delivery("model", self.id, {"checkpoints": checkpoints}))

    def close(self, status: str) -> None:
        """Close it as FINISHED, FAILED or KILLED."""
        self._outbox.put(Delivery("close", self.id, {"status": status, "time": int(time.time() * 1000)}))


class Tracking:
    """The connection to MLflow.

    Args:
        settings: where it is, and how patient to be.
        say: tells the user what is going on.

    Raises:
        TrackingError: there is no such server or data base, or it does not answer.
    """

    def __init__(self, settings: TrackingSettings, say: Callable[[str], None]) -> None:
        self._settings, self._say = settings, say
        self.uri = resolve_uri(settings.tracking_uri, settings.runs)
        self._unsent = Path(settings.runs) / "unsent" / _safe(self.uri)
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with explained(self.uri), self._alone():
            mlflow.set_tracking_uri(self.uri)
            self.client = MlflowClient(self.uri)
            self.experiment = self._experiment()
        self._active: list[TrackedRun] = []
        self._sampled = self._beaten = time.monotonic()
        self._outbox = Outbox(self._deliver, self._unsent, say, self._tick)

    def open(self, config: RunConfig, tags: Mapping[str, str], parent: str | None, resume: bool) -> TrackedRun:
        """Open a new run, or with `resume` the one of that name.

        Raises:
            TrackingError: there is a run of that name and it should not go on, or there is none and it should.
        """
        with explained(self.uri):
            found = self.find(config.name)
            if found is not None and not resume:
                raise TrackingError(
                    f"MLflow has a run named {config.name!r} in experiment {self._settings.experiment!r} already: "
                    "add --resume to go on with it, or choose another --run-name"
                )
            full = {TAG + k: v for k, v in {**tags, **_versions(), "run_name": config.name}.items()}
            run = found or self._create(config, full, parent)
            tracked = TrackedRun(run, self._outbox, self._last_steps(run) if found else {})
            self.client.update_run(run.info.run_id, status="SCHEDULED")
            self._batch(run.info.run_id, {TAG + k: v for k, v in self._driver().items()} | (full if found else {}), {})
        self._active.append(tracked)
        return tracked

    def parent(self, name: str, tags: Mapping[str, str], resume: bool, label: str = "") -> TrackedRun:
        """Open the run under which those of one launch or sweep are gathered.

        Args:
            name: of the launch, by which it is found again.
            tags: of the run.
            resume: go on with the one of that name, if there is one.
            label: what the list of runs shows; by default the name.
        """
        with explained(self.uri):
            run = self.find(name) if resume else None
            if run is None:
                told = {**tags, **_versions(), "run_name": name, "command": provenance.command(), **self._driver()}
                full = {TAG + k: v[:LONGEST_TAG] for k, v in told.items()}
                run = self.client.create_run(self.experiment, tags=full, run_name=(label or name)[:LONGEST_NAME])
            self.client.update_run(run.info.run_id, status="RUNNING")
        tracked = TrackedRun(run, self._outbox, {})
        self._active.append(tracked)
        return tracked

    def find(self, name: str) -> Run | None:
        """The run of this name, None if there is none."""
        runs = self.client.search_runs([self.experiment], f"tags.`{TAG}run_name` = '{name}'", max_results=1)
        return runs[0] if runs else None

    def torn(self, tag: str, value: str) -> set[str]:
        """Names of the runs with this tag that were not closed by their driver."""
        with explained(self.uri):
            question = (
                f"tags.`{TAG}{tag}` = '{value}' and attributes.status != 'FINISHED' and attributes.status != 'FAILED'"
            )
            runs = self.client.search_runs([self.experiment], question, max_results=1000)
        return {run.data.tags[TAG + "run_name"] for run in runs}

    def reap(self) -> list[str]:
        """Close runs whose driver is gone, and say their names."""
        with explained(self.uri):
            running = [
                run
                for status in ("RUNNING", "SCHEDULED")
                for run in self.client.search_runs([self.experiment], f"attributes.status = '{status}'")
            ]
            dead = [run for run in running if _driver_is_gone(_own_tags(run))]
            for run in dead:
                self.client.set_terminated(run.info.run_id, status="KILLED")
        return [run.info.run_name for run in dead]

    def send_unsent(self) -> int:
        """Deliver what an earlier launch could not, and say how many things that were.

        Raises:
            TrackingError: MLflow does not answer.
        """
        count = 0
        for path in sorted(self._unsent.glob("*.jsonl")):
            deliveries = read_back(path)
            for delivery in deliveries:
                with explained(self.uri), contextlib.suppress(DeliveryRefused):
                    self._deliver(delivery)
            path.rename(path.with_suffix(".sent"))
            count += len(deliveries)
        return count

    def done_with(self, run: TrackedRun) -> None:
        """Stop the heartbeat of a run."""
        self._active.remove(run)

    def hurry(self) -> None:
        """Leave the models to the next start, because this process is about to be killed."""
        self._outbox.postpone("model")

    def finish(self) -> Path | None:
        """Deliver what waits; what MLflow does not take in time is written to a file, whose path comes back."""
        return self._outbox.close(self._settings.tracking_patience)

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self._settings.experiment)
        if found is not None:
            if found.lifecycle_stage != "active":
                self.client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        local = None if self.uri.startswith("http") else (Path(self._settings.runs) / "artifacts").as_uri()
        return str(self.client.create_experiment(self._settings.experiment, artifact_location=local))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        # Two processes that create the tables of one data base at a time end with one of them crashing.
        Path(self._settings.runs).mkdir(parents=True, exist_ok=True)
        with (Path(self._settings.runs) / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _create(self, config: RunConfig, tags: Mapping[str, str], parent: str | None) -> Run:
        if parent is not None:
            tags = {**tags, "mlflow.parentRunId": parent}
        label = run_names.of_run(tags[TAG + "recipe"], config.optimizer, tags.get(TAG + "setting", ""), config.seed)
        told = {**tags, TAG + "command": provenance.command()[:LONGEST_TAG]}
        run = self.client.create_run(self.experiment, run_name=label[:LONGEST_NAME], tags=told)
        self._batch(run.info.run_id, {}, flat(json.loads(config.to_json())))
        return run

    def _batch(self, run: str, tags: Mapping[str, str], parameters: Mapping[str, str]) -> None:
        all_tags = [RunTag(name, value[:LONGEST_TAG]) for name, value in tags.items()]
        all_params = [Param(name, value[:LONGEST_PARAMETER]) for name, value in parameters.items()]
        for start in range(0, max(len(all_tags), len(all_params)), LARGEST_BATCH):
            part = slice(start, start + LARGEST_BATCH)
            self.client.log_batch(run, params=all_params[part], tags=all_tags[part], synchronous=True)

    def _last_steps(self, run: Run) -> dict[str, int]:
        names = run.data.metrics
        return {n: max(m.step for m in self.client.get_metric_history(run.info.run_id, n)) for n in names}

    def _driver(self) -> dict[str, str]:
        return {**provenance.driver(), "heartbeat": f"{time.time():.0f}"}

    def _tick(self) -> None:
        now = time.monotonic()
        every = self._settings.system_metrics_every
        if every and now - self._sampled >= every:
            self._sampled = now
            for run in self._active[-1:]:
                run.metrics(_system_metrics(), run.next_step("system/cpu_utilization_percentage"), time.time())
        if now - self._beaten >= HEARTBEAT_SECONDS:
            self._beaten = now
            for run in self._active:
                run.tags({"heartbeat": f"{time.time():.0f}"})

    def _deliver(self, delivery: Delivery) -> None:
        try:
            getattr(self, f"_send_{delivery.kind}")(delivery)
        except MlflowException as error:
            if error.error_code in REFUSALS:
                raise DeliveryRefused(str(error)) from error
            raise

    def _send_metrics(self, delivery: Delivery) -> None:
        metrics = [Metric(name, value, when, step) for name, value, when, step in delivery.metrics]
        self.client.log_batch(delivery.run, metrics=metrics, synchronous=True)

    def _send_tags(self, delivery: Delivery) -> None:
        self._batch(delivery.run, delivery.values, {})

    def _send_text(self, delivery: Delivery) -> None:
        self.client.log_text(delivery.run, delivery.values["text"], delivery.values["name"])

    def _send_status(self, delivery: Delivery) -> None:
        self.client.update_run(delivery.run, status=delivery.values["status"])

    def _send_model(self, delivery: Delivery) -> None:
        from raycurv.tracking import logged_model

        try:
            logged_model.log(delivery.run, delivery.values["checkpoints"])
        except (CheckpointError, ValueError) as error:
            raise DeliveryRefused(f"the network cannot be logged from here: {error}") from error

    def _send_close(self, delivery: Delivery) -> None:
        values = delivery.values
        self.client.set_terminated(delivery.run, status=values["status"], end_time=values["time"])


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one, with dotted names."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = str(value)
    return found


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Errors of MLflow inside become a :class:`TrackingError` that says what to do.

    Yields:
        Nothing.

    Raises:
        TrackingError: MLflow cannot be used.
    """
    try:
        yield
    except MlflowException as error:
        # SQLAlchemy says where it was before it says what went wrong.
        lines = [line for line in str(error).strip().splitlines() if not line.startswith("(raised as a result")]
        raise TrackingError(
            f"MLflow at {uri} cannot be used: {(lines or [type(error).__name__])[0][:300]}. Check that its disk has "
            "room, that the server runs and that the address is right "
            "(--tracking-uri or MLFLOW_TRACKING_URI), or leave it out to write to a file in the folder of all runs"
        ) from error


def _versions() -> dict[str, str]:
    return {f"version.{name}": value for name, value in provenance.versions().items()}


def _own_tags(run: Run) -> dict[str, str]:
    return {name.removeprefix(TAG): value for name, value in run.data.tags.items() if name.startswith(TAG)}


def _driver_is_gone(tags: Mapping[str, str]) -> bool:
    if "heartbeat" not in tags:
        return False  # not one of ours
    alive = provenance.driver_alive(dict(tags))
    return time.time() - float(tags["heartbeat"]) > DEAD_AFTER_SECONDS if alive is None else not alive


def _system_metrics() -> dict[str, float]:
    memory = psutil.virtual_memory()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": (memory.total - memory.available) / 1e6,
        "system_memory_usage_percentage": memory.percent,
    }
    return {f"system/{name}": value for name, value in values.items() if math.isfinite(value)}


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)[-100:]
