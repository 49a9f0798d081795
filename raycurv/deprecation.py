"""Names of an earlier version, which warn for one version before they are removed.

``MOVED_MODULES`` and ``MOVED_NAMES`` list them. The policy: a public name that moves keeps its old path for one minor
version, with a :class:`DeprecationWarning` that names the new one. The tests fail once the version reaches
:data:`REMOVED_IN` and an entry is still there.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

REMOVED_IN = "0.3.0"
# Old module → module of today. Importing the old one gives the new one.
MOVED_MODULES = {
    "raycurv.collectives": "raycurv.objective.collectives",
    "raycurv.storage": "raycurv.data.storage",
    "raycurv.optim.modern": "raycurv.optim.baselines.external",
    "raycurv.recipes.free": "raycurv.benchmarks.start_sensitivity",
    "raycurv.recipes.step_cost": "raycurv.benchmarks.step_cost",
    "raycurv.recipes.table1": "raycurv.benchmarks.curveball_table1",
}
# Old name → module and name of today.
MOVED_NAMES = {
    "raycurv.figures.metrics": "raycurv.tracking:metrics",
    "raycurv.figures.runs": "raycurv.tracking:runs",
    "raycurv.recipes.Experiment": "raycurv.recipes:RegisteredRecipe",
    "raycurv.recipes.Overrides": "raycurv.cli.run_options:RunOptions",
    "raycurv.recipes.experiments": "raycurv.recipes:registered_recipes",
    "raycurv.train.Store": "raycurv.train:CheckpointStore",
    "raycurv.train.Trained": "raycurv.train:TrainedModel",
    "raycurv.train.load_trained": "raycurv.train:load_trained_model",
}


def warn_deprecated(old: str, new: str, *, stacklevel: int = 2) -> None:
    """Warn that a public name has moved.

    Args:
        old: import path of the name that is used.
        new: import path that takes its place.
        stacklevel: frames between the warning and the caller of the function that calls this, as in `warnings.warn`.
    """
    message = f"{old} is deprecated and will be removed in {REMOVED_IN}; use {new}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def moved_names(package: str, otherwise: Callable[[str], Any] | None = None) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package (PEP 562) that still finds its names in :data:`MOVED_NAMES`.

    Args:
        package: ``__name__`` of the package.
        otherwise: called for every other name; None raises AttributeError.

    Returns:
        A function that imports the name of today and warns.
    """

    def get(name: str) -> Any:
        moved = MOVED_NAMES.get(f"{package}.{name}")
        if moved is None:
            if otherwise is not None:
                return otherwise(name)
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warn_deprecated(f"{package}.{name}", moved.replace(":", "."))
        module, _, current = moved.partition(":")
        return getattr(importlib.import_module(module), current)

    return get


class _MovedModules:
    """Finder of the modules in :data:`MOVED_MODULES`; it is asked after all others."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in MOVED_MODULES:
            return None
        warn_deprecated(name, MOVED_MODULES[name])  # `warnings` skips the frames of the import system
        return importlib.machinery.ModuleSpec(name, _MovedModules)  # type: ignore[arg-type]  # a loader by its methods

    @staticmethod
    def create_module(spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        # The import system returns what is in sys.modules at the end.
        sys.modules[module.__name__] = importlib.import_module(MOVED_MODULES[module.__name__])


def find_moved_modules() -> None:
    """Let imports find the modules that have moved."""
    if _MovedModules not in sys.meta_path:
        sys.meta_path.append(_MovedModules)
