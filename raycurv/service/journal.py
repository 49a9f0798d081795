"""Journal of records in every checkpoint, so that none is lost and none counts twice when a process dies.

The journal has every record that the driver has not accepted, and the newest ones in any case. A process that goes on
from a checkpoint sends them again, since the driver may have died before it had them; the driver skips those that it
has.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from raycurv.train.checkpoint import CheckpointStore
from raycurv.train.checkpoint_file import CheckpointError
from raycurv.train.records import Record, Result

RECENT = 500  # records that every checkpoint has, in case that the driver's disk is lost with it
KEY = "journal"
STORAGE_PATIENCE = 60.0  # seconds that training waits for a server of checkpoints that is away


class RecordSink(Protocol):
    """Destination of records.

    Attributes:
        accepted: number of messages that are safe there.
    """

    accepted: int

    def send(self, records: Sequence[Record]) -> int:
        """Hand over without waiting; returns the number of messages so far."""

    def flush(self) -> None:
        """Wait until everything has arrived."""


class JournaledCheckpoints(CheckpointStore):
    """The checkpoints of a run, each with the records that could be lost.

    Args:
        uri: folder or address of the checkpoints.
        keep: number of checkpoints that stay.
        sink: takes the records.
    """

    def __init__(self, uri: str, keep: int, sink: RecordSink) -> None:
        super().__init__(uri, keep, STORAGE_PATIENCE)
        self._sink = sink
        self._kept: deque[tuple[int, Record]] = deque()  # with the number of their message

    def emit(self, records: Iterable[Record]) -> None:
        """Send records to the driver."""
        new = list(records)
        number = self._sink.send(new)
        self._kept.extend((number, record) for record in new)
        while len(self._kept) > RECENT and self._kept[0][0] <= self._sink.accepted:
            self._kept.popleft()

    def prepare(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Add the journal, once its records have arrived."""
        self._sink.flush()
        return {**state, KEY: [dataclasses.asdict(record) for _, record in self._kept]}

    def load(self, lacking: Callable[[dict[str, Any]], str] = lambda state: "") -> dict[str, Any] | None:
        """The newest checkpoint; its records are sent again."""
        state = super().load(lacking)
        if state is not None:
            self.emit([Record(**values) for values in state.pop(KEY, [])])
        return state

    def finished(self) -> Result | None:
        """The result of the run if it has finished; the records of its last checkpoint are sent again."""
        result = super().finished()
        if result is not None:
            with contextlib.suppress(CheckpointError):  # the result is whole without them
                self.load()
        return result
