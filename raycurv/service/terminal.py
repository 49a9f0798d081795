"""Progress of a launch: a moving bar on a terminal, lines everywhere else."""

from __future__ import annotations

import errno
import os
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from raycurv.arguments import mask_passwords
from raycurv.results import table_formats
from raycurv.train.records import Record, Result

WIDTH = 20  # characters of the bar
LINE_SECONDS = 2.0  # between two lines without a terminal
# Shown values of a step: label, metric, format.
COLUMNS = (
    ("loss", "train/loss", "{:.4g}"),
    ("momentum", "optimizer/momentum", "{:.3g}"),
    ("learning rate", "optimizer/learning_rate", "{:.3g}"),
    ("damping", "optimizer/damping", "{:.3g}"),
    ("images/s", "throughput/images_per_second", "{:,.0f}"),
    ("accuracy", "test/accuracy", "{:.2%}"),
)


class TerminalProgress:
    """Shows the records of one run at a time.

    Args:
        stream: output; by default the standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._name, self._epochs = "", 1
        self._values: dict[str, float] = {}
        self._epoch = 0.0
        self._shown_at = 0.0
        self._unfinished = False

    def begin(self, name: str, epochs: int) -> None:
        """Begin a run.

        Args:
            name: name to show.
            epochs: passes of the whole run.
        """
        self._name, self._epochs, self._values, self._epoch = name, epochs, {}, 0.0

    def show(self, records: Sequence[Record]) -> None:
        """Show new records."""
        for record in records:
            self._values |= record.values
            self._epoch = max(self._epoch, record.epoch)
            if record.kind == "evaluation":
                self.notify(self._evaluated(record))
            elif record.message and not record.message.startswith("wrote "):
                self.notify(f"{self._name}: {record.message}")
        measured = any(record.kind != "event" for record in records)
        if measured and time.monotonic() - self._shown_at >= (0.1 if self._live else LINE_SECONDS):
            self._draw(self._bar())
            self._shown_at = time.monotonic()

    def notify(self, line: str) -> None:
        """Write a line above the bar, without the passwords in it."""
        clear = "\r\x1b[K" if self._unfinished else ""
        self._unfinished = False
        self._write(clear + mask_passwords(line) + "\n")

    def _draw(self, line: str) -> None:
        if not self._live:
            self.notify(line)
            return
        self._write(f"\r\x1b[K{line}")
        self._unfinished = True

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            leave_closed_terminal()

    def _bar(self) -> str:
        share = min(1.0, self._epoch / self._epochs)
        full = round(share * WIDTH)
        bar = "█" * full + "░" * (WIDTH - full)
        return f"{self._name} {bar} epoch {self._epoch:.2f}/{self._epochs}  {_described(self._values)}"

    def _evaluated(self, record: Record) -> str:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in record.values.items())
        whole = float(record.epoch).is_integer()
        position = f"epoch {record.epoch:g} done" if whole else f"step {record.step:,}, epoch {record.epoch:.2f}"
        return f"{self._name}: {position}: {shown}"


def leave_closed_terminal() -> None:
    """Send to nowhere what this process writes to a terminal that was closed, where writing is an error."""
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _described(values: Mapping[str, float]) -> str:
    return "  ".join(f"{label} {form.format(values[name])}" for label, name, form in COLUMNS if name in values)


def table(results: Sequence[tuple[str, str, Result]]) -> str:
    """Table of the runs of a launch, with a column for every metric of their own.

    Args:
        results: label, optimizer and result of every run.
    """
    found = dict.fromkeys(name for _, _, result in results for name in result.values if name.startswith("test/"))
    own = [name for name in found if name not in ("test/loss", "test/accuracy")]
    ends = ["end"] if any(result.diverged for _, _, result in results) else []
    head = ("run", "optimizer", *ends, "steps", "train loss", "test loss", "test accuracy", *own, "images/s", "seconds")
    rows = []
    for label, optimizer, result in results:
        values = result.values
        numbers = [_number(values.get(name), "{:.4f}") for name in ("train/epoch_loss", "test/loss")]
        accuracy = _number(values.get("test/accuracy"), "{:.2%}")
        further = [_number(values.get(name), "{:.4g}") for name in own]
        speed, seconds = f"{result.images_per_second:,.0f}", f"{result.seconds:.1f}"
        end = ["diverged" if result.diverged else "finished"] if ends else []
        rows.append((label, optimizer, *end, f"{result.steps:,}", *numbers, accuracy, *further, speed, seconds))
    return table_formats.aligned(head, rows, left=2, rule=True)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
