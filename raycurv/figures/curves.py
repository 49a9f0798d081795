"""Curves of runs side by side: mean line and min–max band over the seeds, for any optimizer."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raycurv.figures.style import COLOURS, DASHES, figure_of
from raycurv.train.outcomes import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Axis = Literal["epoch", "seconds"]
TITLES = {
    "train/epoch_loss": "training loss",
    "test/loss": "test loss",
    "test/accuracy": "test accuracy",
    "averaged/test/loss": "test loss, averaged weights",
    "averaged/test/accuracy": "test accuracy, averaged weights",
}
UNITS = {"epoch": "epochs", "seconds": "wall-clock time in seconds"}


@dataclass(frozen=True)
class Series:
    """One line: an optimizer with its setting, over its seeds.

    Attributes:
        name: in the legend.
        x: epochs, or mean seconds.
        mean: over the seeds that got there.
        low: smallest of them.
        high: largest of them.
        runs: seeds.
        failed: those that did not come to their end.
    """

    name: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    runs: int
    failed: int


def series(outcomes: Iterable[Outcome], metric: str, axis: Axis = "epoch") -> list[Series]:
    """The lines of one metric; runs without a finite value of it only count as runs."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.stage == "final":
            groups.setdefault(f"{outcome.optimizer} {outcome.setting}".strip(), []).append(outcome)
    return [_series(name, runs, metric, axis) for name, runs in groups.items()]


def _series(name: str, runs: Sequence[Outcome], metric: str, axis: Axis) -> Series:
    at: dict[float, list[tuple[float, float]]] = {}
    for run in runs:
        for point in run.points:
            value = point.values.get(metric, math.nan)
            if math.isfinite(value):
                at.setdefault(point.epoch, []).append((getattr(point, axis), value))
    found = [(statistics.fmean(x for x, _ in at[e]), [value for _, value in at[e]]) for e in sorted(at)]
    failed = sum(run.status != "finished" for run in runs)
    return Series(
        name, tuple(x for x, _ in found), tuple(statistics.fmean(v) for _, v in found),
        tuple(min(v) for _, v in found), tuple(max(v) for _, v in found), len(runs), failed,
    )  # fmt: skip


def caption(lines: Sequence[Series]) -> str:
    """Counts of runs and failures, for under the figure."""
    runs, failed = sum(line.runs for line in lines), sum(line.failed for line in lines)
    gone = f"{failed} of them did not come to their end" if failed else "all came to their end"
    return f"Mean and range over the seeds; {runs} runs, {gone}."


def draw(lines: Sequence[Series], metric: str, axis: Axis = "epoch") -> Figure:
    """The figure; a loss has a logarithmic axis, and so has time.

    Raises:
        ValueError: no line has a point.
        ImportError: matplotlib is not installed.
    """
    drawn = [line for line in lines if line.x]
    if not drawn:
        raise ValueError(f"no run has a finite value of {metric!r}: there is nothing to draw")
    figure = figure_of(7, 4.5)
    axes = figure.subplots()
    for index, line in enumerate(drawn):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
        (curve,) = axes.plot(line.x, line.mean, dash, color=colour, label=line.name, marker="o", markersize=3)
        band = axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        curve.set_gid(f"series-{index}-line")
        band.set_gid(f"series-{index}-band")
    if "loss" in metric and all(low > 0 for line in drawn for low in line.low):
        axes.set_yscale("log")
    if axis == "seconds":
        axes.set_xscale("log")
    axes.set_xlabel(UNITS[axis])
    axes.set_ylabel(TITLES.get(metric, metric))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def save(lines: Sequence[Series], metric: str, folder: Path, axis: Axis = "epoch") -> list[Path]:
    """PNG, SVG and the data behind them.

    Raises:
        ValueError: no line has a point.
        ImportError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{metric.replace('/', '-')}-by-{axis}"
    paths = [folder / f"{stem}.{kind}" for kind in ("png", "svg")]
    figure = draw(lines, metric, axis)
    for path in paths:
        figure.savefig(path, dpi=150)
    data = folder / f"{stem}.csv"
    data.write_text(comma_separated(lines, axis))
    return [*paths, data]


def comma_separated(lines: Sequence[Series], axis: Axis = "epoch") -> str:
    """The numbers of all lines."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["series", axis, "mean", "low", "high"])
    for line in lines:
        writer.writerows((line.name, *numbers) for numbers in zip(line.x, line.mean, line.low, line.high, strict=True))
    return text.getvalue()
