"""What one step of an optimizer costs, as ratios to the plain SGD step of the same network.

- Operations: matrix products and convolutions, by torch's FlopCounterMode; repeatable to the last digit.
- Wall time: median over rounds in which every optimizer takes a step in turn, in one process, so that a machine that
  slows down slows all of them.
- Peak memory: bytes of all tensor storages alive at once, beyond those alive before the step; the allocator's own
  count on a GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from raycurv import optim
from raycurv.models.basic_cnn import basic_cnn
from raycurv.models.lenet import lenet
from raycurv.models.resnet import resnet18
from raycurv.objective import Objective

BASELINE = "sgd"


@dataclass(frozen=True)
class Workload:
    """A network and the shape of its mini-batch.

    Attributes:
        build: makes the network.
        batch: (B, …) of the inputs.
        classes: number of labels.
    """

    build: Callable[[], nn.Module]
    batch: tuple[int, ...]
    classes: int = 10


WORKLOADS: dict[str, Workload] = {
    "basic CNN": Workload(partial(basic_cnn, batch_norm=False), (128, 3, 32, 32)),
    "basic CNN + BN": Workload(partial(basic_cnn, batch_norm=True), (128, 3, 32, 32)),
    "LeNet": Workload(partial(lenet, input_shape=(1, 28, 28)), (128, 1, 28, 28)),
    "ResNet-18": Workload(resnet18, (32, 3, 32, 32)),
}


@dataclass(frozen=True)
class Cost:
    """Ratios to the SGD step of the same network.

    Attributes:
        workload: name of the network.
        optimizer: name of the optimizer.
        operations: mean over one period of the method's checks (five steps).
        seconds: median wall time.
        memory: peak.
    """

    workload: str
    optimizer: str
    operations: float
    seconds: float
    memory: float


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of storages that are alive at once and were made while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute one operator and look at what it made."""
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (list, tuple)) else (out,)
        for tensor in made:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


class _Subject:
    """One optimizer on its own copy of a network, ready to step."""

    def __init__(self, workload: Workload, name: str, device: torch.device) -> None:
        torch.manual_seed(0)
        model = workload.build().to(device)
        self.device = device
        self.objective = Objective(model, "cross_entropy")
        self.optimizer = optim.create(name, model)
        self.inputs = torch.randn(workload.batch, device=device)
        self.targets = torch.randint(workload.classes, workload.batch[:1], device=device)

    def step(self) -> None:
        self.optimizer.step(self.objective.batch(self.inputs, self.targets))

    def operations(self, steps: int) -> int:
        with FlopCounterMode(display=False) as counter:
            for _ in range(steps):
                self.step()
        return counter.get_total_flops()

    def memory(self) -> int:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.step()
            return torch.cuda.max_memory_allocated(self.device) - before
        with PeakMemory() as counter:
            self.step()
        return counter.peak

    def seconds(self) -> float:
        started = time.perf_counter()
        self.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started


def measure(
    workload: str, optimizers: Sequence[str], *, rounds: int = 20, device: torch.device | str = "cpu", period: int = 5
) -> list[Cost]:
    """Costs of these optimizers on one network.

    Args:
        workload: a key of :data:`WORKLOADS`.
        optimizers: registered names; SGD is measured in any case.
        rounds: steps of each optimizer whose wall time is measured, after one that is not.
        device: where.
        period: steps over which operations are averaged, a multiple of the interval at which λ is checked.

    Raises:
        ValueError: the workload is unknown.
    """
    if workload not in WORKLOADS:
        raise ValueError(f"workload {workload!r} is unknown; it is one of {', '.join(WORKLOADS)}")
    names = list(dict.fromkeys([BASELINE, *optimizers]))
    subjects = {name: _Subject(WORKLOADS[workload], name, torch.device(device)) for name in names}
    for subject in subjects.values():
        subject.step()  # the first step of a method may do less or more than the others
        subject.step()
    operations = {name: subject.operations(period) for name, subject in subjects.items()}
    memory = {name: subject.memory() for name, subject in subjects.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, subject in subjects.items():
            seconds[name].append(subject.seconds())
    ratio = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds[BASELINE], strict=True)) for name in names
    }
    return [
        Cost(workload, name, operations[name] / operations[BASELINE], ratio[name], memory[name] / memory[BASELINE])
        for name in names
    ]


def markdown(costs: Sequence[Cost]) -> str:
    """The costs as a table."""
    rows = ["| network | optimizer | operations | wall time | peak memory |", "|---|---|---|---|---|"]
    rows += [
        f"| {c.workload} | {c.optimizer} | {c.operations:.2f}× | {c.seconds:.2f}× | {c.memory:.2f}× |" for c in costs
    ]
    return "\n".join(rows)
