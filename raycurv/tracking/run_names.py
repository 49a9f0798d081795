"""What runs are called in MLflow's list, so that it reads by itself."""

from __future__ import annotations

from collections.abc import Iterable

NAMED = 4  # recipes or optimizers in the name of a run that gathers others
BETWEEN = " · "


def of_run(recipe: str, optimizer: str, setting: str, seed: int) -> str:
    """Recipe, optimizer, what was set, seed."""
    return BETWEEN.join(filter(None, [recipe, optimizer, setting, f"seed {seed}"]))


def of_group(recipes: Iterable[str], optimizers: Iterable[str], kind: str) -> str:
    """Recipes, optimizers, and what has made the runs."""
    return BETWEEN.join([_listed(recipes, "recipes"), _listed(optimizers, "optimizers"), kind])


def _listed(names: Iterable[str], of_what: str) -> str:
    different = list(dict.fromkeys(names))
    return ", ".join(different) if len(different) <= NAMED else f"{len(different)} {of_what}"
