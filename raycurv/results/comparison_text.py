"""Comparisons as text for a terminal: the columns that fit it, a block for each comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from raycurv.results import comparison, findings, table_formats
from raycurv.results.comparison import MethodRow, NetworkQuartiles


def comparison_text(rows: Sequence[MethodRow]) -> str:
    """The headlines, then a table for each comparison, best loss first.

    Operations and time are those of all steps, the search included. What it took to the target, and the times of a
    start, are in the files of :func:`write_comparison` alone.
    """
    blocks = [*findings.headlines(rows)]
    for name in dict.fromkeys(row.comparison for row in rows):
        found = [row for row in rows if row.comparison == name]
        found.sort(key=lambda row: row.loss if math.isfinite(row.loss) else math.inf)
        blocks += ["", name, _table(found)]
    return "\n".join(blocks)


def write_comparison(rows: Sequence[MethodRow], artifact: Callable[[str, str], None]) -> str:
    """Write the table as CSV, Markdown and LaTeX artifacts, and return it with its headlines as text."""
    text = "\n".join([*findings.headlines(rows), "", comparison.markdown(rows)])
    artifact("decision.md", text)
    artifact("decision.csv", comparison.comma_separated(rows))
    artifact("decision.tex", table_formats.latex(comparison.header(rows), comparison.cells(rows)))
    return text


def networks_text(rows: Sequence[NetworkQuartiles]) -> str:
    """The table of :func:`comparison.compare_over_networks`."""
    head = ("optimizer", "median loss", "quartiles", "accuracy", "best on", "failed", "seconds")
    lines = [
        (
            row.optimizer,
            _number(row.median, ".4g"),
            f"{_number(row.lower, '.4g')} to {_number(row.upper, '.4g')}",
            _number(row.accuracy, ".2%"),
            f"{row.best_on} of {row.networks}",
            str(row.failed),
            f"{row.seconds:.0f}",
        )
        for row in rows
    ]
    return table_formats.aligned(head, lines, left=1, rule=True)


def _table(rows: Sequence[MethodRow]) -> str:
    weights = any(row.weights != "raw" for row in rows)
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    left = ("optimizer", "setting", *(["weights"] if weights else []))
    failures = ["failed"] if any(row.failed for row in rows) else []
    own = (name.removeprefix("test/") for name in metrics)
    head = (*left, "loss", "accuracy", *own, "FLOP", "time", *failures)
    lines = [
        (
            row.optimizer,
            _setting(row),
            *([row.weights] if weights else []),
            _number(row.loss, ".4g") + (f" ± {row.spread:.2g}" if math.isfinite(row.spread) else ""),
            _number(row.accuracy, ".2%"),
            *(_number(row.metrics.get(name, math.nan), ".4g") for name in metrics),
            table_formats.format_operations(row.operations).removesuffix("FLOP").rstrip() if row.operations else "–",
            f"{row.step_time:.1f} s",
            *(f"{row.failed} of {row.runs}" for _ in failures),
        )
        for row in rows
    ]
    return table_formats.aligned(head, lines, left=len(left), rule=True)


def _setting(row: MethodRow) -> str:
    if not row.searched:
        return row.setting or "defaults"
    found = "none" if row.runs == row.searched else row.setting or "defaults"
    return f"{found}, best of {row.searched}"


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"
