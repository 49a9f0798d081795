"""Carry out runs on a Ray cluster: one set of workers trains them one after the other, the driver keeps the books."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from raycurv.service.artifact_writer import ArtifactWriter
from raycurv.service.cluster import Cluster
from raycurv.service.errors import LaunchError, Stopped, describe
from raycurv.service.terminal import TerminalProgress, table
from raycurv.tracking import provenance, run_names

if TYPE_CHECKING:
    from raycurv.results.outcomes import Status
    from raycurv.service.plan import LaunchPlan
    from raycurv.tracking.client import TrackedRun, Tracking
    from raycurv.train.configuration import RunConfig
    from raycurv.train.records import Result

POLL_SECONDS = 0.25
# `ray job stop` sends SIGKILL three seconds after SIGTERM; Ctrl-C has time to write a checkpoint.
GRACE_SECONDS = {signal.SIGTERM: 1.5, signal.SIGINT: 30.0}
MAILBOX_SECONDS = 60.0
# Ray Train's own switches, unless the environment says otherwise.
RAY_TRAIN = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead worker is noticed
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",  # a rank that never comes is named instead of waited for
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more, for checkpoints of Ray Train's own
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers stay where the user's modules are
}


def launch(runs: Sequence[RunConfig], cluster: Cluster) -> list[Result]:
    """Train `runs` one after the other on the workers of `cluster`, and track them in MLflow.

    Connects to the Ray that ``RAY_ADDRESS`` names or that runs on this machine, and otherwise starts one on loopback.
    Shows progress on the standard output. In the main thread, it turns Ctrl-C and SIGTERM into a checkpoint and an end.

    Returns:
        How each of the runs ended, in their order.

    Raises:
        ValueError: something about the runs is not allowed; nothing has been started.
        ResumeError: a run of that name exists and should not go on, or does not and should; nothing has been started.
        TrackingError: MLflow cannot be used; nothing has been started.
        ConnectionRefused: Ray cannot be reached.
        CapacityError: the cluster can never give the workers.
        LaunchError: a run failed, or its workers died more often than `max_failures`.
        Stopped: somebody asked for it.
    """
    from raycurv.service.plan import plan

    planned = plan(runs, cluster)
    progress = TerminalProgress()
    with _tracked(planned, cluster, progress.say) as tracking:
        from raycurv.service.connection import connected, require_capacity, warn_of_private_storage

        with connected(cluster, progress.say):
            require_capacity(cluster, progress.say)
            warn_of_private_storage(cluster, progress.say)
            results = _Launch(planned, cluster, tracking, progress).run()
        progress.say("\n" + _summary(planned, results))
    return results


class _Launch:
    def __init__(self, plan: LaunchPlan, cluster: Cluster, tracking: Tracking, progress: TerminalProgress) -> None:
        from raycurv.service.messages import Mailbox

        self.plan, self.cluster, self.tracking, self.progress = plan, cluster, tracking, progress
        self.results: dict[int, Result] = {}
        self.failed: dict[int, tuple[Status, str]] = {}  # how, and why
        self.attempts = 0
        self.asked: signal.Signals | None = None
        self.stopped = False
        actor: Any = Mailbox
        self.mailbox = actor.remote()
        self.parent, self.tracked = self._open_runs()

    def run(self) -> list[Result]:
        status, why = "FAILED", ""
        try:
            with _signals(self._ask_to_stop):
                self._train()
            status = "FINISHED"
        except (Stopped, KeyboardInterrupt):
            status, why = "KILLED", "stopped as asked"
            raise
        except Exception as error:
            why = f"its launch ended: {describe(type(error).__name__, str(error))}"
            raise
        finally:
            if self.asked is signal.SIGTERM:
                self.tracking.hurry()
            if status != "KILLED" and self.parent is not None and self.results:
                self._keep_pictures(self.parent, why)
            self._close(status, why)
        return [self.results[index] for index in range(len(self.plan.runs))]

    def _open_runs(self) -> tuple[TrackedRun | None, list[TrackedRun]]:
        cluster = self.cluster
        origin = provenance.commit()
        common = {**origin, "launch": self.plan.name, "workers": str(cluster.workers), "device": _device(cluster)}
        parent = None
        if len(self.plan.runs) > 1:
            recipes, optimizers = zip(*((run.recipe, run.config.optimizer) for run in self.plan.runs), strict=True)
            label = run_names.of_group(recipes, optimizers, f"{len(recipes)} runs")
            parent = self.tracking.parent(self.plan.name, common, cluster.resume, label)
        tracked = []
        for planned in self.plan.runs:
            config = planned.config
            own = {"recipe": planned.recipe, "optimizer": config.optimizer, "seed": str(config.seed)}
            own |= {"checkpoints": planned.checkpoints, "config": config.digest}
            run = self.tracking.open(config, common | own, parent.id if parent else None, cluster.resume)
            run.text("config.json", config.to_json())
            tracked.append(run)
        return parent, tracked

    def _keep_pictures(self, parent: TrackedRun, why: str) -> None:
        """The runs side by side, as artifacts of the one that gathers them."""
        from raycurv.figures.report import ReportContext
        from raycurv.results import comparison
        from raycurv.service import report_artifacts
        from raycurv.service.run_outcomes import lost, outcome_of
        from raycurv.tracking.client import flat

        shelf = ArtifactWriter(
            self.plan.name, Path(self.cluster.runs) / "launches" / self.plan.name, parent, self.progress.say
        )
        outcomes = [
            outcome_of(run, self.results[i]) if i in self.results else lost(run, *self.failed.get(i, ("failed", why)))
            for i, run in enumerate(self.plan.runs)
        ]
        settings = {run.config.name: flat(json.loads(run.config.to_json())) for run in self.plan.runs}
        try:
            comparison.keep(comparison.decide(outcomes), shelf.artifact)
            report_artifacts.keep(shelf, outcomes, ReportContext(settings=settings))
        except Exception as error:  # of a drawing: the runs are worth more
            shelf.say(f"the runs could not be drawn: {describe(type(error).__name__, str(error))}")

    def _close(self, status: str, why: str) -> None:
        """Close the runs that have not finished, and the one that gathers all."""
        for index, run in enumerate(self.tracked):
            if index not in self.results:
                how, reason = self.failed.get(index, ("failed", why))
                run.tags({"reason": reason} | ({"status": how} if status == "FAILED" else {}))
                run.close(status)
                self.tracking.done_with(run)
        if self.parent is not None:
            self.parent.close(status)
            self.tracking.done_with(self.parent)

    def _train(self) -> None:
        fit = _Fit(self._trainer())
        fit.start()
        give_up: float | None = None
        while fit.is_alive():
            self._read_mail()
            if self.asked is not None and give_up is None:
                self.progress.say(f"stopping ({self.asked.name}): the workers write a checkpoint")
                self.mailbox.stop.remote()
                give_up = time.monotonic() + GRACE_SECONDS.get(self.asked, 1.5)
            if self.stopped or (give_up is not None and time.monotonic() > give_up):
                break
            fit.join(POLL_SECONDS)
        self._read_mail()
        if self.asked is not None and len(self.results) < len(self.plan.runs):
            raise Stopped(f"{self.plan.name}; go on with --run-name {self.plan.name} --resume")
        if fit.error is not None:
            raise self._explained(fit.error)
        if len(self.results) < len(self.plan.runs):
            raise LaunchError("the workers ended without finishing every run; look into Ray's logs for the reason")

    def _read_mail(self) -> None:
        import ray

        from raycurv.service.messages import Message

        for sealed in ray.get(self.mailbox.take.remote(), timeout=MAILBOX_SECONDS):
            letter = Message.open(sealed)
            getattr(self, f"_on_{letter.kind}")(letter.run, letter.values)

    def _on_workers(self, run: int, values: dict[str, Any]) -> None:
        self.attempts += 1
        device = "GPU" if values["device"].startswith("cuda") else "CPU"
        workers = f"{values['size']} worker{'s' if values['size'] > 1 else ''} on the {device}"
        again = f", after a failure (start {self.attempts} of at most {self.cluster.max_failures + 1})"
        self.progress.say(f"training on {workers}{again if self.attempts > 1 else ''}")

    def _on_started(self, run: int, values: dict[str, Any]) -> None:
        config = self.plan.runs[run].config
        if run not in self.results:
            self.progress.begin(self.plan.runs[run].label, config.epochs)
            self.tracked[run].running()

    def _on_records(self, run: int, values: dict[str, Any]) -> None:
        self.tracked[run].log(values["records"])
        self.progress.show(values["records"])

    def _on_finished(self, run: int, values: dict[str, Any]) -> None:
        result: Result = values["result"]
        if result.stopped:
            self.stopped = True
            return
        if run in self.results:  # the workers were started again, and found it done
            return
        self.results[run] = result
        tracked = self.tracked[run]
        summary = {"result/seconds": result.seconds, "result/images_per_second": result.images_per_second}
        tracked.metrics(summary, result.steps, time.time())
        if self.cluster.log_model:
            tracked.model(self.plan.runs[run].checkpoints)
        tracked.tags({"status": "finished", "reason": ""})  # it may have failed before it went on
        tracked.close("FINISHED")
        self.tracking.done_with(tracked)
        self.progress.say(f"{self.plan.runs[run].label}: finished after {result.steps} steps, {result.seconds:.1f} s")

    def _on_failed(self, run: int, values: dict[str, Any]) -> None:
        name = self.plan.runs[run].config.name
        reason = describe(values["type"], values["message"])
        self.failed[run] = ("diverged" if values["type"] == "NonFiniteLoss" else "failed", reason)
        self.tracked[run].text("failure.txt", values["traceback"])
        raise LaunchError(f"run {name} failed: {reason}", values["traceback"])

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
        if isinstance(error, ControllerError) and "timed out" in str(error):
            return LaunchError(
                f"the {self.cluster.workers} workers were not there after {self.cluster.worker_timeout:g} s "
                "(--worker-timeout): other jobs may hold the cluster's resources, or its autoscaler is slow. "
                f"See `ray status`, then {resume}",
                str(error),
            )
        return LaunchError(f"Ray Train failed: {str(error).strip().splitlines()[0]}; then {resume}", str(error))

    def _trainer(self) -> Any:
        from raycurv.service.ray_trainer import trainer
        from raycurv.service.worker import WorkerTask

        tasks = [WorkerTask(i, run.config.to_json(), run.checkpoints) for i, run in enumerate(self.plan.runs)]
        return trainer(tasks, self.mailbox, self.cluster)


class _Fit(threading.Thread):
    """Ray Train's blocking call, in a thread, so that the main thread reads mail and takes signals."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(name="fit", daemon=True)
        self._trainer = trainer
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # handed to the main thread, whatever it is
            self.error = error


@contextlib.contextmanager
def _tracked(plan: LaunchPlan, cluster: Cluster, say: Callable[[str], None]) -> Iterator[Tracking]:
    """MLflow, with the tidying up that belongs to every start, and everything delivered at the end.

    Yields:
        The connection.

    Raises:
        TrackingError: MLflow cannot be used, or has a run of one of the names.
    """
    defaults = {**RAY_TRAIN, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(cluster.worker_timeout)}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    from raycurv.tracking.client import Tracking, TrackingError, open_command

    tracking = Tracking(cluster, say)
    if count := tracking.send_unsent():
        say(f"delivered {count} things to MLflow that an earlier launch could not")
    for name in tracking.reap():
        say(f"closed the run {name!r} as KILLED: its driver is gone")
    for run in plan.runs:
        if not cluster.resume and tracking.find(run.config.name) is not None:
            raise TrackingError(
                f"MLflow has a run named {run.config.name!r} already: add --resume to go on with it, or choose another "
                "--run-name"
            )
    try:
        yield tracking
    finally:
        left = tracking.finish()
        if left is not None:
            say(f"MLflow did not take everything; the next launch or `raycurv tracking reap` delivers the rest: {left}")
        say(f"\nSee the runs in MLflow:\n  {open_command(tracking.uri)}")


@contextlib.contextmanager
def _signals(ask: Callable[[signal.Signals], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        ask(signal.Signals(number))

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _device(cluster: Cluster) -> str:
    return "gpu" if cluster.use_gpu else "cpu"


def _summary(plan: LaunchPlan, results: Sequence[Result]) -> str:
    rows = [(run.label, run.config.optimizer, result) for run, result in zip(plan.runs, results, strict=True)]
    return table(rows)


__all__ = ["LaunchError", "Stopped", "launch"]
