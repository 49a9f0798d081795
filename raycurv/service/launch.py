"""Carry out runs on a Ray cluster: the workers train them one after the other, the driver tracks them in MLflow."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycurv.arguments import format_settings, mask_passwords
from raycurv.service.artifacts import ArtifactWriter
from raycurv.service.cluster import Cluster
from raycurv.service.errors import LaunchError, LockLost, Stopped, describe
from raycurv.service.session import ray_session, signals_handled, terminal_of, tracking_session
from raycurv.service.standby import WorkerGroup, started_workers, workers_on_standby
from raycurv.service.terminal import TerminalProgress, short_name, table
from raycurv.service.worker_task import WorkerJob, WorkerTask
from raycurv.tracking import provenance, run_names

if TYPE_CHECKING:
    from raycurv.results.outcomes import Outcome
    from raycurv.service.driver_lock import DriverLock
    from raycurv.service.plan import LaunchPlan, PlannedRun
    from raycurv.service.run_state import RunState
    from raycurv.tracking.client import Tracking
    from raycurv.tracking.messages import Message, WorkersNotice, WorkersStarted
    from raycurv.tracking.tracked_run import TrackedRun
    from raycurv.train.configuration import RunConfig
    from raycurv.train.records import Record, Result

POLL_SECONDS = 0.25
JOIN_SECONDS = 10.0  # for Ray Train to end after its workers
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STOP_SECONDS = 30.0  # for the last checkpoint after Ctrl-C and in a closed terminal
CLOSE_SECONDS = 1.5  # to close the runs in MLflow, before what sent SIGTERM sends SIGKILL
JOB_STOP_SECONDS, OTHER_STOP_SECONDS = 3.0, 10.0  # until SIGKILL, by `ray job stop` and by `docker stop`


def launch(runs: Sequence[RunConfig], cluster: Cluster, workers: WorkerGroup | None = None) -> list[Result]:
    """Train `runs` one after the other on the workers of `cluster`, and track them in MLflow.

    Connects to the Ray that ``RAY_ADDRESS`` names or that runs on this machine, and otherwise starts one on loopback.
    On a Ray that runs, the workers start at once, and wait until the runs have been checked and MLflow has them.
    Shows progress on the standard output. In the main thread, it turns Ctrl-C, SIGTERM and a
    closed terminal (SIGHUP) into a checkpoint and an end.

    Args:
        runs: configurations of the runs.
        cluster: number and resources of the workers, and where files go.
        workers: workers of `cluster` that have been started (:func:`~raycurv.service.standby.workers_on_standby`).

    Returns:
        How each of the runs ended, in their order.

    Raises:
        ValueError: something about the runs is not allowed; no run has been started.
        ResumeError: a run of that name exists and should not go on, or does not and should; no run has been started.
        TrackingError: MLflow cannot be used; no run has been started.
        ConnectionRefused: Ray cannot be reached.
        CapacityError: the cluster can never give the workers.
        LaunchError: a run failed, or its workers died more often than `max_failures`.
        RunLocked: another driver is at work on a run of that name; no run has been started.
        LockLost: another driver has taken over, since this one was suspended.
        Stopped: somebody asked for it.
    """
    if workers is not None:
        return _launch(runs, cluster, workers)
    with workers_on_standby(cluster) as started:
        return _launch(runs, cluster, started)


def _launch(runs: Sequence[RunConfig], cluster: Cluster, workers: WorkerGroup | None) -> list[Result]:
    from raycurv.service.driver_lock import driver_lock
    from raycurv.service.launch_description import describe_launch
    from raycurv.service.plan import begin_stores, finished_runs, plan, require_stores
    from raycurv.train.trust import targets

    planned = plan(runs, cluster)
    names = [run.config.name for run in planned.runs]
    trust = {target for run in planned.runs for target in targets(run.config)}
    with terminal_of(cluster, planned.name) as progress, driver_lock(planned.folders(cluster), progress.notify) as lock:
        require_stores(planned, cluster)  # another driver may have been at work until now
        progress.notify(describe_launch(planned, cluster))
        for line in [] if workers is None else workers.notes:
            progress.notify(line)
        with tracking_session(cluster, names, progress, trust) as tracking:
            if (finished := finished_runs(planned)) is not None:
                results = _Launch(planned, cluster, tracking, progress, lock).deliver(finished)
            else:
                with ray_session(cluster, progress):
                    begin_stores(planned, cluster, progress.notify)
                    results = _Launch(planned, cluster, tracking, progress, lock).run(workers)
            progress.notify_always("\n" + _summary(planned, results))
            if (report := _report_folder(planned, cluster) / "report.html").exists():
                progress.notify(f"\nReport of these runs:\n  {report.as_uri()}")
    return results


class _Launch:
    def __init__(
        self,
        plan: LaunchPlan,
        cluster: Cluster,
        tracking: Tracking,
        progress: TerminalProgress,
        lock: DriverLock,
    ) -> None:
        from raycurv.service.run_state import RunState

        self.plan, self.cluster, self.tracking, self.progress, self.lock = plan, cluster, tracking, progress, lock
        self.planned: dict[str, PlannedRun] = {run.config.name: run for run in plan.runs}
        self.states: dict[str, RunState] = {name: RunState(_initial(run)) for name, run in self.planned.items()}
        self.failures = 0
        self.change = ""  # why the workers that start next are started again
        self.asked: signal.Signals | None = None
        self.stopped = False
        self.mailbox: Any = None  # opened once there is a Ray
        self._unaccepted = 0  # messages that were received, and are not on disk
        self.parent, self.tracked = self._open_runs()

    def run(self, workers: WorkerGroup | None) -> list[Result]:  # None if they have not been started
        try:
            with signals_handled(STOP_SIGNALS, self._ask_to_stop):
                self._train(workers)
        except LockLost:
            self.tracking.abandon()  # the runs in MLflow are another driver's now
            raise
        except Stopped:
            self._end("KILLED", "stopped as asked")
            raise Stopped(how_to_go_on(self.plan)) from None
        except KeyboardInterrupt:
            self._end("KILLED", "stopped as asked")
            raise
        except BaseException as error:
            self._end("FAILED", f"its launch ended: {describe(type(error).__name__, str(error))}")
            raise
        self._end("FINISHED", "")
        return self._results()

    def deliver(self, finished: Mapping[str, tuple[Result, Sequence[Record]]]) -> list[Result]:
        """Log what MLflow lacks of runs that have finished; nothing is trained, and no Ray is needed.

        Args:
            finished: result and newest records of every run.
        """
        from raycurv.tracking.messages import LogRecords, RunFinished

        for name, (result, records) in finished.items():
            self.states[name].add(LogRecords(name, tuple(records)))
            self.states[name].add(RunFinished(name, result))
            self.tracked[name].begin(self.states[name].ended - result.seconds)
            self.tracked[name].log(records)
            self._finish(name, result)
        self._end("FINISHED", "")
        return self._results()

    def _results(self) -> list[Result]:
        return [result for name in self.planned if (result := self._result(name)) is not None]

    def _end(self, status: str, why: str) -> None:
        if self.asked is signal.SIGTERM:
            self.tracking.postpone_models()
        if status != "KILLED" and self.parent is not None and any(map(self._result, self.planned)):
            self._write_report(self.parent, why)
        if self.cluster.register and self.cluster.log_model and status == "FINISHED":
            self._register(self.cluster.register)
        self._close(status, why)

    def _register(self, name: str) -> None:
        """Register the network of the best run."""
        from raycurv.results.gathering import best_run

        best = best_run([self._outcome(run, "") for run in self.planned])
        if best is None:
            self.progress.notify(f"no run has finished well, so no network is registered as {name!r}")
        else:
            self.tracked[best.name].register(name)

    def _result(self, name: str) -> Result | None:
        return self.states[name].result

    def _finished(self) -> bool:
        return all(map(self._result, self.planned))

    def _open_runs(self) -> tuple[TrackedRun | None, dict[str, TrackedRun]]:
        cluster = self.cluster
        device = "gpu" if cluster.use_gpu else "cpu"
        common = {**provenance.commit(), "launch": self.plan.name, "workers": str(cluster.workers), "device": device}
        parent = None
        if len(self.plan.runs) > 1:
            recipes, optimizers = zip(*((run.recipe, run.config.optimizer) for run in self.plan.runs), strict=True)
            label = run_names.group_label(cluster.run_name, recipes, optimizers, f"{len(recipes)} runs")
            parent = self.tracking.parent(self.plan.name, common, bool(cluster.resume), label)
        tracked = {}
        for name, planned in self.planned.items():
            config = planned.config
            own = {"recipe": planned.recipe, "optimizer": config.optimizer, "seed": str(config.seed)}
            own |= {"checkpoints": planned.checkpoints, "config": config.digest}
            tracked[name] = self.tracking.open_later(
                config, common | own, parent.id if parent else None, bool(cluster.resume)
            )
        return parent, tracked

    def _write_report(self, parent: TrackedRun, why: str) -> None:
        """Write the comparison of the runs, as artifacts of the run that gathers them."""
        from raycurv.figures.report import ReportContext
        from raycurv.results.comparison import compare_methods
        from raycurv.results.comparison_text import write_comparison
        from raycurv.tracking.run_page import flat

        folder = _report_folder(self.plan, self.cluster)
        artifacts = ArtifactWriter(self.plan.name, folder, parent, self.progress.notify)
        outcomes = [self._outcome(name, why) for name in self.planned]
        settings = {run.config.name: flat(json.loads(run.config.to_json())) for run in self.plan.runs}
        try:
            write_comparison(compare_methods(outcomes), artifacts.write)
            artifacts.write_report(outcomes, ReportContext(settings=settings))
        except Exception as error:  # the runs are worth more than their figures
            self.progress.notify(f"the runs could not be drawn: {describe(type(error).__name__, str(error))}")

    def _outcome(self, name: str, why: str) -> Outcome:
        """The outcome of a run; `why` is the reason if the run itself reported none."""
        outcome = self.states[name].outcome()
        return outcome if outcome.reason or outcome.status == "finished" else replace(outcome, reason=why)

    def _close(self, status: str, why: str) -> None:
        """Close the runs that have not finished, and the one that gathers all."""
        for name, run in self.tracked.items():
            if self._result(name) is None:
                outcome = self._outcome(name, why)
                run.tags({"reason": outcome.reason} | ({"status": outcome.status} if status == "FAILED" else {}))
                run.close(status)
                self.tracking.done_with(run)
        if self.parent is not None:
            self.parent.close(status)
            self.tracking.done_with(self.parent)

    def _train(self, workers: WorkerGroup | None) -> None:
        from raycurv.service.shared_storage import probe_file

        with probe_file(self.cluster) as probe:
            if workers is not None:
                self._follow(workers, probe)
                return
            with started_workers(self.cluster) as started:
                self._follow(started, probe)

    def _follow(self, workers: WorkerGroup, probe: str) -> None:
        self.mailbox, fit = workers.mailbox, workers.fit
        workers.give(WorkerJob(self._tasks(), probe))
        give_up: float | None = None
        while fit.is_alive():
            self.lock.require()
            self._receive()
            if self.asked is not None and give_up is None:
                self.progress.notify(f"stopping ({self.asked.name}): the workers write a checkpoint")
                self.mailbox.stop.remote()
                give_up = time.monotonic() + checkpoint_patience(self.asked, os.environ)
            if self.stopped or (give_up is not None and time.monotonic() > give_up):
                break
            fit.join(POLL_SECONDS)
        # Ray crashes the process if it is shut down while a thread waits in one of its calls.
        fit.join(JOIN_SECONDS if give_up is None else max(0.0, min(JOIN_SECONDS, give_up - time.monotonic())))
        self._receive()
        if self.asked is not None and not self._finished():
            raise Stopped(self.plan.name)
        if self._finished():  # whatever became of the workers afterwards
            return
        if fit.error is not None:
            raise self._explained(fit.error)
        raise LaunchError("the workers ended without finishing every run; look into Ray's logs for the reason")

    def _receive(self) -> None:
        from raycurv.service.mailbox import accept, receive

        received = receive(self.mailbox)
        self._unaccepted += len(received)
        for message in received:
            self._handle(message)
        if self.tracking.save():
            accept(self.mailbox, self._unaccepted)
            self._unaccepted = 0
        for message in received:
            self._raise_failure(message)

    def _handle(self, message: Message) -> None:
        from raycurv.tracking import messages

        if isinstance(message, messages.WorkersStarted | messages.WorkersNotice):
            if not self._finished():  # a worker that dies afterwards is no failure, and is started again for nothing
                self._show_workers(message)
            return
        again = self._result(message.run) is not None  # workers that were started again find it done
        self.states[message.run].add(message)
        match message:
            case messages.RunStarted(name, began) if not again:
                self._start(name, began)
            case messages.LogRecords(name, records):
                self.tracked[name].log(records)
                self.progress.show(self.states[name].of_this_sitting(records))
            case messages.RunFinished(name, result) if not again:
                self._finish(name, result)

    def _show_workers(self, message: WorkersStarted | WorkersNotice) -> None:
        from raycurv.tracking.messages import WorkersStarted

        if isinstance(message, WorkersStarted):
            self._show_start(message)
        else:
            self._show_notice(message)

    def _show_start(self, message: WorkersStarted) -> None:
        device = "GPU" if message.device.startswith("cuda") else "CPU"
        workers = f"{message.workers} worker{'s' if message.workers > 1 else ''} on the {device}"
        again = f", after a failure ({self.failures} of at most {self.cluster.max_failures})"
        self.progress.notify(f"training on {workers}{again if self.change == 'failure' else ''}")
        self.change = ""

    def _show_notice(self, message: WorkersNotice) -> None:
        self.progress.notify(message.text)
        self.failures += message.change == "failure"
        self.change = message.change or self.change

    def _start(self, name: str, began: float) -> None:
        config, tracked = self.planned[name].config, self.tracked[name]
        self.progress.begin(self.planned[name].label, config.epochs)
        tracked.begin(began)
        tracked.running()
        tracked.text("config.json", config.to_json())

    def _finish(self, name: str, result: Result) -> None:
        from raycurv.tracking.messages import RUN_ID
        from raycurv.tracking.run_page import description, model_name

        if result.stopped:
            self.stopped = True
            return
        tracked, planned = self.tracked[name], self.planned[name]
        summary = {"result/seconds": result.seconds, "result/images_per_second": result.images_per_second}
        summary |= {"result/operations": result.operations} if result.operations else {}
        summary |= {"result/step_seconds": result.step_seconds, "result/startup_seconds": result.startup_seconds}
        tracked.log(result.evaluations)  # those that MLflow lacks
        ended = self.states[name].ended
        tracked.metrics(summary, result.steps, ended)
        model = f"runs:/{RUN_ID}/{model_name(name)}" if self.cluster.log_model else ""
        if model:
            tracked.model(planned.checkpoints)
        values = {**result.values, **summary}
        tracked.describe(description(planned.config, planned.recipe, self.plan.name, model, values))
        status = "diverged" if result.diverged else "finished"
        tracked.tags({"status": status, "reason": result.diverged})  # it may have failed before it went on
        tracked.close("FAILED" if result.diverged else "FINISHED", ended)
        self.tracking.done_with(tracked)
        why = f": {result.diverged}" if result.diverged else ""
        self.progress.end()
        length = f"{result.steps} steps, {result.seconds:.1f} s"
        self.progress.notify(f"{short_name(planned.label)}: {status} after {length}{why}")

    def _raise_failure(self, message: Message) -> None:
        from raycurv.tracking.messages import RunFailed

        if not isinstance(message, RunFailed):
            return
        self.tracked[message.run].text("failure.txt", mask_passwords(message.traceback))
        reason = describe(message.error, message.reason)
        raise LaunchError(f"run {message.run} failed: {reason}", message.traceback)

    def _ask_to_stop(self, number: signal.Signals) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt  # asked twice: without waiting for a checkpoint
        self.asked = number

    def _explained(self, error: BaseException) -> LaunchError:
        from ray.train import ControllerError, WorkerGroupError

        resume = f"go on with --run-name {self.plan.name} --resume"
        if isinstance(error, WorkerGroupError):
            ranks = ", ".join(str(rank) for rank in sorted(error.worker_failures))
            first = str(next(iter(error.worker_failures.values()), error)).strip().splitlines()[-1]
            return LaunchError(
                f"worker {ranks} died and was started again {self.cluster.max_failures} times (--max-failures): "
                f"{first}. Often the machine ran out of memory: use smaller batches or more workers, then {resume}",
                str(error),
            )
        if isinstance(error, ControllerError) and "--worker-timeout" in str(error):
            reason = str(error).strip().splitlines()[-1]
            return LaunchError(
                f"{reason}: nodes are gone, other jobs hold them, or the autoscaler is slow. See `ray status`, then "
                f"{resume}",
                str(error),
            )
        lines = str(error).strip().splitlines()
        reason = lines[-1 if isinstance(error, ControllerError) else 0]  # behind a line that names the controller
        return LaunchError(f"Ray Train failed: {reason}; then {resume}", str(error))

    def _tasks(self) -> tuple[WorkerTask, ...]:
        return tuple(
            WorkerTask(name, run.config.to_json(), run.checkpoints, self.lock.claims[run.checkpoints])
            for name, run in self.planned.items()
        )


def checkpoint_patience(number: signal.Signals, environment: Mapping[str, str]) -> float:
    """Seconds that a signal leaves for the last checkpoint.

    Args:
        number: the signal. SIGTERM is followed by SIGKILL after ``RAY_JOB_STOP_WAIT_TIME_S`` in a job of Ray.
        environment: environment variables of the driver.
    """
    if number != signal.SIGTERM:
        return STOP_SECONDS
    default = JOB_STOP_SECONDS if "RAY_JOB_CONFIG_JSON_ENV_VAR" in environment else OTHER_STOP_SECONDS
    try:
        seconds = float(environment.get("RAY_JOB_STOP_WAIT_TIME_S", default))
    except ValueError:
        seconds = default
    return max(CLOSE_SECONDS, seconds - CLOSE_SECONDS)


def how_to_go_on(plan: LaunchPlan) -> str:
    """How a launch that was stopped goes on, and from which step."""
    from raycurv.train.checkpoint import CheckpointStore
    from raycurv.train.checkpoint_file import CheckpointError

    where = "there is no checkpoint, so it begins again at step 0"
    try:
        for run in plan.runs:
            step = CheckpointStore(run.checkpoints).newest_step()
            if step is not None:
                where = f"the newest checkpoint of {run.config.name} has {step} steps"
    except (CheckpointError, OSError) as error:
        where = f"the newest checkpoint is not known ({error})"
    return f"{plan.name}; {where}; go on with --run-name {plan.name} --resume"


def _initial(run: PlannedRun) -> Outcome:
    """The outcome of a run before it begins."""
    from raycurv.results.conditions import conditions_of_config
    from raycurv.results.outcomes import Outcome

    config = run.config
    setting = format_settings(dict(sorted(config.optimizer_settings.items())))
    same = conditions_of_config(config)
    return Outcome(config.name, run.recipe, config.optimizer, setting, config.seed, status="failed", conditions=same)


def _report_folder(plan: LaunchPlan, cluster: Cluster) -> Path:
    return Path(cluster.runs) / "launches" / plan.name


def _summary(plan: LaunchPlan, results: Sequence[Result]) -> str:
    rows = [(run.label, run.config.optimizer, result) for run, result in zip(plan.runs, results, strict=True)]
    return table(rows)


__all__ = ["LaunchError", "Stopped", "launch"]
