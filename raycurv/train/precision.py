"""Number formats of the weights and of the passes through the model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from raycurv.train.configuration import Precision

_MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: Precision) -> torch.dtype:
    """The dtype of weights and inputs."""
    return torch.float64 if precision == "fp64" else torch.float32


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context of passes through the model: torch's autocast for bf16 and fp16, none otherwise."""
    if precision not in _MIXED:
        return nullcontext()
    # No cache of converted weights: a pass after an update must use the new ones.
    return torch.autocast(device.type, dtype=_MIXED[precision], cache_enabled=False)
