"""Workers that start while the driver prepares: they import what training needs, and wait for their runs.

The imports of a worker take longer than all that a driver does before training: its own imports, checkpoints in an
object store, MLflow. So both go on at a time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycurv.service.cluster import Cluster
from raycurv.service.errors import FIT_THREAD
from raycurv.service.scratch import scratch_folder

if TYPE_CHECKING:
    from raycurv.service.worker_task import WorkerJob

END_SECONDS = 15.0  # for workers that get no run


class FitThread(threading.Thread):
    """Ray Train's blocking call, in a thread, so that the main thread reads messages and handles signals.

    Args:
        trainer: its trainer.

    Attributes:
        error: what the call raised; None if nothing.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__(name=FIT_THREAD, daemon=True)
        self._trainer = trainer
        self.error: BaseException | None = None

    def run(self) -> None:
        """Train."""
        try:
            self._trainer.fit()
        except BaseException as error:  # handed to the main thread, whatever it is
            self.error = error


class WorkerGroup:
    """The workers of a launch, from their start on.

    Args:
        cluster: number and resources of the workers.
        scratch: new folder for files of Ray Train.

    Attributes:
        mailbox: actor that takes their messages.
        fit: thread that ends with the workers.
        notes: lines for the user about their start.
    """

    def __init__(self, cluster: Cluster, scratch: Path) -> None:
        from raycurv.service.mailbox import open_mailbox
        from raycurv.service.ray_trainer import trainer

        self.notes: list[str] = []
        self.mailbox = open_mailbox()
        self._trainer = trainer(None, self.mailbox, cluster, scratch)
        self._given = False
        self.fit = FitThread(self._trainer)
        self.fit.start()

    def give(self, job: WorkerJob) -> None:
        """Hand the workers their runs."""
        import ray

        self._given = True
        ray.get(self.mailbox.give_job.remote([ray.put(job)]))

    def end(self) -> None:
        """Take back what the autoscaler was asked for, and end workers that got no run."""
        import ray

        deadline = time.monotonic() + END_SECONDS
        while not self._given and self.fit.is_alive() and time.monotonic() < deadline:
            controller = ray.get(self.mailbox.controller.remote())
            if controller is not None:
                ray.kill(controller)
            self.fit.join(0.1)  # Ray crashes the process if it is shut down while this thread waits
        self._trainer.give_back()


@contextlib.contextmanager
def workers_on_standby(cluster: Cluster) -> Iterator[WorkerGroup | None]:
    """Start the workers of a launch on a Ray that runs, before its runs are known.

    Args:
        cluster: number and resources of the workers.

    Yields:
        The workers; None where they start later: Ray does not run yet, or the run to resume may be finished.

    Raises:
        ConnectionRefused: Ray cannot be reached.
    """
    from raycurv.service.connection import connected
    from raycurv.service.ray_address import named_cluster

    if cluster.resume or named_cluster() is None:
        yield None
        return
    notes: list[str] = []
    with connected(cluster, notes.append), started_workers(cluster) as workers:
        workers.notes = notes
        yield workers


@contextlib.contextmanager
def started_workers(cluster: Cluster) -> Iterator[WorkerGroup]:
    """Start the workers of a launch, on the Ray that is connected.

    Yields:
        The workers.
    """
    with scratch_folder("raycurv-train-") as scratch:
        workers = WorkerGroup(cluster, scratch)
        try:
            yield workers
        finally:
            workers.end()
