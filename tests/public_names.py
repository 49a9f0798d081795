"""The public names of the package, as ``tests/public_names.txt`` lists them.

``python -m tests.public_names`` writes the list anew, where a change of it is meant.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

LIST = Path(__file__).with_suffix(".txt")
# Packages whose `__all__` is public, and modules that the documentation imports from: their functions and classes.
PACKAGES = (
    *("raycurv", "raycurv.curvature", "raycurv.data", "raycurv.models", "raycurv.objective", "raycurv.optim"),
    *("raycurv.recipes", "raycurv.service", "raycurv.tracking", "raycurv.train"),
)
MODULES = (
    *("raycurv.objective.collectives", "raycurv.optim.base", "raycurv.optim.baselines.extras"),
    *("raycurv.optim.baselines.first_order", "raycurv.recipes.datasets"),
    *("raycurv.figures.curves", "raycurv.figures.panels"),
)


def public_names() -> list[str]:
    """All public names with their modules, sorted."""
    found = [f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__]
    for path in MODULES:
        module = importlib.import_module(path)
        found += [
            f"{path}.{name}"
            for name, value in vars(module).items()
            if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == path and name[0] != "_"
        ]
    return sorted(found)


if __name__ == "__main__":
    LIST.write_text("\n".join(public_names()) + "\n")
