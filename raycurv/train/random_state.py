"""Seeds that depend on what they are for, and the random states of all the workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from raycurv.objective.collectives import Collectives
from raycurv.train.distributed import gather

# One row of bytes for every worker.
States = dict[str, Tensor]


def derive(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose, the same on every machine."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def states(collectives: Collectives, device: torch.device) -> States:
    """The states of torch's generators (CPU, and the worker's GPU) of every worker; all workers call it together."""
    found = {"cpu": gather(torch.get_rng_state(), collectives, device)}
    if device.type == "cuda":
        found["cuda"] = gather(torch.cuda.get_rng_state(device), collectives, device)
    return found


def restore(found: Mapping[str, Tensor], collectives: Collectives, device: torch.device) -> bool:
    """Set the states of this worker's generators; False if they are of another number or kind of workers."""
    needed = {"cpu", "cuda"} if device.type == "cuda" else {"cpu"}
    if set(found) != needed or found["cpu"].shape[0] != collectives.size:
        return False
    torch.set_rng_state(found["cpu"][collectives.rank].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(found["cuda"][collectives.rank].clone(), device)
    return True


@contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """Leave torch's generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
