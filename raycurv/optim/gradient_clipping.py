"""Clipping of the gradient's global norm."""

from __future__ import annotations

import math

import torch

from raycurv.arguments import require
from raycurv.objective.direction import Direction


def require_clip_gradient(name: str, value: float | None) -> None:
    """Refuse a bad largest norm of the gradient.

    Args:
        name: optimizer named in the message.
        value: its setting ``clip_gradient``.

    Raises:
        ValueError: `value` is neither None nor positive and finite.
    """
    holds = value is None or 0 < value < math.inf
    require(f"{name}: clip_gradient", value, holds, "None or a positive finite number")


def clip_gradient_(gradient: Direction, largest_norm: float | None) -> None:
    """Scale the gradient, in place, to a global norm of at most `largest_norm`, without a read of the device."""
    if largest_norm is not None:
        gradient.flat.mul_((largest_norm / torch.linalg.vector_norm(gradient.flat)).clamp(max=1))
