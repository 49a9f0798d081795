"""Seeds for one purpose each, and the states of the random generators of all workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from raycurv.objective.collectives import Collectives
from raycurv.train.distributed import gather

# Generator ("cpu" or "cuda") → its states, one row of bytes per worker.
States = dict[str, Tensor]


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose, equal on every machine."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def gather_states(collectives: Collectives, device: torch.device) -> States:
    """The states of torch's generators (CPU, and the worker's GPU) of all workers, which call this together."""
    states = {"cpu": gather(torch.get_rng_state(), collectives, device)}
    if device.type == "cuda":
        states["cuda"] = gather(torch.cuda.get_rng_state(device), collectives, device)
    return states


def restore_states(states: Mapping[str, Tensor], collectives: Collectives, device: torch.device) -> bool:
    """Set the states of this worker's generators.

    Returns:
        False if the states are of another number or kind of workers; then nothing is set.
    """
    expected = {"cpu", "cuda"} if device.type == "cuda" else {"cpu"}
    if set(states) != expected or states["cpu"].shape[0] != collectives.size:
        return False
    torch.set_rng_state(states["cpu"][collectives.rank].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"][collectives.rank].clone(), device)
    return True


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Restore the states of torch's generators at the end of the block."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
