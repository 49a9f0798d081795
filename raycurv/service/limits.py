"""What the trials of a sweep may take, and how they are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raycurv.arguments import require


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
        limit = self.time_limit
        require("Limits.time_limit", limit, limit is None or limit > 0, "None or a positive number")
        require("Limits.gpu_share", self.gpu_share, 0 < self.gpu_share <= 1, "in (0, 1]")
