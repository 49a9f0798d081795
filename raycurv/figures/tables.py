"""A paper's table with our numbers and the paper's side by side, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Sequence

from raycurv.recipes.table import TableEntry


def keep(name: str, title: str, entries: Sequence[TableEntry], artifact: Callable[[str, str], None]) -> str:
    """Hand the table over as Markdown, CSV and LaTeX, and return it as text.

    Args:
        name: of the files.
        title: what stands above.
        entries: of the table.
        artifact: takes a file's name and its content.
    """
    text = f"{title}\n\n{markdown(entries)}\n\n{counts(entries)}"
    for kind, content in (("md", text), ("csv", comma_separated(entries)), ("tex", latex(entries))):
        artifact(f"{name}.{kind}", content)
    return text


def text_of(entry: TableEntry) -> str:
    """Ours, its spread, the runs behind it, and the paper's in brackets."""
    parts = ["–" if math.isnan(entry.value) else entry.form.format(entry.value)]
    if math.isfinite(entry.low) and entry.quartiles:
        parts.append(f"({entry.form.format(entry.low)} to {entry.form.format(entry.high)})")
    elif math.isfinite(entry.low):
        parts.append(f"± {entry.form.format(entry.value - entry.low)}")
    if entry.tried:
        lost = f", {entry.failed} of {entry.tried} failed" if entry.failed else ""
        parts.append(f"({entry.runs} run{'s' if entry.runs != 1 else ''}{lost})")
    if entry.printed:
        parts.append(f"[{entry.printed}]")
    return " ".join(parts)


def cells(entries: Sequence[TableEntry]) -> tuple[list[str], list[list[str]]]:
    """The columns' titles and the rows, whose first cells are their labels."""
    columns = list(dict.fromkeys(entry.column for entry in entries))
    at = {(entry.row, entry.column): text_of(entry) for entry in entries}
    rows = list(dict.fromkeys(entry.row for entry in entries))
    return ["", *columns], [[row, *(at.get((row, column), "") for column in columns)] for row in rows]


def counts(entries: Sequence[TableEntry]) -> str:
    """What the brackets mean, and what the table lacks."""
    lines = ["Mean ± standard deviation or median (quartiles), runs behind it [the paper's entry]."]
    if missing := sum(entry.missing > 0 for entry in entries):
        lines.append(f"{missing} of {len(entries)} entries lack runs that have not been trained.")
    return " ".join(lines)


def markdown(entries: Sequence[TableEntry]) -> str:
    """The table in Markdown."""
    head, rows = cells(entries)
    lines = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in (head, *rows)]
    return "\n".join([f"| {lines[0]} |", "|" + "---|" * len(head), *(f"| {line} |" for line in lines[1:])])


def latex(entries: Sequence[TableEntry]) -> str:
    """The table for a paper, with booktabs."""
    head, rows = cells(entries)
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in (head, *rows)]
    begin, end = rf"\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", end])


def comma_separated(entries: Sequence[TableEntry]) -> str:
    """A line for each entry, all numbers as they are."""
    names = [field.name for field in dataclasses.fields(TableEntry) if field.name != "form"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(entry, name) for name in names] for entry in entries)
    return text.getvalue()


def _escaped(text: str) -> str:
    for symbol in "&%_#$":
        text = text.replace(symbol, f"\\{symbol}")
    return text.replace("±", r"$\pm$").replace("–", "--")
