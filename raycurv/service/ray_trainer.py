"""Ray Train's trainer for the runs of a launch: workers, process group, restarts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.train
from ray.train.v2.api.config import FailureConfig, ScalingConfig  # what ray.train has; the checker sees others
from ray.train.v2.torch.torch_trainer import TorchTrainer

from raycurv.service.cluster import Cluster
from raycurv.service.process_group import NodeTorchConfig
from raycurv.service.worker import COLLECTIVE_SECONDS, WorkerTask, work
from raycurv.service.worker_count import GroupTracker, WorkerCountPolicy, WorkerFailurePolicy

FAILED_STARTS = 20  # groups of workers that did not come up, as when a node dies meanwhile, until a launch ends


class WorkerTrainer(TorchTrainer):
    """Ray Train's trainer with this package's policies for the number of workers and for failures.

    Args:
        mailbox: actor that takes messages for the driver.
        patience: seconds to wait for the workers.
        pauses: whether workers pause before an announced change of their number.
        settings: settings of Ray's trainer.
    """

    def __init__(self, *, mailbox: Any, patience: float, pauses: bool = True, **settings: Any) -> None:
        self._mailbox, self._patience, self._pauses = mailbox, patience, pauses
        super().__init__(work, **settings)

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
    tasks: Sequence[WorkerTask],
    mailbox: Any,
    cluster: Cluster,
    scratch: Path,
    probe: str = "",
    *,
    pauses: bool = True,
) -> WorkerTrainer:
    """Trainer that trains `tasks` one after the other on the workers of `cluster`, with messages to `mailbox`.

    Args:
        tasks: the runs.
        mailbox: actor that takes messages for the driver.
        cluster: number and resources of the workers.
        scratch: new folder for files of Ray Train.
        probe: file that every node must see; empty for none.
        pauses: whether workers pause before an announced change of their number; not where trials share `mailbox`.
    """
    return WorkerTrainer(
        mailbox=mailbox,
        pauses=pauses,
        patience=cluster.worker_timeout,
        train_loop_config={
            "tasks": list(tasks),
            "mailbox": mailbox,
            "threads": cluster.threads_per_worker,
            "pinned": cluster.pin_workers,
            "trust": cluster.trust,
            "probe": probe,
            "checkpoint_seconds": cluster.seconds_between_checkpoints,
            "system_metrics_every": cluster.system_metrics_every,
        },
        torch_config=NodeTorchConfig(backend="nccl" if cluster.use_gpu else "gloo", timeout_s=COLLECTIVE_SECONDS),
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
