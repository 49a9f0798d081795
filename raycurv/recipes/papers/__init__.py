"""The papers' own tables and figures, by name; ``jobs/papers.py`` makes them."""

from __future__ import annotations

import difflib
from itertools import chain

from raycurv.recipes import registry
from raycurv.recipes.papers import curveball, learned_rate, ntlr, red, salera
from raycurv.recipes.papers.printing import Measured
from raycurv.recipes.tables import Table

TABLES: dict[str, Table | Measured] = {
    table.name: table for table in chain(curveball.TABLES, ntlr.TABLES, salera.TABLES, red.TABLES, learned_rate.TABLES)
}


def get(name: str) -> Table | Measured:
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
    return registry.aligned(head, [_line(table) for table in TABLES.values()])


def _line(table: Table | Measured) -> tuple[str, ...]:
    if isinstance(table, Measured):
        return table.name, table.paper, table.shows, "–", "yes", "computed at once"
    printed = sum(map(len, table.printed.values()))
    shown = f"{printed} entries" if printed else "–"
    return table.name, table.paper, table.shows, str(len(table)), shown, " ".join(table.recipes)


__all__ = ["TABLES", "Measured", "Table", "get", "listing"]
