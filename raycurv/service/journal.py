"""Records on their way to the driver, so that none is lost and none counts twice, whatever is killed when.

The newest records travel in every checkpoint. A worker that goes on from it sends them again, in case the driver died
before it had written them down, and the driver skips those that it has.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from raycurv.train.checkpoint import CheckpointStore
from raycurv.train.records import Record

KEPT = 500  # records in a checkpoint: more than a driver has on its way at a time
KEY = "journal"


class RecordSink(Protocol):
    """Where records go."""

    def send(self, records: Sequence[Record]) -> None:
        """Hand over without waiting."""

    def flush(self) -> None:
        """Wait until everything has arrived."""


class JournaledCheckpoints(CheckpointStore):
    """The checkpoints of a run, with the newest of its records in each.

    Args:
        uri: as of :class:`raycurv.train.checkpoint.CheckpointStore`.
        keep: likewise.
        post: takes the records.
    """

    def __init__(self, uri: str, keep: int, post: RecordSink) -> None:
        super().__init__(uri, keep)
        self._post = post
        self._recent: deque[Record] = deque(maxlen=KEPT)

    def emit(self, records: Iterable[Record]) -> None:
        """Send records to the driver."""
        new = list(records)
        self._recent.extend(new)
        self._post.send(new)

    def save(self, state: Mapping[str, Any]) -> str:
        """Write a checkpoint, once the records before it have arrived."""
        self._post.flush()
        return super().save({**state, KEY: [dataclasses.asdict(record) for record in self._recent]})

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint; its records are sent again."""
        state = super().load()
        if state is not None:
            self.emit([Record(**values) for values in state.pop(KEY, [])])
        return state
