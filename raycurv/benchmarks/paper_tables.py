"""All of the papers' tables and figures by name: those of tracked runs, and those computed at once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raycurv.arguments import format_settings
from raycurv.benchmarks import alarm_factor, curveball_table1, red_epoch_time
from raycurv.recipes import papers
from raycurv.recipes.study import Axes
from raycurv.recipes.table import Table, TableEntry
from raycurv.results import table_formats


@dataclass(frozen=True)
class ComputedTable:
    """A table that is computed at once, without runs that MLflow follows.

    Attributes:
        name: name of the table.
        paper: short name of the paper.
        shows: table or figure of the paper.
        measure: function of the scale's number that returns the entries.
        note: note for the reader of the table.
    """

    name: str
    paper: str
    shows: str
    measure: Callable[[float], list[TableEntry]]
    note: str = ""

    def restrict(
        self,
        recipes: Sequence[str] = (),
        optimizers: Sequence[str] = (),
        axes: Axes | None = None,
        seeds: int | None = None,
    ) -> ComputedTable:
        """The whole of it.

        Raises:
            ValueError: a part was asked for.
        """
        if recipes or optimizers or axes or seeds is not None:
            raise ValueError(f"table {self.name!r} is computed as a whole; leave recipes, optimizers, axes, seeds out")
        return self


def _table1(share: float) -> list[TableEntry]:
    """Table 1 with this share of its hundred runs."""
    experiment = curveball_table1.Table1Settings(runs=max(2, round(100 * share)))
    return [
        TableEntry(
            cell.row,
            cell.column,
            cell.mean,
            cell.mean - cell.deviation,
            cell.mean + cell.deviation,
            runs=len(cell.iterations),
            failed=cell.failed,
            tried=cell.runs,
            printed=cell.paper,
            chosen=format_settings(cell.settings),
            form="{:.1f}" if math.isfinite(cell.mean) and cell.mean < 100 else "{:.0f}",
        )
        for cell in curveball_table1.cells(experiment)
    ]


COMPUTED_TABLES = (
    ComputedTable(
        "curveball_table1",
        "CurveBall",
        "Table 1",
        _table1,
        "Iterations to a loss of 1e-4; the scale is a fraction of the 100 runs. "
        "`raycurv benchmark table1` has more choices.",
    ),
    ComputedTable(
        "red_table3",
        "RED",
        "Table 3",
        red_epoch_time.entries,
        "Seconds of an epoch and their ratio, median over 20 rounds, of which the scale is a fraction. "
        "The paper measures on a Quadro RTX 5000.",
    ),
    ComputedTable(
        "salera_appendix_c",
        "SALERA",
        "Fig. 3, appendix C",
        alarm_factor.entries,
        "The factor ζ by which an alarm divides the learning rates: where eq. 12's cost J(ζ) is the smallest.",
    ),
)
TABLES: dict[str, Table | ComputedTable] = {**papers.TABLES, **{table.name: table for table in COMPUTED_TABLES}}


def get(name: str) -> Table | ComputedTable:
    """The table called `name`.

    Raises:
        ValueError: there is none; the message has the nearest names.
    """
    if name not in TABLES:
        near = difflib.get_close_matches(name, TABLES, 3) or [n for n in TABLES if name and name in n][:3]
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"there is no table {name!r}; {hint}all of them: {', '.join(TABLES)}")
    return TABLES[name]


def listing() -> str:
    """All tables with paper, number, runs and what is trained, one a line."""
    head = ("table", "paper", "shows", "runs", "printed", "recipes")
    return table_formats.aligned(head, [_line(table) for table in TABLES.values()])


def _line(table: Table | ComputedTable) -> tuple[str, ...]:
    if isinstance(table, ComputedTable):
        return table.name, table.paper, table.shows, "–", "yes", "computed at once"
    printed = sum(map(len, table.printed.values()))
    shown = f"{printed} entries" if printed else "–"
    return table.name, table.paper, table.shows, str(len(table)), shown, " ".join(table.recipes)
