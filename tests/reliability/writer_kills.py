"""A run whose process is killed, or whose disk is full, at one operation of the writing of its files.

Every opening, half-finished write, flush, rename and removal of a checkpoint, manifest, configuration and result is
such a moment, before it and after it. Runs are children by fork, so that each takes a fraction of a second.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from raycurv.objective.collectives import Local
from raycurv.train import CheckpointError, CheckpointStore, train
from tests.reliability.equality import difference
from tests.train.problems import Kept, config

DECLARED = 3
RUN = {"max_steps": 12, "checkpoint_every": 3, "epochs": 3}


class Moments:
    """Counts the operations of writing, and does something at one of them.

    Args:
        at: its number, from 1; 0 counts only.
        act: what is done.
    """

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.at, self.act, self.count = at, act, 0

    def passed(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.act()

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            self.passed()
            result = function(*arguments, **keywords)
            self.passed()
            return result

        return wrapped


class FromThenOn(Moments):
    """Does something at one of the operations, and at all after it."""

    def passed(self) -> None:
        self.count += 1
        if self.count >= self.at:
            self.act()


class HalfWritten:
    """A file in whose writes there is a moment when half is written."""

    def __init__(self, file: BinaryIO, moments: Moments) -> None:
        self._file, self._moments = file, moments

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        half = len(view) // 2
        self._file.write(view[:half])
        self._file.flush()
        self._moments.passed()
        return half + self._file.write(view[half:])


@contextmanager
def counted(moments: Moments) -> Iterator[None]:
    """Count the operations on files inside."""
    before = Path.open, Path.replace, Path.unlink, os.fsync

    def opened(path: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        if mode != "xb":
            return before[0](path, mode, *arguments, **keywords)
        moments.passed()
        return HalfWritten(before[0](path, mode, *arguments, **keywords), moments)

    Path.open = opened  # type: ignore[method-assign, assignment]
    Path.replace, Path.unlink, os.fsync = (moments.around(f) for f in before[1:])  # type: ignore[method-assign]
    try:
        yield
    finally:
        Path.open, Path.replace, Path.unlink, os.fsync = before  # type: ignore[method-assign]


def child(work: Callable[[], None]) -> int:
    """Call a function in a child process, and return its exit code; negative is the number of a signal."""
    number = os.fork()
    if number:
        return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    code = 1
    try:
        work()
        code = 0
    except CheckpointError:  # declared
        code = DECLARED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def trained(folder: Path, moments: Moments, emit: Callable[[list[Any]], None] | None = None) -> None:
    """Train the run, or go on with it."""
    warnings.simplefilter("ignore")
    with counted(moments):
        train(config(**RUN), collectives=Local(), store=CheckpointStore(folder), emit=emit or Kept(), resume="auto")


def moments_of(folder: Path) -> int:
    """How many moments the run has that nothing happens to; it is in `folder` then."""
    moments = Moments(0, lambda: None)
    trained(folder, moments)
    return moments.count


def lost(folder: Path, whole: Path) -> str:
    """In what a run differs from the undisturbed one; empty if in nothing."""
    one, other = (CheckpointStore(f) for f in (folder, whole))
    results = [store.finished() for store in (one, other)]
    if results[0] is None:
        return "no result"
    values = [[record.values for record in result.evaluations] for result in results if result is not None]
    if values[0] != values[1]:
        return "other evaluations"
    left = [path.name for path in folder.iterdir() if path.name.endswith(".partial")]
    return difference(one.load(), other.load()) or (f"left {left}" if left else "")


def _faults(
    first: int,
    stop: int,
    folder: Path,
    note: Callable[[int, str], None],
    fault: Callable[[int], Moments],
    expected: int,
) -> None:
    torch.set_num_threads(1)
    whole, broken = folder / "whole", folder / "broken"
    for path in (whole, broken):
        shutil.rmtree(path, ignore_errors=True)
    moments = moments_of(whole)
    for number in range(first, stop):
        shutil.rmtree(broken, ignore_errors=True)
        draw = random.Random(number)
        at = 1 + number * moments // stop if number % 2 == 0 else draw.randint(1, moments)
        code = child(lambda at=at: trained(broken, fault(at)))  # type: ignore[misc]
        wrong = "" if code in (0, expected) else f"exit {code} at moment {at}"
        if draw.random() < 0.3:  # again, soon after
            soon = fault(draw.randint(1, 20))
            child(lambda soon=soon: trained(broken, soon))  # type: ignore[misc]
        code = child(lambda: trained(broken, Moments(0, lambda: None)))
        wrong = wrong or (f"exit {code} of the next start after moment {at}" if code else lost(broken, whole))
        note(number, wrong and f"{wrong} (moment {at} of {moments})")


def run(first: int, stop: int, folder: Path, note: Callable[[int, str], None]) -> None:
    """SIGKILL at a moment, often at a second one, then a start to the end: bit by bit the undisturbed run."""

    def killed(at: int) -> Moments:
        return Moments(at, lambda: os.kill(os.getpid(), signal.SIGKILL))

    _faults(first, stop, folder / "writer", note, killed, -signal.SIGKILL)


def run_full_disk(first: int, stop: int, folder: Path, note: Callable[[int, str], None]) -> None:
    """No space left at a moment: a declared error or a warning, then a start to the end."""

    def full(at: int) -> Moments:
        return Moments(at, lambda: _refuse(errno.ENOSPC))

    _faults(first, stop, folder / "writer_disk", note, full, DECLARED)


def run_read_only(first: int, stop: int, folder: Path, note: Callable[[int, str], None]) -> None:
    """A disk that is read-only from a moment on: a declared error or a warning, then a start to the end."""

    def read_only(at: int) -> Moments:
        return FromThenOn(at, lambda: _refuse(errno.EROFS))

    _faults(first, stop, folder / "writer_read_only", note, read_only, DECLARED)


def run_slow_disk(first: int, stop: int, folder: Path, note: Callable[[int, str], None]) -> None:
    """A disk whose operations take up to 50 ms from a moment on: the run is the undisturbed one, in one start."""

    def slow(at: int) -> Moments:
        draw = random.Random(at)
        return FromThenOn(at, lambda: time.sleep(draw.uniform(0.0, 0.05)))

    _faults(first, stop, folder / "writer_slow", note, slow, 0)


def _refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))
