"""A paper's table with our numbers and the paper's side by side, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from raycurv.recipes.table import TableEntry
from raycurv.results import table_formats


def write_table(name: str, title: str, entries: Sequence[TableEntry], artifact: Callable[[str, str], None]) -> str:
    """Write the table as Markdown, CSV and LaTeX, and return the Markdown text.

    Args:
        name: name of the files without extension.
        title: line above the table.
        entries: entries of the table.
        artifact: function that stores a file, given its name and its content.
    """
    head, rows = cells(entries)
    text = f"{title}\n\n{table_formats.markdown(head, rows)}\n\n{counts(entries)}"
    artifact(f"{name}.md", text)
    artifact(f"{name}.csv", table_formats.comma_separated_fields(TableEntry, entries, without=("form",)))
    artifact(f"{name}.tex", table_formats.latex(head, rows, "l" + "c" * (len(head) - 1)))
    return text


def entry_text(entry: TableEntry) -> str:
    """Ours, its spread, the setting that was chosen, the runs behind it, and the paper's in brackets."""
    parts = ["–" if math.isnan(entry.value) else entry.form.format(entry.value)]
    if math.isfinite(entry.low) and entry.quartiles:
        parts.append(f"({entry.form.format(entry.low)} to {entry.form.format(entry.high)})")
    elif math.isfinite(entry.low):
        parts.append(f"± {entry.form.format(entry.value - entry.low)}")
    if entry.chosen:
        parts.append(f"at {entry.chosen}")
    if entry.tried:
        lost = f", {entry.failed} of {entry.tried} failed" if entry.failed else ""
        parts.append(f"({entry.runs} run{'s' if entry.runs != 1 else ''}{lost})")
    if entry.printed:
        parts.append(f"[{entry.printed}]")
    return " ".join(parts)


def cells(entries: Sequence[TableEntry]) -> tuple[list[str], list[list[str]]]:
    """The columns' titles and the rows, whose first cells are their labels."""
    columns = list(dict.fromkeys(entry.column for entry in entries))
    at = {(entry.row, entry.column): entry_text(entry) for entry in entries}
    rows = list(dict.fromkeys(entry.row for entry in entries))
    return ["", *columns], [[row, *(at.get((row, column), "") for column in columns)] for row in rows]


def counts(entries: Sequence[TableEntry]) -> str:
    """What the brackets mean, and what the table lacks."""
    lines = ["Mean ± standard deviation or median (quartiles), chosen setting, runs behind it [the paper's entry]."]
    if robust := {entry.column: entry.robust for entry in entries if entry.robust}:
        chosen = "; ".join(f"{column}: {setting}" for column, setting in robust.items())
        lines.append(f"Settings with the lowest sum of ranks over the rows: {chosen}.")
    if missing := sum(entry.missing > 0 for entry in entries):
        lines.append(f"{missing} of {len(entries)} entries lack runs that have not been trained.")
    return " ".join(lines)
