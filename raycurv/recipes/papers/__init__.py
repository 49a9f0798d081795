"""The papers' experiments, one paper a file: recipes, ablations, and the tables and figures that tracked runs fill."""

from __future__ import annotations

from raycurv.recipes.papers import curveball, learned_rate, ntlr, red, salera
from raycurv.recipes.study import Study
from raycurv.recipes.table import Table

_PAPERS = (curveball, ntlr, salera, red, learned_rate)
STUDIES: dict[str, Study] = {study.name: study for paper in _PAPERS for study in paper.STUDIES}
TABLES: dict[str, Table] = {table.name: table for paper in _PAPERS for table in paper.TABLES}

__all__ = ["STUDIES", "TABLES"]
