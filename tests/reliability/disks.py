"""Runs whose queue for MLflow, whose MLflow, or both are on a disk that becomes full, read-only or slow in mid-run.

The disk is a real one (:mod:`tests.reliability.small_disk`). The driver and the training are one process, as in
:mod:`tests.reliability.one_process`; checkpoints are on another disk.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raycurv.train import CheckpointStore
from tests.reliability.equality import difference, undisturbed
from tests.reliability.on_ray import NoRay
from tests.reliability.small_disk import SmallDisk, why_not_slow
from tests.service.driving import Driver, Finished, Job, wait_until

Note = Callable[[int, str], None]
EPOCHS, STEPS_AN_EPOCH = 60, 8
STEPS = EPOCHS * STEPS_AN_EPOCH
RECIPE = ("--recipe", "tests.service.problems:mine", "--option", f"epochs={EPOCHS}", "pause=0.01")
OPTIONS = ("--checkpoint-every", "40", "--log-every", "1", "--no-log-model", "--system-metrics-every", "0")
OPTIONS += ("--tracking-patience", "2")
PLACES = ("queue", "mlflow", "both")
LONGEST_STEP = 1.0  # seconds, on a machine with a processor for each process that runs
WRITES = 6  # a second, of a slow disk


class DiskFault:
    """A run on a small disk, and one that nothing happens to.

    Args:
        folder: folder of both.
        place: what is on the disk: ``queue``, ``mlflow`` or ``both``.
    """

    def __init__(self, folder: Path, place: str) -> None:
        self.folder = folder / "run"
        self._whole = folder / undisturbed()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.driver = Driver(NoRay(), self.folder)  # type: ignore[arg-type]
        self._train_whole()
        self.disk = SmallDisk(self.folder / "disk", self.folder / "disk.img")
        self.runs = self.disk.folder / "runs" if place == "both" else self.folder / "runs"
        self.runs.mkdir()
        self.data_base = (self.disk.folder if place == "mlflow" else self.runs) / "mlflow.db"
        if place == "queue":
            (self.disk.folder / "unsent").mkdir()
            (self.runs / "unsent").symlink_to(self.disk.folder / "unsent")
        if place != "both":  # whose artifacts are on the disk too
            shutil.copy(self._whole / "mlflow.db", self.data_base)

    def start(self, *more: str) -> Job:
        """Start the run, or go on with it."""
        return self._start("run", self.runs, self.data_base, self.folder / "checkpoints", *more)

    def _train_whole(self) -> None:
        if self._checkpoints(self._whole, "whole").finished() is None:
            shutil.rmtree(self._whole, ignore_errors=True)
            job = self._start("whole", self._whole, self._whole / "mlflow.db", self._whole / "checkpoints")
            finished = job.finish()
            assert finished.code == 0, finished.output

    def _start(self, name: str, runs: Path, data_base: Path, storage: Path, *more: str) -> Job:
        where = ("--runs", str(runs), "--tracking-uri", f"sqlite:///{data_base}", "--storage", str(storage))
        script = ("tests/reliability/one_process.py", "jobs/train.py")
        return self.driver._start([sys.executable, *script, *RECIPE, *OPTIONS, "--run-name", name, *where, *more], {})

    def _checkpoints(self, folder: Path, name: str) -> CheckpointStore:
        return CheckpointStore(str(folder / "checkpoints" / name))

    def completed(self, finished: Finished) -> str:
        """What is lost after a start has ended and the disk is well, and after one more start if that was announced."""
        announced = any(text in finished.output for text in ("did not take everything", "are lost"))
        if "Traceback" in finished.output:
            return f"a traceback: {finished.output[-500:]}"
        gap = "" if finished.code else self._longest_wait()
        if finished.code or announced:
            finished = self.start("--resume", "auto").finish()
            if finished.code:
                return f"exit {finished.code} of the next start: {finished.output[-500:]}"
        return self._lost() or gap

    def _lost(self) -> str:
        one, other = self._checkpoints(self.folder, "run"), self._checkpoints(self._whole, "whole")
        if different := difference(one.load(), other.load()):
            return different
        if (statuses := [status for _, status in self._runs()]) != ["FINISHED"]:
            return f"MLflow has {statuses}"
        every = {"train/loss": range(1, STEPS + 1), "test/loss": range(STEPS_AN_EPOCH, STEPS + 1, STEPS_AN_EPOCH)}
        for metric, expected in every.items():
            steps = [step for step, _ in self._history(metric)]
            if steps != list(expected):
                return f"{metric}: {len(set(steps))} of {len(expected)}, {len(steps) - len(set(steps))} twice"
        return ""

    def _longest_wait(self) -> str:
        """The longest time between two steps, if it is too long; as far as MLflow has them."""
        times = [when for _, when in self._history("train/loss")]
        longest = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
        allowed = LONGEST_STEP * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        return "" if longest <= allowed else f"a step waited {longest:.2f} s"

    def _runs(self) -> list[tuple[str, str]]:
        """Id and status of the run in MLflow."""
        where = "tags.key = 'raycurv.run_name' AND tags.value = 'run'"
        return self._rows(f"SELECT runs.run_uuid, runs.status FROM runs JOIN tags USING (run_uuid) WHERE {where}")

    def _history(self, metric: str) -> list[tuple[int, float]]:
        ((run, _),) = self._runs()
        query = "SELECT step, timestamp / 1000.0 FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step"
        return self._rows(query, run, metric)

    def _rows(self, query: str, *values: str) -> list[Any]:
        # A client of MLflow would keep the file open, and with it the disk.
        with contextlib.closing(sqlite3.connect(self.data_base)) as connection:
            return connection.execute(query, values).fetchall()

    def close(self) -> None:
        """End what runs, and the disk."""
        self.driver.end()
        self.disk.close()


def hurt(found: DiskFault, fault: str, seconds: float, moment: int) -> tuple[str, Finished]:
    """Train, with a disk that is ``full`` or ``slow`` for some seconds, or ``read-only`` from then on.

    Args:
        found: the run.
        fault: what happens to the disk.
        seconds: how long; 0 for the rest of the run.
        moment: epochs until then.

    Returns:
        What is lost, and the end of the first start.
    """
    job = found.start()
    wait_until(lambda: job.output.count(" done:") >= moment or job.process.poll() is not None)
    disk = found.disk
    {"full": disk.fill, "read-only": disk.read_only, "slow": lambda: disk.slow(WRITES)}[fault]()
    if seconds and fault != "read-only":
        time.sleep(seconds)
        _heal(disk, fault)
    finished = job.finish()
    _heal(disk, fault)
    return found.completed(finished), finished


def _heal(disk: SmallDisk, fault: str) -> None:
    if fault == "read-only":
        disk.unmount()
        disk.mount()
    elif fault == "full":
        disk.make_room()
    else:
        disk.slow(0)


def _faults(first: int, stop: int, folder: Path, note: Note, fault: str) -> None:
    if reason := why_not_slow():
        raise RuntimeError(f"a disk that is {fault} {reason}")
    for number in range(first, stop):
        draw = random.Random(number)
        found = DiskFault(folder, PLACES[number % len(PLACES)])
        try:
            seconds = 0.0 if number % 2 and fault == "full" else draw.uniform(0.5, 6.0)
            note(number, hurt(found, fault, seconds, draw.randint(1, EPOCHS - 10))[0])
        except AssertionError as error:
            note(number, f"AssertionError: {str(error)[-300:]}")
        finally:
            found.close()


def run_full(first: int, stop: int, folder: Path, note: Note) -> None:
    """The disk is full for seconds, every second time until the end."""
    _faults(first, stop, folder / "tracking_full", note, "full")


def run_read_only(first: int, stop: int, folder: Path, note: Note) -> None:
    """The disk is read-only from a moment on."""
    _faults(first, stop, folder / "tracking_read_only", note, "read-only")


def run_slow(first: int, stop: int, folder: Path, note: Note) -> None:
    """The disk writes a few blocks a second, for seconds."""
    _faults(first, stop, folder / "tracking_slow", note, "slow")
