"""Output of a launch: a bar that moves on a terminal, sparse lines everywhere else."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from raycurv.arguments import mask_passwords
from raycurv.results import table_formats
from raycurv.service.library_logs import LibraryLogs
from raycurv.train.records import OPERATIONS, STEPS, Record, Result

NO_PROGRESS = ("event", "data", "system")  # kinds of records that say nothing about the position of a run
LINE_SECONDS = 30.0  # between two lines of a run without a terminal
BAR_SECONDS = 0.1  # between two drawings of the bar
SPEED_SECONDS = 600.0  # over which the estimate of the time left is averaged
NAME_WIDTH = 18  # characters of a name in the bar and in lines
WIDE = 100  # columns from which the bar has whole words
STARTUP_SHARE = 0.05  # of the seconds of a run, from which its start-up is shown
SPEED, ACCURACY = "throughput/images_per_second", "test/accuracy"
# Names of metrics in a line of an evaluation, where they are not the metrics' own.
SHORT = {
    "train/epoch_loss": "loss",
    "test/loss": "test loss",
    ACCURACY: "accuracy",
    "averaged/test/loss": "averaged test loss",
    "averaged/test/accuracy": "averaged accuracy",
}
_FIELDS = ("epoch", "loss", "accuracy", "speed", "left")
_DATE = re.compile(r"-\d{8}-\d{6}(?=-|$)")


class TerminalProgress:
    """Shows the records of one run at a time, and lines about a launch.

    Args:
        stream: output; by default the standard output.
        quiet: show warnings and results alone.
        verbose: show all scalars of the optimizer, checkpoints, and messages of Ray and MLflow.
        log_file: file that gets every line, also those that `quiet` hides, and messages of libraries.
        library_file: file of messages of libraries where there is no `log_file`.

    Raises:
        ValueError: `log_file` cannot be written.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        verbose: bool = False,
        log_file: str | None = None,
        library_file: Path | None = None,
    ) -> None:
        self._quiet, self._verbose, self._logged = quiet, verbose, log_file is not None
        path = library_file if log_file is None else _writable(log_file)
        file = cast(TextIO, _TerminalStream(stream or sys.stdout))
        self._console = Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal and not quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(None, complete_style="green", finished_style="green", table_column=Column(ratio=1)),
            *(TextColumn(f"{{task.fields[{name}]}}", justify="right") for name in _FIELDS),
            console=self._console,
            auto_refresh=False,
            transient=True,
            expand=True,
            speed_estimate_period=SPEED_SECONDS,
            get_time=time.monotonic,
        )
        self._logs = LibraryLogs(path, self.notify if verbose else None)
        self._name, self._epochs, self._steps = "", 1, 0
        self._values: dict[str, float] = {}
        self._epoch = 0.0
        self._task: TaskID | None = None
        self._shown_at: float | None = None
        self._cost_shown = False

    def __enter__(self) -> Self:
        """Begin to keep messages of libraries away from the terminal."""
        self._logs.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the bar, whatever happened."""
        self.end()
        self._logs.stop()

    def begin(self, name: str, epochs: int) -> None:
        """Begin a run.

        Args:
            name: name to show.
            epochs: passes of the whole run.
        """
        self.end()
        self._name, self._epochs, self._steps = short_name(name), epochs, 0
        self._values, self._epoch, self._shown_at, self._cost_shown = {}, 0.0, None, False

    def show(self, records: Sequence[Record]) -> None:
        """Show new records."""
        for record in records:
            if record.kind == "event":
                self._event(record)
            if record.kind in NO_PROGRESS:
                continue
            self._values |= record.values
            self._epoch = max(self._epoch, record.epoch)
            self._advance(records[-1].step)  # once: records that come together say nothing about the speed
            if record.kind == "evaluation":
                self.notify(self._evaluated(record))
        if measured := [record for record in records if record.kind not in NO_PROGRESS]:
            self._show_position(measured[-1])

    def show_trials(self, name: str, done: int, total: int, state: Sequence[str]) -> bool:
        """Show how far a sweep is in the bar; without a terminal, do nothing.

        Args:
            name: name of the sweep.
            done: number of trials that have ended.
            total: number of trials.
            state: further texts for the bar, at most three.

        Returns:
            Whether there is a bar.
        """
        if not self._live:
            return False
        if self._task is None:
            empty: dict[str, Any] = dict.fromkeys(_FIELDS, "")
            self._task = self._bar.add_task(short_name(name), total=total, completed=done, **empty)
        self._advance(done)
        texts: dict[str, Any] = dict(zip(_FIELDS, (f"{done}/{total} trials", *state), strict=False))
        self._bar.update(self._task, **texts | {"left": self._left(" left")})
        self._draw()
        if done == total:
            self.end()
        return True

    def take_library_logs(self) -> None:
        """Keep messages of libraries that have been imported meanwhile away from the terminal too."""
        self._logs.take()

    def notify(self, line: str) -> None:
        """Show a line above the bar, without the passwords in it."""
        self._print(line, shown=not self._quiet)

    def notify_always(self, line: str) -> None:
        """Show a result or a warning, which `quiet` does not hide."""
        self._print(line, shown=True)

    def _print(self, line: str, *, shown: bool) -> None:
        text = mask_passwords(line)
        if self._logged:
            self._logs.write(text.strip())
        if shown:
            self._console.print(text)

    def _event(self, record: Record) -> None:
        if STEPS in record.values:
            self.end()
            self._steps = int(record.values[STEPS])
            empty: dict[str, Any] = dict.fromkeys(_FIELDS, "")
            self._task = self._bar.add_task(self._name, total=self._steps, completed=record.step, **empty)
        if record.message and (self._verbose or not record.message.startswith("wrote ")):
            self.notify(f"{self._name}: {record.message}")

    def _advance(self, step: int) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=step)

    def _show_position(self, newest: Record) -> None:
        self._show_cost(newest)
        now = time.monotonic()
        if self._shown_at is not None and now - self._shown_at < (BAR_SECONDS if self._live else LINE_SECONDS):
            return
        self._shown_at = now
        if not self._live:
            self.notify(self._line(newest))
        elif self._task is not None:
            self._bar.update(self._task, **self._texts())
            self._draw()

    def _show_cost(self, newest: Record) -> None:
        """Show what the whole run will cost, once that is known."""
        done = self._values.get(OPERATIONS, 0.0)
        if self._cost_shown or not done or not newest.step or not self._steps:
            return
        self._cost_shown = True
        one, whole = map(table_formats.format_operations, (done / newest.step, done / newest.step * self._steps))
        self.notify(f"{self._name}: {one} a step, about {whole} in all")

    def _draw(self) -> None:
        if not self._bar.live.is_started:
            self._bar.start()
            self._console.show_cursor(True)  # a driver that is killed could not bring it back
        self._bar.refresh()

    def end(self) -> None:
        """End the bar of a run."""
        if self._bar.live.is_started:
            self._bar.stop()
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def _texts(self) -> dict[str, Any]:
        """Texts of the columns of the bar, short ones on a narrow terminal."""
        wide, values = self._console.width >= WIDE, self._values
        words = ("accuracy", "images/s", " left") if wide else ("acc", "img/s", " left")
        return {
            "epoch": f"epoch {self._epoch:.{2 if wide else 1}f}/{self._epochs}",
            "loss": f"loss {values['train/loss']:.4g}" if "train/loss" in values else "",
            "accuracy": f"{words[0]} {values[ACCURACY]:.1%}" if ACCURACY in values else "",
            "speed": f"{_speed(values[SPEED])} {words[1]}" if SPEED in values else "",
            "left": self._left(words[2]),
        }

    def _line(self, newest: Record) -> str:
        values = self._values
        parts = [f"step {newest.step:,}" + (f" of {self._steps:,}" if self._steps else "")]
        parts += [f"epoch {self._epoch:.2f} of {self._epochs}"]
        names = {"train/loss": "loss"}
        if self._verbose:
            names |= {name: name.partition("/")[2] for name in values if name.startswith("optimizer/")}
        parts += [f"{short} {values[name]:.4g}" for name, short in names.items() if name in values]
        parts += [f"{values[SPEED]:,.0f} images/s"] if SPEED in values else []
        return f"{self._name}: {', '.join([*parts, *filter(None, [self._left(' left')])])}"

    def _left(self, word: str) -> str:
        task = None if self._task is None else self._bar.tasks[self._bar.task_ids.index(self._task)]
        seconds = None if task is None or task.finished else task.time_remaining
        return "" if seconds is None else format_seconds(seconds) + word

    def _evaluated(self, record: Record) -> str:
        shown = ", ".join(_measured(name, value) for name, value in record.values.items())
        whole = float(record.epoch).is_integer()
        position = f"epoch {record.epoch:g} done" if whole else f"step {record.step:,} (epoch {record.epoch:.2f})"
        left = "" if self._live else self._left(" left")
        return f"{self._name}: {position}: {shown}{', ' if left else ''}{left}"


def _writable(path: str) -> Path:
    """The path of a file that can be written.

    Raises:
        ValueError: it cannot.
    """
    try:
        Path(path).expanduser().open("a").close()
    except OSError as error:
        raise ValueError(f"--log-file {path} cannot be written: {error.strerror}") from error
    return Path(path).expanduser()


def _measured(name: str, value: float) -> str:
    form = "{:.2%}" if name.endswith("accuracy") else "{:.4g}"
    return f"{SHORT.get(name, name)} {form.format(value)}"


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value < 100_000 else f"{value / 1000:,.0f}k"


def format_seconds(seconds: float) -> str:
    """A time as ``M:SS``, ``H:MM:SS`` or ``D d HH h``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short_name(name: str, width: int = NAME_WIDTH) -> str:
    """A name of at most `width` characters.

    The date is left out first. Of a name that is still too long, the start stays, and the last word that fits, with
    four characters that tell it from other names.
    """
    text = _DATE.sub("", name)
    if len(text) <= width:
        return text
    mark = hashlib.sha256(name.encode()).hexdigest()[:4]
    words = [word for word in text.split("-") if not re.fullmatch("[0-9a-f]{4}", word)]
    last = words[-1] if len(words) > 1 and len(words[-1]) + 8 <= width else ""
    start = text[: width - len(mark) - len(last) - (2 if last else 1)].rstrip("-_")
    return "-".join(filter(None, [start, last, mark]))


class _TerminalStream:
    """A stream that goes on without its terminal, where that is closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        self._without_terminal(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._without_terminal(self._stream.flush)

    def _without_terminal(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            leave_closed_terminal()


def leave_closed_terminal() -> None:
    """Send to nowhere what this process writes to a terminal that was closed, where writing is an error."""
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def table(results: Sequence[tuple[str, str, Result]]) -> str:
    """Table of the runs of a launch, with a column for every metric of their own.

    The first run of a process pays for its start-up, so the seconds are without it, and a line below has it.

    Args:
        results: label, optimizer and result of every run.
    """
    found = dict.fromkeys(name for _, _, result in results for name in result.values if name.startswith("test/"))
    own = [name for name in found if name not in ("test/loss", ACCURACY)]
    ends = ["end"] if any(result.diverged for _, _, result in results) else []
    named = ["optimizer"] if any(label != optimizer for label, optimizer, _ in results) else []
    head = ("run", *named, *ends, "steps", "loss", "test loss", "accuracy", *own, "images/s", "seconds")
    rows = [
        (
            short_name(label, 22),
            *([optimizer] * len(named)),
            *(_end(result) for _ in ends),
            *_numbers(result.values, own, result),
        )
        for label, optimizer, result in results
    ]
    text = table_formats.aligned(head, rows, left=1 + len(named) + len(ends), rule=True)
    starts = [
        f"{short_name(label, 22)} {result.startup_seconds:.1f}"
        for label, _, result in results
        if result.startup_seconds > STARTUP_SHARE * result.seconds
    ]
    return f"{text}\nSeconds are without the start-up: {', '.join(starts)}" if starts else text


def _end(result: Result) -> str:
    return "diverged" if result.diverged else "finished"


def _numbers(values: Mapping[str, float], own: Sequence[str], result: Result) -> tuple[str, ...]:
    losses = [_number(values.get(name), "{:.4f}") for name in ("train/epoch_loss", "test/loss")]
    further = [_number(values.get(name), "{:.4g}") for name in own]
    speed, seconds = f"{result.images_per_second:,.0f}", f"{result.seconds - result.startup_seconds:.1f}"
    return f"{result.steps:,}", *losses, _number(values.get(ACCURACY), "{:.2%}"), *further, speed, seconds


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
