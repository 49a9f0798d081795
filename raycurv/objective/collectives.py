"""How numbers become global: one process, or the workers of a torch process group.

An objective takes its collectives as an argument; nothing here looks for a process group by itself.
"""

from __future__ import annotations

from typing import Protocol

import torch.distributed
from torch import Tensor


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


class Local:
    """One process: every number is global already."""

    rank = 0
    size = 1
    group: torch.distributed.ProcessGroup | None = None

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor


class ProcessGroup:
    """The workers of a torch process group (gloo on the CPU, NCCL on GPUs).

    Args:
        group: the process group; None is the default group of `torch.distributed`.

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

    def sum(self, tensor: Tensor) -> Tensor:
        """All-reduce `tensor` in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor, group=self.group)
        return tensor
