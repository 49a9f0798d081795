"""The papers' tables and figures that come out of tracked runs, by name."""

from __future__ import annotations

from itertools import chain

from raycurv.recipes.papers import curveball, learned_rate, ntlr, red, salera
from raycurv.recipes.table import Table

TABLES: dict[str, Table] = {
    table.name: table for table in chain(curveball.TABLES, ntlr.TABLES, salera.TABLES, red.TABLES, learned_rate.TABLES)
}

__all__ = ["TABLES", "Table"]
