"""Comparison table: tuning-free optimizers at their defaults against tuned baselines, search included."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from raycurv.results import table_formats
from raycurv.results.outcomes import Outcome

LOSS, ACCURACY = "train/epoch_loss", "test/accuracy"


@dataclass(frozen=True)
class MethodRow:
    """One optimizer on one recipe.

    Attributes:
        recipe: name of the recipe.
        optimizer: name of the registered optimizer.
        setting: settings found by its search, as text; empty for an optimizer at its defaults.
        weights: ``raw`` or ``averaged``.
        loss: training loss at the end, mean over the seeds; NaN if no seed finished.
        spread: standard deviation of the loss over the seeds.
        accuracy: test accuracy at the end, mean over the seeds.
        epochs_to_target: mean over the seeds that reach the recipe's target.
        seconds_to_target: mean over the seeds that reach the recipe's target.
        seconds: total seconds of the search, plus the mean over the seeds of a final run.
        operations: total floating-point operations of the search, plus the mean over the seeds of a final run.
        searched: number of trials of the search.
        failed: number of runs that failed, diverged or ran out of time, the search included.
        runs: number of all runs, the search included.
        metrics: further metrics of the test set at the end by name, means over the seeds.
    """

    recipe: str
    optimizer: str
    setting: str
    weights: str
    loss: float
    spread: float
    accuracy: float
    epochs_to_target: float
    seconds_to_target: float
    seconds: float
    operations: float
    searched: int
    failed: int
    runs: int
    metrics: Mapping[str, float] = field(default_factory=dict)


def compare_methods(outcomes: Sequence[Outcome]) -> list[MethodRow]:
    """Rows of the comparison: one for every recipe, optimizer, setting and kind of weights among the final runs.

    The target of a recipe is the training loss at the end of the best optimizer with a search. Without a search, it is
    that of the best of all optimizers. The rows state how much compute each optimizer needs to reach the target.
    """
    rows = []
    for recipe in dict.fromkeys(o.recipe for o in outcomes):
        mine = [o for o in outcomes if o.recipe == recipe]
        target = target_of(mine)
        finals = [o for o in mine if o.stage == "final"]
        for optimizer, setting in dict.fromkeys((o.optimizer, o.setting) for o in finals):
            runs = [o for o in finals if (o.optimizer, o.setting) == (optimizer, setting)]
            search = [o for o in mine if o.optimizer == optimizer and o.stage == "search"]
            for prefix in ("", "averaged/"):
                if not prefix or any(o.last(prefix + ACCURACY) is not None for o in runs):
                    rows.append(_row(runs, search, target, prefix))
    return rows


def target_of(outcomes: Sequence[Outcome]) -> float:
    """Target training loss (see :func:`compare_methods`); NaN if no run finished."""
    finals = [o for o in outcomes if o.stage == "final"]
    tuned = {o.optimizer for o in outcomes if o.stage == "search"}
    losses: dict[tuple[str, str], list[float]] = {}
    for o in finals:
        if (tuned and o.optimizer not in tuned) or o.status != "finished" or not math.isfinite(_loss(o, LOSS)):
            continue
        losses.setdefault((o.optimizer, o.setting), []).append(_loss(o, LOSS))
    return min((m for m in map(_mean, losses.values()) if math.isfinite(m)), default=math.nan)


def conclusions(rows: Sequence[MethodRow]) -> list[str]:
    """Conclusion for each recipe: compute of the best tuned baseline over one untuned run's, at equal training loss."""
    lines = []
    for recipe in dict.fromkeys(row.recipe for row in rows):
        raw = [row for row in rows if row.recipe == recipe and row.weights == "raw"]
        tuned = [row for row in raw if row.searched and math.isfinite(row.loss)]
        free = [row for row in raw if not row.searched and math.isfinite(row.epochs_to_target)]
        if not tuned:
            lines.append(f"{recipe}: no tuned baseline came to its end, so there is nothing to compare with.")
            continue
        best = min(tuned, key=lambda row: row.loss)
        if not free:
            lines.append(
                f"{recipe}: no untuned optimizer reached the training loss {best.loss:.4g} of tuned {best.optimizer} "
                f"({best.searched} trials of search)."
            )
            continue
        fastest = min(free, key=lambda row: row.seconds_to_target)
        lines.append(
            f"{recipe}: {best.optimizer} and its search of {best.searched} trials took {_times(best, fastest)} that "
            f"untuned {fastest.optimizer} takes to the same training loss, {best.loss:.4g}."
        )
    return lines


def _times(best: MethodRow, fastest: MethodRow) -> str:
    seconds = best.seconds / max(fastest.seconds_to_target, 1e-9)
    text = f"{seconds:.1f}× the seconds"
    if not (best.operations and fastest.operations):  # only trials of sweeps count operations
        return text
    work = best.operations / (fastest.operations * fastest.seconds_to_target / fastest.seconds)
    return f"{text} and {work:.1f}× the operations"


def write_comparison(rows: Sequence[MethodRow], artifact: Callable[[str, str], None]) -> str:
    """Write the table as CSV, Markdown and LaTeX artifacts, and return it with its conclusions as text."""
    text = "\n".join([*conclusions(rows), "", markdown(rows)])
    artifact("decision.md", text)
    artifact("decision.csv", _comma_separated(rows))
    artifact("decision.tex", table_formats.latex(header(rows), cells(rows)))
    return text


def markdown(rows: Sequence[MethodRow]) -> str:
    """The table in Markdown, best loss first within each recipe."""
    return table_formats.markdown(header(rows), cells(rows))


def further_metrics(outcomes: Sequence[Outcome]) -> list[str]:
    """Metrics of the test set that runs measured beside loss and accuracy, in their order."""
    found = dict.fromkeys(name for o in outcomes for point in o.points for name in point.values)
    return [name for name in found if name.startswith("test/") and name not in ("test/loss", ACCURACY)]


def _metric_columns(rows: Sequence[MethodRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


def _comma_separated(rows: Sequence[MethodRow]) -> str:
    names = [f.name for f in fields(MethodRow) if f.name != "metrics"]
    further = _metric_columns(rows)
    lines = ([*(getattr(row, n) for n in names), *(row.metrics.get(n, math.nan) for n in further)] for row in rows)
    return table_formats.comma_separated((*names, *further), lines)


def header(rows: Sequence[MethodRow] = ()) -> list[str]:
    """Titles of the columns; further metrics follow the accuracy."""
    return [
        "recipe",
        "optimizer",
        "found by search",
        "weights",
        "training loss",
        "test accuracy",
        *(name.removeprefix("test/") for name in _metric_columns(rows)),
        "epochs to target",
        "seconds to target",
        "total seconds",
        "total operations",
        "failed runs",
    ]


def cells(rows: Sequence[MethodRow]) -> list[list[str]]:
    """The table as text, best loss first within each recipe."""
    order = {recipe: i for i, recipe in enumerate(dict.fromkeys(row.recipe for row in rows))}
    ranked = sorted(rows, key=lambda r: (order[r.recipe], r.loss if math.isfinite(r.loss) else math.inf))
    return [_cells(row, _metric_columns(rows)) for row in ranked]


def _cells(row: MethodRow, metrics: Sequence[str]) -> list[str]:
    spread = f" ± {row.spread:.2g}" if math.isfinite(row.spread) else ""
    found = f"{row.setting or 'defaults'} ({row.searched} trials)" if row.searched else row.setting or "nothing"
    return [
        row.recipe,
        row.optimizer,
        found,
        row.weights,
        f"{_number(row.loss)}{spread}",
        _number(row.accuracy, "{:.2%}"),
        *(_number(row.metrics.get(name, math.nan)) for name in metrics),
        _number(row.epochs_to_target),
        _number(row.seconds_to_target),
        _number(row.seconds),
        _number(row.operations or math.nan, "{:.3g}"),
        f"{row.failed} of {row.runs}",
    ]


def _row(runs: Sequence[Outcome], search: Sequence[Outcome], target: float, prefix: str) -> MethodRow:
    finished = [o for o in runs if o.status == "finished"]
    losses = [loss for o in finished if math.isfinite(loss := _loss(o, prefix + LOSS))]
    reached = [p for p in (_reach(o, prefix + LOSS, target) for o in finished) if p is not None]
    everything = [*runs, *search]
    return MethodRow(
        recipe=runs[0].recipe,
        optimizer=runs[0].optimizer,
        setting=runs[0].setting,
        weights="averaged" if prefix else "raw",
        loss=_mean(losses),
        spread=statistics.stdev(losses) if len(losses) > 1 else math.nan,
        accuracy=_mean_of_last(finished, prefix + ACCURACY),
        epochs_to_target=_mean([epoch for epoch, _ in reached]),
        seconds_to_target=_mean([seconds for _, seconds in reached]),
        seconds=_mean([o.seconds for o in runs]) + sum(o.seconds for o in search),
        operations=_mean([o.operations for o in runs]) + sum(o.operations for o in search),
        searched=len(search),
        failed=sum(o.status in ("failed", "diverged", "out of time") for o in everything),
        runs=len(everything),
        metrics={name: _mean_of_last(finished, prefix + name) for name in further_metrics(finished)},
    )


def _mean_of_last(outcomes: Sequence[Outcome], metric: str) -> float:
    return _mean([value for o in outcomes if math.isfinite(value := _loss(o, metric))])


def _loss(outcome: Outcome, metric: str) -> float:
    value = outcome.last(metric)
    return math.nan if value is None else value


def _reach(outcome: Outcome, metric: str, target: float) -> tuple[float, float] | None:
    """Epochs and seconds to the first evaluation at or below the target."""
    return next(((p.epoch, p.seconds) for p in outcome.points if p.values.get(metric, math.inf) <= target), None)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _number(value: float, form: str = "{:.4g}") -> str:
    return form.format(value) if math.isfinite(value) else "–"


@dataclass(frozen=True)
class NetworkQuartiles:
    """One optimizer on many networks.

    Attributes:
        optimizer: name of the registered optimizer, with its setting.
        median: median of the training loss at the end, over the networks where its run finished.
        lower: first quartile of that loss.
        upper: third quartile of that loss.
        accuracy: median of the test accuracy.
        best_on: number of networks where its loss is the lowest.
        failed: number of networks where its run did not finish.
        networks: number of all networks.
        seconds: median seconds of a run.
    """

    optimizer: str
    median: float
    lower: float
    upper: float
    accuracy: float
    best_on: int
    failed: int
    networks: int
    seconds: float


def compare_over_networks(outcomes: Sequence[Outcome]) -> list[NetworkQuartiles]:
    """Median and quartiles over the networks of a sweep (CurveBall, Fig. 3 left), failures counted."""
    networks: dict[str, dict[str, Outcome]] = {}
    for o in outcomes:
        networks.setdefault(o.labels["network"], {})[f"{o.optimizer} {o.setting}".strip()] = o
    wins: dict[str, int] = {}
    for found in networks.values():
        losses = {n: v for n, o in found.items() if o.status == "finished" and math.isfinite(v := _loss(o, LOSS))}
        if losses:
            best = min(losses, key=lambda name: losses[name])
            wins[best] = wins.get(best, 0) + 1
    rows = []
    for name in dict.fromkeys(name for found in networks.values() for name in found):
        mine = [found[name] for found in networks.values() if name in found]
        finished = [o for o in mine if o.status == "finished"]
        lower, median, upper = _quartiles([_loss(o, LOSS) for o in finished])
        accuracy = _quartiles([_loss(o, ACCURACY) for o in finished])[1]
        seconds = _quartiles([o.seconds for o in finished])[1]
        failed = len(mine) - len(finished)
        rows.append(
            NetworkQuartiles(name, median, lower, upper, accuracy, wins.get(name, 0), failed, len(mine), seconds)
        )
    return sorted(rows, key=lambda row: row.median if math.isfinite(row.median) else math.inf)


def write_network_comparison(rows: Sequence[NetworkQuartiles], artifact: Callable[[str, str], None]) -> str:
    """Write the table of :func:`compare_over_networks` as Markdown and CSV artifacts, and return it as text."""
    head = ("optimizer", "training loss, median [quartiles]", "test accuracy, median", "best on", "failed", "seconds")
    cells = [
        (
            row.optimizer,
            f"{_number(row.median)} [{_number(row.lower)}, {_number(row.upper)}]",
            _number(row.accuracy, "{:.2%}"),
            f"{row.best_on} of {row.networks}",
            str(row.failed),
            f"{row.seconds:.0f}",
        )
        for row in rows
    ]
    text = table_formats.markdown(head, cells)
    artifact("networks.md", text)
    artifact("networks.csv", table_formats.comma_separated_fields(NetworkQuartiles, rows))
    return text


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2:
        return (known[0],) * 3 if known else (math.nan,) * 3
    lower, middle, upper = statistics.quantiles(known, n=4, method="inclusive")
    return lower, middle, upper
