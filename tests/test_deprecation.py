"""Names of an earlier version give those of today, with a warning, for one version."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import raycurv
from raycurv.deprecation import MOVED_MODULES, MOVED_NAMES, REMOVED_IN


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.fixture
def forgotten():
    """The old modules, as if they had never been imported."""

    def forget() -> None:
        for name in MOVED_MODULES:
            sys.modules.pop(name, None)
            parent, _, child = name.rpartition(".")
            vars(sys.modules.get(parent, raycurv)).pop(child, None)

    forget()
    yield
    forget()


@pytest.mark.parametrize("old", MOVED_MODULES)
@pytest.mark.usefixtures("forgotten")
def test_a_moved_module_is_the_one_of_today(old):
    with pytest.warns(DeprecationWarning, match=f"{old} is deprecated.*use {MOVED_MODULES[old]}") as warned:
        found = importlib.import_module(old)
    assert len(warned) == 1
    assert found is importlib.import_module(MOVED_MODULES[old])
    assert found.__name__ == found.__spec__.name == MOVED_MODULES[old]


@pytest.mark.parametrize("old", MOVED_NAMES)
def test_a_moved_name_is_the_one_of_today(old):
    package, _, name = old.rpartition(".")
    module, _, current = MOVED_NAMES[old].partition(":")
    with pytest.warns(DeprecationWarning, match=f"{old} is deprecated.*use {module}.{current}") as warned:
        found = getattr(importlib.import_module(package), name)
    assert warned[0].filename == __file__
    assert found is getattr(importlib.import_module(module), current)


@pytest.mark.usefixtures("forgotten")
def test_the_warning_points_at_the_import():
    with pytest.warns(DeprecationWarning, match="collectives") as warned:
        from raycurv.collectives import Local  # noqa: F401
    assert warned[0].filename == __file__


def test_only_old_names_are_still_found():
    for package in ("figures", "recipes", "train"):
        with pytest.raises(AttributeError, match="no_such_name"):
            importlib.import_module(f"raycurv.{package}").no_such_name  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match=r"raycurv\.no_such_module"):
        importlib.import_module("raycurv.no_such_module")


def test_the_package_uses_no_old_name():
    used = "import raycurv.train, raycurv.recipes, raycurv.figures, raycurv.service, raycurv.benchmarks.step_cost"
    subprocess.run([sys.executable, "-W", "error::DeprecationWarning:raycurv", "-c", used], check=True, timeout=120)


def test_old_names_are_removed_after_one_version():
    assert numbers(raycurv.__version__) < numbers(REMOVED_IN), "remove what is deprecated, or give the next version"
