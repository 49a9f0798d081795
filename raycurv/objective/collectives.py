"""How numbers become global: one process, or the workers of a torch process group. Injected, never looked up."""

from __future__ import annotations

import inspect
from typing import Any, Protocol, cast

import torch.distributed
from torch import Tensor, nn


class Collectives(Protocol):
    """What the objective needs of the other workers.

    Attributes:
        rank: of this worker, from 0.
        size: number of workers.
    """

    rank: int
    size: int

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` on every worker by its sum over the workers, and return it."""

    def wrap(self, module: nn.Module, *, find_unused_parameters: bool) -> nn.Module:
        """The module whose backward pass leaves the mean over the workers in every ``.grad``."""


class Local:
    """One process: every number is global already."""

    rank = 0
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def wrap(self, module: nn.Module, *, find_unused_parameters: bool) -> nn.Module:
        """The module itself."""
        return module


class ProcessGroup:
    """The workers of a torch process group (gloo on the CPU, NCCL on GPUs).

    Args:
        group: the group; None is the default group of `torch.distributed`.

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

    def wrap(self, module: nn.Module, *, find_unused_parameters: bool) -> nn.Module:
        """DistributedDataParallel, whose gradients are views of its buckets and whose buffers stay local.

        Running statistics are equal on every worker already, because batch statistics are synchronised.
        """
        device = next(module.parameters()).device
        # torch 2.14 renames the option that keeps buffers from being broadcast in every forward pass.
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return nn.parallel.DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            process_group=self.group,
            **cast(Any, {option: False}),
            gradient_as_bucket_view=True,
            find_unused_parameters=find_unused_parameters,
        )
