"""Registry of the recipes by name, with a description of each. No other module lists them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from raycurv.results import table_formats
from raycurv.train.configuration import Component, RunConfig

Recipe = Callable[..., RunConfig]
_R = TypeVar("_R", bound=Recipe)
_RECIPES: dict[str, RegisteredRecipe] = {}


@dataclass(frozen=True)
class RegisteredRecipe:
    """A recipe, and the description of its run at full size.

    Attributes:
        recipe: function that returns the configuration; takes ``scale``, and ``data`` where it reads data.
        paper: short name of the paper.
        shows: figure, table or section of the paper.
        data: name of the data set.
        network: name of the network.
        epochs: passes over the training set.
        samples: number of training samples.
        gflop: 10⁹ floating-point operations of the forward pass of one sample.
    """

    recipe: Recipe
    paper: str
    shows: str
    data: str
    network: str
    epochs: int
    samples: int
    gflop: float

    @property
    def name(self) -> str:
        """Name of the recipe's function."""
        return self.recipe.__name__

    @property
    def operations(self) -> float:
        """Floating-point operations of a run with SGD, whose backward pass costs twice the forward pass.

        CurveBall and RED take 2.33 times as many, at most.
        """
        return 3e9 * self.gflop * self.samples * self.epochs


def experiment(
    paper: str, shows: str, data: str, network: str, *, epochs: int, samples: int, gflop: float
) -> Callable[[_R], _R]:
    """Register a recipe under its own name; the arguments are those of :class:`RegisteredRecipe`.

    Raises:
        ValueError: the name is taken.
    """

    def add(recipe: _R) -> _R:
        if recipe.__name__ in _RECIPES:
            raise ValueError(f"there is a recipe named {recipe.__name__!r} already")
        found = RegisteredRecipe(recipe, paper, shows, data, network, epochs, samples, gflop)
        _RECIPES[recipe.__name__] = found
        return recipe

    return add


def registered_recipes() -> tuple[RegisteredRecipe, ...]:
    """All of this package, paper by paper in the order of their files."""
    return tuple(_RECIPES.values())


def names() -> tuple[str, ...]:
    """The recipes of this package."""
    return tuple(sorted(_RECIPES))


def get(name: str) -> Recipe:
    """The recipe called `name`, or the function at ``package.module:function``, which is not called here.

    Raises:
        ValueError: there is none, with the nearest names; or the function does not say that it returns a configuration.
    """
    if ":" in name:
        return _of_user(name)
    if name not in _RECIPES:
        near = difflib.get_close_matches(name, _RECIPES, 3) or [n for n in names() if name and name in n][:3]
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(
            f"there is no recipe {name!r}; {hint}`raycurv train --list` shows all {len(_RECIPES)}; your own is "
            "package.module:function"
        )
    return _RECIPES[name].recipe


def _of_user(name: str) -> Recipe:
    """The function at an import path, if its annotation says that it returns a RunConfig.

    Raises:
        ValueError: it does not, so it may be anything.
    """
    found = Component(name).resolve()
    returns = getattr(found, "__annotations__", {}).get("return")
    if returns is not RunConfig and str(returns).rpartition(".")[2].strip("\"'") != RunConfig.__name__:
        raise ValueError(
            f"{name!r} is not known to be a recipe, so it was not called: a recipe is a function that says what it "
            f"returns, def {name.rpartition(':')[2]}(…) -> RunConfig"
        )
    return found


def build(name: str, options: Mapping[str, Any]) -> RunConfig:
    """Call a recipe.

    Args:
        name: name of the recipe, as in :func:`get`.
        options: arguments of the recipe; None selects the recipe's default.

    Raises:
        ValueError: the recipe does not take an option, misses one, or refuses a value.
        TypeError: the recipe returns something other than a configuration.
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


def listing() -> str:
    """All recipes as a table, one a line."""
    head = ("recipe", "paper", "shows", "data", "network", "epochs", "cost")
    rows = [
        (e.name, e.paper, e.shows, e.data, e.network, str(e.epochs), table_formats.format_operations(e.operations))
        for e in registered_recipes()
    ]
    return table_formats.aligned(head, rows)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
