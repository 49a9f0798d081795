"""Figures of the report page: names beside the lines, captions that begin with the finding, one colour a method."""

from __future__ import annotations

import dataclasses
import html
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raycurv.figures import curves, interactive, style
from raycurv.figures.curves import Axis, Curve, MetricPanel
from raycurv.results import histories
from raycurv.results.comparison import LOSS, MethodRow
from raycurv.results.histories import RunHistory
from raycurv.results.outcomes import Outcome

METRICS: tuple[tuple[str, Axis], ...] = (
    (LOSS, "epoch"),
    (LOSS, "seconds"),
    ("test/loss", "epoch"),
    ("test/accuracy", "epoch"),
)
NAMED = 7  # largest number of lines with a name and a colour
_BEHIND = 30  # largest number of further lines, in grey
_POINTS = 120  # largest number of points of a line
_SLACK = 0.1  # distance from the lowest loss that counts as reached
_GREY: dict[str, Any] = {"color": "#98A1AB", "linewidth": 0.8, "alpha": 0.55, "zorder": 1.5, "marker": ""}
_SIZE = (5.2, 2.9)  # inches


@dataclass(frozen=True)
class _Drawn:
    """A line of a figure with its method and the value at its end, over the runs that finished."""

    method: str
    line: Curve
    end: float


@dataclass(frozen=True)
class PageFigures:
    """Draws the figures of one page.

    Attributes:
        looks: colour, dashes and marker by method, the same in all figures of the page.
    """

    looks: curves.LineStyles
    _histories: dict[int, RunHistory] = field(default_factory=dict)

    def _history(self, outcome: Outcome) -> RunHistory:
        if id(outcome) not in self._histories:
            self._histories[id(outcome)] = histories.history_of_outcome(outcome)
        return self._histories[id(outcome)]

    def of_rows(
        self, key: str, rows: Sequence[MethodRow], metric: str, axis: Axis, labels: Sequence[str]
    ) -> str | None:
        """Figure of a metric over the runs of some rows, the best ones with names; None if nothing was measured.

        Args:
            key: id of the figure on the page.
            rows: rows to draw, the best first.
            metric: name of the metric.
            axis: horizontal axis.
            labels: name of each row's line.
        """
        view = MetricPanel(metric, axis)
        timed = axis == "seconds" and all(row.step_seconds for row in rows)
        found = []
        for row, label in zip(rows, labels, strict=True):
            runs = [self._history(outcome) for outcome in row.outcomes]
            if timed:
                runs = [_by_step_time(run, row.step_seconds) for run in runs]
            (line,) = curves.metric_curves(label, runs, view)
            if line.x:
                found.append(_Drawn(row.method, _thinned(line), _end(row.outcomes, metric, statistics.fmean)))
        time = "step time in seconds" if timed else ""
        return self._embed(key, found, view, "Mean and range over the seeds", time) if found else None

    def of_networks(
        self, key: str, groups: Mapping[str, Sequence[Outcome]], names: Mapping[str, str], metric: str = LOSS
    ) -> str | None:
        """Figure of a metric over random networks: medians with quartiles; None if nothing was measured.

        Args:
            key: id of the figure on the page.
            groups: runs by method, the best first.
            names: short name by method.
            metric: name of the metric.
        """
        view = MetricPanel(metric, spread="quartiles")
        found = []
        for method, outcomes in groups.items():
            (line,) = curves.metric_curves(names[method], [self._history(o) for o in outcomes], view)
            if line.x:
                found.append(_Drawn(method, _thinned(line), _end(outcomes, metric, statistics.median)))
        return self._embed(key, found, view, "Median and quartiles over the networks") if found else None

    def _embed(self, key: str, found: Sequence[_Drawn], view: MetricPanel, what: str, time: str = "") -> str:
        named = [one.line for one in found[:NAMED]]
        behind = [
            dataclasses.replace(one.line, low=one.line.mean, high=one.line.mean, ends=()) for one in found[NAMED:]
        ]
        shown = [*behind[:_BEHIND], *reversed(named)]
        looks: dict[str, Mapping[str, Any]] = {line.name: _GREY for line in behind[:_BEHIND]}
        for one in found[:NAMED]:
            looks[one.line.name] = {**self._look(one.method, looks), "marker": "", "linewidth": 1.7}
        figure = curves.draw_labelled(shown, view, looks, _SIZE, {line.name: line.name for line in named})
        if time:
            figure.axes[0].set_xlabel(time)
        lines = [one.line for one in found]
        hidden = len(behind) - _BEHIND
        texts = [f"<b>{html.escape(_finding(found, view))}</b>", f"{what}; {html.escape(curves.counts(lines))}."]
        if behind:
            texts.append(f"Grey: {min(len(behind), _BEHIND)} further methods.")
        if hidden > 0:
            texts.append(f"{hidden} more are not drawn.")
        if time:
            texts.append("Step time leaves out start-up and evaluation.")
        data = curves.comma_separated([_rounded(line) for line in lines], view.axis)
        return interactive.embed(key, figure, list(looks), " ".join(texts), data)

    def _look(self, method: str, taken: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Style of a method; the same method under other conditions has other dashes."""
        look = dict(self.looks[method])
        dashes = [other.get("linestyle") for other in taken.values() if other["color"] == look["color"]]
        free = [kind for kind in (look["linestyle"], *style.DASHES) if kind not in dashes]
        return {**look, "linestyle": free[0] if free else look["linestyle"]}


def _end(outcomes: Sequence[Outcome], metric: str, mean: Callable[[Sequence[float]], float]) -> float:
    """Value at the end of the runs that finished; NaN without any."""
    last = [o.last(metric) for o in outcomes if o.status == "finished"]
    known = [value for value in last if value is not None and math.isfinite(value)]
    return mean(known) if known else math.nan


def _finding(found: Sequence[_Drawn], view: MetricPanel) -> str:
    """First sentence of a caption: who ends best, or who gets near the lowest loss first."""
    known = [one for one in found if math.isfinite(one.end)]
    if not known:
        return f"No run came to its end with a finite {view.label}."
    if view.axis == "seconds" and len(known) > 1:
        return _fastest(known, view) or _best_end(known, view)
    return _best_end(known, view)


def _fastest(found: Sequence[_Drawn], view: MetricPanel) -> str:
    goal = (1 + _SLACK) * min(min(one.line.mean) for one in found)
    ways = ((zip(one.line.x, one.line.mean, strict=True), one.line.name) for one in found)
    reached = sorted((next((x for x, y in way if y <= goal), math.inf), name) for way, name in ways)
    (time, name), (later, second) = reached[:2]
    if goal <= 0 or not math.isfinite(time):
        return ""
    rest = f", before {second} after {later:.3g} s" if math.isfinite(later) else ""
    return f"{name} comes within a tenth of the lowest {view.label} first, after {time:.3g} s{rest}."


def _best_end(found: Sequence[_Drawn], view: MetricPanel) -> str:
    higher = "accuracy" in view.metric
    form = "{:.1%}" if higher else "{:.3g}"
    first, *rest = sorted(found, key=lambda one: one.end, reverse=higher)
    value = form.format(first.end)
    if not rest:
        return f"{first.line.name} ends with a {view.label} of {value}."
    second = f"{rest[0].line.name} with {form.format(rest[0].end)}"
    return (
        f"{first.line.name} ends with the {'highest' if higher else 'lowest'} {view.label}, {value}, before {second}."
    )


def _by_step_time(run: RunHistory, pace: float) -> RunHistory:
    """The run with the time of its steps in place of the time since its start, which has the start-up in it."""
    traces = {name: dataclasses.replace(trace, seconds=pace * trace.steps) for name, trace in run.traces.items()}
    return dataclasses.replace(run, traces=traces)


def _thinned(line: Curve) -> Curve:
    """The line with at most :data:`_POINTS` points, first and last among them."""
    if len(line.x) <= _POINTS:
        return line
    kept = [round(i * (len(line.x) - 1) / (_POINTS - 1)) for i in range(_POINTS)]
    x, mean, low, high = (tuple(values[i] for i in kept) for values in (line.x, line.mean, line.low, line.high))
    return dataclasses.replace(line, x=x, mean=mean, low=low, high=high, outer=((), ()))


def _rounded(line: Curve) -> Curve:
    x, mean, low, high = (
        tuple(float(f"{value:.5g}") for value in values) for values in (line.x, line.mean, line.low, line.high)
    )
    return dataclasses.replace(line, x=x, mean=mean, low=low, high=high)
