"""Messages about runs on their one road: training process → driver → MLflow.

A message is a frozen dataclass. Between processes and on disk it is JSON with the name of its class as ``kind``;
nothing is unpickled. A training process sends :data:`RunMessage` to the driver; the driver sends
:data:`TrackingMessage` to MLflow. :class:`LogRecords` travels all the way.
"""

from __future__ import annotations

import dataclasses
import json
import time
import traceback as tracebacks
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from raycurv.arguments import unknown
from raycurv.train.records import Record, Result

BATCH = 1000  # values in one message, the most that MLflow takes in one request


@dataclass(frozen=True)
class LogRecords:
    """Records of a run.

    Attributes:
        run: name of the run; on the way to MLflow, its id there.
        records: oldest first.
    """

    run: str
    records: tuple[Record, ...]


@dataclass(frozen=True)
class WorkersStarted:
    """The workers of a launch are there.

    Attributes:
        workers: number of workers.
        device: device of the first one, such as ``cpu`` or ``cuda:0``.
    """

    workers: int
    device: str


@dataclass(frozen=True)
class RunStarted:
    """A run begins, or goes on from a checkpoint.

    Attributes:
        run: name of the run.
        time: seconds since 1970.
    """

    run: str
    time: float


@dataclass(frozen=True)
class OperationsCounted:
    """The cost of a step was counted.

    Attributes:
        run: name of the run.
        operations: floating-point operations of one step.
    """

    run: str
    operations: float


@dataclass(frozen=True)
class RunFinished:
    """A run came to its end, or stopped as asked.

    Attributes:
        run: name of the run.
        result: its result.
    """

    run: str
    result: Result


@dataclass(frozen=True)
class RunFailed:
    """A run ended with an error.

    Attributes:
        run: name of the run.
        error: name of the exception's type.
        reason: its message.
        traceback: the whole traceback.
        rank: worker that raised it.
        time: seconds since 1970.
    """

    run: str
    error: str
    reason: str
    traceback: str
    rank: int
    time: float

    @classmethod
    def of(cls, run: str, error: BaseException, rank: int = 0) -> RunFailed:
        """The message for an exception."""
        text = "".join(tracebacks.format_exception(error))
        return cls(run, type(error).__name__, str(error), text, rank, time.time())


@dataclass(frozen=True)
class SetTags:
    """Tags for a run.

    Attributes:
        run: id of the run in MLflow.
        tags: full names and values.
    """

    run: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class LogText:
    """A text for the artifacts of a run.

    Attributes:
        run: id of the run in MLflow.
        name: file name of the artifact.
        text: its content.
    """

    run: str
    name: str
    text: str


@dataclass(frozen=True)
class LogModel:
    """A request to log the network of a run.

    Attributes:
        run: id of the run in MLflow.
        checkpoints: folder or address of its checkpoints.
    """

    run: str
    checkpoints: str


@dataclass(frozen=True)
class SetStatus:
    """The status of a run.

    Attributes:
        run: id of the run in MLflow.
        status: ``RUNNING``, ``FINISHED``, ``FAILED`` or ``KILLED``.
        ended: seconds since 1970; None while the run goes on.
    """

    run: str
    status: str
    ended: float | None = None


@dataclass(frozen=True)
class LogRun:
    """A whole run that has ended: MLflow gets it under its name, once.

    Attributes:
        run: name of the run.
        config: its configuration as JSON.
        tags: tags without this project's prefix.
        parent: id in MLflow of the run that gathers it.
        records: all records, oldest first.
        status: ``FINISHED`` or ``FAILED``.
        ended: seconds since 1970.
    """

    run: str
    config: str
    tags: Mapping[str, str]
    parent: str | None
    records: tuple[Record, ...]
    status: str
    ended: float


RunMessage = WorkersStarted | RunStarted | LogRecords | OperationsCounted | RunFinished | RunFailed
TrackingMessage = LogRecords | SetTags | LogText | LogModel | SetStatus | LogRun
Message = RunMessage | TrackingMessage
KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def to_bytes(message: Message) -> bytes:
    """A message as one line of JSON."""
    return json.dumps({"kind": type(message).__name__, **dataclasses.asdict(message)}).encode()


def from_bytes(line: bytes | str) -> Message:
    """Read what :func:`to_bytes` wrote.

    Raises:
        ValueError: the line is no message, or of an unknown kind.
    """
    values = json.loads(line)
    kind = values.pop("kind", None) if isinstance(values, dict) else None
    if kind not in KINDS:
        raise ValueError(unknown("kind of message", kind, KINDS))
    try:
        if "records" in values:
            values["records"] = tuple(Record(**record) for record in values["records"])
        if "result" in values:
            values["result"] = Result.from_json(json.dumps(values["result"]))
        return KINDS[kind](**values)
    except (TypeError, KeyError) as error:
        raise ValueError(f"a message of kind {kind!r} lacks or has other fields than expected: {error}") from error


def number_of_values(records: Iterable[Record]) -> int:
    """Values that MLflow gets of some records."""
    return sum(len(record.values) for record in records)


def batches(records: Iterable[Record]) -> Iterator[tuple[Record, ...]]:
    """Records in groups that MLflow takes in one request each.

    Yields:
        Groups with at most :data:`BATCH` values.
    """
    group: list[Record] = []
    size = 0
    for record in records:
        if group and size + len(record.values) > BATCH:
            yield tuple(group)
            group, size = [], 0
        group.append(record)
        size += len(record.values)
    if group:
        yield tuple(group)
