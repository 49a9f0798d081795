"""Speed of several workers on one machine, as bare gloo processes: images, rounds, bytes and waiting time per step.

Each worker computes on one thread. Images are random and in memory, so that neither a loader nor Ray takes part.
Timings mean something on a quiet machine alone, with a core for each worker.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed
import torch.multiprocessing

from raycurv import optim
from raycurv.models import basic_cnn
from raycurv.objective import Objective
from raycurv.objective.collectives import Local, ProcessGroup
from raycurv.objective.objective import BatchNormStatistics
from raycurv.train.cpu_affinity import own_cores, pin
from raycurv.train.host_memory import ALLOCATOR_DEFAULTS

Network = Literal["none", "synchronised", "local"]
NETWORKS: tuple[Network, ...] = ("none", "synchronised", "local")  # batch normalisation of the network
WARM_UP = 25  # steps before the clock starts; `auto` measures curvature in each of the first 20
HEAD = (
    "| batch norm | workers | images/s | ratio | rounds a step | KiB a step | waiting, ms a step |\n"
    "|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class WorkerSpeed:
    """Measurement of one number of workers; means over the steps of the first worker.

    Attributes:
        batch_norm: batch normalisation of the network.
        workers: number of processes.
        images_per_second: images of all workers.
        rounds: collectives of a step.
        bytes: bytes of the tensors that are summed in a step.
        waiting: seconds of a step in which the first worker waits for the others, transfer included.
    """

    batch_norm: Network
    workers: int
    images_per_second: float
    rounds: float
    bytes: float
    waiting: float

    def row(self, one: float) -> str:
        """Row of the table.

        Args:
            one: images per second to compare with.
        """
        speed = f"{self.images_per_second:.0f} | {self.images_per_second / one:.2f}×"
        traffic = f"{self.rounds:.1f} | {self.bytes / 1024:.1f} | {1000 * self.waiting:.1f}"
        return f"| {self.batch_norm} | {self.workers} | {speed} | {traffic} |"


def measure(
    batch_norm: Network, workers: int, optimizer: str, *, steps: int, batch_size: int = 128, pinned: bool = False
) -> WorkerSpeed:
    """Measure one number of workers in processes of their own.

    Args:
        batch_norm: batch normalisation of the network: none, or its statistics.
        workers: number of processes.
        optimizer: name of a registered optimizer.
        steps: timed steps.
        batch_size: images of a step, over all workers.
        pinned: whether each worker keeps to a core of its own.

    Raises:
        ValueError: there are fewer cores than workers to be pinned.
    """
    if pinned:
        own_cores(0, workers, 1)
    with tempfile.TemporaryDirectory() as folder:
        for name, value in ALLOCATOR_DEFAULTS.items():  # the new processes read them
            os.environ.setdefault(name, value)
        arguments = (folder, batch_norm, workers, optimizer, steps, batch_size, pinned)
        torch.multiprocessing.spawn(_worker, arguments, nprocs=workers)  # type: ignore[attr-defined]
        return WorkerSpeed(**json.loads(Path(folder, "speed.json").read_text(encoding="utf-8")))


def _worker(
    rank: int, folder: str, batch_norm: Network, workers: int, optimizer: str, steps: int, batch_size: int, pinned: bool
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    try:
        if pinned:
            pin(own_cores(rank, workers, 1))
        speed = _train(rank, batch_norm, workers, optimizer, steps, batch_size)
        if rank == 0:
            Path(folder, "speed.json").write_text(json.dumps(asdict(speed)), encoding="utf-8")
    finally:
        torch.distributed.destroy_process_group()


def _train(rank: int, batch_norm: Network, workers: int, optimizer: str, steps: int, batch_size: int) -> WorkerSpeed:
    torch.manual_seed(0)
    group = ProcessGroup()
    statistics: BatchNormStatistics = "local" if batch_norm == "local" else "synchronised"
    model = basic_cnn(batch_norm=batch_norm != "none")
    objective = Objective(model, "cross_entropy", collectives=group if workers > 1 else Local(), batch_norm=statistics)
    method = optim.create(optimizer, model)
    images, labels = torch.rand(8, batch_size, 3, 32, 32), torch.randint(10, (8, batch_size))
    began, before = 0.0, asdict(group.traffic)
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            began, before = time.perf_counter(), asdict(group.traffic)
        share = torch.arange(batch_size).tensor_split(workers)[rank]
        method.step(objective.batch(images[step % 8][share], labels[step % 8][share]))
    seconds = time.perf_counter() - began
    mean = {name: (value - before[name]) / steps for name, value in asdict(group.traffic).items()}
    return WorkerSpeed(
        batch_norm, workers, steps * batch_size / seconds, mean["rounds"], mean["bytes"], mean["seconds"]
    )
