"""State of one run as its messages tell it, and the outcome that follows, for launches and sweeps alike."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

from raycurv.results.outcomes import SCALARS, EvaluationPoint, Outcome, Status
from raycurv.service.errors import describe
from raycurv.tracking.messages import LogRecords, Message, RunFailed, RunFinished, RunStarted
from raycurv.train.records import OPERATIONS, Record, Result

MOST_STEPS = 200  # records of single steps that are kept for the curves of one run
STATUS: dict[str, Status] = {"NonFiniteLoss": "diverged", "TimeLimitExceeded": "out of time"}  # by type of error


class RunState:
    """What the driver knows of one run.

    Args:
        initial: its outcome if nothing more is heard of it.

    Attributes:
        steps: records of single steps, thinned out.
        evaluations: records of evaluations.
        data: record of the data; empty before it has come.
        result: None unless it came to its end.
        failure: the first error; None if there was none.
    """

    def __init__(self, initial: Outcome) -> None:
        self.initial = initial
        self.steps: list[Record] = []
        self.evaluations: list[Record] = []
        self.data: list[Record] = []
        self.result: Result | None = None
        self.failure: RunFailed | None = None
        self._started: float | None = None
        self._sitting = 0.0  # start of the newest sitting
        self._operations = 0.0
        self._newest: dict[str, float] = {}
        self._scalars: dict[int, dict[str, float]] = {}  # of the newest step, by the step of an evaluation
        self._last = {"step": 0, "evaluation": 0}

    def add(self, message: Message) -> None:
        """Take one message about this run."""
        match message:
            case RunStarted(_, began):
                self._sitting = began
                self._started = began if self._started is None else self._started
            case LogRecords(_, records):
                self._add_records(records)
            case RunFinished(_, result) if not result.stopped:
                self.result = self.result or result
            case RunFailed():
                self.failure = self.failure or message

    def of_this_sitting(self, records: Iterable[Record]) -> list[Record]:
        """Those of some records that a process that goes on from a checkpoint does not merely send again."""
        return [record for record in records if record.time >= self._sitting]

    def outcome(self) -> Outcome:
        """The outcome, as far as messages have come."""
        status, reason = self._ended()
        return dataclasses.replace(
            self.initial,
            status=status,
            reason=reason,
            points=tuple(self._points()),
            steps=self._steps_made,
            seconds=self._seconds,
            operations=self._operations if self.result is None else self.result.operations,
            step_seconds=0.0 if self.result is None else self.result.step_seconds,
            startup_seconds=0.0 if self.result is None else self.result.startup_seconds,
        )

    @property
    def ended(self) -> float:
        """Seconds since 1970 of the last that is known."""
        if self.failure is not None and self.result is None:
            return self.failure.time
        evaluations = self.evaluations if self.result is None else self.result.evaluations
        return max((records[-1].time for records in (self.steps, evaluations) if records), default=time.time())

    @property
    def _seconds(self) -> float:
        if self.result is not None:
            return self.result.seconds
        return 0.0 if self._started is None else self.ended - self._started

    def _ended(self) -> tuple[Status, str]:
        if self.result is not None:
            return ("diverged", self.result.diverged) if self.result.diverged else ("finished", "")
        if self.failure is not None:
            return STATUS.get(self.failure.error, "failed"), describe(self.failure.error, self.failure.reason)
        return self.initial.status, self.initial.reason

    @property
    def _steps_made(self) -> int:
        return self.result.steps if self.result is not None else max(self._last.values())

    def _add_records(self, records: Iterable[Record]) -> None:
        for record in records:
            if record.kind == "data":
                self.data = [record]
            self._operations = record.values.get(OPERATIONS, self._operations)
            if record.step <= self._last.get(record.kind, record.step):
                continue  # of another kind, or sent again by a process that goes on from a checkpoint
            self._last[record.kind] = record.step
            if record.kind == "evaluation":
                self._scalars[record.step] = self._newest
                self.evaluations.append(record)
            else:
                self._newest = {name: record.values[name] for name in SCALARS if name in record.values}
                self.steps.append(record)
        self.steps = self.steps[:: 1 + len(self.steps) // MOST_STEPS]

    def _points(self) -> Iterable[EvaluationPoint]:
        began = self.ended - self._seconds
        for record in self.evaluations if self.result is None else self.result.evaluations:
            values = {**record.values, **self._scalars.get(record.step, {})}
            # Evaluations of an earlier sitting lie before the beginning of the clock.
            yield EvaluationPoint(record.epoch, record.step, max(0.0, record.time - began), values)
