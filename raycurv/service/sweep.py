"""Carry out a sweep on Ray Tune: trials fill the cluster, every outcome is kept, nothing is done twice."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycurv.data import storage
from raycurv.recipes.search import SweepTrial
from raycurv.results.conditions import conditions_of_config
from raycurv.results.outcomes import Outcome
from raycurv.service.artifacts import ArtifactWriter
from raycurv.service.cluster import Cluster
from raycurv.service.driver_lock import DriverLock, driver_lock
from raycurv.service.errors import LockLost, Stopped
from raycurv.service.launch_description import describe_sweep
from raycurv.service.limits import Limits
from raycurv.service.outcome_log import OutcomeLog
from raycurv.service.run_state import RunState
from raycurv.service.scratch import scratch_folder
from raycurv.service.session import ray_session, signals_handled, terminal_of, tracking_session
from raycurv.service.terminal import TerminalProgress
from raycurv.tracking import provenance, run_names
from raycurv.tracking.messages import LogRun
from raycurv.train.build import check
from raycurv.train.configuration import RunConfig
from raycurv.train.pretrained_start import check_start
from raycurv.train.records import Record

if TYPE_CHECKING:
    from ray import tune

    from raycurv.service.trial import TrialTask
    from raycurv.tracking.client import Tracking
    from raycurv.tracking.tracked_run import TrackedRun

_ENDING = (signal.SIGTERM, signal.SIGHUP)  # signals that end a sweep as Ctrl-C does


@contextlib.contextmanager
def sweeping(name: str, trials: Sequence[SweepTrial], cluster: Cluster, limits: Limits) -> Iterator[Sweep]:
    """Open a sweep: MLflow with a run that gathers all trials, the log of outcomes, and Ray if there is work to do.

    Args:
        name: name of the sweep where `cluster` has no run name.
        trials: the first ones, checked before anything starts.
        cluster: resources of one trial, folders, MLflow; `workers` above 1 trains every trial on several.
        limits: limits of every trial.

    Yields:
        The sweep; its `run` may be called several times.

    Raises:
        ValueError: a trial is not allowed, or the sweep exists already and `resume` is not set.
        RunLocked: another driver is at work on the sweep.
        LockLost: another driver has taken over, since this one was suspended.
        CapacityError: the cluster can never give what a trial needs.
        TrackingError: MLflow cannot be used, or has a run of the sweep's name.
        KeyboardInterrupt: the user stopped the sweep between trials; what is done is kept.
        Stopped: the user stopped the sweep; what is done is kept.
    """
    _check(trials)
    full = cluster.run_name or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    log = _open_log(full, cluster)
    folders = [str(log.path.parent), storage.join(cluster.checkpoints, full)]
    with (
        terminal_of(cluster, full) as terminal,
        driver_lock(folders, terminal.notify) as lock,
        tracking_session(cluster, [full], terminal) as tracking,
    ):
        log = _open_log(full, cluster)  # another driver may have been at work until now
        terminal.notify(describe_sweep(full, [trial.config for trial in trials], cluster, log.path.parent))
        recipes, optimizers = zip(*((trial.config.name, trial.config.optimizer) for trial in trials), strict=True)
        label = run_names.group_label(None, recipes, optimizers, f"sweep {full}")
        parent = tracking.parent(full, {**provenance.commit(), "sweep": full}, bool(cluster.resume), label)
        status = "FAILED"
        try:
            # Ray Tune ends its loop on Ctrl-C; SIGTERM (`kill`, `ray job stop`) and a closed terminal do the same.
            with signals_handled(_ENDING, _interrupt), contextlib.ExitStack() as ray:

                def connect() -> None:
                    ray.enter_context(ray_session(cluster, terminal))
                    ray.enter_context(signals_handled(_ENDING, _interrupt))  # Ray has handlers of its own

                yield Sweep(full, cluster, limits, log, tracking, parent, terminal, lock, connect)
            status = "FINISHED"
        except LockLost:
            tracking.abandon()  # the runs in MLflow are another driver's now
            raise
        except (KeyboardInterrupt, Stopped):
            status = "KILLED"
            raise
        finally:
            parent.close(status)
            tracking.done_with(parent)


def _open_log(name: str, cluster: Cluster) -> OutcomeLog:
    """The outcomes so far.

    Raises:
        ValueError: there are some, and `resume` is not set.
    """
    log = OutcomeLog(Path(cluster.runs) / "sweeps" / name / "outcomes.jsonl")
    if log.path.exists() and not cluster.resume:
        raise ValueError(
            f"there is a sweep named {name!r} already: add --resume to go on, or choose another --run-name"
        )
    return log


def _interrupt(number: signal.Signals) -> None:
    signal.raise_signal(signal.SIGINT)


class Sweep:
    """Runs trials; :func:`sweeping` opens one.

    Args:
        name: name of the sweep.
        cluster: resources of one trial.
        limits: limits of every trial.
        log: outcomes so far.
        tracking: connection to MLflow.
        parent: run in MLflow that gathers all trials.
        terminal: shows lines to the user.
        lock: lock of the sweep.
        connect: connects to Ray; called once, before the first trial that is not done.
    """

    def __init__(
        self,
        name: str,
        cluster: Cluster,
        limits: Limits,
        log: OutcomeLog,
        tracking: Tracking,
        parent: TrackedRun,
        terminal: TerminalProgress,
        lock: DriverLock,
        connect: Callable[[], None],
    ) -> None:
        self.lock, self._connect, self._connected = lock, connect, False
        self.name, self.cluster, self.limits, self.log = name, cluster, limits, log
        self.tracking, self.parent, self.terminal, self.notify = tracking, parent, terminal, terminal.notify
        self.artifacts = ArtifactWriter(name, log.path.parent, parent, self.notify)
        self._commit = provenance.commit()
        self._shared: dict[str, Any] = {}  # key of data → reference to them, decoded

    def run(self, trials: Sequence[SweepTrial]) -> list[Outcome]:
        """Carry out the trials that are not done yet.

        Returns:
            How each of them ended, in their order, the failed ones too.

        Raises:
            ValueError: a trial is not allowed, or two have one name.
            Stopped: the user asked for it; what is done is done.
        """
        _check(trials)
        initial = [self._initial(trial) for trial in trials]
        waiting = [(t, o) for t, o in zip(trials, initial, strict=True) if not self._is_done(o)]
        if len(waiting) < len(trials):
            self.notify(f"{len(trials) - len(waiting)} of {len(trials)} trials are done already")
        self._say_other_defaults(initial)
        if self.cluster.resume:
            self._log_missing(trials, initial)
        if waiting:
            if not self._connected:
                self._connect()
                self._connected = True
            self._tune(waiting)
        # An earlier version wrote no conditions.
        return [dataclasses.replace(self.log.done[o.name], conditions=o.conditions) for o in initial]

    def record(self, outcome: Outcome, run: RunState, config: str) -> None:
        """Record how a trial ended: on disk, then in MLflow, which may get it later.

        Args:
            outcome: outcome of the trial.
            run: its records.
            config: the run as JSON.

        Raises:
            LaunchError: the outcome cannot be written.
            LockLost: another driver has taken over.
        """
        self.lock.require()
        self.log.add(outcome)
        steps = run.steps if outcome.status != "stopped early" else []
        self._track(outcome, [*run.data, *steps], config, run.ended)

    def _initial(self, trial: SweepTrial) -> Outcome:
        """The outcome of a trial before it begins."""
        config = trial.config
        labels = {**trial.labels, "config": config.digest, "commit": self._commit["commit"]}
        labels["settings_digest"] = settings_digest(config)
        return Outcome(
            f"{self.name}-{trial.name}",
            config.name,
            config.optimizer,
            trial.setting_text,
            config.seed,
            trial.stage,
            "failed",
            "it did not begin",
            labels=labels,
            conditions=conditions_of_config(config),
        )

    def _is_done(self, outcome: Outcome) -> bool:
        done = self.log.done.get(outcome.name)
        return done is not None and done.labels["config"] == outcome.labels["config"]

    def _say_other_defaults(self, initial: Sequence[Outcome]) -> None:
        """Show which optimizers had other defaults when trials were run that count as done."""
        before = [(outcome, self.log.done[outcome.name].labels) for outcome in initial if self._is_done(outcome)]
        other = [
            outcome.optimizer
            for outcome, labels in before
            if labels.get("settings_digest", outcome.labels["settings_digest"]) != outcome.labels["settings_digest"]
        ]
        if other:
            names = ", ".join(sorted(set(other)))
            self.notify(
                f"{len(other)} trials that are done had other defaults of {names}, in another version of raycurv. They "
                "count as done; choose another --run-name to run them again"
            )

    def _tune(self, waiting: Sequence[tuple[SweepTrial, Outcome]]) -> None:
        tasks = [self._task(trial, outcome) for trial, outcome in waiting]
        with scratch_folder("raycurv-tune-") as scratch, _without_ray_logs():
            self._tuner(waiting, tasks, scratch).fit()
        left = sum(not self._is_done(outcome) for _, outcome in waiting)
        if left:  # Ctrl-C, which Ray Tune handles itself
            raise Stopped(f"{left} trials of {self.name} are left; go on with --run-name {self.name} --resume")

    def _tuner(
        self, waiting: Sequence[tuple[SweepTrial, Outcome]], tasks: Sequence[TrialTask], scratch: Path
    ) -> tune.Tuner:
        from ray import tune

        from raycurv.service.mailbox import open_mailbox
        from raycurv.service.trial import TrialSettings, run_trial
        from raycurv.service.tune_callback import NoTrialReports, SweepCallback

        mailbox = open_mailbox()
        settings = TrialSettings(
            mailbox=mailbox,
            threads=self.cluster.threads_per_worker,
            device="cuda" if self.cluster.use_gpu else "cpu",
            seconds=self.limits.time_limit,
            cluster=self.cluster if self.cluster.max_workers > 1 else None,
            trust=self.cluster.trust,
        )
        return tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, tasks=list(tasks), shared=self._shared, settings=settings),
                self._resources(),
            ),
            param_space={"trial": tune.grid_search(list(range(len(tasks))))},
            tune_config=tune.TuneConfig(
                reuse_actors=True, scheduler=self._scheduler(waiting), max_concurrent_trials=self._at_once()
            ),
            run_config=tune.RunConfig(
                name=f"sweep-{time.time_ns()}",
                storage_path=str(scratch),
                callbacks=[SweepCallback(self, tasks, mailbox), NoTrialReports()],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=self.cluster.max_failures),
            ),
        )

    def _task(self, trial: SweepTrial, initial: Outcome) -> TrialTask:
        from raycurv.service.trial import TrialTask

        config = _named(trial, initial)
        checkpoints = storage.join(self.cluster.checkpoints, config.name)
        claim = self.lock.claims[storage.join(self.cluster.checkpoints, self.name)]
        return TrialTask(config.name, config.to_json(), checkpoints, claim, initial, self._share(trial.config))

    def _log_missing(self, trials: Sequence[SweepTrial], initial: Sequence[Outcome]) -> None:
        """Log outcomes that MLflow lacks, because an earlier driver died before it had them."""
        from raycurv.tracking.finished_runs import names_of

        unfinished = self.tracking.unfinished("sweep", self.name)
        there = names_of(self.tracking.uri, self.tracking.experiment, self.name)
        for trial, outcome in zip(trials, initial, strict=True):
            config = _named(trial, outcome)
            if self._is_done(outcome) and (config.name in unfinished or config.name not in there):
                self._track(self.log.done[outcome.name], [], config.to_json(), time.time())

    def _track(self, outcome: Outcome, steps: Sequence[Record], config: str, ended: float) -> None:
        tags = {**self._commit, "sweep": self.name, "recipe": outcome.recipe, "optimizer": outcome.optimizer}
        tags |= {"seed": str(outcome.seed), "setting": outcome.setting, "stage": outcome.stage}
        tags |= {"status": outcome.status, **outcome.labels} | ({"reason": outcome.reason} if outcome.reason else {})
        began = ended - outcome.seconds
        points = [Record("evaluation", p.step, p.epoch, began + p.seconds, p.values) for p in outcome.points]
        results = {"result/seconds": outcome.seconds, "result/operations": outcome.operations}
        if outcome.step_seconds:
            results |= {"result/step_seconds": outcome.step_seconds, "result/startup_seconds": outcome.startup_seconds}
        last = Record("progress", max(outcome.steps, 1), 0.0, ended, results)
        records = (*sorted([*steps, *points], key=lambda record: record.step), last)
        status = "FINISHED" if outcome.status in ("finished", "stopped early") else "FAILED"
        name = RunConfig.from_json(config).name
        self.tracking.put(LogRun(name, config, tags, self.parent.id, records, status, ended, began))

    def _share(self, config: RunConfig) -> str:
        """Key of the data, which a task decodes into Ray's object store once, for all processes of a node."""
        key = json.dumps(dataclasses.asdict(config.data), sort_keys=True, default=str)
        if key not in self._shared and self.cluster.max_workers == 1:
            from raycurv.service.shared_data import share

            self._shared[key] = share(config.data)
        return key

    def _resources(self) -> Any:
        from ray import tune

        cluster = self.cluster
        if cluster.max_workers > 1:  # the trial itself only waits for its workers, whom Ray Train places
            return tune.PlacementGroupFactory([{f"node:{_driver_address()}": 0.001}])
        return {"cpu": cluster.cpus_per_worker} | ({"gpu": self.limits.gpu_share} if cluster.use_gpu else {})

    def _at_once(self) -> int | None:
        """Number of trials at a time, where each has several workers; None lets Ray Tune decide."""
        if self.cluster.max_workers == 1:
            return None
        import ray

        total, one = ray.cluster_resources(), self.cluster.resources
        return max(1, min(int(total.get(n, 0) / (amount * self.cluster.min_workers)) for n, amount in one.items()))

    def _scheduler(self, waiting: Sequence[tuple[SweepTrial, Outcome]]) -> Any:
        stages = {trial.stage for trial, _ in waiting}
        if self.limits.search == "grid" or stages != {"search"}:
            return None
        from ray.tune.schedulers import ASHAScheduler

        from raycurv.service.trial import METRIC

        most = max(trial.config.epochs for trial, _ in waiting)
        return ASHAScheduler("epoch", metric=METRIC, mode="min", max_t=most + 1, grace_period=1)


def _driver_address() -> str:
    """Address of this node, by which Ray names one of its resources."""
    import ray

    return str(ray.util.get_node_ip_address())


@contextlib.contextmanager
def _without_ray_logs() -> Iterator[None]:
    """Silence Ray Tune's reports of failed trials, which the table shows."""
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _check(trials: Sequence[SweepTrial]) -> None:
    if not trials:
        raise ValueError("the sweep has no trial; give it at least one optimizer and one point")
    names: set[str] = set()
    for trial in trials:
        check(trial.config)
        if trial.name in names:
            raise ValueError(f"two trials are named {trial.name!r}: they differ in nothing that a sweep looks at")
        names.add(trial.name)
    for config in {(c.start_from, c.freeze, str(c.model), str(c.data)): c for c in (t.config for t in trials)}.values():
        check_start(config)


def _named(trial: SweepTrial, initial: Outcome) -> RunConfig:
    """The configuration of a trial under the name of its run; long names end in a digest."""
    name = initial.name
    short = name if len(name) <= 128 else f"{name[:110]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return dataclasses.replace(trial.config, name=short)


def settings_digest(config: RunConfig) -> str:
    """Identifier of all settings of the optimizer of a run; the run's own digest leaves out those at their defaults."""
    from raycurv import optim

    parameters = optim.settings(config.optimizer).values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    text = json.dumps(defaults | dict(config.optimizer_settings), sort_keys=True, default=_name_of)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _name_of(value: object) -> str:
    """Text for a function or class, equal in every process."""
    return str(getattr(value, "__qualname__", value))
