"""How numbers become global: one process, or the workers of a torch process group.

An objective takes its collectives as an argument; nothing here looks for a process group by itself.

The cost of a small sum is its latency. gloo's all_reduce takes 2 (N − 1) round trips in sequence among N workers. Here
gloo's workers send small tensors to each other directly, by one all_to_all, and each adds them in the order of the
ranks: one round trip for any N, and the same bits on every worker. NCCL keeps its all_reduce.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch.distributed

# Its functions take the default group of the time of this import as a default argument. DistributedDataParallel would
# import it later, and the group and its threads would then outlive destroy_process_group: a process that ends beside a
# thread of gloo may be aborted ("terminate called without an active exception").
import torch.distributed.nn.functional  # noqa: F401
from torch import Tensor
from torch.futures import Future

DIRECT_BYTES = 1 << 20  # bytes that a worker may send in all for one sum; above, all_reduce sends fewer


class Collectives(Protocol):
    """The collective operation that an objective needs.

    Attributes:
        rank: number of this worker, from 0.
        size: number of workers.
        group: process group for DistributedDataParallel, used where `size` is above 1; None is the default group.
    """

    rank: int
    size: int
    group: torch.distributed.ProcessGroup | None

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` on every worker by its sum over the workers, and return it."""

    def start_sum(self, tensor: Tensor) -> Future[Tensor]:
        """Start :meth:`sum`, which may go on beside other work; the future's value is `tensor`."""


class Local:
    """One process: every number is global already."""

    rank = 0
    size = 1
    group: torch.distributed.ProcessGroup | None = None

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def start_sum(self, tensor: Tensor) -> Future[Tensor]:
        """A completed future of the tensor itself."""
        return _completed(tensor)


@dataclass
class Traffic:
    """Collectives of one worker so far.

    Attributes:
        rounds: number of collectives.
        bytes: bytes of the tensors that were summed. Among N workers, each sends them N − 1 times in a direct sum, and
            2 (N − 1) / N times in an all_reduce.
        seconds: time from the start of each sum to its end, in which this worker waits for the others; sums that go on
            beside other work are left out.
    """

    rounds: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @contextmanager
    def counted(self, tensor: Tensor) -> Iterator[None]:
        """Context of one sum of `tensor`."""
        self.rounds += 1
        self.bytes += tensor.nbytes
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began


class ProcessGroup:
    """The workers of a torch process group (gloo on the CPU, NCCL on GPUs).

    Args:
        group: the process group; None is the default group of `torch.distributed`.

    Attributes:
        traffic: count of the collectives so far, those of DistributedDataParallel included.

    Raises:
        RuntimeError: `torch.distributed` has not been initialised.
    """

    def __init__(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        if not torch.distributed.is_initialized():
            raise RuntimeError(
                "ProcessGroup needs torch.distributed.init_process_group first; one process uses Local()"
            )
        self.group = group
        self.rank = torch.distributed.get_rank(group)
        self.size = torch.distributed.get_world_size(group)
        self.traffic = Traffic()
        self._gloo = "cpu:gloo" in torch.distributed.get_backend_config(group)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over the workers in place; every worker gets the same bits."""
        if self.size == 1:
            return tensor
        with self.traffic.counted(tensor):
            if self._is_direct(tensor):
                return self._sum_directly(tensor)
            torch.distributed.all_reduce(tensor, group=self.group)
        return tensor

    def start_sum(self, tensor: Tensor) -> Future[Tensor]:
        """Start :meth:`sum`: an all_reduce goes on beside other work; a direct sum is short, and awaited."""
        if self.size == 1 or self._is_direct(tensor):
            return _completed(self.sum(tensor))
        with self.traffic.counted(tensor):
            work = torch.distributed.all_reduce(tensor, group=self.group, async_op=True)
        assert work is not None  # every worker is a member of the group
        return work.get_future().then(lambda future: tensor)

    def _is_direct(self, tensor: Tensor) -> bool:
        return self._gloo and tensor.device.type == "cpu" and tensor.nbytes * (self.size - 1) <= DIRECT_BYTES

    def _sum_directly(self, tensor: Tensor) -> Tensor:
        """Send `tensor` to every other worker, and add all of them in the order of the ranks."""
        flat, others = tensor.detach().contiguous().view(-1), self.size - 1
        sizes = [flat.numel()] * self.size
        sizes[self.rank] = 0
        received = flat.new_empty((others, flat.numel()))
        sent = flat.expand(others, -1).contiguous()
        torch.distributed.all_to_all_single(received.view(-1), sent.view(-1), sizes, sizes, group=self.group)
        rows = [*received[: self.rank], flat, *received[self.rank :]]
        total = rows[0] + rows[1]
        for row in rows[2:]:
            total += row
        tensor.copy_(total.view(tensor.shape))
        return tensor


def _completed(tensor: Tensor) -> Future[Tensor]:
    future: Future[Tensor] = Future()
    future.set_result(tensor)
    return future
