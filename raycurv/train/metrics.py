"""Scalars of the steps: kept on the device until the log interval, then fetched by one transfer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raycurv.objective.collectives import Collectives
from raycurv.train.records import Record


class NonFiniteLoss(RuntimeError):
    """A loss or step that is infinite or NaN; the message has the step and the remedy."""


@dataclass(frozen=True)
class _StepScalars:
    step: int
    epoch: float
    time: float
    names: tuple[str, ...]
    finite: Tensor
    values: Tensor


@dataclass(frozen=True)
class LoggedInterval:
    """Metrics of the steps of one log interval.

    Attributes:
        records: one record per step.
        stop: whether any worker was asked to stop.
        save: whether any worker wants a checkpoint.
        non_finite_step: the first step that was not finite on any worker; None if all were finite.
        operations: floating-point operations of the interval, over all workers.
    """

    records: list[Record]
    stop: bool
    non_finite_step: int | None
    operations: float = 0.0
    save: bool = False


class MetricBuffer:
    """Collects the scalars of every step without waiting for the device.

    Args:
        collectives: the workers, which all take the same decision.
        device: device of the scalars.
    """

    def __init__(self, collectives: Collectives, device: torch.device) -> None:
        self._collectives = collectives
        self._device = device
        self._rows: list[_StepScalars] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, step: int, epoch: float, finite: Tensor, scalars: Mapping[str, Tensor]) -> None:
        """Add the scalars of one step.

        They are copied at once, since an optimizer may change its tensors in place at the next step.

        Args:
            step: updates so far.
            epoch: epochs so far, with the fraction of the current one.
            finite: whether the step was finite, 0-d bool.
            scalars: name → 0-d tensor.
        """
        device = self._device
        values = torch.stack(
            [value.detach().to(device, torch.float64, non_blocking=True) for value in scalars.values()]
        )
        self._rows.append(_StepScalars(step, epoch, time.time(), tuple(scalars), finite.detach().clone(), values))

    def fetch(self, *, stop: bool, operations: float = 0.0, save: bool = False) -> LoggedInterval:
        """Fetch the scalars since the last call; all workers call this together.

        Args:
            stop: whether this worker was asked to stop.
            operations: floating-point operations of this worker since the last call.
            save: whether this worker wants a checkpoint.
        """
        rows, self._rows = self._rows, []
        own = torch.tensor([float(stop), operations, float(save)], dtype=torch.float64, device=self._device)
        control = torch.cat([own, *((~row.finite).to(own).view(1) for row in rows)])
        self._collectives.sum(control)
        numbers = torch.cat([control, *(row.values for row in rows)]).tolist()
        non_finite, values = numbers[3 : len(rows) + 3], numbers[len(rows) + 3 :]
        records = []
        for row in rows:
            mine, values = values[: len(row.names)], values[len(row.names) :]
            records.append(Record("step", row.step, row.epoch, row.time, dict(zip(row.names, mine, strict=True))))
        first = next((row.step for row, flag in zip(rows, non_finite, strict=True) if flag), None)
        return LoggedInterval(records, numbers[0] > 0, first, numbers[1], numbers[2] > 0)
