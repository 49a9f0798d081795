"""MLflow client for the driver. Training steps never wait for it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from raycurv.arguments import mask_passwords
from raycurv.tracking import provenance, run_names, run_page, views
from raycurv.tracking.datasets import dataset_inputs
from raycurv.tracking.messages import (
    RUN_ID,
    LogData,
    LogModel,
    LogRecords,
    LogRun,
    LogText,
    OpenRun,
    RegisterModel,
    SetStatus,
    SetTags,
    TrackingMessage,
)
from raycurv.tracking.outbox import MessageRefused, Outbox, first_line
from raycurv.tracking.settings import TrackingSettings, resolve_uri
from raycurv.tracking.spool import SUFFIX, Spool, SpoolDamaged, SpoolInUse
from raycurv.tracking.system_metrics import system_metrics
from raycurv.tracking.tracked_run import LONGEST_NAME, LONGEST_TAG, TAG, TrackedRun, accepted_name, last_steps
from raycurv.tracking.unsent_files import append_lines, read_unsent
from raycurv.train.checkpoint_file import CheckpointError
from raycurv.train.configuration import RunConfig
from raycurv.train.data_summary import DataSummary
from raycurv.train.records import Record

# By default, an MLflow client waits minutes in every call to a server that is not there.
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

from raycurv.tracking.data_base import flush_commits, make_data_base  # noqa: E402

LARGEST_BATCH = 100  # parameters or tags in one call
LONGEST_PARAMETER = 6000  # characters
MAJOR_VERSION = "3"
PARENT_TAG = "mlflow.parentRunId"
HEARTBEAT_SECONDS = 30.0
SETTLE_SECONDS = 30.0  # for artifacts of earlier drivers, at least, before a start goes on beside them
DEAD_AFTER_SECONDS = 600.0  # without a heartbeat, for a driver on another machine
REFUSALS = frozenset(
    ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST", "INVALID_STATE")
)


class TrackingError(RuntimeError):
    """MLflow cannot be used as requested. The message gives the reason and the remedy."""


def open_command(uri: str, experiment: str = "") -> str:
    """Command or address that shows the runs, without the password in it.

    Args:
        uri: tracking URI.
        experiment: id of the experiment; empty for the page of a server.
    """
    uri = mask_passwords(uri)
    if uri.startswith("http"):
        return uri.rstrip("/") + views.runs_page(experiment) if experiment else uri
    beside = Path(sys.executable).parent / "raycurv"
    command = shlex.quote(str(beside)) if beside.exists() else "raycurv"
    return f"{command} ui --tracking-uri {shlex.quote(uri)}"


class Tracking:
    """The connection to MLflow.

    Args:
        settings: address of MLflow, folder of all runs, time limits.
        notify: callback that shows a line to the user.
        trust: functions that a checkpoint may name when its network is logged, beside the modules of the settings.

    Raises:
        TrackingError: there is no such server or data base, or it does not answer.
    """

    def __init__(self, settings: TrackingSettings, notify: Callable[[str], None], trust: Collection[str] = ()) -> None:
        require_version()
        self._settings, self._notify = settings, notify
        self._trust = (*settings.trust, *trust)
        self.uri = resolve_uri(settings.tracking_uri, settings.runs)
        folders = [Path(settings.runs) / "unsent" / _safe(text) for text in (mask_passwords(self.uri), self.uri)]
        self._unsent, *self._former_unsent = dict.fromkeys(folders)  # earlier versions had the password in the name
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with explained(self.uri), self._migration_lock():
            make_data_base(self.uri)
            mlflow.set_tracking_uri(self.uri)
            self.client = MlflowClient(self.uri)
            flush_commits(self.client)
            self.experiment = self._experiment()
        self._active: list[TrackedRun] = []
        self._creating = threading.Lock()  # of the lines, the first one creates a run
        self._ids: dict[str, str] = {}  # of runs that were created by OpenRun
        self._refused: set[str] = set()
        self._sampled_at: float | None = None
        self._heartbeat_at = time.monotonic()
        spool = Spool(self._unsent / f"{time.time_ns()}-{os.getpid()}{SUFFIX}")
        self._outbox = Outbox(self._deliver, spool, notify, self._sample, self._answers)

    def open(self, config: RunConfig, tags: Mapping[str, str], parent: str | None, resume: bool) -> TrackedRun:
        """Open a new run, or with `resume` the one of that name if there is one.

        Raises:
            TrackingError: there is a run of that name and `resume` is not set, or MLflow cannot be reached.
        """
        with explained(self.uri):
            if not resume:
                self.require_new(config.name)
            run, logged = self._open(config, tags, parent)
        tracked = TrackedRun(run.info.run_id, self._outbox.put, logged)
        self._active.append(tracked)
        return tracked

    def open_later(self, config: RunConfig, tags: Mapping[str, str], parent: str | None, resume: bool) -> TrackedRun:
        """Prepare a new run, which MLflow gets with its first message, so that it starts when its training does.

        With `resume`, open the one of that name if there is one.

        Raises:
            TrackingError: there is a run of that name and `resume` is not set, or MLflow cannot be reached.
        """
        with explained(self.uri):
            if self.find(config.name) is not None:
                return self.open(config, tags, parent, resume)
        opening = self._opening(config, tags, parent, self.experiment)
        tracked = TrackedRun(opening.run, self._outbox.put, {}, opening)
        self._active.append(tracked)
        return tracked

    def put(self, run: LogRun) -> None:
        """Log a whole run that has ended; returns at once."""
        self._outbox.put(run)
        self._outbox.save()

    def save(self) -> bool:
        """Write what was logged to the disk, from where it is delivered even if this process dies.

        Returns:
            Whether it is there; if not, it is kept in memory.
        """
        return self._outbox.save()

    def require_new(self, name: str) -> None:
        """Refuse a name that a run in MLflow has already.

        Raises:
            TrackingError: there is a run of that name, or MLflow cannot be reached.
        """
        with explained(self.uri):
            if self.find(name) is not None:
                raise TrackingError(
                    f"MLflow has a run named {name!r} in experiment {self._settings.experiment!r} already: "
                    "add --resume to go on with it, or choose another --run-name"
                )

    def parent(self, name: str, tags: Mapping[str, str], resume: bool, label: str = "") -> TrackedRun:
        """Open the parent run of one launch or sweep.

        Args:
            name: name of the launch, used to find the run again.
            tags: tags of the run.
            resume: whether to continue the run of that name, if there is one.
            label: name in MLflow's list of runs; by default `name`.
        """
        with explained(self.uri):
            run = self.find(name) if resume else None
            if run is None:
                full = {TAG + k: v[:LONGEST_TAG] for k, v in {**tags, "run_name": name, **self._driver()}.items()}
                full |= run_page.fields(None, tags.get("commit", ""))
                run = self.client.create_run(self.experiment, tags=full, run_name=(label or name)[:LONGEST_NAME])
                self._batch(run.info.run_id, {}, run_page.launch_parameters())
            self.client.update_run(run.info.run_id, status="RUNNING")
        tracked = TrackedRun(run.info.run_id, self._outbox.put, {})
        tracked.is_running = True
        self._active.append(tracked)
        return tracked

    def find(self, name: str, experiment: str | None = None) -> Run | None:
        """Run of this name, in another experiment if its id is given; None if there is none."""
        places = [experiment or self.experiment]
        runs = self.client.search_runs(places, f"tags.`{TAG}run_name` = '{name}'", max_results=1)
        return runs[0] if runs else None

    def unfinished(self, tag: str, value: str) -> set[str]:
        """Names of the runs with this tag that are neither finished nor failed."""
        with explained(self.uri):
            question = (
                f"tags.`{TAG}{tag}` = '{value}' and attributes.status != 'FINISHED' and attributes.status != 'FAILED'"
            )
            runs = self.client.search_runs([self.experiment], question, max_results=1000)
        return {run.data.tags[TAG + "run_name"] for run in runs}

    def close_abandoned(self) -> list[str]:
        """Close runs whose driver no longer runs; returns their names."""
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
        """Deliver the messages that earlier drivers could not deliver.

        Artifacts that cannot be stored keep waiting, beside those of this driver.

        Returns:
            Number of messages.

        Raises:
            TrackingError: MLflow does not answer.
        """
        before = self._outbox.delivered
        for folder in (self._unsent, *self._former_unsent):
            for path in sorted(folder.glob("*.jsonl")):
                self._take_file(path)
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                self._take_spool(path)
        patience = max(self._settings.tracking_patience, SETTLE_SECONDS)
        if error := self._outbox.settle(patience, self._show_left):
            self._outbox.close(0.0)
            raise TrackingError(_unusable(self.uri, error))
        return self._outbox.delivered - before

    def _take_file(self, path: Path) -> None:
        """Queue the messages in a file of an earlier version."""
        messages, bad = read_unsent(path)
        if bad:
            aside = path.with_suffix(".bad")
            append_lines(aside, [line.encode() for line in bad])
            self._notify(f"{len(bad)} line(s) of {path} are no messages for MLflow; they are set aside in {aside}")
        for message in messages:
            self._outbox.put(message)
        if self._outbox.save():
            path.replace(path.with_suffix(".sent"))

    def _take_spool(self, path: Path) -> None:
        """Queue the messages of a driver that has died."""
        if path == self._outbox.spool.path:
            return
        try:
            if not self._outbox.take_over(Spool.open(path)):
                self._notify(f"what an earlier driver left in {path} stays there until the disk has room")
        except SpoolInUse:
            return  # of a driver that runs
        except SpoolDamaged as error:
            aside = path.with_suffix(".bad")
            path.replace(aside)
            self._notify(
                f"{path} is damaged ({error}), so its messages for MLflow are lost; it is set aside as {aside}"
            )
        except OSError as error:
            self._notify(f"what an earlier driver left in {path} cannot be read ({error}): correct its permissions")

    def _show_left(self, left: int) -> None:
        self._notify(f"delivering what an earlier driver left: {left} messages to go")

    def _answers(self) -> bool:
        """Whether MLflow answers at all."""
        try:
            self.client.get_experiment(self.experiment)
        except Exception:  # the client may raise anything
            return False
        return True

    def done_with(self, run: TrackedRun) -> None:
        """Stop the heartbeat of a run."""
        if run in self._active:
            self._active.remove(run)
        self.save()

    def postpone_models(self) -> None:
        """Postpone the logging of models to the next start, because this process is about to be killed."""
        self._outbox.postpone(LogModel)

    def abandon(self) -> None:
        """Drop the waiting messages and all later ones, since another driver has taken over the runs."""
        self._outbox.drop()
        self._active.clear()

    def finish(self) -> Path | None:
        """Deliver the waiting messages; those that MLflow does not accept in time wait on disk for the next start.

        Returns:
            Path of the file that holds them; None if everything was delivered.
        """
        return self._outbox.close(self._settings.tracking_patience)

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self._settings.experiment)
        if found is not None:
            if found.lifecycle_stage != "active":
                self.client.restore_experiment(found.experiment_id)
            experiment, existing = str(found.experiment_id), found.tags
        else:
            local = None if self.uri.startswith("http") else (Path(self._settings.runs) / "artifacts").as_uri()
            experiment = str(self.client.create_experiment(self._settings.experiment, artifact_location=local))
            existing = {}
        try:
            for name, value in views.experiment_tags(experiment, existing).items():
                self.client.set_experiment_tag(experiment, name, value)
        except MlflowException as error:  # runs are worth more than views of them
            self._notify(f"the note and the views of the experiment cannot be saved: {first_line(error)}")
        return experiment

    @contextlib.contextmanager
    def _migration_lock(self) -> Iterator[None]:
        # If two processes create the tables of one data base at the same time, one of them crashes.
        path = Path(self._settings.runs)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / ".lock").open("w")
        except OSError as error:
            raise TrackingError(
                f"the folder of all runs cannot be written ({error}): free disk space, correct its permissions or "
                "choose another one (--runs, RAYCURV_RUNS)"
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _open(
        self,
        config: RunConfig,
        tags: Mapping[str, str],
        parent: str | None,
        began: float | None = None,
        experiment: str | None = None,
    ) -> tuple[Run, dict[str, int]]:
        """Run with the name in `config`, created if there is none, and the last logged step of every metric."""
        opening = self._opening(config, tags, parent, experiment or self.experiment, began)
        run, found = self._create(opening)
        self.client.update_run(run.info.run_id, status="SCHEDULED")
        if found:
            self._batch(run.info.run_id, {k: v for k, v in opening.tags.items() if k != PARENT_TAG}, {})
        return run, last_steps(run) if found else {}

    def _opening(
        self,
        config: RunConfig,
        tags: Mapping[str, str],
        parent: str | None,
        experiment: str,
        began: float | None = None,
    ) -> OpenRun:
        """Request to create a run, as this driver describes it."""
        own = {k: v for k, v in tags.items() if k != "checkpoints"} | {"run_name": config.name, **self._driver()}
        full = {TAG + name: value for name, value in own.items()}
        full |= run_page.fields(config.optimizer, tags.get("commit", ""))
        full |= {PARENT_TAG: parent} if parent is not None else {}
        launch = tags.get("launch", "")
        full[run_page.NOTE_TAG] = run_page.description(config, tags["recipe"], launch or tags.get("sweep", ""))
        named, recipe, setting = self._settings.run_name, tags["recipe"], tags.get("setting", "")
        label = run_names.run_label(named, recipe, config.optimizer, setting, config.seed, launch)
        parameters = run_page.parameters(config) | run_page.launch_parameters(tags.get("checkpoints", ""))
        cut = {name: value[:LONGEST_TAG] for name, value in full.items()}
        when = time.time() if began is None else began
        return OpenRun(f"{experiment}/{config.name}", label[:LONGEST_NAME], cut, parameters, when)

    def _create(self, opening: OpenRun) -> tuple[Run, bool]:
        """The run of a request, and whether it was there."""
        experiment, _, name = opening.run.partition("/")
        found = self.find(name, experiment)
        start = round(1000 * opening.began)
        run = found or self.client.create_run(experiment, start, run_name=opening.label, tags=dict(opening.tags))
        if not run.data.params:  # a run whose driver died while it was created has none yet either
            self._batch(run.info.run_id, {}, opening.parameters)
        return run, found is not None

    def _batch(self, run: str, tags: Mapping[str, str], parameters: Mapping[str, str]) -> None:
        all_tags = [RunTag(name, value[:LONGEST_TAG]) for name, value in tags.items()]
        all_params = [Param(name, value[:LONGEST_PARAMETER]) for name, value in parameters.items()]
        for start in range(0, max(len(all_tags), len(all_params)), LARGEST_BATCH):
            part = slice(start, start + LARGEST_BATCH)
            self.client.log_batch(run, params=all_params[part], tags=all_tags[part], synchronous=True)

    def _driver(self) -> dict[str, str]:
        return {**provenance.driver(), "heartbeat": f"{time.time():.0f}"}

    def _sample(self) -> None:
        now = time.monotonic()
        every = self._settings.system_metrics_every
        if self._sampled_at is None:
            system_metrics()  # the share of the processors is that since the last call of the same thread
            self._sampled_at = now
        elif every and now - self._sampled_at >= every:
            self._sampled_at = now
            values = system_metrics()
            for run in self._active:
                if run.is_running:
                    run.metrics(values, run.next_step("system/cpu_utilization_percentage"), time.time())
        if now - self._heartbeat_at >= HEARTBEAT_SECONDS:
            self._heartbeat_at = now
            for run in filter(lambda run: run.has_begun, self._active):
                run.tags({"heartbeat": f"{time.time():.0f}"})

    def _deliver(self, message: TrackingMessage) -> None:
        try:
            if not isinstance(message, OpenRun | LogRun):
                message = dataclasses.replace(message, run=self._id_of(message.run))
            self._send(message)
        except MlflowException as error:
            if error.error_code in REFUSALS:
                if isinstance(message, OpenRun):
                    self._refused.add(message.run)
                raise MessageRefused(str(error), whole=not self._is_active(message.run)) from error
            raise

    def _id_of(self, run: str) -> str:
        """Id in MLflow of the run that a message is about.

        Raises:
            MessageRefused: MLflow has refused to create it.
            LookupError: it is not created yet.
        """
        experiment, slash, name = run.partition("/")
        if slash and run not in self._ids:
            found = self.find(name, experiment)
            if found is None and run in self._refused:
                raise MessageRefused("MLflow has refused to create the run")
            if found is None:
                raise LookupError(f"the run {name!r} is not created yet")
            self._ids[run] = found.info.run_id
        return self._ids.get(run, run)

    def _is_active(self, run: str) -> bool:
        """Whether MLflow has the run, so that only what is logged is wrong."""
        try:
            return bool(self.client.get_run(run).info.lifecycle_stage == "active")
        except MlflowException:
            return False

    def _send(self, message: TrackingMessage) -> None:
        match message:
            case LogRecords(run, records):
                self.client.log_batch(run, metrics=list(_metrics(records)), synchronous=True)
            case SetTags(run, tags):
                self._batch(run, {name: value.replace(RUN_ID, run) for name, value in tags.items()}, {})
            case LogText(run, name, text):
                self.client.log_text(run, text, name)
            case SetStatus(run, status, ended):
                if ended is None:
                    self.client.update_run(run, status=status)
                else:
                    self.client.set_terminated(run, status=status, end_time=round(ended * 1000))
            case LogModel(run, checkpoints):
                self._log_model(run, checkpoints)
            case RegisterModel(run, name):
                self._register_model(run, name)
            case LogData(run, summary):
                self.client.log_inputs(run, dataset_inputs(DataSummary.from_json(summary)))
            case LogRun():
                self._log_run(message)
            case OpenRun(run):
                with self._creating:
                    if run not in self._ids:
                        self._ids[run] = self._create(message)[0].info.run_id

    def _log_model(self, run: str, checkpoints: str) -> None:
        from raycurv.tracking import logged_model

        try:
            logged_model.log(run, checkpoints, self._trust)
        except (CheckpointError, ValueError) as error:
            raise MessageRefused(f"the network cannot be logged from here: {error}", later=True) from error

    def _register_model(self, run: str, name: str) -> None:
        from raycurv.tracking import logged_model

        try:
            logged_model.register(self.client, run, name)
        except FileNotFoundError as error:
            raise MessageRefused(str(error), later=True) from error

    def _log_run(self, message: LogRun) -> None:
        # An interrupted attempt leaves a run of this name, and the next attempt logs what is missing.
        config = RunConfig.from_json(message.config)
        # It may come from a driver that wrote to another experiment.
        place = None if message.parent is None else self.client.get_run(message.parent).info.experiment_id
        run, logged = self._open(config, message.tags, message.parent, message.began or None, place)
        tracked = TrackedRun(run.info.run_id, self._send, logged)
        tracked.log(message.records)
        values = {name: value for record in message.records for name, value in record.values.items()}
        tracked.describe(run_page.description(config, message.tags["recipe"], message.tags["sweep"], values=values))
        tracked.close(message.status, message.ended)


def _metrics(records: Iterable[Record]) -> Iterator[Metric]:
    for record in records:
        for name, value in record.values.items():
            yield Metric(accepted_name(name), float(value), round(record.time * 1000), record.step)


def require_version(version: str = mlflow.__version__) -> None:
    """Refuse another major version of MLflow than the one that this package knows.

    Raises:
        TrackingError: the version is another one.
    """
    if version.partition(".")[0] != MAJOR_VERSION:
        raise TrackingError(
            f"MLflow {version} is installed, and this package works with MLflow {MAJOR_VERSION}: install it with "
            f"pip install 'mlflow>={MAJOR_VERSION},<{int(MAJOR_VERSION) + 1}'"
        )


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Convert MLflow's errors into a :class:`TrackingError` that gives the remedy.

    Yields:
        Nothing.

    Raises:
        TrackingError: MLflow cannot be used.
    """
    try:
        yield
    except Exception as error:  # raised again below, whatever it is
        # Errors of a data base in which there are no tables yet; a server needs no SQLAlchemy here.
        data_base = isinstance(error, OSError) or type(error).__module__.startswith("sqlalchemy.")
        if not isinstance(error, MlflowException) and not data_base:
            raise
        raise TrackingError(_unusable(uri, first_line(error, 300))) from error


def _unusable(uri: str, reason: str) -> str:
    if "401" in reason and "authenticated" in reason:
        return (
            f"MLflow at {mask_passwords(uri)} wants a user and a password: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD to those of the server"
        )
    return (
        f"MLflow at {mask_passwords(uri)} cannot be used: {mask_passwords(reason)}. Check that its "
        "disk has room, that the server runs and that the address is right (--tracking-uri, MLFLOW_TRACKING_URI), "
        "or leave it out to write to a file in the folder of all runs"
    )


def _own_tags(run: Run) -> dict[str, str]:
    return {name.removeprefix(TAG): value for name, value in run.data.tags.items() if name.startswith(TAG)}


def _driver_is_gone(tags: Mapping[str, str]) -> bool:
    if "heartbeat" not in tags:
        return False  # a run of another program
    alive = provenance.driver_alive(dict(tags))
    return time.time() - float(tags["heartbeat"]) > DEAD_AFTER_SECONDS if alive is None else not alive


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)[-100:]
