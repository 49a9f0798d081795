"""What the driver hands to its workers: runs, and the function that trains them, which imports torch there alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raycurv.service.driver_lock import LockClaim

COLLECTIVE_SECONDS = 600  # that workers wait for each other


@dataclass(frozen=True)
class WorkerTask:
    """One run as every worker gets it.

    Attributes:
        run: name of the run.
        config: the run as JSON.
        checkpoints: folder or address of its checkpoints.
        claim: the driver's claim of the run, without which nothing is written.
    """

    run: str
    config: str
    checkpoints: str
    claim: LockClaim


@dataclass(frozen=True)
class WorkerJob:
    """All that the workers of a launch train.

    Attributes:
        tasks: runs in the order of training; none where the driver has given up.
        probe: file that every node must see; empty for none.
    """

    tasks: tuple[WorkerTask, ...]
    probe: str = ""


def train_on_worker(settings: dict[str, Any]) -> None:
    """The training function of Ray Train; neither the driver nor Ray's controller imports torch for it.

    Args:
        settings: see :func:`raycurv.service.worker.work`.
    """
    from raycurv.service.worker import work

    work(settings)
