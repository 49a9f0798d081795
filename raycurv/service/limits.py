"""What the trials of a sweep may take, and how they are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Limits:
    """What trials may take, and how they are chosen."""

    time_limit: float | None = None
    """Seconds that one trial may take; one that hangs is ended, and counts as out of time."""

    gpu_share: float = 1.0
    """Part of a GPU that a trial of one worker takes with --use-gpu; 0.25 puts four on one."""

    search: Literal["grid", "asha"] = "grid"
    """grid trains every point of a search for the rule's share of the epochs; asha stops bad ones early."""

    def __post_init__(self) -> None:
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"Limits.time_limit is {self.time_limit!r}; it must be None or a positive number")
        if not 0 < self.gpu_share <= 1:
            raise ValueError(f"Limits.gpu_share is {self.gpu_share!r}; it must be in (0, 1]")
