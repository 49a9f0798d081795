"""Questions to all the workers: what has everyone got, and is it the same?"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from raycurv.objective.collectives import Collectives

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Odd, so that multiplying by it loses no bit; the sums wrap around, which int64 arithmetic is exact about.
_MIX = 0x5851F42D4C957F2D


class WorkersDisagree(RuntimeError):
    """The workers of one run are not in the same state; the message says in what."""


def gather(tensor: Tensor, collectives: Collectives, device: torch.device) -> Tensor:
    """Stack the equally shaped `tensor` of every worker, in the order of their ranks; the answer is on the CPU.

    A sum of slots that are zero everywhere else, so that nothing but `Collectives.sum` is needed, and nothing pickled.
    """
    slots = torch.zeros((collectives.size, *tensor.shape), dtype=tensor.dtype, device=device)
    slots[collectives.rank] = tensor
    return collectives.sum(slots).cpu()


def checksum(tensors: Iterable[Tensor]) -> Tensor:
    """An integer (0-d, int64) that depends on every bit of `tensors` and on their order."""
    total: Tensor | None = None
    for tensor in tensors:
        bits = tensor.detach().contiguous().view(_BITS[tensor.element_size()]).sum(dtype=torch.int64)
        total = bits if total is None else total * _MIX + bits
    return torch.zeros((), dtype=torch.int64) if total is None else total


def require_equal_parameters(parameters: Iterable[Tensor], collectives: Collectives, device: torch.device) -> None:
    """Compare the parameters of all workers bit by bit.

    Raises:
        WorkersDisagree: they differ; on every worker alike.
    """
    sums = gather(checksum(parameters), collectives, device).tolist()
    odd = [rank for rank, value in enumerate(sums) if value != sums[0]]
    if odd:
        raise WorkersDisagree(
            f"the parameters of worker {', '.join(map(str, odd))} differ from those of worker 0. Something the workers "
            "do is not the same everywhere: look for random numbers or data that depend on the rank outside dropout "
            "and the loader, or for mixed hardware and torch releases. Checkpoints since the epoch before are suspect"
        )


def require_equal(number: int, what: str, collectives: Collectives, device: torch.device) -> None:
    """Compare a whole number of all workers; also a point that no worker passes before all have reached it.

    Raises:
        WorkersDisagree: it differs; on every worker alike.
    """
    numbers = gather(torch.tensor(number, dtype=torch.int64), collectives, device).tolist()
    if len(set(numbers)) > 1:
        raise WorkersDisagree(f"{what} must be the same for every worker, and is {numbers} in the order of the ranks")
