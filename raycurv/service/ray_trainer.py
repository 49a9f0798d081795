"""Ray Train's trainer for tasks of ours: the workers, how they talk, how often they are started again."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig  # what ray.train.FailureConfig is; the checker sees another

from raycurv.service.cluster import Cluster
from raycurv.service.errors import LaunchError, describe
from raycurv.service.messages import Mailbox, Message
from raycurv.service.process_group import NodeTorchConfig
from raycurv.service.worker import WorkerTask, work
from raycurv.train.records import Record, Result

COLLECTIVE_SECONDS = 600


def trainer(tasks: Sequence[WorkerTask], mailbox: Any, cluster: Cluster) -> TorchTrainer:
    """What trains `tasks` one after the other on the workers of `cluster` and writes to `mailbox`."""
    # A folder of its own for every launch: Ray Train goes on silently with what it finds.
    scratch = tempfile.mkdtemp(prefix="raycurv-train-")
    return TorchTrainer(
        work,
        train_loop_config={"tasks": list(tasks), "mailbox": mailbox, "threads": cluster.threads_per_worker},
        torch_config=NodeTorchConfig(backend="nccl" if cluster.use_gpu else "gloo", timeout_s=COLLECTIVE_SECONDS),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.workers, use_gpu=cluster.use_gpu, resources_per_worker=cluster.resources
        ),
        run_config=ray.train.RunConfig(
            name=Path(scratch).name,
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=0),
        ),
    )


def train_on_workers(config: str, checkpoints: str, cluster: Cluster) -> tuple[list[Record], Result]:
    """Train one run on the workers of `cluster`, and wait for it.

    Args:
        config: the run as JSON.
        checkpoints: its folder or address, which all workers reach.
        cluster: how many workers, and what each of them needs.

    Returns:
        The records and the result.

    Raises:
        LaunchError: it failed; the message says why.
    """
    actor: Any = Mailbox
    mailbox = actor.remote()
    error: Exception | None = None
    try:
        trainer([WorkerTask(0, config, checkpoints)], mailbox, cluster).fit()
    except Exception as failure:  # the letters say it better, where there is one
        error = failure
    letters = [Message.open(sealed) for sealed in ray.get(mailbox.take.remote())]
    ray.kill(mailbox)
    for letter in letters:
        if letter.kind == "failed":
            raise LaunchError(describe(letter.values["type"], letter.values["message"]), letter.values["traceback"])
    results = [letter.values["result"] for letter in letters if letter.kind == "finished"]
    if not results:
        raise LaunchError(f"the workers ended without finishing: {error or 'no reason was given'}") from error
    return [record for letter in letters if letter.kind == "records" for record in letter.values["records"]], results[0]
