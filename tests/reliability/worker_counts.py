"""Runs whose number of workers changes in mid-epoch: the parameters of one worker's run, up to rounding in float64."""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raycurv.objective.collectives import Local, ProcessGroup
from raycurv.train import CheckpointStore, RunConfig, train
from tests.objective import distributed
from tests.train.problems import Kept, config

WORKERS = 3
OPTIMIZERS = ("curveball", "adam", "auto", "red_momentum", "salera", "momentum", "schedule_free_adamw", "ntlr_sgd")
_STEPS = 20  # ten epochs of a batch of 8 and one of 5
_TOGETHER = 16  # runs in one group of processes
_ROUNDING = {"rtol": 1e-8, "atol": 1e-10}


def chain(number: int) -> list[tuple[int, int]]:
    """Numbers of workers, each another than the one before, with the steps that each takes."""
    draw, found, left = random.Random(number), [], _STEPS
    size = draw.randint(1, WORKERS)
    while left:
        steps = min(left, draw.choice((1, 3, 5, 7)))
        found.append((size, steps))
        left -= steps
        size = draw.choice([other for other in range(1, WORKERS + 1) if other != size])
    return found


def wanted(number: int) -> RunConfig:
    """Configuration of a run."""
    name = OPTIMIZERS[number % len(OPTIMIZERS)]
    settings = {"optimizer_settings": {}, "epochs": _STEPS // 2, "samples": 13, "l2": 1e-3}
    return config(optimizer=name, norm=number % 2 == 0, average_weights=0.9, **settings)


def differences(rank: int, folder: str, numbers: list[int]) -> list[str]:
    """What each run has other than one worker's; rank 0 answers for all."""
    warnings.simplefilter("ignore")
    groups = {size: torch.distributed.new_group(list(range(size))) for size in range(2, WORKERS + 1)}
    found = []
    for number in numbers:
        run, where = wanted(number), Path(folder) / str(number)
        for size, steps in chain(number):
            if rank < size:
                workers = Local() if size == 1 else ProcessGroup(groups[size])
                store = CheckpointStore(where / "changed")
                sitting = replace(run, stop_after=steps)
                train(sitting, collectives=workers, store=store, emit=Kept(), resume="auto")
            torch.distributed.barrier()
        if rank == 0:
            train(run, collectives=Local(), store=CheckpointStore(where / "whole"), emit=Kept())
            found.append(_difference(*(CheckpointStore(where / name).load() for name in ("changed", "whole"))))
        torch.distributed.barrier()
    return found


def _difference(one: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    if one is None or other is None or one["step"] != other["step"]:
        return "another number of steps"
    try:
        for part in ("model", "average"):
            torch.testing.assert_close(one[part], other[part], **_ROUNDING)
    except AssertionError as error:
        return str(error)[:200]
    return ""


def run(first: int, stop: int, folder: Path, note: Callable[[int, str], None]) -> None:
    """Several of them in one group of processes."""
    for start in range(first, stop, _TOGETHER):
        numbers = list(range(start, min(stop, start + _TOGETHER)))
        with tempfile.TemporaryDirectory() as scratch:
            found = distributed.run(WORKERS, differences, scratch, numbers)[0]
        for number, lost in zip(numbers, found, strict=True):
            note(number, lost and f"{wanted(number).optimizer}, {chain(number)}: {lost}")
