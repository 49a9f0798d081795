"""Journal of records in every checkpoint, so that none is lost and none counts twice when a process dies.

A process that goes on from a checkpoint sends its newest records again, since the driver may have died before it logged
them; the driver skips those that it has.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from raycurv.train.checkpoint import CheckpointStore
from raycurv.train.records import Record

RECENT = 500  # records in a checkpoint
KEY = "journal"


class RecordSink(Protocol):
    """Destination of records."""

    def send(self, records: Sequence[Record]) -> None:
        """Hand over without waiting."""

    def flush(self) -> None:
        """Wait until everything has arrived."""


class JournaledCheckpoints(CheckpointStore):
    """The checkpoints of a run, with the newest of its records in each.

    Args:
        uri: folder or address of the checkpoints.
        keep: number of checkpoints that stay.
        sink: takes the records.
    """

    def __init__(self, uri: str, keep: int, sink: RecordSink) -> None:
        super().__init__(uri, keep)
        self._sink = sink
        self._recent: deque[Record] = deque(maxlen=RECENT)

    def emit(self, records: Iterable[Record]) -> None:
        """Send records to the driver."""
        new = list(records)
        self._recent.extend(new)
        self._sink.send(new)

    def save(self, state: Mapping[str, Any], *, best: bool = False) -> str:
        """Write a checkpoint, once the records before it have arrived."""
        self._sink.flush()
        return super().save({**state, KEY: [dataclasses.asdict(record) for record in self._recent]}, best=best)

    def load(self, lacking: Callable[[dict[str, Any]], str] = lambda state: "") -> dict[str, Any] | None:
        """The newest checkpoint; its records are sent again."""
        state = super().load(lacking)
        if state is not None:
            self.emit([Record(**values) for values in state.pop(KEY, [])])
        return state
