"""Seconds of a step once a process has warmed up, with the first steps of each sitting apart."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

from raycurv.objective.operations import WATCHED_STEPS

if TYPE_CHECKING:
    from raycurv.train.training_run import TrainingPosition

STARTUP_STEPS = WATCHED_STEPS  # steps that load libraries, fill caches and count operations
MOST_INTERVALS = 2000  # log intervals that are kept


class StepClock:
    """Measures log intervals, and adds them to the position of a run.

    Args:
        position: the position of the run.
        device: device of this worker.
    """

    def __init__(self, position: TrainingPosition, device: torch.device) -> None:
        self._position, self._device = position, device
        self._left = STARTUP_STEPS
        self.start()

    def start(self) -> None:
        """Start an interval."""
        self._began, self._steps = time.perf_counter(), 0

    def step(self) -> None:
        """Count a step; after the last one of the start-up, wait for the device once."""
        self._steps += 1
        if self._left == self._steps:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.end()

    def end(self) -> None:
        """End an interval whose steps the device has completed, and start the next one."""
        position, seconds = self._position, time.perf_counter() - self._began
        if self._left:
            position.startup_steps += self._steps
            position.startup_seconds += seconds
            self._left -= self._steps
        elif self._steps:
            position.step_seconds.append(seconds / self._steps)
            if len(position.step_seconds) > MOST_INTERVALS:
                position.step_seconds = position.step_seconds[::2]
        self.start()


def steady_step_seconds(position: TrainingPosition) -> float:
    """Median over the log intervals after the start-up, or the mean of a run that has none; 0 if unknown."""
    if position.step_seconds:
        return statistics.median(position.step_seconds)
    return position.startup_seconds / position.startup_steps if position.startup_steps else 0.0


def extra_startup_seconds(position: TrainingPosition) -> float:
    """Seconds that the first steps took beyond those of as many steady ones."""
    return max(0.0, position.startup_seconds - position.startup_steps * steady_step_seconds(position))
