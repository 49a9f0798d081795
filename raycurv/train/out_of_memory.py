"""Smaller micro-batches after a step that did not fit in memory, once in a run.

The size is stored beside the checkpoints, and the run goes on at its newest checkpoint. So all workers take the same
size, and so does a run that is resumed. Updates stay the same up to rounding, except that batch normalisation takes the
statistics of each micro-batch.
"""

from __future__ import annotations

import gc
import math
from typing import NoReturn

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from raycurv.train.checkpoint import CheckpointStore
from raycurv.train.training_run import TrainingRun


class StepOutOfMemory(RuntimeError):
    """A step does not fit in the memory of its device; the message says what to do.

    Attributes:
        halved: whether smaller micro-batches are stored, so that another attempt may succeed.
    """

    def __init__(self, message: str, *, halved: bool) -> None:
        super().__init__(message)
        self.halved = halved


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the CPU, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def halve_micro_batch(run: TrainingRun, store: CheckpointStore, error: BaseException) -> NoReturn:
    """Store micro-batches of half the size for the next attempt at a run.

    Any worker may call it alone.

    Args:
        run: the run.
        store: its checkpoints.
        error: the out-of-memory error of a step.

    Raises:
        StepOutOfMemory: always; ``halved`` is False if sizes have been halved before, or cannot be.
    """
    size = samples_at_once(run)
    step = f"step {run.progress.step + 1} of {run.config.name!r} does not fit in memory"
    if run.halved or size == 1:
        smaller = f"--micro-batch {math.ceil(size / 2)}, " if size > 1 else ""
        raise StepOutOfMemory(
            f"{step} with {size} samples of a worker at once: take {smaller}more workers or a smaller network",
            halved=False,
        ) from error
    half = math.ceil(size / 2)
    store.store_micro_batch(half, run.collectives.rank)
    raise StepOutOfMemory(
        f"{step} with {size} samples of a worker at once; the next attempt computes {half} at once", halved=True
    ) from error


def samples_at_once(run: TrainingRun) -> int:
    """Largest number of samples that a worker computes at once."""
    return run.objective.micro_batch or math.ceil(run.config.batch_size / run.collectives.size)


def halved_message(run: TrainingRun) -> str:
    """What changed because the memory ran out; empty if it did not."""
    if not run.halved:
        return ""
    norms = any(isinstance(module, _BatchNorm) for module in run.model.modules())
    statistics = ", whose statistics batch normalisation takes" if norms else ""
    return f"; the memory ran out before, so that a worker computes {run.halved} samples at once{statistics}"


def release_memory(device: torch.device) -> None:
    """Return the memory of an attempt that failed."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
