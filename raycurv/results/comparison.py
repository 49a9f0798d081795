"""Comparison table: tuning-free optimizers at their defaults against tuned baselines, search included."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from raycurv.results import table_formats
from raycurv.results.conditions import (
    conditions,
    differing_conditions,
    differing_values,
    frozen,
    group_runs,
    without_length,
)
from raycurv.results.outcomes import EvaluationPoint, Outcome

LOSS, ACCURACY = "train/epoch_loss", "test/accuracy"
NAMED = 5  # largest number of comparisons named in one sentence


@dataclass(frozen=True)
class MethodRow:
    """One optimizer on one recipe, under one set of conditions.

    Step time is the number of steps times the median seconds of a step over all runs of the row. So it leaves out
    evaluation, checkpoints, and what only the first run of a process pays for.

    Attributes:
        recipe: name of the recipe.
        conditions: conditions in which the rows of the recipe differ, such as ``epochs=3``, as text.
        optimizer: name of the registered optimizer.
        setting: settings found by its search, as text; empty for an optimizer at its defaults, and where a search found
            none.
        weights: ``raw`` or ``averaged``.
        loss: training loss at the end, mean over the seeds; NaN if no seed finished.
        spread: standard deviation of the loss over the seeds.
        accuracy: test accuracy at the end, mean over the seeds.
        epochs_to_target: mean over the seeds that reach the comparison's target.
        operations_to_target: floating-point operations, in proportion to the steps, mean over the same seeds.
        step_time_to_target: step time in seconds, mean over the same seeds.
        operations: total floating-point operations of the search, plus the mean over the seeds of a final run; 0 if
            unknown.
        step_time: total step time of the search, plus the mean over the seeds of a final run; seconds with everything
            where no step was timed.
        step_seconds: seconds of a step, median over the runs and the search; 0 if no step was timed.
        startup_seconds: total extra seconds of the first steps of the search, plus the mean over the seeds.
        seconds: total seconds of the search, plus the mean over the seeds of a final run, everything included.
        searched: number of trials of the search.
        failed: number of runs that failed, diverged or ran out of time, the search included.
        runs: number of all runs, the search included.
        metrics: further metrics of the test set at the end by name, means over the seeds.
        accuracy_spread: standard deviation of the accuracy over the seeds.
        seeds: number of final runs that finished.
        differing: the conditions by name.
        outcomes: the final runs.
    """

    recipe: str
    conditions: str
    optimizer: str
    setting: str
    weights: str
    loss: float
    spread: float
    accuracy: float
    epochs_to_target: float
    operations_to_target: float
    step_time_to_target: float
    operations: float
    step_time: float
    step_seconds: float
    startup_seconds: float
    seconds: float
    searched: int
    failed: int
    runs: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    accuracy_spread: float = math.nan
    seeds: int = 0
    differing: Mapping[str, str] = field(default_factory=dict)
    outcomes: tuple[Outcome, ...] = ()

    @property
    def method(self) -> str:
        """Optimizer and setting."""
        return f"{self.optimizer} {self.setting}".rstrip()

    @property
    def comparison(self) -> str:
        """Recipe and conditions: rows are compared where these are equal."""
        return f"{self.recipe} ({self.conditions})" if self.conditions else self.recipe


@dataclass(frozen=True)
class _Entry:
    """Runs of one row: final ones, and those of the search."""

    recipe: str
    conditions: Mapping[str, str]
    runs: tuple[Outcome, ...]
    search: tuple[Outcome, ...]

    @property
    def comparison(self) -> tuple[object, ...]:
        same = {name: value for name, value in self.conditions.items() if name != "steps"}
        return self.recipe, frozen(same)


def compare_methods(outcomes: Sequence[Outcome]) -> list[MethodRow]:
    """Rows of the comparison: one for every group of final runs that differ in their seed alone, and kind of weights.

    The conditions of a row (epochs, batch size, network, ...) are those of :mod:`raycurv.results.conditions`. Rows of
    equal recipe and conditions are compared. Their target is the training loss at the end of the best optimizer with a
    search. Without a search, it is that of the best of all optimizers. The rows state how much compute each optimizer
    needs to reach the target. A search belongs to the final runs that differ in optimizer settings and length alone. A
    search without a final run has a row of its own, without a loss.
    """
    entries = _entries(outcomes)
    differing = differing_values([(entry.recipe, entry.conditions) for entry in entries])
    compared: dict[tuple[object, ...], list[Outcome]] = {}
    for entry in entries:
        compared.setdefault(entry.comparison, []).extend((*entry.runs, *entry.search))
    targets = {comparison: target_of(runs) for comparison, runs in compared.items()}
    rows = []
    for entry, values in zip(entries, differing, strict=True):
        for prefix in ("", "averaged/"):
            if not prefix or any(o.last(prefix + ACCURACY) is not None for o in entry.runs):
                rows.append(_row(entry, values, targets[entry.comparison], prefix))
    order = {recipe: place for place, recipe in enumerate(dict.fromkeys(o.recipe for o in outcomes))}
    return sorted(rows, key=lambda row: order[row.recipe])


def _entries(outcomes: Sequence[Outcome]) -> list[_Entry]:
    searches: dict[tuple[object, ...], list[Outcome]] = {}
    for o in outcomes:
        if o.stage == "search":
            searches.setdefault(_search_key(o), []).append(o)
    groups = group_runs(o for o in outcomes if o.stage == "final")
    entries, used = [], set()
    for group in groups:
        key = _search_key(group.runs[0])
        used.add(key)
        search = tuple(searches.get(key, ()))
        entries.append(_Entry(group.runs[0].recipe, group.conditions, group.runs, search))
    for search in (tuple(found) for key, found in searches.items() if key not in used):
        own, recipe = without_length(conditions(search[0])), search[0].recipe
        same = (e.conditions for e in entries if e.recipe == recipe and without_length(e.conditions) == own)
        entries.append(_Entry(recipe, next(same, own), (), search))
    return entries


def _search_key(outcome: Outcome) -> tuple[object, ...]:
    return outcome.recipe, outcome.optimizer, frozen(without_length(conditions(outcome)))


def target_of(outcomes: Sequence[Outcome]) -> float:
    """Target training loss (see :func:`compare_methods`); NaN if no run finished."""
    tuned = {o.optimizer for o in outcomes if o.stage == "search"}
    means = []
    for group in group_runs(o for o in outcomes if o.stage == "final"):
        if not tuned or group.runs[0].optimizer in tuned:
            losses = [_loss(o, LOSS) for o in group.runs if o.status == "finished"]
            means.append(_mean([loss for loss in losses if math.isfinite(loss)]))
    return min((mean for mean in means if math.isfinite(mean)), default=math.nan)


def conclusions(rows: Sequence[MethodRow]) -> list[str]:
    """Conclusion of each comparison: compute of the best tuned baseline over one untuned run's, at equal training loss.

    Comparisons without a search share one sentence at the end.
    """
    lines, unsearched = [], []
    for name in dict.fromkeys(row.comparison for row in rows):
        raw = [row for row in rows if row.comparison == name and row.weights == "raw"]
        if any(row.searched for row in raw):
            lines.append(f"{name}: {_conclusion(raw)}")
        else:
            unsearched.append(name)
    if unsearched:
        more = f" and {len(unsearched) - NAMED} more" if len(unsearched) > NAMED else ""
        names = ", ".join(unsearched[:NAMED])
        lines.append(f"{names}{more}: no baseline was tuned by a search, so there is nothing to compare with.")
    return lines


def _conclusion(rows: Sequence[MethodRow]) -> str:
    tuned = [row for row in rows if row.searched and math.isfinite(row.loss)]
    free = [row for row in rows if not row.searched and math.isfinite(row.epochs_to_target)]
    if not tuned:
        lost = ", ".join(f"{row.optimizer}, {row.failed} of {row.runs} runs failed" for row in rows if row.searched)
        return f"no tuned baseline came to its end ({lost}), so there is nothing to compare with."
    best = min(tuned, key=lambda row: row.loss)
    if not free:
        return (
            f"no untuned optimizer reached the training loss {best.loss:.4g} of tuned {best.optimizer} "
            f"({best.searched} trials of search)."
        )
    counted = best.operations and all(row.operations for row in free)
    fastest = min(free, key=lambda row: row.operations_to_target if counted else row.step_time_to_target)
    work = f"{best.operations / fastest.operations_to_target:.1f}× the operations and " if counted else ""
    time = best.step_time / max(fastest.step_time_to_target, 1e-9)
    what = "step time" if best.step_seconds and fastest.step_seconds else "seconds"
    return (
        f"{best.optimizer} and its search of {best.searched} trials took {work}{time:.1f}× the {what} that "
        f"untuned {fastest.optimizer} takes to the same training loss, {best.loss:.4g}."
    )


def markdown(rows: Sequence[MethodRow]) -> str:
    """The table in Markdown, best loss first within each comparison."""
    return table_formats.markdown(header(rows), cells(rows))


def further_metrics(outcomes: Sequence[Outcome]) -> list[str]:
    """Metrics of the test set that runs measured beside loss and accuracy, in their order."""
    found = dict.fromkeys(name for o in outcomes for point in o.points for name in point.values)
    return [name for name in found if name.startswith("test/") and name not in ("test/loss", ACCURACY)]


def _metric_columns(rows: Sequence[MethodRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


def comma_separated(rows: Sequence[MethodRow]) -> str:
    """All fields of the table in CSV."""
    names = [f.name for f in fields(MethodRow) if f.name not in ("metrics", "differing", "outcomes")]
    further = _metric_columns(rows)
    lines = ([*(getattr(row, n) for n in names), *(row.metrics.get(n, math.nan) for n in further)] for row in rows)
    return table_formats.comma_separated((*names, *further), lines)


def header(rows: Sequence[MethodRow] = ()) -> list[str]:
    """Titles of the columns; further metrics follow the accuracy."""
    return [
        "recipe",
        *(["conditions"] if any(row.conditions for row in rows) else []),
        "optimizer",
        "found by search",
        "weights",
        "training loss",
        "test accuracy",
        *(name.removeprefix("test/") for name in _metric_columns(rows)),
        "epochs to target",
        "operations to target",
        "step time to target (s)",
        "total operations",
        "total step time (s)",
        "ms a step",
        "start-up (s)",
        "failed runs",
    ]


def cells(rows: Sequence[MethodRow]) -> list[list[str]]:
    """The table as text, best loss first within each comparison."""
    order = {name: i for i, name in enumerate(dict.fromkeys(row.comparison for row in rows))}
    ranked = sorted(rows, key=lambda r: (order[r.comparison], r.loss if math.isfinite(r.loss) else math.inf))
    with_conditions = any(row.conditions for row in rows)
    return [_cells(row, with_conditions, _metric_columns(rows)) for row in ranked]


def _cells(row: MethodRow, with_conditions: bool, metrics: Sequence[str]) -> list[str]:
    spread = f" ± {row.spread:.2g}" if math.isfinite(row.spread) else ""
    return [
        row.recipe,
        *([row.conditions] if with_conditions else []),
        row.optimizer,
        _found(row),
        row.weights,
        f"{_number(row.loss)}{spread}",
        _number(row.accuracy, "{:.2%}"),
        *(_number(row.metrics.get(name, math.nan)) for name in metrics),
        _number(row.epochs_to_target),
        _number(row.operations_to_target or math.nan, "{:.3g}"),
        _number(row.step_time_to_target),
        _number(row.operations or math.nan, "{:.3g}"),
        _number(row.step_time),
        _number(1000 * row.step_seconds or math.nan, "{:.3g}"),
        _number(row.startup_seconds if row.step_seconds else math.nan, "{:.2g}"),
        f"{row.failed} of {row.runs}",
    ]


def _found(row: MethodRow) -> str:
    if not row.searched:
        return row.setting or "nothing"
    found = "no setting" if row.runs == row.searched else row.setting or "defaults"
    return f"{found} ({row.searched} trials)"


def _row(entry: _Entry, differing: Mapping[str, str], target: float, prefix: str) -> MethodRow:
    runs, search = entry.runs, entry.search
    everything = [*runs, *search]
    finished = [o for o in runs if o.status == "finished"]
    losses = [loss for o in finished if math.isfinite(loss := _loss(o, prefix + LOSS))]
    accuracies = [value for o in finished if math.isfinite(value := _loss(o, prefix + ACCURACY))]
    reached = [(o, p) for o in finished if (p := _reach(o, prefix + LOSS, target)) is not None]
    timed = [o.step_seconds for o in everything if o.step_seconds]
    pace = statistics.median(timed) if timed else 0.0

    def step_time(o: Outcome) -> float:
        return o.steps * pace if pace else o.seconds

    def total(cost: Callable[[Outcome], float]) -> float:
        return (_mean([cost(o) for o in runs]) if runs else 0.0) + sum(cost(o) for o in search)

    def to_target(cost: Callable[[Outcome], float]) -> float:
        return _mean([cost(o) * point.step / max(o.steps, point.step, 1) for o, point in reached])

    return MethodRow(
        recipe=entry.recipe,
        conditions=", ".join(f"{name}={value}" for name, value in differing.items()),
        optimizer=everything[0].optimizer,
        setting=runs[0].setting if runs else "",
        weights="averaged" if prefix else "raw",
        loss=_mean(losses),
        spread=_spread(losses),
        accuracy=_mean(accuracies),
        epochs_to_target=_mean([point.epoch for _, point in reached]),
        operations_to_target=to_target(lambda o: o.operations),
        step_time_to_target=to_target(step_time) if pace else _mean([point.seconds for _, point in reached]),
        operations=total(lambda o: o.operations),
        step_time=total(step_time),
        step_seconds=pace,
        startup_seconds=total(lambda o: o.startup_seconds),
        seconds=total(lambda o: o.seconds),
        searched=len(search),
        failed=sum(o.status in ("failed", "diverged", "out of time") for o in everything),
        runs=len(everything),
        metrics={name: _mean_of_last(finished, prefix + name) for name in further_metrics(finished)},
        accuracy_spread=_spread(accuracies),
        seeds=len(finished),
        differing=differing,
        outcomes=runs,
    )


def _mean_of_last(outcomes: Sequence[Outcome], metric: str) -> float:
    return _mean([value for o in outcomes if math.isfinite(value := _loss(o, metric))])


def _loss(outcome: Outcome, metric: str) -> float:
    value = outcome.last(metric)
    return math.nan if value is None else value


def _reach(outcome: Outcome, metric: str, target: float) -> EvaluationPoint | None:
    """The first evaluation at or below the target."""
    return next((p for p in outcome.points if p.values.get(metric, math.inf) <= target), None)


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


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


def runs_on_networks(outcomes: Sequence[Outcome]) -> dict[str, dict[str, list[Outcome]]]:
    """Runs by method and random network: several of one method and network differ in their seed alone.

    Runs of other epochs, batch size or recipe are other methods.
    """
    known = [
        ("", {name: v for name, v in o.conditions.items() if not name.startswith("model.")} | {"recipe": o.recipe})
        for o in outcomes
    ]
    found: dict[str, dict[str, list[Outcome]]] = {}
    for o, text in zip(outcomes, differing_conditions(known), strict=True):
        method = " ".join(filter(None, (o.optimizer, o.setting, text)))
        found.setdefault(method, {}).setdefault(o.labels["network"], []).append(o)
    return found


def compare_over_networks(outcomes: Sequence[Outcome]) -> list[NetworkQuartiles]:
    """Median and quartiles over the networks of a sweep (CurveBall, Fig. 3 left), failures counted.

    The loss of a method on a network is the mean over its seeds. With a seed that did not finish it counts as failed.
    """
    methods = runs_on_networks(outcomes)
    losses = {
        method: {
            network: _mean([_loss(o, LOSS) for o in runs])
            for network, runs in networks.items()
            if all(o.status == "finished" for o in runs)
        }
        for method, networks in methods.items()
    }
    wins = Counter(_best_on(network, losses) for network in dict.fromkeys(o.labels["network"] for o in outcomes))
    rows = []
    for method, networks in methods.items():
        finished = [o for network in losses[method] for o in networks[network]]
        lower, median, upper = _quartiles(list(losses[method].values()))
        accuracy = _quartiles([_loss(o, ACCURACY) for o in finished])[1]
        seconds = _quartiles([o.seconds for o in finished])[1]
        failed = len(networks) - len(losses[method])
        rows.append(
            NetworkQuartiles(method, median, lower, upper, accuracy, wins[method], failed, len(networks), seconds)
        )
    return sorted(rows, key=lambda row: row.median if math.isfinite(row.median) else math.inf)


def _best_on(network: str, losses: Mapping[str, Mapping[str, float]]) -> str:
    """Method with the lowest loss on a network; empty without a finite one."""
    known = {m: found[network] for m, found in losses.items() if math.isfinite(found.get(network, math.nan))}
    return min(known, key=lambda method: known[method], default="")


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
