"""What every worker does: train the runs of a launch, one after the other, and tell the driver."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.train.torch
import torch
import torch.distributed

from raycurv.objective.collectives import Collectives, Local, ProcessGroup
from raycurv.service.journal import JournaledCheckpoints
from raycurv.service.messages import Message
from raycurv.service.ray_metrics import RayMetrics
from raycurv.train import train
from raycurv.train.configuration import RunConfig
from raycurv.train.records import Record, Result

SEND_SECONDS = 60.0


@dataclass(frozen=True)
class WorkerTask:
    """What the driver gives to every worker.

    Attributes:
        run: index of the run within the launch.
        config: the run as JSON.
        checkpoints: its folder or address.
    """

    run: int
    config: str
    checkpoints: str


class Sender:
    """Sends the letters of one worker; at most one is on its way, so training waits for nobody but a full mailbox."""

    def __init__(self, mailbox: Any, run: int, rank: int) -> None:
        self._mailbox, self._run, self._rank = mailbox, run, rank
        self._pending: Any = None
        self._stop = False

    def put(self, kind: str, **values: Any) -> None:
        """Send a letter if this is the first worker."""
        if self._rank != 0:
            return
        self.flush()
        self._pending = self._mailbox.put.remote(Message(self._run, kind, values).seal())

    def send(self, records: Sequence[Record]) -> None:
        """Send records if there are any."""
        if records:
            self.put("records", records=list(records))

    def flush(self) -> None:
        """Wait until the last letter has arrived."""
        if self._pending is not None:
            self._stop = ray.get(self._pending, timeout=SEND_SECONDS)
            self._pending = None

    def stop(self) -> bool:
        """Whether the driver wants the workers to stop, as far as is known here without waiting."""
        if self._pending is not None and ray.wait([self._pending], timeout=0)[0]:
            self.flush()
        return self._stop


def work(settings: dict[str, Any]) -> None:
    """The training function of Ray Train.

    Args:
        settings: ``tasks``, ``mailbox`` and ``threads``.
    """
    torch.set_num_threads(settings["threads"])
    mailbox = settings["mailbox"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    if ray.get(mailbox.failed.remote()):
        return  # Ray Train tries again whatever went wrong; this would go wrong again
    collectives: Collectives = ProcessGroup() if context.get_world_size() > 1 else Local()
    device = ray.train.torch.get_device()
    Sender(mailbox, -1, rank).put("workers", size=context.get_world_size(), device=str(device))
    for task in settings["tasks"]:
        try:
            result = _work_on(task, mailbox, collectives, device)
        except BaseException as error:
            if not _another_worker_died(error):
                letter = Message(task.run, "failed", _described(error, rank))
                ray.get(mailbox.put.remote(letter.seal(), failed=True), timeout=SEND_SECONDS)
            raise
        if result.stopped:
            return


def _work_on(task: WorkerTask, mailbox: Any, collectives: Collectives, device: torch.device) -> Result:
    config = RunConfig.from_json(task.config)
    sender = Sender(mailbox, task.run, collectives.rank)
    store = JournaledCheckpoints(task.checkpoints, config.keep_checkpoints, sender)
    live = RayMetrics(config.name, config.optimizer)

    def emit(records: list[Record]) -> None:
        live.show(records)
        store.emit(records)

    sender.put("started")
    # The driver has made sure that nothing lies here unless the run is to go on.
    result = train(
        config,
        collectives=collectives,
        device=device,
        store=store,
        emit=emit,
        resume="auto",
        stop=sender.stop,
    )
    sender.put("finished", result=result)
    sender.flush()
    return result


def _described(error: BaseException, rank: int) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "message": str(error),
        "rank": rank,
        "traceback": "".join(traceback.format_exception(error)),
    }


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
