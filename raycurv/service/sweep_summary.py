"""Where a sweep stands, in one line."""

from __future__ import annotations

import time
from collections import Counter

from raycurv.results.outcomes import Outcome

METRIC = "train/epoch_loss"


class SweepSummary:
    """Counts trials, and guesses the time that is left.

    Args:
        trials: how many there are to do.

    Attributes:
        running: trials that go on now.
    """

    def __init__(self, trials: int) -> None:
        self.trials = trials
        self.running = 0
        self._began = time.monotonic()
        self._ended: Counter[str] = Counter()
        self._best: tuple[float, str] | None = None

    @property
    def left(self) -> int:
        """Trials that have not ended."""
        return self.trials - self._ended.total()

    def add(self, outcome: Outcome, running: int) -> None:
        """One more has ended, while so many go on."""
        self.running = running
        self._ended[outcome.status] += 1
        loss = outcome.last(METRIC)
        if outcome.status == "finished" and loss is not None and (self._best is None or loss < self._best[0]):
            self._best = (loss, f"{outcome.optimizer} {outcome.setting}".strip())

    def __str__(self) -> str:
        done = self._ended.total()
        parts = [f"{done} of {self.trials} trials done", f"{self.running} running"]
        parts += [f"{count} {status}" for status, count in self._ended.items() if status != "finished"]
        if self._best is not None:
            parts.append(f"best {self._best[1]}: training loss {self._best[0]:.4g}")
        if self.left and done:
            parts.append(f"about {(time.monotonic() - self._began) / done * self.left / 60:.1f} min left")
        return ", ".join(parts)
