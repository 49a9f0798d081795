"""One run in MLflow: its records, tags, texts and status as messages."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from raycurv.arguments import mask_passwords
from raycurv.tracking.messages import (
    LogData,
    LogModel,
    LogRecords,
    LogText,
    OpenRun,
    RegisterModel,
    SetStatus,
    SetTags,
    TrackingMessage,
    batches,
)
from raycurv.tracking.run_page import NOTE_TAG
from raycurv.train.records import Record

if TYPE_CHECKING:
    from mlflow.entities import Run

TAG = "raycurv."
LONGEST_TAG, LONGEST_NAME = 5000, 250  # characters


class TrackedRun:
    """One run in MLflow.

    Args:
        run: id in MLflow; of a run that is created later, what :class:`OpenRun` has in its place.
        put: callback that takes the messages about the run.
        logged: last logged step of every metric.
        opening: request to create the run, which precedes its first message; None if MLflow has it.

    Attributes:
        id: id in MLflow, or what stands for it in messages.
        is_running: whether the run trains at present, so that the metrics of the machine are its own.
    """

    def __init__(
        self,
        run: str,
        put: Callable[[TrackingMessage], None],
        logged: Mapping[str, int],
        opening: OpenRun | None = None,
    ) -> None:
        self.id = run
        self._queue, self._opening = put, opening
        self._logged = dict(logged)
        self.is_running = False

    @property
    def has_begun(self) -> bool:
        """Whether the run is in MLflow, or on its way there."""
        return self._opening is None

    def begin(self, began: float) -> None:
        """Create the run, unless MLflow has it; any other message does so with the time of the message.

        Args:
            began: start of the training, in seconds since 1970.
        """
        if self._opening is not None:
            opening, self._opening = self._opening, None
            tags = {**opening.tags, TAG + "heartbeat": f"{time.time():.0f}"}
            self._queue(dataclasses.replace(opening, began=began, tags=tags))

    def log(self, records: Iterable[Record]) -> None:
        """Log records, without values at steps that are logged already: a resumed run repeats some."""
        for group in batches(map(self._new, records)):
            if new := tuple(record for record in group if record.values):
                self._put(LogRecords(self.id, new))
            for record in group:
                if record.kind == "data":
                    self._put(LogData(self.id, record.message))
                elif record.message:
                    self.tags({"event": f"step {record.step}: {record.message}"})

    def metrics(self, values: Mapping[str, float], step: int, when: float) -> None:
        """Log values of one step.

        Args:
            values: metrics by name.
            step: updates made.
            when: seconds since 1970.
        """
        self.log([Record("progress", step, 0.0, when, values)])

    def next_step(self, name: str) -> int:
        """Step after the last logged one of metric `name`."""
        return self._logged.get(name, -1) + 1

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags, in this project's name space."""
        self._put(SetTags(self.id, {TAG + name: mask_passwords(value)[:LONGEST_TAG] for name, value in values.items()}))

    def describe(self, text: str) -> None:
        """Set the description on the page of the run, as Markdown."""
        self._put(SetTags(self.id, {NOTE_TAG: mask_passwords(text)[:LONGEST_TAG]}))

    def text(self, name: str, text: str) -> None:
        """Log a text file as an artifact of the run."""
        self._put(LogText(self.id, name, text))

    def running(self) -> None:
        """Set the status RUNNING."""
        self.is_running = True
        self._put(SetStatus(self.id, "RUNNING"))

    def model(self, checkpoints: str) -> None:
        """Log the network of the newest checkpoint in folder or address `checkpoints`."""
        self._put(LogModel(self.id, checkpoints))

    def register(self, name: str) -> None:
        """Register the network that :meth:`model` logs, as a new version of model `name`."""
        self._put(RegisterModel(self.id, name))

    def close(self, status: str, ended: float | None = None) -> None:
        """Close the run as FINISHED, FAILED or KILLED, now or at `ended` seconds since 1970."""
        self.is_running = False
        self._put(SetStatus(self.id, status, time.time() if ended is None else ended))

    def _put(self, message: TrackingMessage) -> None:
        self.begin(time.time())
        self._queue(message)

    def _new(self, record: Record) -> Record:
        values = {} if record.kind == "event" else dict(record.values)
        if record.kind == "step":
            values.setdefault("epoch", record.epoch)
        new = {name: value for name, value in values.items() if record.step > self._logged.get(accepted_name(name), -1)}
        self._logged |= dict.fromkeys(map(accepted_name, new), record.step)
        return dataclasses.replace(record, values=new)


def last_steps(run: Run) -> dict[str, int]:
    """Last logged step of every metric of a run: MLflow keeps the value of the largest step beside the run itself."""
    return {metric.key: metric.step for metric in run.to_proto().data.metrics}


def accepted_name(metric: str) -> str:
    """Name of a metric with ``_`` in place of characters that MLflow refuses, at most as long as it allows."""
    parts = re.sub(r"[^\w\-. :/]", "_", metric)[:LONGEST_NAME].strip("/").split("/")
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)
