"""Files of messages for MLflow, one in a line: those that earlier versions left, and those that were set aside."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from raycurv.tracking.messages import (
    LogModel,
    LogRecords,
    LogText,
    SetStatus,
    SetTags,
    TrackingMessage,
    from_bytes,
)
from raycurv.train.records import Record


def append_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Append lines to a file, and flush it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.writelines(line + b"\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def read_unsent(path: Path) -> tuple[list[TrackingMessage], list[str]]:
    """Read the messages in a file, including those of versions before 0.2.

    Returns:
        The messages, and the lines that are none, such as one that was cut.
    """
    found: list[TrackingMessage] = []
    bad = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            found.append(read_message(line))
        except ValueError:
            bad.append(line)
    return found, bad


def read_message(line: str | bytes) -> TrackingMessage:
    """Message from a line.

    Raises:
        ValueError: it is no message for MLflow.
    """
    try:
        values = json.loads(line)
        message = _former(values) if "metrics" in values else from_bytes(line)
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is no message: {error}") from error
    if not isinstance(message, get_args(TrackingMessage)):
        raise ValueError(f"a message of kind {type(message).__name__} is none for MLflow")
    return message


def _former(values: dict[str, Any]) -> TrackingMessage:
    """Message from a line that a version before 0.2 wrote.

    Raises:
        ValueError: its kind is unknown.
    """
    run, given = values["run"], values["values"]
    match values["kind"]:
        case "metrics":
            return LogRecords(
                run,
                tuple(Record("progress", step, 0.0, when / 1000, {n: v}) for n, v, when, step in values["metrics"]),
            )
        case "tags":
            return SetTags(run, given)
        case "text":
            return LogText(run, given["name"], given["text"])
        case "status":
            return SetStatus(run, given["status"])
        case "model":
            return LogModel(run, given["checkpoints"])
        case "close":
            return SetStatus(run, given["status"], given["time"] / 1000)
    raise ValueError(f"a message of kind {values['kind']!r} is unknown")
