"""Number formats: what the weights are stored in, and what the passes are computed in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from raycurv.train.configuration import Precision


def dtype_of(precision: Precision) -> torch.dtype:
    """The type of the weights and of the inputs."""
    return torch.float64 if precision == "fp64" else torch.float32


def computing(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which passes through the model run: autocast for bf16, nothing otherwise."""
    if precision != "bf16":
        return nullcontext()
    # Without the cache of converted weights: a question asked after an update must see the new ones.
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
