"""Delivery of messages to MLflow: from a queue on disk, in lines that do not wait for each other.

Three threads deliver records with the status of runs, tags, and artifacts. A message leaves the queue once MLflow has
it, so that one that MLflow got in the last moment of a process may be sent again. That changes nothing: a metric of the
same name, step, time and value is stored once, and a tag, a text or a status replaces itself.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from raycurv.tracking.messages import (
    BATCH,
    LogData,
    LogModel,
    LogRecords,
    LogRun,
    LogText,
    OpenRun,
    RegisterModel,
    SetStatus,
    SetTags,
    TrackingMessage,
    number_of_values,
    to_bytes,
)
from raycurv.tracking.spool import Spool, SpoolDamaged
from raycurv.tracking.unsent_files import append_lines, read_message

logger = logging.getLogger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
GATHER_SECONDS = 0.5  # waiting time of records for others that share their request
ATTEMPTS = 3  # of a message that alone fails, before the next ones of its line go first
ROWS = 500  # read from the queue at a time
LAST_SECONDS = 3.0  # for the attempts that run when the patience is over
_T = TypeVar("_T")
RECORDS, TAGS, ARTIFACTS = "records", "tags", "artifacts"
# A run is closed behind its records, in their line.
LINES: dict[type[TrackingMessage], str] = {
    LogRecords: RECORDS,
    SetStatus: RECORDS,
    LogRun: RECORDS,
    SetTags: TAGS,
    LogData: TAGS,
    LogText: ARTIFACTS,
    LogModel: ARTIFACTS,
    RegisterModel: ARTIFACTS,
}


class MessageRefused(Exception):
    """The server refuses the message, so another attempt is useless.

    Args:
        text: reason.
        whole: whether no part of the message could be taken either.
        later: whether a later start may be able to deliver it.
    """

    def __init__(self, text: str, *, whole: bool = True, later: bool = False) -> None:
        super().__init__(text)
        self.whole, self.later = whole, later


class Outbox:
    """Delivers messages in threads of its own.

    Args:
        deliver: callback that delivers one message. After any exception but :class:`MessageRefused`, it is called
            again. Several threads call it.
        spool: the queue.
        notify: callback that shows a line to the user.
        every: callback called about twice a second, for instance to sample system metrics.
        answers: callback that tells whether the server answers at all, so that only one message or line fails.

    Attributes:
        delivered: number of messages that have arrived.
    """

    def __init__(
        self,
        deliver: Callable[[TrackingMessage], None],
        spool: Spool,
        notify: Callable[[str], None],
        every: Callable[[], None] = lambda: None,
        answers: Callable[[], bool] = lambda: False,
    ) -> None:
        self.deliver, self.spool, self.notify, self.answers = deliver, spool, notify, answers
        self.delivered, self.dropped = 0, False
        self.closing, self.abandoned = threading.Event(), threading.Event()
        self.postponed: type[TrackingMessage] | None = None
        self._every = every
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self._lines = [_Line(name, self) for name in (RECORDS, TAGS, ARTIFACTS)]
        for line in self._lines:
            line.start()
        threading.Thread(target=self._tick, name="outbox-clock", daemon=True).start()

    def put(self, message: TrackingMessage) -> None:
        """Queue a message and return at once; :meth:`save` writes it to the disk, as the threads do twice a second."""
        if self.dropped:
            return
        # No line may be ahead of the creation of a run, and none waits for another one.
        lines = (RECORDS, TAGS, ARTIFACTS) if isinstance(message, OpenRun) else (LINES[type(message)],)
        for line in lines:
            self.spool.add(line, to_bytes(message))

    def save(self) -> bool:
        """Write what was put to the disk, where it survives this process.

        Returns:
            Whether it is on disk. If not, it is kept in memory, and a warning is shown.
        """
        saved = self.spool.save()
        if not saved:
            self.say_once(
                "disk",
                f"what waits for MLflow cannot be written to {self.spool.path} ({self.spool.error}): it stays in "
                "memory, and is lost if this process dies. Free disk space or correct the permissions",
            )
        return saved

    def take_over(self, left: Spool) -> bool:
        """Queue what an earlier process left, and remove its file.

        Returns:
            Whether all of it is on the disk under this process; if not, the file stays.

        Raises:
            SpoolDamaged: the file cannot be read to its end.
        """
        try:
            for line in (RECORDS, TAGS, ARTIFACTS):
                while entries := left.waiting(line):
                    for _, entry in entries:
                        self.spool.add(line, entry)
                    if not self.spool.save():
                        return False
                    left.remove([number for number, _ in entries])
        except sqlite3.DatabaseError as error:
            raise SpoolDamaged(str(error)) from error
        finally:
            left.close()
        return True

    def postpone(self, kind: type[TrackingMessage]) -> None:
        """Leave the messages of a kind to the next start."""
        self.postponed = kind

    def drop(self) -> None:
        """Drop the waiting messages and all later ones."""
        self.dropped = True
        self.abandoned.set()
        for line in (RECORDS, TAGS, ARTIFACTS):
            while entries := self.spool.waiting(line):
                self.spool.remove([number for number, _ in entries])

    def settle(self, patience: float, progress: Callable[[int], None] = lambda left: None) -> str:
        """Wait until all messages have arrived, apart from those of a line that fails.

        Args:
            patience: seconds to wait for artifacts once everything else has arrived.
            progress: called now and then with the number of messages that are left.

        Returns:
            Why the server does not answer; empty if it does.
        """
        self.save()
        records, *others = self._lines
        shown = time.monotonic()
        deadline = shown + patience
        while records.busy or (any(line.busy for line in others) and time.monotonic() < deadline):
            if records.failing and not self.answers():
                return records.error
            if time.monotonic() - shown > LONGEST_PAUSE:
                shown = time.monotonic()
                progress(len(self.spool))
            if records.busy:
                deadline = time.monotonic() + patience
            time.sleep(0.02)
        return ""

    def close(self, patience: float) -> Path | None:
        """Deliver the waiting messages; after `patience` seconds without an answer, leave the rest on disk.

        Returns:
            Path of the queue if something is left for the next start that could not be delivered; otherwise None.
        """
        self.closing.set()
        began = time.monotonic()
        while alive := [line for line in self._lines if line.is_alive()]:
            failing = [line.failing_since for line in alive if line.failing_since is not None]
            if failing and time.monotonic() > max(began, min(failing)) + patience:
                break
            alive[0].join(0.05)
        self.abandoned.set()
        deadline = time.monotonic() + LAST_SECONDS
        for line in self._lines:
            line.join(max(0.0, deadline - time.monotonic()))
        left = len(self.spool) - sum(len(line.held) for line in self._lines)
        if lost := self.spool.close():
            self.notify(
                f"{lost} messages for MLflow are lost with this process: they cannot be written to {self.spool.path}. "
                "Free disk space or correct the permissions; a start with --resume logs what MLflow lacks"
            )
        return self.spool.path if left > lost else None

    def say_once(self, about: str, text: str) -> None:
        """Show a line to the user, unless one about the same was shown before."""
        with self._lock:
            known = about in self._said
            self._said.add(about)
        if not known:
            self.notify(text)

    def arrived(self, count: int) -> None:
        """Count messages that have arrived."""
        with self._lock:
            self.delivered += count

    def _tick(self) -> None:
        while not self.closing.wait(GATHER_SECONDS):
            self._every()


@dataclass(frozen=True)
class _Batch:
    """One message made of one or several, and their numbers in the queue."""

    message: TrackingMessage
    numbers: tuple[int, ...]


class _Line(threading.Thread):
    """Delivers the messages of one line, oldest first."""

    def __init__(self, line: str, outbox: Outbox) -> None:
        super().__init__(name=f"outbox-{line}", daemon=True)
        self.line, self.outbox = line, outbox
        self.held: set[int] = set()  # left to the next start
        self.failing_since: float | None = None
        self.error = ""  # of the last attempt that failed
        self._shown = False  # that it fails
        self._failures = 0  # of the oldest message, one after the other
        self._after = 0  # number of a message that failed too often, behind which the line goes on
        self._pause = FIRST_PAUSE

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed."""
        return self.failing_since is not None

    @property
    def busy(self) -> bool:
        """Whether messages wait, and have not failed more often than others should wait for."""
        if self.failing and (self._after or self.line != RECORDS):
            return False
        return any(number not in self.held for number, _ in self.outbox.spool.waiting(self.line, 0, len(self.held) + 1))

    def run(self) -> None:
        outbox = self.outbox
        wait = True
        while not outbox.abandoned.is_set():
            if wait:
                outbox.closing.wait(GATHER_SECONDS)
            try:
                outbox.save()
                batch, wait = self._next()
            except Exception:  # such as an error of the disk
                logger.warning("the queue of messages for MLflow cannot be read", exc_info=True)
                batch, wait = None, True
                outbox.abandoned.wait(LONGEST_PAUSE)
            if batch is not None:
                self._attempt(batch)
            elif self._after:
                self._after = 0  # what failed before has its turn again
                outbox.abandoned.wait(self._pause)
            elif outbox.closing.is_set():
                return

    def _next(self) -> tuple[_Batch | None, bool]:
        """The oldest messages that share a request, and whether nothing waits behind them."""
        rows = self.outbox.spool.waiting(self.line, self._after, ROWS)
        batch: _Batch | None = None
        for number, entry in rows:
            if number in self.held:
                continue
            try:
                message = read_message(entry)
            except ValueError as error:
                self._set_aside(entry, (number,), f"a message for MLflow is damaged: {error}")
                continue
            if self.outbox.postponed is not None and isinstance(message, self.outbox.postponed):
                self.held.add(number)
                continue
            merged = message if batch is None else _merge(batch.message, message)
            if merged is None:
                return batch, False
            batch = _Batch(merged, (*(batch.numbers if batch else ()), number))
        return batch, len(rows) < ROWS

    def _attempt(self, batch: _Batch) -> None:
        try:
            self._deliver(batch.message)
        except MessageRefused as error:  # and a later start may be able to deliver it
            self.held.update(batch.numbers)
            self._answered()
            self._say_refused(batch.message, error, "The next start tries it again")
        except Exception as error:  # the client may raise anything while the server is unreachable
            logger.debug("delivery failed", exc_info=True)
            self._failed(batch, error)
        else:
            self.outbox.spool.remove(batch.numbers)
            self.outbox.arrived(len(batch.numbers))
            self._answered()

    def _deliver(self, message: TrackingMessage) -> None:
        """Deliver a message, or those of its parts that the server takes; set aside what it refuses.

        Raises:
            MessageRefused: a later start may be able to deliver it.
        """
        try:
            self.outbox.deliver(message)
        except MessageRefused as error:
            if error.later:
                raise
            parts = () if error.whole else _halves(message)
            for part in parts:
                self._deliver(part)
            if not parts:
                path = self._set_aside(to_bytes(message))
                again = (
                    f"once the cause is removed, rename it to {path.stem}.jsonl, and `raycurv tracking reap` sends it"
                )
                self._say_refused(message, error, f"It is set aside in {path}; {again}")

    def _say_refused(self, message: TrackingMessage, error: MessageRefused, then: str) -> None:
        kind = type(message).__name__
        text = f"MLflow refused {kind} of run {message.run}: {error}. {then}"
        self.outbox.say_once(f"{kind} {message.run}", text)

    def _set_aside(self, entry: bytes, numbers: Sequence[int] = (), reason: str = "") -> Path:
        path = self.outbox.spool.path.with_suffix(".refused")
        append_lines(path, [entry])
        self.outbox.spool.remove(numbers)
        if reason:
            self.outbox.say_once("damaged", f"{reason}. It is set aside in {path}")
        return path

    def _failed(self, batch: _Batch, error: Exception) -> None:
        outbox = self.outbox
        if self.failing_since is None:
            self.failing_since = time.monotonic()
        self._failures += 1
        self.error = first_line(error)
        alone = (self.line != RECORDS or self._failures >= ATTEMPTS) and outbox.answers()
        if not self._shown and (self.line == RECORDS or alone):
            self._shown = True
            outbox.notify(self._explain())
        if alone and self._failures >= ATTEMPTS:
            self._after, self._failures = batch.numbers[-1], 0
        outbox.abandoned.wait(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _explain(self) -> str:
        if self.line == RECORDS:
            return (
                f"MLflow does not answer ({self.error}); training goes on, and what it measures waits in "
                f"{self.outbox.spool.path.parent}"
            )
        if self.line == TAGS:
            return f"MLflow does not take tags ({self.error}); they are sent again, at the latest by the next start"
        return (
            f"MLflow does not take {self.line} ({self.error}); records are logged all the same. Check that the "
            "place of its artifacts can be written from here; they arrive then, or with the next start"
        )

    def _answered(self) -> None:
        if self._shown and self.failing_since is not None:
            what = "answers" if self.line == RECORDS else f"takes {self.line}"
            self.outbox.notify(
                f"MLflow {what} again after {time.monotonic() - self.failing_since:.0f} s; nothing was lost"
            )
        self.failing_since, self._shown = None, False
        self._failures, self._pause = 0, FIRST_PAUSE


def _merge(last: TrackingMessage, new: TrackingMessage) -> TrackingMessage | None:
    """Both messages as one; None if each needs its own request."""
    if last.run != new.run:
        return None
    if isinstance(last, SetTags) and isinstance(new, SetTags):
        return SetTags(last.run, {**last.tags, **new.tags})
    if isinstance(last, LogRecords) and isinstance(new, LogRecords):
        together = last.records + new.records
        return LogRecords(last.run, together) if number_of_values(together) <= BATCH else None
    return None


def _halves(message: TrackingMessage) -> tuple[TrackingMessage, ...]:
    """Two messages that are one together; empty if it cannot be divided."""
    match message:
        case SetTags(tags=tags) if len(tags) > 1:
            return tuple(replace(message, tags=dict(part)) for part in _divided([*tags.items()]))
        case LogRecords(records=records) if len(records) > 1:
            return tuple(replace(message, records=tuple(part)) for part in _divided(records))
        case LogRecords(records=(record,)) if len(record.values) > 1:
            parts = _divided([*record.values.items()])
            return tuple(replace(message, records=(replace(record, values=dict(part)),)) for part in parts)
    return ()


def _divided(items: Sequence[_T]) -> tuple[Sequence[_T], Sequence[_T]]:
    return items[: len(items) // 2], items[len(items) // 2 :]


def first_line(error: Exception, longest: int = 160) -> str:
    """First line of an error's text that describes the error."""
    # SQLAlchemy gives the context in a line before the description.
    lines = [line for line in str(error).strip().splitlines() if not line.startswith("(raised as a result")]
    text = (lines or [type(error).__name__])[0]
    return text if len(text) <= longest else text[: longest - 1] + "…"
