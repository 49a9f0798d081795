"""Figures of several panels, declared in a few lines: views of metrics as rows, recipes or methods as columns.

The caption explains the lines and bands, and counts the runs and the failures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raycurv.figures import curves, style
from raycurv.figures.curves import DECAY, Curve, MetricPanel
from raycurv.figures.rendered_figure import RenderedFigure
from raycurv.results import table_formats
from raycurv.results.histories import RunHistory

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Columns = Literal["recipe", "optimizer", "method"]
WIDEST = 4  # largest number of columns of one file
MOST_METHODS = 14  # largest number of methods in one column: more lines cannot be distinguished
MOST_NAMES = 16  # largest number of names in the legend of one file with several columns
MOST_MARKS = 25  # largest number of vertical lines in one panel; more become strokes at its top
_WIDTH, _HEIGHT = 4.2, 2.7  # size of a panel in inches


@dataclass(frozen=True)
class FigureSpec:
    """Specification of a figure, for any runs.

    Attributes:
        name: stem of the file names.
        source: paper and figure.
        title: title of the figure.
        views: panels, one row each; rows without data in any run are left out.
        columns: subject of each column.
        needs: metrics that a run must have to be shown.
        choose: function that selects the runs to show among those with the needed metrics; by default all.
        one_seed: whether to show only the run with the lowest seed of every method.
        stages: stages of the runs to show.
        ordered: whether to order methods by the numbers in their settings, with colours from dark to bright.
        marks: metric whose rises are marked by vertical lines.
        marked: meaning of such a line.
        hint: instructions to obtain the needed runs.
    """

    name: str
    source: str
    title: str
    views: tuple[MetricPanel, ...]
    columns: Columns = "recipe"
    needs: tuple[str, ...] = ()
    choose: Callable[[list[RunHistory]], list[RunHistory]] = list
    one_seed: bool = False
    stages: tuple[str, ...] = ("final",)
    ordered: bool = False
    marks: str = ""
    marked: str = ""
    hint: str = ""

    def runs(self, found: Sequence[RunHistory]) -> list[RunHistory]:
        """Runs that the figure shows; empty if there is nothing to show."""
        able = [run for run in found if run.outcome.stage in self.stages and all(map(run.matching, self.needs))]
        chosen = self.choose(able)
        if self.one_seed:
            firsts: dict[tuple[str, str], RunHistory] = {}
            for run in sorted(chosen, key=lambda run: run.outcome.seed):
                firsts.setdefault((run.outcome.recipe, run.method), run)
            chosen = [run for run in chosen if firsts[run.outcome.recipe, run.method] is run]
        return chosen if any(run.matching(view.metric) for run in chosen for view in self.views) else []


@dataclass(frozen=True)
class _PanelCurves:
    """One panel: the lines of a view in a column."""

    column: str
    view: MetricPanel
    lines: tuple[Curve, ...]
    marks: tuple[float, ...]


def draw(spec: FigureSpec, found: Sequence[RunHistory]) -> Iterator[RenderedFigure]:
    """Draw the figure, in several parts if its columns do not fit side by side.

    Yields:
        Every part; none if there is no run to show.

    Raises:
        ImportError: matplotlib is not installed.
    """
    runs = spec.runs(found)
    columns: dict[str, list[RunHistory]] = {}
    for run in runs:
        columns.setdefault(_column(spec, run), []).append(run)
    parts = _split_columns({column: len(curves.group_by_method(some)) for column, some in columns.items()})
    for number, part in enumerate(parts, 1):
        yield _draw(spec, {column: columns[column] for column in part}, f"-{number}" if len(parts) > 1 else "")


def _split_columns(methods: Mapping[str, int]) -> list[list[str]]:
    """Split columns into files by the largest number of columns and of names in a legend."""
    parts: list[list[str]] = []
    names = 0
    for column, count in methods.items():
        names += min(count, MOST_METHODS)
        if not parts or len(parts[-1]) == WIDEST or names > MOST_NAMES:
            parts.append([])
            names = min(count, MOST_METHODS)
        parts[-1].append(column)
    return parts


def _draw(spec: FigureSpec, columns: Mapping[str, list[RunHistory]], suffix: str) -> RenderedFigure:
    shown = {column: _best_methods(spec, runs) for column, runs in columns.items()}
    runs = [run for some in shown.values() for run in some]
    names = short_names([run.method for run in runs])
    if spec.columns == "optimizer":  # the title of the column names the optimizer
        names = {method: name.partition(" ")[2] or name for method, name in names.items()}
    cells = [[_cell(spec, view, column, some, names) for column, some in shown.items()] for view in spec.views]
    cells = [row for row in cells if any(line.x for cell in row for line in cell.lines)]
    looks = _line_styles(spec, [line for row in cells for cell in row for line in cell.lines if line.x])
    figure, panels = _make_axes(cells)
    cut = False
    for number, (axes, cell) in enumerate(panels):
        cut |= _draw_panel(axes, cell, looks, f"p{number}-")
    if spec.columns != "recipe":
        _share_vertical_scales(panels, len(columns))
    left_out = sum(map(len, columns.values())) - len(runs)
    title = f"{spec.title} · {next(iter(columns))}" if len(columns) == 1 else spec.title
    text = _caption(spec, runs, cells, cut, left_out)
    handles = _handles(spec, cells, looks)
    height = figure.get_figheight()
    return RenderedFigure(spec.name + suffix, title, figure, height, handles, text, tuple(looks), _data(cells))


def _cell(
    spec: FigureSpec, view: MetricPanel, column: str, runs: Sequence[RunHistory], names: Mapping[str, str]
) -> _PanelCurves:
    lines = [
        line
        for method, some in curves.group_by_method(runs).items()
        for line in curves.metric_curves(names[method], some, view)
    ]
    rises = {round(float(e), 6) for run in runs if spec.marks in run.traces for e in run.traces[spec.marks].rises()}
    return _PanelCurves(column, view, tuple(lines), tuple(sorted(rises)))


def _column(spec: FigureSpec, run: RunHistory) -> str:
    if spec.columns == "recipe":
        return run.outcome.recipe
    return f"{run.outcome.recipe} · {run.method if spec.columns == 'method' else run.outcome.optimizer}"


def short_names(methods: Sequence[str]) -> dict[str, str]:
    """Each method → its name without the settings that all methods of its optimizer share."""
    parts = {method: re.split(r"\s(?=\w+=)", method) for method in dict.fromkeys(methods)}
    names = {}
    for method, (optimizer, *settings) in parts.items():
        others = [set(rest) for name, *rest in parts.values() if name == optimizer]
        same = set.intersection(*others) if len(others) > 1 else set()
        names[method] = " ".join([optimizer, *(text for text in settings if text not in same)])
    return names


def _best_methods(spec: FigureSpec, runs: list[RunHistory]) -> list[RunHistory]:
    """All runs, or those of the :data:`MOST_METHODS` methods with the best last value of the first view."""

    def rank(some: list[RunHistory]) -> float:
        view = spec.views[0]
        last = [t.values[-1] for run in some if (t := run.traces.get(view.metric)) is not None and len(t)]
        value = float(np.mean(last)) if last and np.isfinite(last).all() else float("inf")
        return -value if "accuracy" in view.metric else value

    groups = curves.group_by_method(runs)
    if len(groups) <= MOST_METHODS:
        return runs
    kept = sorted(groups, key=lambda name: rank(groups[name]))[:MOST_METHODS]
    return [run for run in runs if run.method in kept]


def _line_styles(spec: FigureSpec, lines: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    names = list(dict.fromkeys(line.name for line in lines))
    if not spec.ordered:
        return style.lines(names)
    names.sort(key=_numbers)
    return {name: style.ordered(index, len(names)) for index, name in enumerate(names)}


def _numbers(name: str) -> list[float]:
    """Numbers of a method's settings, the sort key of methods."""
    return [float(x) for x in re.findall(r"=(-?\d[\d.]*(?:e[+-]?\d+)?)", name)]


def _make_axes(cells: Sequence[Sequence[_PanelCurves]]) -> tuple[Figure, list[tuple[Axes, _PanelCurves]]]:
    """Axes with one row for each view; a single column is folded."""
    flat = [cell for row in cells for cell in row]
    wide = len(cells[0]) if len(cells[0]) > 1 else min(len(flat), 3 if len(flat) == 3 else 2)
    high = -(-len(flat) // wide)
    figure = style.figure_of(max(_WIDTH * wide, 6.4), _HEIGHT * high)
    grid = figure.subplots(high, wide, squeeze=False)
    for axes in grid.flat[len(flat) :]:
        axes.set_visible(False)
    for axes, cell in zip(grid[0], cells[0], strict=False):
        if len(cells[0]) > 1:
            axes.set_title(style.wrapped(cell.column, 2.6), fontsize="medium")
    return figure, list(zip(grid.flat, flat, strict=False))


def _draw_panel(axes: Axes, cell: _PanelCurves, looks: curves.LineStyles, key: str) -> bool:
    if not any(line.x for line in cell.lines):
        axes.text(0.5, 0.5, f"{cell.view.label}:\nnot tracked", ha="center", va="center", color=style.INK)
        axes.set_axis_off()
        return False
    cut = curves.plot(axes, cell.lines, cell.view, looks, key)
    if cell.view.axis == "epoch":
        if len(cell.marks) <= MOST_MARKS:
            for place in cell.marks:
                axes.axvline(place, color=style.INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        else:
            at = [0.985] * len(cell.marks)
            axes.plot(cell.marks, at, "|", color=style.INK, markersize=6, transform=axes.get_xaxis_transform())
    return cut


def _share_vertical_scales(panels: Sequence[tuple[Axes, _PanelCurves]], wide: int) -> None:
    """Share one vertical scale in each row."""
    for start in range(0, len(panels), wide):
        row = [axes for axes, cell in panels[start : start + wide] if any(line.x for line in cell.lines)]
        if len({axes.get_yscale() for axes in row}) == 1:
            low, high = zip(*(axes.get_ylim() for axes in row), strict=True)
            for axes in row:
                axes.set_ylim(min(low), max(high))


def _handles(spec: FigureSpec, cells: Sequence[Sequence[_PanelCurves]], looks: curves.LineStyles) -> tuple[Artist, ...]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, markersize=3.5, linewidth=1.4, **look) for name, look in looks.items()]
    if any(line.ends for row in cells for cell in row for line in cell.lines):
        handles.append(Line2D([], [], color=style.INK, marker="x", linestyle="", label="a run failed here"))
    if any(cell.marks for row in cells for cell in row):
        handles.append(Line2D([], [], color=style.INK, linewidth=0.9, linestyle=(0, (1, 2)), label=spec.marked))
    return tuple(handles)


def _caption(
    spec: FigureSpec, runs: Sequence[RunHistory], cells: Sequence[Sequence[_PanelCurves]], cut: bool, left_out: int
) -> str:
    views = [row[0].view for row in cells]
    lines = [line for row in cells for cell in row for line in cell.lines]
    several = any(line.runs > 1 for line in lines)
    texts = [f"After {spec.source}."]
    if any(view.spread == "quartiles" for view in views):
        texts.append(
            "Lines are medians over the runs, bands go from quarter to quarter; a run that failed counts as "
            "the worst after its end."
        )
    elif any(view.reduction == "epoch quantiles" for view in views):
        texts.append(
            "Thick lines are the medians of the steps of each epoch, thin ones their 5 % and 95 % quantiles, "
            "bands go from 25 % to 75 %."
        )
    elif several:
        texts.append("Lines are means over the seeds that got there, bands go from the smallest to the largest.")
    else:
        texts.append("Every line is one run.")
    for reduction, text in _REDUCTIONS.items():
        if labels := list(dict.fromkeys(view.label for view in views if view.reduction == reduction)):
            texts.append(f"{' and '.join(labels).capitalize()}: {text}.")
    texts.append(curves.run_counts(run.outcome for run in runs))
    if spec.marks and (marked := sum(len(cell.marks) for cell in cells[0])):
        texts.append(f"Dotted lines or strokes: {spec.marked} ({marked}).")
    if cut:
        texts.append("Values far off the others lie outside the picture; the data have them.")
    if left_out:
        texts.append(
            f"Of each column the {MOST_METHODS} methods with the best {spec.views[0].label} at the end are "
            f"shown; {left_out} more runs are not."
        )
    return " ".join(texts)


_REDUCTIONS = {
    "moving average": f"moving average, {DECAY:g} for each step, over at most a tenth of the run",
    "epoch mean": "mean over the steps of each epoch",
    "epoch end": "at the end of each epoch",
}


def _data(cells: Sequence[Sequence[_PanelCurves]]) -> str:
    head = ("metric", "column", "series", "axis", "x", "q05", "low", "middle", "high", "q95", "runs", "failed")
    return table_formats.comma_separated(head, (values for row in cells for cell in row for values in _values(cell)))


def _values(cell: _PanelCurves) -> Iterator[tuple[object, ...]]:
    """The points of a panel's lines, then its marks.

    Yields:
        The columns of the data.
    """
    for line in cell.lines:
        q05, q95 = (side or ("",) * len(line.x) for side in line.outer)
        for x, *levels in zip(line.x, q05, line.low, line.mean, line.high, q95, strict=True):
            yield cell.view.label, cell.column, line.name, cell.view.axis, x, *levels, line.runs, line.failed
    for mark in cell.marks:
        yield cell.view.label, cell.column, "mark", "epoch", mark, *[""] * 7
