"""Ray Train's trainer for the runs of a launch: workers, process group, restarts."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import ray.train
from ray.train.v2.api.config import FailureConfig, ScalingConfig  # what ray.train has; the checker sees others
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from raycurv.service.cluster import Cluster
from raycurv.service.process_group import NodeTorchConfig
from raycurv.service.worker_count import GroupTracker, WorkerCountPolicy, WorkerFailurePolicy
from raycurv.service.worker_task import COLLECTIVE_SECONDS, WorkerJob, train_on_worker

FAILED_STARTS = 20  # groups of workers that did not come up, as when a node dies meanwhile, until a launch ends


class WorkerTrainer(DataParallelTrainer):
    """Ray Train's trainer with torch's process group, and with policies for the number of workers and for failures.

    Args:
        mailbox: actor that takes messages for the driver.
        patience: seconds to wait for the workers.
        pauses: whether workers pause before an announced change of their number.
        settings: settings of Ray's trainer.
    """

    def __init__(self, *, mailbox: Any, patience: float, pauses: bool = True, **settings: Any) -> None:
        self._mailbox, self._patience, self._pauses = mailbox, patience, pauses
        super().__init__(train_on_worker, **settings)

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        scaling: Any = self.scaling_config
        elastic = scaling.min_workers < scaling.max_workers
        settings["scaling_policy"] = WorkerCountPolicy(scaling, self._mailbox, self._patience, pauses=self._pauses)
        settings["failure_policy"] = WorkerFailurePolicy(self.run_config.failure_config, self._mailbox, elastic)
        return super()._initialize_and_run_controller(**settings)

    def give_back(self) -> None:
        """Take back what the autoscaler was asked for, which a controller that is killed leaves behind for minutes."""
        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
            coordinator.cancel_request.remote(f"train-{self.train_run_context.run_id}")


def trainer(
    job: WorkerJob | None,
    mailbox: Any,
    cluster: Cluster,
    scratch: Path,
    *,
    pauses: bool = True,
) -> WorkerTrainer:
    """Trainer that trains runs one after the other on the workers of `cluster`, with messages to `mailbox`.

    Args:
        job: the runs; None where the workers get them from `mailbox`.
        mailbox: actor that takes messages for the driver.
        cluster: number and resources of the workers.
        scratch: new folder for files of Ray Train.
        pauses: whether workers pause before an announced change of their number; not where trials share `mailbox`.
    """
    return WorkerTrainer(
        mailbox=mailbox,
        pauses=pauses,
        patience=cluster.worker_timeout,
        train_loop_config={
            "job": job,
            "mailbox": mailbox,
            "threads": cluster.threads_per_worker,
            "pinned": cluster.pin_workers,
            "trust": cluster.trust,
            "checkpoint_seconds": cluster.seconds_between_checkpoints,
            "system_metrics_every": cluster.system_metrics_every,
        },
        backend_config=NodeTorchConfig(backend="nccl" if cluster.use_gpu else "gloo", timeout_s=COLLECTIVE_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=(cluster.min_workers, cluster.max_workers),
            use_gpu=cluster.use_gpu,
            resources_per_worker=cluster.resources,
        ),
        run_config=ray.train.RunConfig(
            name=scratch.name,
            storage_path=str(scratch),
            callbacks=[GroupTracker()],  # type: ignore[list-item]  # of the controller, not of the user
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=FAILED_STARTS),
        ),
    )
