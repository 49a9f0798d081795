"""CurveBall's Table 1: iterations to solve the small problems, the paper's numbers beside.

The rows of RMSProp, AdaGrad and AdaDelta are those of footnote 3, which gives no numbers: they "consistently
underperformed Adam and SGD".

A run counts the steps until the loss without noise is below 1e-4. Runs are the same for every optimizer: the seed
decides start, data and noise. First-order methods take the best point of the paper's grid (appendix B.1).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raycurv import optim
from raycurv.arguments import format_settings
from raycurv.benchmarks import batched_grid_search
from raycurv.models.small_problems import RahimiRechtProblem, SmallProblem, problems
from raycurv.results import table_formats

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Table1Row:
    """An optimizer of Table 1.

    Attributes:
        label: label of the row.
        optimizer: name of the registered optimizer.
        settings: settings of the optimizer; unused where a grid is searched.
        paper: the paper's entries, one for each column; empty where it prints none.
        rule: update rule whose grid is searched, for first-order methods.
    """

    label: str
    optimizer: str
    paper: tuple[str, ...]
    settings: Mapping[str, float] = field(default_factory=dict)
    rule: batched_grid_search.FirstOrderMethod | None = None


ROWS = (
    Table1Row("SGD + momentum", "momentum", ("370 ± 40", "846 ± 217", "4069 ± 565", "95 ± 2"), rule="momentum"),
    Table1Row("Adam", "adam", ("799 ± 160.5", "1290 ± 476", "2750 ± 257", "95 ± 5"), rule="adam"),
    Table1Row("RMSProp", "rmsprop", ("", "", "", ""), rule="rmsprop"),
    Table1Row("AdaGrad", "adagrad", ("", "", "", ""), rule="adagrad"),
    Table1Row("AdaDelta", "adadelta", ("", "", "", ""), rule="adadelta"),
    Table1Row("Levenberg-Marquardt", "levenberg_marquardt", ("16 ± 4", "14 ± 3", "17 ± 4", "9 ± 4")),
    Table1Row("BFGS", "bfgs", ("19 ± 4", "44 ± 21", "63 ± 29", "43 ± 21")),
    Table1Row("Exact Hessian", "newton", ("14 ± 1", "10 ± 3", "17 ± 4", "9 ± 0.5")),
    # λ₀ = 1 is the default of the authors' code; with the text's 10 for networks without batch norm, steps are short.
    Table1Row("CurveBall", "curveball", ("13 ± 0.5", "12 ± 1", "13 ± 1", "35 ± 11"), settings={"damping": 1.0}),
)


@dataclass(frozen=True)
class Table1Cell:
    """One entry of the table.

    Attributes:
        row: label of the optimizer.
        column: name of the problem.
        iterations: iterations of each solved run.
        runs: number of all runs.
        settings: settings of the optimizer.
        paper: the paper's entry; empty if it has none.
    """

    row: str
    column: str
    iterations: tuple[int, ...]
    runs: int
    settings: Mapping[str, float]
    paper: str = ""

    @property
    def failed(self) -> int:
        """Runs that did not reach the tolerance."""
        return self.runs - len(self.iterations)

    @property
    def mean(self) -> float:
        """Mean over the solved runs, NaN if there is none."""
        return statistics.fmean(self.iterations) if self.iterations else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation over the solved runs."""
        return statistics.stdev(self.iterations) if len(self.iterations) > 1 else math.nan

    def text(self) -> str:
        """Mean ± deviation, and the failed runs if there are any."""
        if not self.iterations:
            return f"all {self.runs} failed"
        text = f"{self.mean:.{1 if self.mean < 100 else 0}f} ± {self.deviation:.{1 if self.mean < 100 else 0}f}"
        return f"{text} ({self.failed} failed)" if self.failed else text


@dataclass(frozen=True)
class Table1Settings:
    """Settings of the measurement of Table 1.

    Attributes:
        runs: number of runs for each optimizer and problem.
        seed: seed of the first run; the others follow.
        limit: steps after which a run of a second-order method has failed.
        grid_limits: the same for first-order methods, on Rosenbrock and on Rahimi-Recht.
        trajectories: steps after which grid points are compared, on Rosenbrock and on Rahimi-Recht. The paper does not
            give them; these let the selected point solve every run.
    """

    runs: int = 100
    seed: int = 0
    limit: int = 500
    grid_limits: tuple[int, int] = (20_000, 1_000)
    trajectories: tuple[int, int] = (2000, 200)

    def __post_init__(self) -> None:
        for name in ("runs", "limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"Table1Settings.{name} is {getattr(self, name)!r}; it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"Table1Settings.seed is {self.seed!r}; it must be at least 0")
        if any(not 10 <= steps <= limit for steps, limit in zip(self.trajectories, self.grid_limits, strict=True)):
            raise ValueError(
                f"Table1Settings.trajectories is {self.trajectories!r}; "
                f"each must be at least 10 and at most its limit of {self.grid_limits!r}"
            )

    @property
    def seeds(self) -> range:
        """Seeds of the runs."""
        return range(self.seed, self.seed + self.runs)


def select(optimizers: Sequence[str]) -> tuple[Table1Row, ...]:
    """The rows of these optimizers, in the table's order.

    Raises:
        ValueError: the table has no such optimizer, or none is named.
    """
    known = [row.optimizer for row in ROWS]
    if not optimizers or (unknown := set(optimizers) - set(known)):
        wrong = ", ".join(sorted(unknown)) if optimizers else "nothing"
        raise ValueError(f"Table 1 has no row for {wrong}; its optimizers are {', '.join(known)}")
    return tuple(row for row in ROWS if row.optimizer in optimizers)


def run(problem: SmallProblem, optimizer: str, settings: Mapping[str, Any], seed: int, limit: int) -> int | None:
    """Steps that one optimizer needs on one run, None if it reaches the limit or overflows."""
    instance = problem.instance(seed)
    stepper = optim.create(optimizer, instance.objective.model, **settings)
    for steps in range(limit + 1):
        error = instance.error()
        if error < TOLERANCE:
            return steps
        if not math.isfinite(error) or steps == limit:
            return None
        stepper.step(next(instance.batches))
    return None


def cells(experiment: Table1Settings, rows: Sequence[Table1Row] = ROWS) -> Iterator[Table1Cell]:
    """Measure the table, row by row.

    Yields:
        Every entry as soon as it is known. First-order rows are followed by the point of their grid that was fastest.
    """
    columns = problems()
    for row in rows:
        if row.rule is None:
            for problem, paper in zip(columns, row.paper, strict=True):
                found = [run(problem, row.optimizer, row.settings, seed, experiment.limit) for seed in experiment.seeds]
                solved = tuple(steps for steps in found if steps is not None)
                yield Table1Cell(row.label, problem.name, solved, experiment.runs, row.settings, paper)
            continue
        fastest = []
        for problem, paper in zip(columns, row.paper, strict=True):
            result = _search(experiment, row.rule, problem)
            yield _grid_cell(result, result.selected(), row.label, problem, paper)
            if (index := result.fastest()) is not None:
                fastest.append(_grid_cell(result, index, f"{row.label}, fastest", problem, ""))
        yield from fastest


def _search(
    experiment: Table1Settings, rule: batched_grid_search.FirstOrderMethod, problem: SmallProblem
) -> batched_grid_search.GridResult:
    which = int(isinstance(problem, RahimiRechtProblem))
    return batched_grid_search.search(
        rule,
        problem,
        experiment.seeds,
        trajectory=experiment.trajectories[which],
        limit=experiment.grid_limits[which],
        tolerance=TOLERANCE,
    )


def _grid_cell(
    result: batched_grid_search.GridResult, index: int, label: str, problem: SmallProblem, paper: str
) -> Table1Cell:
    found = result.iterations[index]
    solved = tuple(int(steps) for steps in found[found >= 0])
    return Table1Cell(label, problem.name, solved, len(found), result.points[index], paper)


def to_markdown(measured: Sequence[Table1Cell]) -> str:
    """The table: measured, and the paper's entry in brackets."""
    columns = list(dict.fromkeys(cell.column for cell in measured))
    texts = {(cell.row, cell.column): cell.text() + (f" [{cell.paper}]" if cell.paper else "") for cell in measured}
    rows = dict.fromkeys(cell.row for cell in measured)
    cells = [[row, *(texts.get((row, column), "–") for column in columns)] for row in rows]
    return table_formats.markdown(["", *columns], cells) + "\n"


def to_csv(measured: Sequence[Table1Cell]) -> str:
    """One line for each entry."""
    return table_formats.comma_separated(
        ("optimizer", "problem", "mean", "deviation", "failed", "runs", "settings", "paper"),
        (
            (
                cell.row,
                cell.column,
                f"{cell.mean:.4g}",
                f"{cell.deviation:.4g}",
                cell.failed,
                cell.runs,
                format_settings(cell.settings),
                cell.paper,
            )
            for cell in measured
        ),
    )
