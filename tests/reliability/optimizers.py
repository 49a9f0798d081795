"""Bad numbers in one worker's share, and thousands of steps, for every optimizer."""

from __future__ import annotations

import gc
import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from raycurv import optim
from raycurv.objective import Objective
from raycurv.objective.collectives import ProcessGroup
from tests.objective import distributed

STEPS = 2000
BAD = {"nan": math.nan, "infinity": math.inf, "overflow": 3e38, "underflow": 1e-45}
_TOGETHER = 24  # cases in one pair of processes
_GROWTH = 8 * 2**20  # bytes in 1,500 steps, of which caches of torch take some


def names() -> tuple[str, ...]:
    """All optimizers that are registered."""
    return tuple(sorted(optim.names()))


def cases() -> list[tuple[str, str]]:
    """Each optimizer with each kind of bad numbers."""
    return list(itertools.product(names(), BAD))


def _network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def _batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(8)]


def _horizon() -> optim.Horizon:
    return optim.Horizon(epochs=STEPS // 8, steps_per_epoch=8, training_samples=128)


def decisions(rank: int, chosen: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """What one of two workers finds in eight steps of each case; the second one's share is bad in two of them."""
    warnings.simplefilter("ignore")
    return [_decision(rank, name, BAD[bad]) for name, bad in chosen]


def _decision(rank: int, name: str, bad: float) -> dict[str, Any]:
    model = _network()
    optimizer = optim.create(name, model, horizon=_horizon())
    objective = Objective(model, "cross_entropy", collectives=ProcessGroup())
    share = slice(rank * 8, rank * 8 + 8)
    finite, states = [], []
    try:
        for number, (inputs, targets) in enumerate(_batches()):
            x = inputs[share].clone()
            if rank == 1 and number in (2, 5):
                x[3, 0] = bad
            batch = objective.batch(x, targets[share])
            report = optimizer.step(batch, validation=batch if optimizer.needs_validation else None)
            finite.append(bool(report.finite))
            states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    except Exception as error:
        return {"error": repr(error)}
    return {"finite": finite, "states": torch.stack(states), "error": ""}


def lost(one: dict[str, Any], other: dict[str, Any]) -> str:
    """What is wrong with the decisions of two workers; empty if nothing."""
    if one["error"] or other["error"]:
        return f"{one['error']} and {other['error']}"
    if one["finite"] != other["finite"] or not torch.equal(one["states"], other["states"]):
        return "the workers differ"
    return "" if bool(torch.isfinite(one["states"]).all()) else "parameters are not finite"


def run_numbers(first: int, stop: int, folder: Path, note: Callable[[int, str], None]) -> None:
    """Every worker decides alike, and keeps finite parameters."""
    for start in range(first, stop, _TOGETHER):
        chosen = cases()[start : min(stop, start + _TOGETHER)]
        found = distributed.run(2, decisions, chosen)
        for number, (name, bad), one, other in zip(range(start, stop), chosen, *found, strict=False):
            wrong = lost(one, other)
            note(number, f"{name}, {bad}: {wrong}" if wrong else "")


def growth(name: str) -> tuple[int, int]:
    """Bytes and descriptors that 1,500 steps after the first 500 take."""
    model = _network()
    optimizer = optim.create(name, model, horizon=_horizon())
    objective = Objective(model, "cross_entropy")
    batches = _batches()
    process = psutil.Process()
    before = (0, 0)
    for step in range(STEPS):
        batch = objective.batch(*batches[step % 8])
        optimizer.step(batch, validation=batch if optimizer.needs_validation else None)
        if step == STEPS // 4:
            gc.collect()
            before = process.memory_info().rss, process.num_fds()
    gc.collect()
    return process.memory_info().rss - before[0], process.num_fds() - before[1]


def run_leaks(first: int, stop: int, folder: Path, note: Callable[[int, str], None]) -> None:
    """2,000 steps take no more memory than 500, and no descriptors."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for number, name in list(enumerate(names()))[first:stop]:
        try:
            memory, descriptors = growth(name)
            wrong = f"{name}: {memory >> 20} MB, {descriptors} descriptors" if memory > _GROWTH or descriptors else ""
        except Exception as error:
            wrong = f"{name}: {error!r}"
        note(number, wrong)


__all__ = ["cases", "names", "run_leaks", "run_numbers"]
