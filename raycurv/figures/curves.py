"""Curves of runs over epochs or time: mean and range over the seeds, for any optimizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raycurv.figures import style
from raycurv.results import binning, histories, table_formats
from raycurv.results.binning import BandKind, Reduction
from raycurv.results.conditions import group_runs
from raycurv.results.histories import Array, MetricTrace, RunHistory
from raycurv.results.outcomes import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Axis = Literal["epoch", "seconds"]
LineStyles = Mapping[str, Mapping[str, Any]]  # name of a line → colour, dashes, marker
DECAY = 0.99  # largest decay of a moving average, for each step (RED, Fig. 1)
_AVERAGED = 0.1  # largest share of a run that a moving average looks back over
TITLES = {
    "train/loss": "mini-batch loss",
    "train/l2_term": "L2 term of the objective",
    "train/batch_error": "mini-batch error",
    "train/epoch_loss": "training loss",
    "train/gradient_norm": "gradient norm",
    "test/loss": "test loss",
    "test/accuracy": "test accuracy",
    "averaged/test/loss": "test loss, averaged weights",
    "averaged/test/accuracy": "test accuracy, averaged weights",
    "optimizer/learning_rate": "step size (learning rate)",
    "optimizer/learning_rate/*": "learning rate of each tensor",
    "throughput/images_per_second": "images per second",
}
UNITS = {"epoch": "epochs", "seconds": "wall-clock time in seconds"}
_LOGARITHMIC = ("loss", "learning_rate", "gradient_norm", "damping", "rate", "error")
_ROOM = 1.0  # decades, or spans of the other runs, that a failed run may extend the limits
_DECADES = 3.0  # most decades of a logarithmic axis above the start of runs; twice as many below
_NARROW = 1.5  # a smaller span, as a factor, needs no logarithmic axis
_NEGATIVE = 0.05  # largest share of non-positive values that a logarithmic axis may leave out
_LABELS = 24  # largest number of names beside the lines of a panel
_MARKERS = 12  # number of markers of a line with many points


@dataclass(frozen=True)
class Curve:
    """One line: an optimizer with its setting, over its seeds.

    Attributes:
        name: name in the legend.
        x: epochs, or mean seconds.
        mean: mean over the seeds with a value there; the median where quartiles are shown.
        low: smallest value over the seeds, or lower quartile.
        high: largest value over the seeds, or upper quartile.
        runs: number of runs.
        failed: number of runs that did not finish.
        outer: 5 % and 95 % quantiles, where they are shown.
        ends: last points (x, y) of the runs that did not finish.
    """

    name: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    runs: int
    failed: int
    outer: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    ends: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class MetricPanel:
    """Panel of one metric.

    Attributes:
        metric: name of the metric; a name that ends in ``/*`` gives a line for each metric with this prefix.
        axis: quantity of the horizontal axis.
        reduction: reduction of each run (see :mod:`raycurv.results.binning`).
        spread: band across runs.
        relative: whether each run's values are divided by its first finite one.
        error: whether 1 − value is shown, in per cent: an error in place of an accuracy.
        share: whether the value is shown in per cent.
        title: title of the vertical axis; by default that of the metric.
    """

    metric: str
    axis: Axis = "epoch"
    reduction: Reduction = "values"
    spread: BandKind = "range"
    relative: bool = False
    error: bool = False
    share: bool = False
    title: str = ""

    @property
    def label(self) -> str:
        """Label of the vertical axis."""
        bare = self.metric.removeprefix("optimizer/").removesuffix("/*").replace("_", " ")
        title = self.title or TITLES.get(self.metric, bare)
        return f"{title} / its first value" if self.relative else title

    @property
    def logarithmic(self) -> bool:
        """Whether the values need a logarithmic axis, if they are positive."""
        return not (self.error or self.share) and (self.relative or any(word in self.metric for word in _LOGARITHMIC))

    def shown(self, values: Array) -> Array:
        """Convert values to those that are drawn."""
        if self.error:
            return 100 * (1 - values)
        if self.share:
            return 100 * values
        return values / values[np.isfinite(values)][0] if self.relative and np.isfinite(values).any() else values

    @property
    def above(self) -> float:
        """Decades that a logarithmic axis shows above the start of runs: few for a loss, except for its raw peaks."""
        return 0.7 if "loss" in self.metric and (self.metric, self.reduction) != ("train/loss", "values") else _DECADES

    @property
    def worst(self) -> float:
        """Value of a failed run after its end, where quartiles are shown."""
        return 100.0 if self.error else 0.0 if "accuracy" in self.metric else float("inf")


def method_curves(outcomes: Iterable[Outcome], metric: str, axis: Axis = "epoch") -> list[Curve]:
    """Curves of one metric; runs without a finite value of it only count as runs."""
    return [
        line
        for group in group_runs(o for o in outcomes if o.stage == "final")
        for line in metric_curves(
            group.method, [histories.history_of_outcome(o) for o in group.runs], MetricPanel(metric, axis)
        )
    ]


def group_by_method(runs: Iterable[RunHistory]) -> dict[str, list[RunHistory]]:
    """Group runs by optimizer and setting, in the order of each group's first run."""
    groups: dict[str, list[RunHistory]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    return groups


def metric_curves(name: str, runs: Sequence[RunHistory], view: MetricPanel) -> list[Curve]:
    """Curves of the runs of one method in the panel `view`: one called `name`, or one for each matching metric."""
    if not view.metric.endswith("/*"):
        return [_line(name, runs, view, view.metric)]
    metrics = dict.fromkeys(found for run in runs for found in run.matching(view.metric))
    bare = view.metric.removesuffix("/*")
    return [_line(name if metric == bare else metric[len(bare) + 1 :], runs, view, metric) for metric in metrics]


def _line(name: str, runs: Sequence[RunHistory], view: MetricPanel, metric: str) -> Curve:
    failed = [run.outcome.status != "finished" for run in runs]
    traces = [trace for run in runs if (trace := run.traces.get(metric)) is not None]
    lost = [gone for run, gone in zip(runs, failed, strict=True) if metric in run.traces]
    traces = [trace.with_values(view.shown(trace.values)) for trace in traces]
    ends = binning.bin_ends(traces, view.reduction)
    if not len(ends):
        return Curve(name, (), (), (), (), len(runs), sum(failed))
    found = [binning.bin_run(trace, ends, view.reduction, decay_of(trace)) for trace in traces]
    levels, seconds = np.stack([levels for _, levels in found]), np.stack([seconds for seconds, _ in found])
    at = ends if view.axis == "epoch" else _mean(seconds)
    stops = [_end(at if view.axis == "epoch" else s, one[2]) for s, one in zip(seconds, levels, strict=True)]
    if view.spread == "quartiles":
        for one, gone in zip(levels, lost, strict=True):
            known = np.flatnonzero(~np.isnan(one[2]))
            if gone:
                one[:, known[-1] + 1 if len(known) else 0 :] = view.worst
    five = binning.combine_runs(levels, view.spread)
    kept = ~(np.isnan(five[2]) | np.isnan(at))
    outer_low, low, middle, high, outer_high = (tuple(row[kept].tolist()) for row in five)
    return Curve(
        name,
        tuple(at[kept].tolist()),
        middle,
        low,
        high,
        len(runs),
        sum(failed),
        (outer_low, outer_high) if (outer_low, outer_high) != (low, high) else ((), ()),
        tuple(stop for stop, gone in zip(stops, lost, strict=True) if gone and stop is not None),
    )


def decay_of(trace: MetricTrace) -> float:
    """Decay of a run's moving average: :data:`DECAY`, or less for a run so short that this would average all of it."""
    steps = float(trace.steps[-1]) if len(trace) else 0.0
    return min(DECAY, 1 - 1 / max(1.01, _AVERAGED * steps))


def _mean(seconds: Array) -> Array:
    """Mean over the runs with a value in a bin; NaN without any."""
    known = ~np.isnan(seconds)
    return np.where(known, seconds, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)


def _end(x: Array, middle: Array) -> tuple[float, float] | None:
    known = np.flatnonzero(~np.isnan(middle) & ~np.isnan(x))
    return (float(x[known[-1]]), float(middle[known[-1]])) if len(known) else None


def run_counts(outcomes: Iterable[Outcome]) -> str:
    """Sentence with the number of runs and of those that did not finish."""
    found = list(outcomes)
    gone = Counter(o.status for o in found if o.status != "finished")
    how = ", ".join(f"{count} {status}" for status, count in gone.items())
    end = f"{gone.total()} of them did not come to their end ({how})" if gone else "all came to their end"
    return f"{len(found)} run{'s' * (len(found) != 1)}, {end}."


def counts(lines: Sequence[Curve]) -> str:
    """Counts of runs and failures of some lines, for a caption."""
    runs, failed = sum(line.runs for line in lines), sum(line.failed for line in lines)
    gone = f"{failed} of them did not come to their end" if failed else "all came to their end"
    return f"{runs} run{'s' * (runs != 1)}, {gone}"


def caption(lines: Sequence[Curve]) -> str:
    """Caption with the counts of runs and failures."""
    return f"Mean and range over the seeds; {counts(lines)}."


def plot(axes: Axes, found: Sequence[Curve], view: MetricPanel, looks: LineStyles, key: str = "") -> bool:
    """Draw lines with their bands into axes, and set scales and limits to fit them.

    Args:
        axes: axes of one panel.
        found: lines of the panel; those without a point are left out.
        view: panel of the metric that the lines show.
        looks: colour, dashes and marker by name of the line; their order numbers the lines.
        key: prefix of the panel in the ids of an SVG.

    Returns:
        Whether a part of a line lies outside the limits.
    """
    drawn = [line for line in found if line.x]
    order = {name: index for index, name in enumerate(looks)}
    log = view.logarithmic and _suits_logarithm(drawn)
    bottom, top = limits(drawn, log, view.above)
    if log and top < _NARROW * bottom:
        log, (bottom, top) = False, limits(drawn, False)
    style.scale(axes, "x", view.axis == "seconds")
    style.scale(axes, "y", log, (bottom, top))
    reach = (_clip_limit(bottom, top, log), _clip_limit(top, bottom, log))
    for line in drawn:
        index, look = order[line.name], dict(looks[line.name])
        every = max(1, len(line.x) // _MARKERS)
        options = {"markersize": 3.5, "markevery": (index * every // 4 % every, every), "linewidth": 1.4, **look}
        (curve,) = axes.plot(line.x, np.clip(line.mean, *reach), label=line.name, **options)
        curve.set_gid(f"series-{index}-{key}line")
        if (line.low, line.high) != (line.mean, line.mean):
            sides = np.clip(line.low, *reach), np.clip(line.high, *reach)
            band = axes.fill_between(line.x, *sides, color=look["color"], alpha=0.18, linewidth=0)
            band.set_gid(f"series-{index}-{key}band")
        for side, values in zip(("lower", "upper"), line.outer, strict=True):
            if values:
                options = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 0.6}
                (thin,) = axes.plot(line.x, np.clip(values, *reach), **options)
                thin.set_gid(f"series-{index}-{key}{side}")
        if line.ends:
            x, y = np.transpose(line.ends)
            cross = axes.scatter(x, y.clip(bottom, top), marker="x", color=look["color"], s=30, zorder=4, clip_on=False)
            cross.set_gid(f"series-{index}-{key}ends")
    axes.set_xlabel(UNITS[view.axis])
    axes.set_ylabel(view.label + (" (%)" if view.error or view.share else ""))
    axes.grid(alpha=0.3)
    return any(not bottom <= value <= top for line in drawn for value in line.mean)


def _suits_logarithm(drawn: Sequence[Curve]) -> bool:
    values = np.array([value for line in drawn for value in line.mean])
    return bool(len(values)) and float(np.mean(values <= 0)) <= _NEGATIVE


def _clip_limit(side: float, other: float, log: bool) -> float:
    """Value well outside the limits on this side, where longer bands are clipped."""
    return side * (10 if side > other else 0.1) if log else 2 * side - other


def limits(drawn: Sequence[Curve], log: bool, above: float = _DECADES) -> tuple[float, float]:
    """Vertical limits, which a few distant points do not stretch.

    Args:
        drawn: lines with their bands.
        log: whether the axis is logarithmic.
        above: decades of interest above the start of runs. If few, as for a loss, the limits are those of the lines
            without failed runs, extended by a decade for the others.
    """
    every = _span(drawn, log, above) or (0.0, 1.0)
    sound = drawn if above >= _DECADES else [line for line in drawn if not line.failed]
    low, high = _span(sound, log, above) or every
    room = _ROOM if log else _ROOM * (high - low)
    low, high = max(every[0], low - room), min(every[1], high + room)
    margin = 0.04 * (high - low) or (0.3 if log else 0.05 * abs(high) or 0.5)
    low, high = low - margin, high + margin
    return (10.0**low, 10.0**high) if log else (low, high)


def _span(drawn: Sequence[Curve], log: bool, above: float) -> tuple[float, float] | None:
    """Smallest and largest value within the range that can be shown, or their logarithms."""
    values = _known([v for line in drawn for v in (*line.mean, *line.low, *line.high, *sum(line.outer, ()))], log)
    if not len(values):
        return None
    first = _known([line.mean[0] for line in drawn], log)
    if not log or not len(first):
        lowest, highest = np.quantile(values, (0.05, 0.95))
        down = up = float(2 * (highest - lowest)) or np.inf
    else:
        lowest, highest = first.min(), first.max() if above >= _DECADES else np.median(first)
        down, up = 2 * _DECADES, above
    near = values[(values >= lowest - down) & (values <= highest + up)]
    return float(near.min()), float(near.max())


def _known(values: Sequence[float], log: bool) -> Array:
    found = np.asarray(values, dtype=np.float64)
    found = np.log10(found[found > 0]) if log else found
    return found[np.isfinite(found)]


def draw(found: Sequence[Curve], metric: str, axis: Axis = "epoch") -> Figure:
    """Draw a figure of one metric; losses and time have logarithmic axes.

    Raises:
        ValueError: no line has a point.
        ImportError: matplotlib is not installed.
    """
    drawn = [line for line in found if line.x]
    if not drawn:
        raise ValueError(f"no run has a finite value of {metric!r}: there is nothing to draw")
    looks = style.lines(line.name for line in drawn)
    return draw_labelled(drawn, MetricPanel(metric, axis), looks, (8.2, 4.2))


def draw_labelled(
    drawn: Sequence[Curve],
    view: MetricPanel,
    looks: LineStyles,
    size: tuple[float, float],
    names: Mapping[str, str] | None = None,
) -> Figure:
    """Draw lines in one panel with their names beside their ends, or below it where there are too many.

    Args:
        drawn: lines with points.
        view: panel of the metric.
        looks: style of each line by name; lines without a name in `names` come first, behind the others.
        size: width and height of the figure in inches; more lines make it higher.
        names: text beside a line, by name; by default the names of all lines.

    Raises:
        ImportError: matplotlib is not installed.
    """
    texts = {
        line.name: style.folded((names or {line.name: line.name})[line.name])
        for line in drawn
        if names is None or line.name in names
    }
    width, height = size
    many = len(texts) > _LABELS
    figure = style.figure_of(width, height)
    axes = figure.subplots()
    plot(axes, drawn, view, looks)
    if many:
        style.legend_below(figure, axes)
        return figure
    style.place_panel(figure, axes, texts.values())
    order = {name: index for index, name in enumerate(looks)}
    ends = [
        (order[line.name], texts[line.name], looks[line.name]["color"], line.x[-1], line.mean[-1])
        for line in drawn
        if line.name in texts
    ]
    style.label_beside(axes, ends)
    return figure


def save(found: Sequence[Curve], metric: str, folder: Path, axis: Axis = "epoch") -> list[Path]:
    """Save a figure as PNG and SVG, with its data.

    Raises:
        ValueError: no line has a point.
        ImportError: matplotlib is not installed.
    """
    stem = f"{metric.replace('/', '-')}-by-{axis}"
    return style.save(draw(found, metric, axis), folder, stem, comma_separated(found, axis))


def comma_separated(found: Sequence[Curve], axis: Axis = "epoch") -> str:
    """Data of all lines as CSV."""
    rows = (
        (line.name, *numbers) for line in found for numbers in zip(line.x, line.mean, line.low, line.high, strict=True)
    )
    return table_formats.comma_separated(("series", axis, "mean", "low", "high"), rows)
