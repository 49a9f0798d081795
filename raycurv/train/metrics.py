"""Scalars of the steps, kept on the device until the log interval and then fetched by one transfer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raycurv.objective.collectives import Collectives
from raycurv.train.records import Record


class NonFiniteLoss(RuntimeError):
    """The loss or the step became infinite or NaN; the message says when, and what to do."""


@dataclass(frozen=True)
class _Row:
    step: int
    epoch: float
    time: float
    names: tuple[str, ...]
    finite: Tensor
    values: Tensor


@dataclass(frozen=True)
class LoggedInterval:
    """What came out of the steps since the last interval.

    Attributes:
        records: one of every step.
        stop: some worker was asked to stop.
        broken: the first step that was not finite on some worker, None if all were.
    """

    records: list[Record]
    stop: bool
    broken: int | None


class MetricBuffer:
    """Collects the scalars of every step without waiting for the device.

    Args:
        collectives: the workers, who must all come to the same decision.
        device: where the scalars are.
    """

    def __init__(self, collectives: Collectives, device: torch.device) -> None:
        self._collectives = collectives
        self._device = device
        self._rows: list[_Row] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, step: int, epoch: float, finite: Tensor, scalars: Mapping[str, Tensor]) -> None:
        """Keep the scalars of one step.

        They are copied at once: an optimizer may change its own tensors in place at the next step.
        """
        device = self._device
        values = torch.stack(
            [value.detach().to(device, torch.float64, non_blocking=True) for value in scalars.values()]
        )
        self._rows.append(_Row(step, epoch, time.time(), tuple(scalars), finite.detach().clone(), values))

    def close(self, *, stop: bool) -> LoggedInterval:
        """Fetch the scalars since the last call; all workers call it together.

        Args:
            stop: whether this worker was asked to stop.
        """
        rows, self._rows = self._rows, []
        flags = [
            torch.zeros((), dtype=torch.bool, device=self._device),
            *(~row.finite.to(self._device) for row in rows),
        ]
        control = torch.stack(flags).to(torch.float64)
        if stop:
            control[0] = 1.0
        self._collectives.sum(control)
        numbers = torch.cat([control, *(row.values for row in rows)]).tolist()
        broken, values = numbers[1 : len(rows) + 1], numbers[len(rows) + 1 :]
        records = []
        for row in rows:
            mine, values = values[: len(row.names)], values[len(row.names) :]
            records.append(Record("step", row.step, row.epoch, row.time, dict(zip(row.names, mine, strict=True))))
        first = next((row.step for row, flag in zip(rows, broken, strict=True) if flag), None)
        return LoggedInterval(records, numbers[0] > 0, first)
