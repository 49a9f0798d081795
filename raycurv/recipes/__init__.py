"""Experiments as typed functions that return a :class:`raycurv.train.RunConfig`, ours and the user's."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from raycurv.recipes.cifar10 import cifar10_basic_cnn, cifar10_resnet18
from raycurv.recipes.digits import digits
from raycurv.recipes.imagenet import imagenet_curveball
from raycurv.recipes.overrides import Overrides
from raycurv.train.config import Component, RunConfig

Recipe = Callable[..., RunConfig]
_RECIPES: dict[str, Recipe] = {
    recipe.__name__: recipe for recipe in (cifar10_basic_cnn, cifar10_resnet18, digits, imagenet_curveball)
}

__all__ = [
    "Overrides",
    "Recipe",
    "build",
    "cifar10_basic_cnn",
    "cifar10_resnet18",
    "digits",
    "get",
    "imagenet_curveball",
    "names",
]


def names() -> tuple[str, ...]:
    """The recipes of this package."""
    return tuple(sorted(_RECIPES))


def get(name: str) -> Recipe:
    """The recipe called `name`, or the function at ``package.module:function``.

    Raises:
        ValueError: there is none.
    """
    if ":" in name:
        return Component(name).resolve()
    if name not in _RECIPES:
        near = difflib.get_close_matches(name, _RECIPES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"there is no recipe {name!r}{hint} (there are: {', '.join(names())}; your own is package.module:function)"
        )
    return _RECIPES[name]


def build(name: str, options: Mapping[str, Any]) -> RunConfig:
    """Call a recipe.

    Args:
        name: as for :func:`get`.
        options: arguments for it; those that are None are left to its defaults.

    Raises:
        ValueError: the recipe does not take an option, misses one, or refuses a value.
        TypeError: what it returns is no configuration.
    """
    recipe = get(name)
    given = {key: value for key, value in options.items() if value is not None}
    parameters = inspect.signature(recipe).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    takes = ", ".join(_flag(key) for key in parameters) or "no options"
    if unknown := [key for key in given if key not in parameters and not anything]:
        raise ValueError(f"recipe {name!r} does not take {_flag(unknown[0])}; it takes {takes}")
    try:
        inspect.signature(recipe).bind(**given)
    except TypeError as error:
        raise ValueError(f"recipe {name!r}: {error}; it takes {takes}") from error
    config = recipe(**given)
    if not isinstance(config, RunConfig):
        raise TypeError(f"recipe {name!r} returned a {type(config).__name__}; it must return a raycurv.train.RunConfig")
    return config


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
