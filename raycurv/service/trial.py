"""One trial of a sweep, in a process of Ray Tune: train, and send the same messages as the workers of a launch."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import tune

from raycurv.data import Data
from raycurv.objective.collectives import Local
from raycurv.results.outcomes import Outcome
from raycurv.service.cluster import Cluster
from raycurv.service.errors import LaunchError
from raycurv.service.mailbox import MessageSender
from raycurv.service.ray_metrics import RayMetrics
from raycurv.service.ray_trainer import trainer
from raycurv.service.scratch import scratch_folder
from raycurv.service.worker import train_and_send
from raycurv.service.worker_task import WorkerJob, WorkerTask
from raycurv.tracking.messages import RunFailed
from raycurv.train import NonFiniteLoss
from raycurv.train.records import Record
from raycurv.train.trust import allow

METRIC = "train/epoch_loss"  # by which a scheduler compares trials
GRACE = 20.0  # seconds that a trial has to end by itself after its time is over


class TimeLimitExceeded(RuntimeError):
    """A trial took longer than the sweep allows."""


@dataclass(frozen=True)
class TrialTask(WorkerTask):
    """A trial as the processes of Ray Tune get it.

    Attributes:
        initial: its outcome before it begins.
        data: key of its data among those that lie decoded in Ray's object store.
    """

    initial: Outcome
    data: str


@dataclass(frozen=True)
class TrialSettings:
    """Settings of all trials of a sweep.

    Attributes:
        mailbox: actor that takes messages for the driver.
        threads: threads of torch.
        device: ``cpu`` or ``cuda``.
        seconds: time limit of one trial, or None.
        cluster: the workers of one trial, or None where a trial is one process.
        trust: modules that the driver trusts.
    """

    mailbox: Any
    threads: int
    device: str
    seconds: float | None
    cluster: Cluster | None = None
    trust: tuple[str, ...] = ()


def run_trial(
    chosen: dict[str, int], tasks: list[TrialTask], shared: Mapping[str, Any], settings: TrialSettings
) -> None:
    """The trainable of Ray Tune. An error is the outcome of a trial; only the death of its process is tried again.

    Args:
        chosen: ``trial``, an index of `tasks`.
        tasks: all trials.
        shared: key → reference of decoded data; empty where every process builds its own.
        settings: settings of the sweep.
    """
    task = tasks[chosen["trial"]]
    sender = MessageSender(settings.mailbox, task.run)
    torch.set_num_threads(settings.threads)
    allow(settings.trust)
    failure: BaseException | None
    try:
        with _time_limit(settings.seconds, settings.mailbox, task.run):
            failure = _train(task, sender, shared, settings)
    except Exception as error:
        failure = error
    if failure is not None:
        sender.fail(RunFailed.of(task.run, failure))
    sender.flush()
    if "://" not in task.checkpoints:
        task.claim.require()  # they may be another driver's now
        shutil.rmtree(task.checkpoints, ignore_errors=True)  # a sweep of hundreds would fill the disk


def _train(
    task: TrialTask, sender: MessageSender, shared: Mapping[str, Any], settings: TrialSettings
) -> Exception | None:
    """Train; returns why the trial did not finish, None if it did."""
    try:
        if settings.cluster is not None:
            _train_on_workers(task, settings.mailbox, settings.cluster)
        else:
            _train_here(task, sender, _data(task, shared), settings)
    except (NonFiniteLoss, TimeLimitExceeded) as error:
        return error
    return None


def _train_here(task: TrialTask, sender: MessageSender, data: Data | None, settings: TrialSettings) -> None:
    seconds = settings.seconds
    deadline = None if seconds is None else time.monotonic() + seconds

    def report(record: Record) -> None:
        if METRIC in record.values:  # at the end of an epoch; the scheduler may end the trial here
            tune.report({**record.values, "epoch": record.epoch})

    result = train_and_send(
        task, sender, Local(), settings.device,
        RayMetrics(task.initial.recipe, task.initial.optimizer),  # a process that runs hundreds keeps every series
        stop=lambda: deadline is not None and time.monotonic() > deadline, data=data, evaluated=report,
    )  # fmt: skip
    if result.stopped:
        raise TimeLimitExceeded(f"it had done {result.steps} steps after {seconds} s (--time-limit)")


def _train_on_workers(task: TrialTask, mailbox: Any, cluster: Cluster) -> None:
    """Train on workers of its own, which send to the driver; this process only waits.

    Raises:
        LaunchError: they ended without a result and without an error of their own.
    """
    try:
        with scratch_folder("raycurv-train-") as scratch:
            trainer(WorkerJob((task,)), mailbox, cluster, scratch, pauses=False).fit()
    except Exception as error:
        if not ray.get(mailbox.failed.remote([task.run])):
            raise LaunchError(f"the workers ended without finishing: {error}") from error


_BUILT: dict[str, Data] = {}  # data of this process


def _data(task: TrialTask, shared: Mapping[str, Any]) -> Data | None:
    """The data that all processes of this node share, or None if each builds its own."""
    reference = shared.get(task.data)
    if reference is None:
        return None
    if task.data not in _BUILT:
        _BUILT.clear()
        try:
            _BUILT[task.data] = ray.get(reference)
        except ray.exceptions.ObjectLostError:  # with its node, and could not be made again
            return None
    return _BUILT[task.data]


@contextlib.contextmanager
def _time_limit(seconds: float | None, mailbox: Any, run: str) -> Iterator[None]:
    """End the process of a trial that does not end by itself, so that the sweep goes on.

    Args:
        seconds: time limit; None for none.
        mailbox: actor that remembers such trials, for the process that tries again on whichever node.
        run: name of the trial.

    Raises:
        TimeLimitExceeded: an earlier process of this trial was ended.
    """
    if seconds is None:
        yield
        return
    if ray.get(mailbox.hung.remote(run)):
        raise TimeLimitExceeded(f"it hung for {seconds} s and was ended")

    def end() -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(mailbox.add_hung.remote(run), timeout=GRACE)
        os._exit(1)

    timer = threading.Timer(seconds + GRACE, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
