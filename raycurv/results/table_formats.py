"""Tables as Markdown, CSV, LaTeX and aligned text."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Collection, Iterable, Sequence
from typing import Any

Cells = Sequence[str]
_GREEK = {"α": "alpha", "β": "beta", "γ": "gamma", "ζ": "zeta", "η": "eta", "λ": "lambda", "ρ": "rho", "τ": "tau"}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "ℓ": r"$\ell$",
    **{symbol: f"\\{symbol}" for symbol in "&%_#${}"},
    **{digit: f"$_{value}$" for value, digit in enumerate("₀₁₂₃")},
    **{letter: rf"$\{name}$" for letter, name in _GREEK.items()},
}


def markdown(head: Cells, rows: Iterable[Cells]) -> str:
    """A table in Markdown; bars within cells are escaped.

    Args:
        head: titles of the columns.
        rows: rows, each with one cell for every column.

    Raises:
        ValueError: a row has another number of cells than the head.
    """
    rows = list(rows)
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"a row has {len(row)} cells where the head has {len(head)}: {list(row)}")
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def latex(head: Cells, rows: Iterable[Cells], columns: str = "") -> str:
    """A table in LaTeX with booktabs; special characters are escaped.

    Args:
        head: titles of the columns.
        rows: rows, each with one cell for every column.
        columns: alignment of the columns, such as ``"lcc"``; left by default.
    """
    lines = [" & ".join(map(escape_latex, row)) + r" \\" for row in (head, *rows)]
    begin, end = rf"\begin{{tabular}}{{{columns or 'l' * len(head)}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", end])


def escape_latex(text: str) -> str:
    """Escape the special characters of LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def comma_separated(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV with a line of titles; None becomes an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def comma_separated_fields(kind: type, records: Iterable[Any], without: Collection[str] = ()) -> str:
    """Records of one dataclass as CSV, a column for each field.

    Args:
        kind: dataclass whose fields name the columns, also without any record.
        records: instances of `kind`.
        without: names of fields to leave out.
    """
    names = [field.name for field in dataclasses.fields(kind) if field.name not in without]
    return comma_separated(names, ([getattr(record, name) for name in names] for record in records))


def format_operations(number: float) -> str:
    """A number of floating-point operations with its unit, such as ``4.3 GFLOP``."""
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2g} {unit}FLOP" if number < 100 * size else f"{number / size:.0f} {unit}FLOP"
    return f"{number:.0f} FLOP"


def aligned(head: Cells, rows: Sequence[Cells], *, left: int | None = None, rule: bool = False) -> str:
    """A table as text, each column as wide as its longest cell.

    Args:
        head: titles of the columns.
        rows: rows, each with one cell for every column.
        left: number of columns aligned to the left, by default all; the others are aligned to the right.
        rule: whether to draw a line under the titles.
    """
    left = len(head) if left is None else left
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], *(["  ".join("─" * width for width in widths)] if rule else []), *lines[1:]])
