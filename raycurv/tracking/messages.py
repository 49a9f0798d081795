"""Messages about runs, sent from a training process to the driver and from there to MLflow.

A message is a frozen dataclass. Between processes and on disk it is JSON with the name of its class as ``kind``;
nothing is unpickled. A training process sends :data:`RunMessage` to the driver; the driver sends
:data:`TrackingMessage` to MLflow. :class:`LogRecords` is sent on both ways.
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

BATCH = 1000  # values in one message, the most that MLflow accepts in one request
RUN_ID = "{run_id}"


@dataclass(frozen=True)
class LogRecords:
    """Records of a run.

    Attributes:
        run: name of the run; in a message to MLflow, its id there.
        records: records, oldest first.
    """

    run: str
    records: tuple[Record, ...]


@dataclass(frozen=True)
class WorkersStarted:
    """The workers of a launch have started.

    Attributes:
        workers: number of workers.
        device: device of the first one, such as ``cpu`` or ``cuda:0``.
    """

    workers: int
    device: str


@dataclass(frozen=True)
class WorkersNotice:
    """Something about the workers of a launch that its user should see.

    Attributes:
        text: one line.
        change: ``resize`` or ``failure`` if the workers were stopped for it, to be started again; empty otherwise.
    """

    text: str
    change: str = ""


@dataclass(frozen=True)
class RunStarted:
    """A run begins, or continues from a checkpoint.

    Attributes:
        run: name of the run.
        time: time of the start, in seconds since 1970.
    """

    run: str
    time: float


@dataclass(frozen=True)
class RunFinished:
    """A run finished, or stopped on request.

    Attributes:
        run: name of the run.
        result: result of the run.
    """

    run: str
    result: Result


@dataclass(frozen=True)
class RunFailed:
    """A run ended with an error.

    Attributes:
        run: name of the run.
        error: name of the exception's type.
        reason: message of the exception.
        traceback: full traceback of the exception.
        rank: rank of the worker that raised the exception.
        time: time of the failure, in seconds since 1970.
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
class OpenRun:
    """A request to create a run once its training starts, ahead of all other messages about it.

    MLflow sets the start of a run at its creation alone, and only it chooses ids. So the messages about such a run name
    it by the experiment's id and the run's name, and get its id at the delivery.

    Attributes:
        run: id of the experiment, ``/``, and name of the run.
        label: name in MLflow's list of runs.
        tags: values of the tags by full name.
        parameters: values of the parameters by name.
        began: start of the training, in seconds since 1970.
    """

    run: str
    label: str
    tags: Mapping[str, str]
    parameters: Mapping[str, str]
    began: float


@dataclass(frozen=True)
class SetTags:
    """Tags for a run.

    Attributes:
        run: id of the run in MLflow.
        tags: values of the tags by full name; :data:`RUN_ID` in them stands for the id of the run.
    """

    run: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class LogText:
    """A text for the artifacts of a run.

    Attributes:
        run: id of the run in MLflow.
        name: file name of the artifact.
        text: content of the artifact.
    """

    run: str
    name: str
    text: str


@dataclass(frozen=True)
class LogModel:
    """A request to log the network of a run.

    Attributes:
        run: id of the run in MLflow.
        checkpoints: folder or address of the run's checkpoints.
    """

    run: str
    checkpoints: str


@dataclass(frozen=True)
class LogData:
    """The data of a run.

    Attributes:
        run: id of the run in MLflow.
        summary: description of the data as JSON.
    """

    run: str
    summary: str


@dataclass(frozen=True)
class RegisterModel:
    """A request to register the logged network of a run, behind :class:`LogModel`.

    Attributes:
        run: id of the run in MLflow.
        name: name in the model registry.
    """

    run: str
    name: str


@dataclass(frozen=True)
class SetStatus:
    """The status of a run.

    Attributes:
        run: id of the run in MLflow.
        status: ``RUNNING``, ``FINISHED``, ``FAILED`` or ``KILLED``.
        ended: end of the run, in seconds since 1970; None while it goes on.
    """

    run: str
    status: str
    ended: float | None = None


@dataclass(frozen=True)
class LogRun:
    """A complete run that has ended, logged in MLflow once, under its name.

    Attributes:
        run: name of the run.
        config: configuration of the run as JSON.
        tags: tags without this project's prefix.
        parent: id of the parent run in MLflow.
        records: all records, oldest first.
        status: ``FINISHED`` or ``FAILED``.
        ended: end of the run, in seconds since 1970.
        began: start of the run, in seconds since 1970; 0 in a message of an earlier version, which takes the time of
            the delivery.
    """

    run: str
    config: str
    tags: Mapping[str, str]
    parent: str | None
    records: tuple[Record, ...]
    status: str
    ended: float
    began: float = 0.0


RunMessage = WorkersStarted | WorkersNotice | RunStarted | LogRecords | RunFinished | RunFailed
TrackingMessage = LogRecords | SetTags | LogText | LogModel | SetStatus | LogRun | LogData | RegisterModel | OpenRun
Message = RunMessage | TrackingMessage
KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def to_bytes(message: Message) -> bytes:
    """A message as one line of JSON."""
    return json.dumps({"kind": type(message).__name__, **dataclasses.asdict(message)}).encode()


def from_bytes(line: bytes | str) -> Message:
    """Read a message that :func:`to_bytes` wrote.

    Raises:
        ValueError: the line is not a message, or its kind is unknown.
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
    """Number of values that some records log in MLflow."""
    return sum(len(record.values) for record in records)


def batches(records: Iterable[Record]) -> Iterator[tuple[Record, ...]]:
    """Split records into groups that MLflow accepts in one request each.

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
