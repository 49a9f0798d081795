"""Optimizers by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from raycurv.arguments import unknown
from raycurv.optim.base import Horizon, Params, StepOptimizer

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


def register_variant(
    name: str, build: Build, summary: str, *, fixed: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> None:
    """Register a class under another name, with some settings fixed and other defaults.

    Args:
        name: name of the variant.
        build: class or function as :func:`register` takes it.
        summary: docstring of the variant.
        fixed: settings with their values; callers cannot change them.
        defaults: settings whose default differs from that of `build`.
    """
    changed = dict(defaults or {})

    def variant(model_or_params: Params, *, horizon: Horizon | None = None, **given: Any) -> StepOptimizer:
        return build(model_or_params, horizon=horizon, **{**changed, **given, **fixed})

    signature = inspect.signature(build)
    kept = [p for key, p in signature.parameters.items() if key not in fixed]
    parameters = [p.replace(default=changed[p.name]) if p.name in changed else p for p in kept]
    variant.__name__ = variant.__qualname__ = name
    variant.__module__, variant.__doc__ = build.__module__, summary
    vars(variant)["__signature__"] = signature.replace(parameters=parameters)
    register(name)(variant)


def names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(_REGISTRY))


def settings(name: str) -> dict[str, inspect.Parameter]:
    """Settings of an optimizer with their types and defaults.

    Raises:
        ValueError: the name is unknown; the message has the nearest ones.
    """
    parameters = inspect.signature(_find(name)).parameters
    return {key: p for key, p in list(parameters.items())[1:] if key != "horizon"}


def check(name: str, **given: Any) -> None:
    """Refuse an unknown name or setting before anything starts.

    Raises:
        ValueError: the optimizer or a setting is unknown.
    """
    allowed = settings(name)
    for key in given:
        if key == "clip_gradient" and key not in allowed:
            raise ValueError(
                f"clip_gradient has no meaning for {name!r}: its step is the solution of a model of the objective, "
                "not a multiple of the gradient; leave it out"
            )
        if key not in allowed:
            raise ValueError(unknown(f"{name}: setting", key, allowed))


def create(name: str, model_or_params: Params, *, horizon: Horizon | None = None, **given: Any) -> StepOptimizer:
    """Make an optimizer by name.

    Args:
        name: one of :func:`names`.
        model_or_params: module, its parameters, or parameter groups where the method has them.
        horizon: length of the run and size of the training set, for methods that use them.
        **given: settings of the method; all have defaults.

    Raises:
        TypeError: `model_or_params` is neither a module nor an iterable of parameters or groups.
        ValueError: the name or a setting is unknown, or a setting is out of bounds.
    """
    check(name, **given)
    return _find(name)(model_or_params, horizon=horizon, **given)


def _find(name: str) -> Build:
    if name not in _REGISTRY:
        raise ValueError(unknown("optimizer", name, names()))
    return _REGISTRY[name]
