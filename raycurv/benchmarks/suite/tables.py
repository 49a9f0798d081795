"""Tables of the suite: one setting for all tasks, and the cost to the target of each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from raycurv.benchmarks.suite.methods import SuiteMethod
from raycurv.benchmarks.suite.plan import SuitePlan
from raycurv.benchmarks.suite.runs import (
    Cost,
    SuiteRuns,
    best_loss,
    cost_to_target,
    mean_loss,
    median_cost,
)
from raycurv.benchmarks.suite.tasks import SuiteTask
from raycurv.results import table_formats
from raycurv.results.outcomes import Outcome
from raycurv.results.performance_profile import PerformanceProfile
from raycurv.results.target_score import SIGNIFICANT, profiles_of, score, separation

_FAILED_RATIO = 1000.0  # a final loss above so many times the best counts as a failure
_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


@dataclass(frozen=True)
class LossSummary:
    """Final training losses of one method, over the best of any method on each task.

    Attributes:
        mean: geometric mean over the tasks that did not fail; NaN without any.
        worst: largest of these.
        failures: tasks on which a seed diverged, failed, or ended above a thousand times the best.
        tasks: number of tasks that the method has run on all seeds.
    """

    mean: float
    worst: float
    failures: int
    tasks: int


def complete(plan: SuitePlan, runs: SuiteRuns, method: SuiteMethod) -> list[tuple[SuiteTask, list[Outcome]]]:
    """Tasks, costly ones apart, on which a method has run on all seeds, with its outcomes there."""
    found = [(task, runs.of(task, method)) for task in plan.tasks if not task.costly]
    return [(task, outcomes) for task, outcomes in found if len(outcomes) >= plan.seeds]


def loss_summary(plan: SuitePlan, runs: SuiteRuns, method: SuiteMethod) -> LossSummary:
    """Summary over the tasks that a method has run on all seeds, costly ones apart."""
    ratios = [mean_loss(task, found) / best_loss(task, runs) for task, found in complete(plan, runs, method)]
    held = [ratio for ratio in ratios if ratio <= _FAILED_RATIO]  # NaN where nothing finished on the task
    mean = statistics.geometric_mean(held) if held else math.nan
    return LossSummary(mean, max(held, default=math.nan), len(ratios) - len(held), len(ratios))


def suite_profiles(plan: SuitePlan, runs: SuiteRuns, cost: Cost = "operations") -> list[PerformanceProfile]:
    """Performance profiles of the methods over the tasks that each has run on all seeds, costly ones apart.

    By step time, tasks are left out on which a run that reached the target was not timed.
    """
    costs = {
        method.name: {task.name: median_cost(task, found, cost) for task, found in complete(plan, runs, method)}
        for method in plan.methods
    }
    untimed = {task for found in costs.values() for task, value in found.items() if math.isnan(value)}
    kept = {name: {t: c for t, c in found.items() if t not in untimed} for name, found in costs.items()}
    return profiles_of(kept)


def operations_ratio(plan: SuitePlan, runs: SuiteRuns, method: SuiteMethod) -> float:
    """Operations of a run over those of the cheapest method on the task, as geometric mean over the tasks.

    The search of a tuned method counts. NaN without a run.
    """
    ratios = []
    for task, found in complete(plan, runs, method):
        least = min((c for o in runs.of_task(task) if (c := _operations_of_step(o))), default=math.nan)
        spent = runs.search(task, method) if method.grid else found[:1]
        ratios.append(sum(map(_operations_of_step, spent)) / least)
    held = [ratio for ratio in ratios if ratio > 0]
    return statistics.geometric_mean(held) if held else math.nan


def _operations_of_step(outcome: Outcome) -> float:
    return outcome.operations / outcome.steps if outcome.steps else 0.0


def one_setting_table(plan: SuitePlan, runs: SuiteRuns) -> str:
    """Each method at one setting for everything, against the best on each task, as Markdown."""
    scores, timed = (
        {profile.name: f"{score(profile):.2f}" for profile in suite_profiles(plan, runs, cost)}
        for cost in ("operations", "seconds")
    )
    rows = []
    for method in plan.methods:
        summary = loss_summary(plan, runs, method)
        if not summary.tasks:
            rows.append((math.inf, [method.name, method.kind, "not run yet", *["–"] * 6]))
            continue
        reached = [math.isfinite(median_cost(task, found)) for task, found in complete(plan, runs, method)]
        cells = [*map(_ratio, (summary.mean, summary.worst)), str(summary.failures)]
        cells += [scores[method.name], timed.get(method.name, "–"), f"{sum(reached)} of {len(reached)}"]
        cells.append(_ratio(operations_ratio(plan, runs, method)))
        rows.append((_order(summary, sum(not task.costly for task in plan.tasks)), [method.name, method.kind, *cells]))
    head = (
        "method",
        "setting",
        "loss / best, mean",
        "worst",
        "failures",
        "score",
        "score by step time",
        "targets reached",
        "operations",
    )
    return table_formats.markdown(head, [cells for _, cells in sorted(rows, key=lambda row: row[0])])


def _ratio(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _order(summary: LossSummary, tasks: int) -> float:
    """Place of a row: whole rows by the mean, then those that lack tasks."""
    mean = 1e9 if math.isnan(summary.mean) else summary.mean
    return mean + 1e12 * (summary.tasks < tasks)


def target_table(plan: SuitePlan, runs: SuiteRuns) -> str:
    """Operations to the target of each task with a run, as Markdown: median over the seeds, and the seeds that missed.

    Bold entries do not differ from the best on their task. Brackets hold the operations of what has not run.
    """
    tasks = [task for task in plan.tasks if runs.of_task(task)]
    columns = {task.name: _column(plan, runs, task) for task in tasks}
    rows = [[method.name, *(columns[task.name][method.name] for task in tasks)] for method in plan.methods]
    return table_formats.markdown(["operations to the target", *(task.title for task in tasks)], rows)


def task_table(plan: SuitePlan, runs: SuiteRuns) -> str:
    """Tasks with their steps, targets, expected operations and runs so far, as Markdown."""
    rows = [
        [
            task.title,
            f"`{task.recipe}`" + (f", from `{task.start}`" if task.start else ""),
            f"{task.steps:,}",
            f"{task.metric} {task.target:g}",
            quantity(task.operations),
            f"{plan.done(task, runs)} of {plan.expected(task)}",
        ]
        for task in plan.tasks
    ]
    return table_formats.markdown(("task", "recipe", "steps", "target", "operations of SGD", "runs"), rows)


def _column(plan: SuitePlan, runs: SuiteRuns, task: SuiteTask) -> dict[str, str]:
    found = {method.name: runs.of(task, method) for method in plan.methods}
    medians = {name: median_cost(task, outcomes) for name, outcomes in found.items() if outcomes}
    whole = [name for name in medians if len(found[name]) >= plan.seeds]
    best = min(whole, key=lambda name: medians[name], default=None)
    cells = {}
    for method in plan.methods:
        if method.name not in medians:
            cells[method.name] = _not_run(plan, task, method)
            continue
        missed = sum(math.isinf(cost_to_target(task, o)) for o in found[method.name])
        text = "missed" if math.isinf(medians[method.name]) else quantity(medians[method.name])
        like_best = best is not None and math.isfinite(medians[method.name]) and (
            method.name == best or not _differs(task, found[method.name], found[best])
        )  # fmt: skip
        text = f"**{text}**" if like_best else text
        notes = [f"{missed} of {len(found[method.name])} missed"] if missed else []
        notes += [f"{len(found[method.name])} of {plan.seeds} seeds"] if len(found[method.name]) < plan.seeds else []
        cells[method.name] = text + (f" ({', '.join(notes)})" if notes else "")
    return cells


def _not_run(plan: SuitePlan, task: SuiteTask, method: SuiteMethod) -> str:
    if method not in plan.methods_on(task):
        return "–"
    return f"[{quantity(task.operations * len(method.points))}]"


def _differs(task: SuiteTask, mine: Sequence[Outcome], best: Sequence[Outcome]) -> bool:
    """Whether the logarithms of the costs differ, paired by seed; a missed target and a single seed differ from any."""
    pairs = [(cost_to_target(task, a), cost_to_target(task, b)) for a, b in zip(mine, best, strict=False)]
    if any(math.isinf(a) != math.isinf(b) for a, b in pairs):
        return True
    found = separation([math.log(a / b) for a, b in pairs if math.isfinite(a)])
    return math.isnan(found) or found >= SIGNIFICANT


def quantity(operations: float) -> str:
    """Operations with a prefix, such as ``1.2 T``; NaN is a question mark."""
    if math.isnan(operations):
        return "?"
    for size, unit in _UNITS:
        if operations >= 0.9995 * size:
            return f"{operations / size:.3g} {unit}"
    return f"{operations:.3g}"


def progress(plan: SuitePlan, runs: SuiteRuns) -> str:
    """Runs done and the seconds left on each task, at the mean pace so far, as aligned text."""
    pace = _pace(plan, runs)
    rows, total = [], 0.0
    for task in plan.tasks:
        done, wanted = plan.done(task, runs), plan.expected(task)
        found = runs.of_task(task)
        mean = statistics.fmean(o.seconds for o in found) if found else task.operations * pace
        total += (left := (wanted - done) * mean)
        rows.append((task.name, f"{done} of {wanted}", _hours(left)))
    return table_formats.aligned(("task", "runs", "left"), [*rows, ("all", "", _hours(total))], left=1)


def _pace(plan: SuitePlan, runs: SuiteRuns) -> float:
    """Seconds over expected operations on the largest task that has run: small ones are all overhead. NaN without."""
    found = [(task.operations, outcomes) for task in plan.tasks if (outcomes := runs.of_task(task))]
    if not found:
        return math.nan
    operations, outcomes = max(found, key=lambda pair: pair[0])
    return statistics.fmean(outcome.seconds for outcome in outcomes) / operations


def _hours(seconds: float) -> str:
    return "unknown" if math.isnan(seconds) else f"{seconds / 3600:.1f} h"


def summary_lines(plan: SuitePlan, runs: SuiteRuns) -> list[str]:
    """What the tables show, one sentence a line."""
    commits = sorted({o.labels["commit"][:7] for t in plan.tasks for o in runs.of_task(t) if "commit" in o.labels})
    lines = [
        f"Every method ran on {plan.seeds} seeds at one setting for all tasks.",
        "Tuned methods took the point of a grid that reaches the target first on the first seed, for each task anew.",
        "*loss / best*: training loss at the end over the smallest of any setting on the task, as geometric mean.",
        "*failures*: tasks on which a run diverged, failed, or ended above a thousand times the best.",
        "*score*: mean over τ from 1 to 4 of the share of tasks whose target is reached within τ times the operations "
        "of the best (AlgoPerf, arXiv 2306.07179).",
        "*score by step time*: the same with the steps to the target times the median seconds of a step, which depend "
        "on the machine and on what else runs there.",
        "*operations*: those of a run over the cheapest method's; of tuned methods with the whole search.",
        "Brackets in the table of targets hold the operations that a run would take, for what has not run yet.",
        "A difference counts only where the mean difference · √n over its standard deviation is at least "
        f"{SIGNIFICANT:g} over the n seeds: bold entries do not differ from the best of their column.",
    ]
    return [*lines, f"Commits of the runs: {', '.join(commits)}."] if commits else lines


def page(plan: SuitePlan, runs: SuiteRuns) -> str:
    """All tables and what they show, as Markdown."""
    lines = "\n".join(f"- {line}" for line in summary_lines(plan, runs))
    tables = (one_setting_table(plan, runs), lines, target_table(plan, runs), task_table(plan, runs))
    return "\n\n".join(tables) + "\n"
