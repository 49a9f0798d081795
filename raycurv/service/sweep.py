"""Carry out a sweep on Ray Tune: trials fill the cluster, the driver keeps the books, nothing is done twice."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycurv.data import storage
from raycurv.recipes.search import Trial
from raycurv.results.outcomes import Outcome
from raycurv.service.artifact_writer import ArtifactWriter
from raycurv.service.cluster import Cluster
from raycurv.service.errors import LaunchError, Stopped
from raycurv.service.limits import Limits
from raycurv.tracking import provenance, run_names
from raycurv.train.build import check
from raycurv.train.configuration import RunConfig
from raycurv.train.records import Record

if TYPE_CHECKING:
    from raycurv.tracking.client import TrackedRun, Tracking

RETRY_SECONDS = 20.0  # before an MLflow that could not take a trial is asked again
RAY_TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files and plots that nobody reads: the driver writes to MLflow
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # the ledger is what a resumed sweep reads
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # trials stay where the user's modules are
}


@contextlib.contextmanager
def sweeping(name: str, trials: Sequence[Trial], cluster: Cluster, limits: Limits) -> Iterator[Sweep]:
    """A sweep: MLflow with a run that gathers all trials, Ray, and the ledger of what is done.

    Args:
        name: of the sweep where `cluster` has no run name.
        trials: the first ones, checked before anything starts.
        cluster: resources of one trial, folders, MLflow; `workers` above 1 trains every trial on several.
        limits: of the trials.

    Yields:
        What runs trials; `run` may be called several times.

    Raises:
        ValueError: a trial is not allowed, or the sweep exists already and `resume` is not set.
        CapacityError: the cluster can never give what a trial needs.
        TrackingError: MLflow cannot be used.
        KeyboardInterrupt: the user asked for it; what is done is done.
        Stopped: likewise.
    """
    _check(trials)
    full = cluster.run_name or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    ledger = OutcomeLog(Path(cluster.runs) / "sweeps" / full / "outcomes.jsonl")
    if ledger.path.exists() and not cluster.resume:
        raise ValueError(
            f"there is a sweep named {full!r} already: add --resume to go on, or choose another --run-name"
        )
    for variable, value in RAY_TUNE.items():
        os.environ.setdefault(variable, value)
    from raycurv.service.connection import connected, require_capacity
    from raycurv.service.launch import RAY_TRAIN
    from raycurv.service.terminal import TerminalProgress
    from raycurv.tracking.client import Tracking, open_command

    for variable, value in RAY_TRAIN.items():
        os.environ.setdefault(variable, value)
    say = TerminalProgress().say
    tracking = Tracking(cluster, say)
    tracking.send_unsent()
    tracking.reap()
    recipes, optimizers = zip(*((trial.config.name, trial.config.optimizer) for trial in trials), strict=True)
    label = run_names.of_group(recipes, optimizers, f"sweep {full}")
    parent = tracking.parent(full, {**provenance.commit(), "sweep": full}, cluster.resume, label)
    status = "FAILED"
    try:
        with connected(cluster, say), _terminated_as_interrupted():
            require_capacity(cluster, say)
            yield Sweep(full, cluster, limits, ledger, tracking, parent, say)
        status = "FINISHED"
    except (KeyboardInterrupt, Stopped):
        status = "KILLED"
        raise
    finally:
        parent.close(status)
        tracking.done_with(parent)
        left = tracking.finish()
        if left is not None:
            say(f"MLflow did not take everything; the next start or `raycurv tracking reap` delivers the rest: {left}")
        say(f"\nSee the runs in MLflow:\n  {open_command(tracking.uri)}")


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM (`kill`, `ray job stop`) does what Ctrl-C does: Ray Tune ends its loop, and we close our books."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class OutcomeLog:
    """What is done, one line each, on disk before anybody counts on it.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Outcome] = {}
        self._torn = False  # the last line has no end, and the next must not become a part of it
        if path.exists():
            text = path.read_text()
            self._torn = bool(text) and not text.endswith("\n")
            for line in text.splitlines():
                with contextlib.suppress(ValueError):  # the last line of a driver that was killed while it wrote
                    outcome = Outcome.from_json(line)
                    self.done[outcome.name] = outcome

    def add(self, outcome: Outcome) -> None:
        """Write a line down.

        Raises:
            LaunchError: it cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write("\n" * self._torn + outcome.to_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LaunchError(
                f"cannot write down how {outcome.name} ended: {error}. What ended before is in {self.path}: make room "
                "there and go on with --resume"
            ) from error
        self._torn = False
        self.done[outcome.name] = outcome


class Sweep:
    """Runs trials; :func:`sweeping` makes it."""

    def __init__(
        self, name: str, cluster: Cluster, limits: Limits, ledger: OutcomeLog, tracking: Tracking, parent: TrackedRun,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.name, self.cluster, self.limits, self.ledger = name, cluster, limits, ledger
        self.tracking, self.parent, self.say = tracking, parent, say
        self.shelf = ArtifactWriter(name, ledger.path.parent, parent, say)
        self._shared: dict[str, Any] = {}
        self._late: deque[tuple[Outcome, Sequence[Record], str]] = deque()  # what MLflow has not been told
        self._next_try = 0.0

    def artifact(self, name: str, text: str) -> None:
        """Keep a text with the sweep, in MLflow and beside the ledger."""
        self.shelf.artifact(name, text)

    def run(self, trials: Sequence[Trial]) -> list[Outcome]:
        """Carry out the trials that are not done yet.

        Returns:
            How each of them ended, in their order, the failed ones too.

        Raises:
            ValueError: a trial is not allowed, or two have one name.
            Stopped: the user asked for it; what is done is done.
        """
        _check(trials)
        begun = [self._begun(trial) for trial in trials]
        waiting = [(t, o) for t, o in zip(trials, begun, strict=True) if not self._is_done(o)]
        if len(waiting) < len(trials):
            self.say(f"{len(trials) - len(waiting)} of {len(trials)} trials are done already")
        if self.cluster.resume:
            self._mend(trials, begun)
        if waiting:
            try:
                self._tune(waiting)
            finally:
                self._log_late()
        return [self.ledger.done[outcome.name] for outcome in begun]

    def _begun(self, trial: Trial) -> Outcome:
        config = trial.config
        labels = {**trial.labels, "config": config.digest}
        return Outcome(
            f"{self.name}-{trial.name}", config.name, config.optimizer, trial.described, config.seed, trial.stage,
            "failed", "it did not begin", labels=labels,
        )  # fmt: skip

    def _is_done(self, outcome: Outcome) -> bool:
        done = self.ledger.done.get(outcome.name)
        return done is not None and done.labels["config"] == outcome.labels["config"]

    def _tune(self, waiting: Sequence[tuple[Trial, Outcome]]) -> None:
        from ray import tune

        from raycurv.service.trial import TrialSettings, TrialTask, run_trial
        from raycurv.service.tune_callback import SweepCallback

        tasks = []
        for trial, outcome in waiting:
            named = dataclasses.replace(trial.config, name=_run_name(outcome.name))
            where = storage.join(self.cluster.checkpoints, named.name)
            tasks.append(TrialTask(outcome, named.to_json(), where, self._share(trial.config)))
        conditions = TrialSettings(
            threads=self.cluster.threads_per_worker,
            device="cuda" if self.cluster.use_gpu else "cpu",
            seconds=self.limits.time_limit,
            cluster=self.cluster if self.cluster.workers > 1 else None,
        )
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, tasks=tasks, shared=self._shared, conditions=conditions),
                self._resources(),
            ),
            param_space={"trial": tune.grid_search(list(range(len(tasks))))},
            tune_config=tune.TuneConfig(
                reuse_actors=True, scheduler=self._scheduler(waiting), max_concurrent_trials=self._at_once()
            ),
            run_config=tune.RunConfig(
                name=f"sweep-{time.time_ns()}",
                storage_path=tempfile.mkdtemp(prefix="raycurv-tune-"),
                callbacks=[SweepCallback(self, tasks)],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=self.cluster.max_failures),
            ),
        )
        with _quietly():
            tuner.fit()
        left = sum(not self._is_done(outcome) for _, outcome in waiting)
        if left:  # Ctrl-C, which Ray Tune takes for itself
            raise Stopped(f"{left} trials of {self.name} are left; go on with --run-name {self.name} --resume")

    def _mend(self, trials: Sequence[Trial], begun: Sequence[Outcome]) -> None:
        """Tell MLflow what was on its way when an earlier driver died, or what it could not take then."""
        from raycurv.tracking.finished_runs import names_of

        torn = self.tracking.torn("sweep", self.name)
        there = names_of(self.tracking.uri, self.tracking.experiment, self.name)
        for trial, outcome in zip(trials, begun, strict=True):
            name = _run_name(outcome.name)
            if self._is_done(outcome) and (name in torn or name not in there):
                named = dataclasses.replace(trial.config, name=_run_name(outcome.name))
                self._log(self.ledger.done[outcome.name], [], named.to_json())

    def take(self, outcome: Outcome, records: Sequence[Record], config: str) -> None:
        """Keep how a trial ended: in MLflow, then in the ledger. Where MLflow cannot take it, it is told later."""
        self._late.append((outcome, records, config))
        if time.monotonic() >= self._next_try:
            self._log_late()
        self.ledger.add(outcome)

    def _log_late(self) -> None:
        from raycurv.tracking.client import TrackingError

        while self._late:
            try:
                self._log(*self._late[0])
            except TrackingError as error:  # a full disk, a server that is away: the ledger has them all the same
                self._next_try = time.monotonic() + RETRY_SECONDS
                self.say(
                    f"MLflow lacks {len(self._late)} trials that have ended: {error}. They are kept in "
                    f"{self.ledger.path}, and tried again; --run-name {self.name} --resume delivers them too"
                )
                return
            self._late.popleft()

    def _log(self, outcome: Outcome, records: Sequence[Record], config: str) -> None:
        from raycurv.tracking.client import explained

        run_config = RunConfig.from_json(config)
        tags = {**provenance.commit(), "sweep": self.name, "recipe": outcome.recipe, "optimizer": outcome.optimizer}
        tags |= {"seed": str(outcome.seed), "setting": outcome.setting, "stage": outcome.stage}
        tags |= {"status": outcome.status, **outcome.labels} | ({"reason": outcome.reason} if outcome.reason else {})
        # A trial may have got as far as MLflow before another driver died, or before MLflow's disk was full.
        perhaps = self.cluster.resume or self._next_try > 0
        with explained(self.tracking.uri):
            known = perhaps and self.tracking.find(run_config.name) is not None
        run = self.tracking.open(run_config, tags, self.parent.id, resume=known)
        began = time.time() - outcome.seconds
        points = [Record("evaluation", p.step, p.epoch, began + p.seconds, p.values) for p in outcome.points]
        run.log(sorted([*records, *points], key=lambda record: record.step))
        found = {"result/seconds": outcome.seconds, "result/operations": outcome.operations}
        run.metrics(found, max(outcome.steps, 1), time.time())
        run.close("FINISHED" if outcome.status in ("finished", "stopped early") else "FAILED")
        self.tracking.done_with(run)

    def _share(self, config: RunConfig) -> str:
        """Key of the data; the first time, a task decodes them into Ray's object store, for all processes of a node."""
        key = json.dumps(dataclasses.asdict(config.data), sort_keys=True, default=str)
        if key not in self._shared and self.cluster.workers == 1:
            from raycurv.service.shared_data import share

            self._shared[key] = share(config.data)
        return key

    def _resources(self) -> Any:
        from ray import tune

        cluster = self.cluster
        if cluster.workers > 1:  # the trial itself only waits for its workers, whom Ray Train places
            return tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
        return {"cpu": cluster.cpus_per_worker} | ({"gpu": self.limits.gpu_share} if cluster.use_gpu else {})

    def _at_once(self) -> int | None:
        """Trials of several workers that the cluster has room for; Ray Tune sees to those of one."""
        if self.cluster.workers == 1:
            return None
        import ray

        total, one = ray.cluster_resources(), self.cluster.resources
        return max(1, min(int(total.get(n, 0) / (amount * self.cluster.workers)) for n, amount in one.items()))

    def _scheduler(self, waiting: Sequence[tuple[Trial, Outcome]]) -> Any:
        stages = {trial.stage for trial, _ in waiting}
        if self.limits.search == "grid" or stages != {"search"}:
            return None
        from ray.tune.schedulers import ASHAScheduler

        most = max(trial.config.epochs for trial, _ in waiting)
        return ASHAScheduler("epoch", metric="train/epoch_loss", mode="min", max_t=most + 1, grace_period=1)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Ray Tune writes about every trial that failed; here they are counted and shown in the table."""
    import logging

    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _check(trials: Sequence[Trial]) -> None:
    if not trials:
        raise ValueError("the sweep has no trial; give it at least one optimizer and one point")
    names: set[str] = set()
    for trial in trials:
        check(trial.config)
        if trial.name in names:
            raise ValueError(f"two trials are named {trial.name!r}: they differ in nothing that a sweep looks at")
        names.add(trial.name)


def _run_name(name: str) -> str:
    """As a run may be called: long names end in a digest."""
    return name if len(name) <= 128 else f"{name[:110]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
