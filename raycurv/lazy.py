"""Names of a package that are imported when they are first used, so that a command line starts at once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
_DISABLED = "__dynamo_disable"  # where torch's decorator keeps the function that it calls


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]], submodules: Sequence[str] = ()
) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package (PEP 562).

    Args:
        package: ``__name__`` of the package.
        modules: modules of the package, and the names that the package has from each.
        submodules: modules that are attributes of the package without an import of their own.

    Returns:
        A function that imports a name, keeps it in the package, and raises AttributeError for any other name.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        elif name in submodules:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    return get


def without_compiler(mode: type[T]) -> type[T]:
    """A class decorator for dispatch modes of torch, so that their first use does not import torch's compiler.

    torch keeps its compiler out of ``__torch_dispatch__`` by a decorator that imports it, which takes a second. Here it
    is kept out once somebody else has imported it.
    """
    function: Any = getattr(mode.__dict__["__torch_dispatch__"], "__wrapped__", None)
    if function is not None:

        def call(*args: Any, **kwargs: Any) -> Any:
            compiler = sys.modules.get("torch._dynamo")
            if compiler is None:
                return function(*args, **kwargs)
            setattr(function, _DISABLED, compiler.disable(function, recursive=True, wrapping=False))
            return getattr(function, _DISABLED)(*args, **kwargs)

        setattr(function, _DISABLED, call)
    return mode
