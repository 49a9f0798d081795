"""Names of optimizers. The only place that knows them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import nn

from raycurv.optim.base import Horizon, StepOptimizer

Build = Callable[..., StepOptimizer]
_REGISTRY: dict[str, Build] = {}
_B = TypeVar("_B", bound=Build)


def register(name: str) -> Callable[[_B], _B]:
    """Register a class or a function ``(model_or_params, *, horizon=None, **settings)`` under a name.

    Raises:
        ValueError: the name is taken.
    """

    def add(build: _B) -> _B:
        if name in _REGISTRY:
            raise ValueError(f"there is an optimizer named {name!r} already")
        _REGISTRY[name] = build
        return build

    return add


def names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(_REGISTRY))


def settings(name: str) -> dict[str, inspect.Parameter]:
    """The settings of an optimizer: their names, types and defaults.

    Raises:
        ValueError: the name is unknown; the message has the nearest ones.
    """
    parameters = inspect.signature(_find(name)).parameters
    return {key: p for key, p in list(parameters.items())[1:] if key != "horizon"}


def check(name: str, **given: Any) -> None:
    """Refuse an unknown name or settings before anything starts.

    Raises:
        ValueError: the optimizer or a setting is unknown.
    """
    allowed = settings(name)
    for key in given:
        if key == "clip_gradient" and key not in allowed:
            raise ValueError(
                f"clip_gradient has no meaning for {name!r}: its step is the solution of a model of the objective, "
                f"not a "
                "multiple of the gradient; leave it out"
            )
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name!r} has no setting {key!r}{hint} (it has: {', '.join(allowed) or 'none'})")


def create(
    name: str, model_or_params: nn.Module | Iterable[Any], *, horizon: Horizon | None = None, **given: Any
) -> StepOptimizer:
    """Make an optimizer by name.

    Args:
        name: one of :func:`names`.
        model_or_params: a module, its parameters, or parameter groups where the method has them.
        horizon: length of the run and size of the training set, for methods that use them.
        **given: the method's own settings; its defaults need none.

    Raises:
        ValueError: the name or a setting is unknown, or a setting is out of bounds.
    """
    check(name, **given)
    return _find(name)(model_or_params, horizon=horizon, **given)


def _find(name: str) -> Build:
    if name not in _REGISTRY:
        near = difflib.get_close_matches(str(name), _REGISTRY, 3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"optimizer {name!r} is unknown; {hint}all names: {', '.join(names())}")
    return _REGISTRY[name]
