"""Queue of messages to a server that may be unreachable.

A thread delivers them in order and repeats failed attempts. Messages that stay undelivered are written to disk.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from raycurv.tracking.messages import (
    BATCH,
    LogModel,
    LogRecords,
    LogText,
    SetStatus,
    SetTags,
    TrackingMessage,
    from_bytes,
    number_of_values,
    to_bytes,
)
from raycurv.train.records import Record

logger = logging.getLogger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
GATHER_SECONDS = 1.0  # waiting time of records for others that share their request


class MessageRefused(Exception):
    """The server refuses the message, so another attempt is useless."""


class Outbox:
    """Delivers messages in a thread of its own.

    Args:
        deliver: callback that delivers one message. After any exception but :class:`MessageRefused`, it is called
            again.
        folder: folder of the messages that stay undelivered.
        notify: callback that shows the user that the server is unreachable, or answers again.
        every: callback called about twice a second in the same thread, for instance to sample system metrics.
    """

    def __init__(
        self,
        deliver: Callable[[TrackingMessage], None],
        folder: Path,
        notify: Callable[[str], None],
        every: Callable[[], None] = lambda: None,
    ) -> None:
        self._deliver, self._folder, self._notify, self._every = deliver, folder, notify, every
        self._waiting: deque[TrackingMessage] = deque()
        self._in_delivery: TrackingMessage | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._away_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, message: TrackingMessage) -> None:
        """Queue a message and return at once. Consecutive records of one run share a request."""
        with self._lock:
            merged = _merge(self._waiting[-1], message) if self._waiting else None
            if merged is not None:
                self._waiting[-1] = merged
            else:
                self._waiting.append(message)

    def postpone(self, kind: type[TrackingMessage]) -> None:
        """Write the waiting messages of a kind to a file for the next start."""
        with self._lock:
            left = [message for message in self._waiting if isinstance(message, kind)]
            self._waiting = deque(message for message in self._waiting if not isinstance(message, kind))
        if left:
            write_unsent(left, self._folder)

    def close(self, patience: float) -> Path | None:
        """Deliver the waiting messages; after `patience` seconds without an answer, write the rest to a file.

        Returns:
            Path of the file; None if everything was delivered.
        """
        self._closing = True
        self._wake.set()
        deadline = time.monotonic() + patience
        while self._thread.is_alive() and (self._away_since is None or time.monotonic() < deadline):
            self._thread.join(0.1)
        with self._lock:
            # The message in delivery may arrive and also be written: a duplicate is better than a loss.
            left = [m for m in (self._in_delivery, *self._waiting) if m is not None]
            self._waiting.clear()
        return write_unsent(left, self._folder) if left else None

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            if not self._closing:
                self._wake.wait(GATHER_SECONDS / 2)
                self._every()
            with self._lock:
                # Remove the message from the queue during delivery, so that nothing is merged into it.
                message = self._in_delivery = self._waiting.popleft() if self._waiting else None
            if message is None:
                if self._closing:
                    return
                continue
            arrived = self._try(message)
            with self._lock:
                self._in_delivery = None
                if not arrived:
                    self._waiting.appendleft(message)
            if not arrived:
                time.sleep(pause)
            pause = FIRST_PAUSE if arrived else min(2 * pause, LONGEST_PAUSE)

    def _try(self, message: TrackingMessage) -> bool:
        try:
            self._deliver(message)
        except MessageRefused as error:
            path = write_unsent([message], self._folder)
            kind = type(message).__name__
            self._notify(f"MLflow refused {kind} of run {message.run}: {error}. The message is in {path}")
        except Exception as error:  # the client may raise anything while the server is unreachable
            logger.debug("delivery failed", exc_info=True)
            if self._away_since is None:
                self._away_since = time.monotonic()
                self._notify(
                    f"MLflow does not answer ({first_line(error)}); training goes on, and what it measures waits here"
                )
            return False
        if self._away_since is not None:
            self._notify(f"MLflow answers again after {time.monotonic() - self._away_since:.0f} s; nothing was lost")
            self._away_since = None
        return True


def write_unsent(messages: list[TrackingMessage], folder: Path) -> Path:
    """Write messages to a new file in `folder`, one per line; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.time_ns()}.jsonl"
    partial = path.with_suffix(".partial")
    with partial.open("xb") as file:
        file.write(b"".join(to_bytes(message) + b"\n" for message in messages))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def read_unsent(path: Path) -> tuple[list[TrackingMessage], list[str]]:
    """Read messages that :func:`write_unsent` wrote, including those of versions before 0.2.

    Returns:
        The messages, and the lines that are none, such as one that was cut.
    """
    found: list[TrackingMessage] = []
    bad = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            found.append(_message(line))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            bad.append(line)
    return found, bad


def _message(line: str) -> TrackingMessage:
    """Message from a line.

    Raises:
        ValueError: it is no message for MLflow.
    """
    values = json.loads(line)
    message = _former(values) if "metrics" in values else from_bytes(line)
    if not isinstance(message, get_args(TrackingMessage)):
        raise ValueError(f"a message of kind {type(message).__name__} is none for MLflow")
    return message


def _merge(last: TrackingMessage, new: TrackingMessage) -> LogRecords | None:
    """Both messages as one; None if each needs its own request."""
    if not (isinstance(last, LogRecords) and isinstance(new, LogRecords) and last.run == new.run):
        return None
    together = last.records + new.records
    return LogRecords(last.run, together) if number_of_values(together) <= BATCH else None


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


def first_line(error: Exception, longest: int = 160) -> str:
    """First line of an error's text that describes the error."""
    # SQLAlchemy gives the context in a line before the description.
    lines = [line for line in str(error).strip().splitlines() if not line.startswith("(raised as a result")]
    text = (lines or [type(error).__name__])[0]
    return text if len(text) <= longest else text[: longest - 1] + "…"
