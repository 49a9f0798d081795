"""Gather values of all workers, and check that they are equal."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from raycurv.objective.collectives import Collectives

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Odd, so that a multiplication loses no bit; int64 sums wrap around exactly.
_MIX = 0x5851F42D4C957F2D


class WorkersDisagree(RuntimeError):
    """Workers of one run that differ in a value that must be equal; the message names it."""


def gather(tensor: Tensor, collectives: Collectives, device: torch.device) -> Tensor:
    """Stack the equally shaped `tensor` of every worker in the order of their ranks, on the CPU.

    Each worker fills its own row of zeros, and the rows are summed, so that nothing is pickled.
    """
    rows = torch.zeros((collectives.size, *tensor.shape), dtype=tensor.dtype, device=device)
    rows[collectives.rank] = tensor
    return collectives.sum(rows).cpu()


def checksum(tensors: Iterable[Tensor]) -> Tensor:
    """A checksum (0-d, int64) of every bit of `tensors` and of their order."""
    total: Tensor | None = None
    for tensor in tensors:
        bits = tensor.detach().contiguous().view(_BITS[tensor.element_size()]).sum(dtype=torch.int64)
        total = bits if total is None else total * _MIX + bits
    return torch.zeros((), dtype=torch.int64) if total is None else total


def require_equal_parameters(parameters: Iterable[Tensor], collectives: Collectives, device: torch.device) -> None:
    """Compare the parameters of all workers bit by bit.

    Raises:
        WorkersDisagree: they differ; raised on every worker.
    """
    sums = gather(checksum(parameters), collectives, device).tolist()
    odd = [rank for rank, value in enumerate(sums) if value != sums[0]]
    if odd:
        raise WorkersDisagree(
            f"the parameters of worker {', '.join(map(str, odd))} differ from those of worker 0. Look for random "
            "numbers or data that depend on the rank outside dropout and the loader, or for mixed hardware and torch "
            "releases. Do not trust checkpoints written since the epoch before"
        )


def require_equal(number: int, what: str, collectives: Collectives, device: torch.device) -> None:
    """Compare an integer of all workers. It is also a barrier.

    Raises:
        WorkersDisagree: it differs; raised on every worker.
    """
    numbers = gather(torch.tensor(number, dtype=torch.int64), collectives, device).tolist()
    if len(set(numbers)) > 1:
        raise WorkersDisagree(f"{what} must be equal on every worker; by rank it is {numbers}")
