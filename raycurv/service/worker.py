"""Training function of the workers: the runs of a launch, one after the other, with messages to the driver."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.train.torch
import torch
import torch.distributed

from raycurv.data import Data
from raycurv.objective.collectives import Collectives, Local, ProcessGroup
from raycurv.service.journal import STORAGE_PATIENCE, JournaledCheckpoints
from raycurv.service.mailbox import MessageSender
from raycurv.service.node_metrics import NodeSampler
from raycurv.service.ray_metrics import RayMetrics
from raycurv.service.shared_storage import UnsharedStorage
from raycurv.service.worker_task import COLLECTIVE_SECONDS, WorkerJob, WorkerTask
from raycurv.tracking.messages import RunFailed, RunFinished, RunStarted, WorkersStarted
from raycurv.train import train
from raycurv.train.configuration import RunConfig
from raycurv.train.cpu_affinity import own_cores, pin
from raycurv.train.out_of_memory import StepOutOfMemory
from raycurv.train.records import Record, Result
from raycurv.train.trust import allow

JOB_SECONDS = 0.05  # between two questions for the runs


def work(settings: dict[str, Any]) -> None:
    """The training function of Ray Train.

    Args:
        settings: ``job``, or None where the driver sends it later; ``mailbox``, ``threads``, ``pinned``, ``trust``, the
            modules that the driver trusts, ``checkpoint_seconds`` and ``system_metrics_every``.
    """
    allow(settings["trust"])
    torch.set_num_threads(settings["threads"])
    mailbox = settings["mailbox"]
    context = ray.train.get_context()
    if settings["pinned"]:
        pin(own_cores(context.get_local_rank(), context.get_local_world_size(), settings["threads"]))
    rank, size = context.get_world_rank(), context.get_world_size()
    job = settings["job"] or _awaited_job(mailbox, rank)
    tasks, probe = job.tasks, job.probe
    if not tasks or ray.get(mailbox.failed.remote([task.run for task in tasks])):
        return  # Ray Train tries again after any error; this one would come again
    if probe and not Path(probe).exists():
        unshared = UnsharedStorage(ray.util.get_node_ip_address(), str(Path(probe).parent))
        MessageSender(mailbox, tasks[0].run).fail(RunFailed.of(tasks[0].run, unshared, rank))
        raise unshared
    collectives: Collectives = ProcessGroup() if size > 1 else Local()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    MessageSender(mailbox, "", rank == 0).put(WorkersStarted(size, str(device)))
    first = context.get_local_rank() == 0
    sampler = NodeSampler(mailbox, context.get_node_rank(), settings["system_metrics_every"], active=first)
    for task in tasks:
        sampler.run = task.run
        sender = MessageSender(mailbox, task.run, rank == 0)
        try:
            config = RunConfig.from_json(task.config)
            metrics = RayMetrics(config.name, config.optimizer)
            seconds = settings["checkpoint_seconds"]
            result = train_and_send(
                task, sender, collectives, device, metrics, stop=sender.stop, checkpoint_seconds=seconds
            )
        except BaseException as error:
            if not _worth_another_attempt(error):
                sender.fail(RunFailed.of(task.run, error, rank))
            raise
        finally:
            sampler.run = ""
        if result.stopped:
            if ray.get(mailbox.order.remote()) == "pause":
                _wait_for_end(mailbox, rank)
            return


def _awaited_job(mailbox: Any, rank: int) -> WorkerJob:
    """The runs, once the driver has prepared them."""
    while True:
        order, job = ray.get(mailbox.job.remote())
        if job is not None:
            return ray.get(job[0])
        if order == "pause":
            _wait_for_end(mailbox, rank)
        time.sleep(JOB_SECONDS)


def _wait_for_end(mailbox: Any, rank: int) -> None:
    """Wait, behind a checkpoint, for the end of this process: workers that returned would end the whole launch.

    Raises:
        RuntimeError: it did not come.
    """
    ray.get(mailbox.add_paused.remote(rank))
    time.sleep(COLLECTIVE_SECONDS)
    raise RuntimeError("a worker paused for a change of the number of workers, which never came")


def train_and_send(
    task: WorkerTask,
    sender: MessageSender,
    collectives: Collectives,
    device: torch.device | str,
    metrics: RayMetrics,
    *,
    stop: Callable[[], bool],
    data: Data | None = None,
    evaluated: Callable[[Record], None] = lambda record: None,
    checkpoint_seconds: float | None = None,
) -> Result:
    """Train one run from its newest checkpoint, and send what it measures and its result to the driver.

    Args:
        task: the run.
        sender: messages go here.
        collectives: the workers.
        device: device of this worker.
        metrics: gauges that Ray exports.
        stop: whether the run should stop.
        data: the data of the run where they are built already.
        evaluated: called after every evaluation, once its record is with the driver.
        checkpoint_seconds: seconds between checkpoints that the clock asks for; None for none.
    """
    config = RunConfig.from_json(task.config)
    store = JournaledCheckpoints(task.checkpoints, config.keep_checkpoints, sender)
    store.before_write = partial(task.claim.require, STORAGE_PATIENCE)

    def emit(records: list[Record]) -> None:
        metrics.show(records)
        store.emit(records)
        for record in records:
            if record.kind == "evaluation":
                sender.flush()
                evaluated(record)

    sender.put(RunStarted(task.run, time.time()))
    # The driver has made sure that the folder is empty unless the run is to go on.
    result = train(
        config,
        collectives=collectives,
        device=device,
        store=store,
        emit=emit,
        resume="auto",
        stop=stop,
        data=data,
        checkpoint_seconds=checkpoint_seconds,
    )
    if not (result.stopped and sender.pausing):
        sender.put(RunFinished(task.run, result))
    sender.flush()
    return result


def _worth_another_attempt(error: BaseException) -> bool:
    """Whether the workers should be started again: they go on in smaller micro-batches, or without a dead worker."""
    return (isinstance(error, StepOutOfMemory) and error.halved) or _another_worker_died(error)


def _another_worker_died(error: BaseException) -> bool:
    """Whether an error only says that the others cannot be reached; Ray Train finds out who died, and starts again."""
    if isinstance(error, (ray.exceptions.RayError, torch.distributed.DistError)):
        return True
    text = str(error)
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Connection refused",
        "gloo/transport",
        "Broken pipe",
    )
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)
