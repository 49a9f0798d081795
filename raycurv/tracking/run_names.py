"""Names of runs in MLflow's list."""

from __future__ import annotations

import re
from collections.abc import Iterable

LISTED = 4  # most recipes or optimizers in the name of a parent run
SEPARATOR = " · "


def run_label(run_name: str | None, recipe: str, optimizer: str, setting: str, seed: int, launch: str = "") -> str:
    """Name of one run.

    Args:
        run_name: name that the user gave; None if there is none.
        recipe: name of the recipe.
        optimizer: name of the registered optimizer.
        setting: settings of the optimizer as text; empty for its defaults.
        seed: seed of weights and data.
        launch: name of the launch; the random digits at its end tell apart runs that the user gave no name.
    """
    digits = None if run_name else (re.search(r"-\d{8}-\d{6}-([0-9a-f]{4})$", launch) or [None, None])[1]
    return SEPARATOR.join(filter(None, [run_name, recipe, optimizer, setting, f"seed {seed}", digits]))


def group_label(run_name: str | None, recipes: Iterable[str], optimizers: Iterable[str], kind: str) -> str:
    """Name of a parent run.

    Args:
        run_name: name that the user gave; None if there is none.
        recipes: recipes of the runs.
        optimizers: optimizers of the runs.
        kind: description of the group, such as ``"4 runs"``.
    """
    parts = [run_name, _listed(recipes, "recipes"), _listed(optimizers, "optimizers"), kind]
    return SEPARATOR.join(filter(None, parts))


def _listed(names: Iterable[str], of_what: str) -> str:
    different = list(dict.fromkeys(names))
    return ", ".join(different) if len(different) <= LISTED else f"{len(different)} {of_what}"
