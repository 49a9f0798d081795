"""Ray Train's trainer for the runs of a launch: workers, process group, restarts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig  # what ray.train.FailureConfig is; the checker sees another

from raycurv.service.cluster import Cluster
from raycurv.service.process_group import NodeTorchConfig
from raycurv.service.worker import WorkerTask, work

COLLECTIVE_SECONDS = 600


def trainer(tasks: Sequence[WorkerTask], mailbox: Any, cluster: Cluster, scratch: Path) -> TorchTrainer:
    """Trainer that trains `tasks` one after the other on the workers of `cluster`, with messages to `mailbox`.

    Args:
        tasks: the runs.
        mailbox: actor that takes messages for the driver.
        cluster: the workers.
        scratch: new folder for files of Ray Train.
    """
    return TorchTrainer(
        work,
        train_loop_config={
            "tasks": list(tasks),
            "mailbox": mailbox,
            "threads": cluster.threads_per_worker,
            "pinned": cluster.pin_workers,
            "trust": cluster.trust,
        },
        torch_config=NodeTorchConfig(backend="nccl" if cluster.use_gpu else "gloo", timeout_s=COLLECTIVE_SECONDS),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.workers, use_gpu=cluster.use_gpu, resources_per_worker=cluster.resources
        ),
        run_config=ray.train.RunConfig(
            name=scratch.name,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=0),
        ),
    )
