"""Import paths of earlier versions, which stored configurations name, and the paths of the same functions today."""

from __future__ import annotations

_PACKAGE = "raycurv."
# Former path → current path, both below the package: a module, or one function of it as "module:function".
# Whoever moves or renames a function that a configuration can name adds a line, and updates values that it makes stale.
MOVED = {
    "curvature.losses": "objective.losses",
    "data.images": "data.image_transforms",
    "data.table": "data.csv_table",
    "models.salera": "models.salera_networks",
    "recipes.degenerate:ill_conditioned": "recipes.papers.curveball:ill_conditioned_map",
    "recipes.degenerate:noise": "recipes.papers.curveball:rosenbrock_noise",
    "recipes.degenerate:rosenbrock": "models.small_problems:rosenbrock",
    "recipes.degenerate:two_linear_layers": "models.small_problems:two_linear_layers",
    "recipes.small_problems": "models.small_problems",
    "train.losses:mean_squared_error": "objective.losses:mean_squared_error",
    "train.losses:word_cross_entropy": "objective.losses:word_cross_entropy",
    "train.losses:words": "objective.losses:word_counts",
}
_FORMER = {current: former for former, current in reversed(MOVED.items())}


def current_path(target: str) -> str:
    """The path of today for ``"package.module:function"`` of any version; other paths come back as they are."""
    return _translate(target, MOVED)


def former_path(target: str) -> str:
    """The first path that a function had, which digests of configurations are made of."""
    return _translate(target, _FORMER)


def _translate(target: str, paths: dict[str, str]) -> str:
    module, _, function = target.removeprefix(_PACKAGE).partition(":")
    if not target.startswith(_PACKAGE):
        return target
    moved = paths.get(f"{module}:{function}")
    return _PACKAGE + (f"{paths.get(module, module)}:{function}" if moved is None else moved)
