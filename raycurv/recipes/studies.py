"""The papers' ablations by name: one recipe, or a few, over settings of an optimizer and fields of the run.

A study (:mod:`raycurv.recipes.study`) is data; its ``runs`` are the configurations. ``raycurv train --study NAME``
trains them one after the other, ``--list`` shows them below the recipes.
"""

from __future__ import annotations

from raycurv.arguments import unknown
from raycurv.recipes.papers import STUDIES
from raycurv.recipes.study import Study
from raycurv.results import table_formats

__all__ = ["STUDIES", "get", "listing"]


def get(name: str) -> Study:
    """The study called `name`.

    Raises:
        ValueError: there is none; the message has the nearest names.
    """
    if name not in STUDIES:
        raise ValueError(unknown("study", name, STUDIES))
    return STUDIES[name]


def listing() -> str:
    """All studies as a table, one a line."""
    return table_formats.aligned(
        ("study", "paper", "shows", "runs", "optimizers"),
        [(s.name, s.paper, s.shows, str(len(s)), " ".join(s.optimizers)) for s in STUDIES.values()],
    )
