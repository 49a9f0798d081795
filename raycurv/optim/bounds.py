"""What several methods do with their settings: refuse bad ones, clip the gradient."""

from __future__ import annotations

import math

import torch

from raycurv.objective.direction import Direction


def require(name: str, setting: str, value: object, holds: bool, allowed: str) -> None:
    """Refuse a setting.

    Raises:
        ValueError: it does not hold; the message says what is allowed.
    """
    if not holds:
        raise ValueError(f"{name}: {setting} is {value!r}; it must be {allowed}")


def require_positive(name: str, setting: str, value: float) -> None:
    """Refuse what is not a positive finite number.

    Raises:
        ValueError: it is not.
    """
    require(name, setting, value, 0 < value < math.inf, "a positive finite number")


def require_clip(name: str, value: float | None) -> None:
    """Refuse a bad largest norm of the gradient.

    Raises:
        ValueError: neither None nor positive and finite.
    """
    require(name, "clip_gradient", value, value is None or 0 < value < math.inf, "None or a positive finite number")


def clip(gradient: Direction, limit: float | None) -> None:
    """Shorten the gradient, in place, to a global norm of at most `limit`; the decision stays on the device."""
    if limit is not None:
        gradient.flat.mul_((limit / torch.linalg.vector_norm(gradient.flat)).clamp(max=1))
