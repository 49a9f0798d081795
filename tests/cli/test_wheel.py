"""The wheel, installed into a fresh environment: its command runs and trains outside the checkout.

The wheel is built from the source archive. ``RAYCURV_DIST``, which `make release` sets, names a folder that has both.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import raycurv

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
from raycurv.recipes import digits
from raycurv.train import RunConfig
import dataclasses


def tiny(data: str = "digits") -> RunConfig:
    return dataclasses.replace(digits(data, width=0.1), epochs=1, max_steps=3, log_every=1)
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and with the wheel that was built from it."""
    if "RAYCURV_DIST" in os.environ:
        return Path(os.environ["RAYCURV_DIST"])
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    shutil.copytree(ROOT / "raycurv", source / "raycurv", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(build, check=True, timeout=300, env=clean(), capture_output=True)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in a fresh environment with the wheel, and the packages of this one beneath it."""
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = dist.glob("raycurv-*.whl")
    venv.create(folder / "env", with_pip=False)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = ["--python", str(folder / "env"), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=300, env=clean())
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # torch, Ray and the others
    return folder / "env" / "bin" / "raycurv"


def clean() -> dict[str, str]:
    """The environment without what leads back to the checkout, to a cluster or to an MLflow."""
    away = ("PYTHONPATH", "RAYCURV_", "RAY_", "MLFLOW_")
    return {name: value for name, value in os.environ.items() if not name.startswith(away)}


def run(command: Path, *words: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(command), *words], capture_output=True, text=True, timeout=300, cwd=folder, env=clean() | variables,
        check=False,
    )  # fmt: skip


def test_wheel_and_source_archive_have_the_version_the_licence_and_the_type_marker(dist: Path) -> None:
    version = raycurv.__version__
    with zipfile.ZipFile(dist / f"raycurv-{version}-py3-none-any.whl") as wheel:
        names = wheel.namelist()
        metadata = wheel.read(f"raycurv-{version}.dist-info/METADATA").decode()
    assert f"Version: {version}\n" in metadata
    assert "Provides-Extra: cluster\n" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(dist / f"raycurv-{version}.tar.gz") as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE"} <= sources
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "raycurv").rglob("*.py")}
    assert modules | {"raycurv/py.typed"} <= set(names)
    assert modules | {"raycurv/py.typed"} <= sources


def test_the_wheel_has_the_package_and_no_test(installed: Path) -> None:
    (site,) = installed.parents[1].glob("lib/python*/site-packages")
    names = {path.name for path in site.iterdir() if not path.name.endswith((".dist-info", ".pth"))}
    assert names - {"__pycache__"} == {"raycurv"}


def test_the_installed_command_shows_its_help_and_all_recipes(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: raycurv COMMAND")
    done = run(installed, "train", "--list", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cifar10_basic_cnn" in done.stdout
    version = run(installed, "--version", folder=tmp_path)
    assert version.stdout.split() == ["raycurv", raycurv.__version__]
    where = run(installed.parent / "python", "-c", "import raycurv; print(raycurv.__file__)", folder=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(installed.parents[1])


@pytest.mark.cluster
def test_the_installed_command_trains_a_recipe_of_the_folder_it_is_called_in(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RECIPE)
    variables = {"RAYCURV_DATA": str(tmp_path / "data"), "RAYCURV_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    written = run(installed, "prepare", "digits", folder=tmp_path, **variables)
    assert written.returncode == 0, written.stderr
    done = run(installed, "train", "mine:tiny", "--optimizer", "sgd", "--run-name", "one", folder=tmp_path, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished after 3 steps" in done.stdout
    assert (tmp_path / "runs" / "mlflow.db").exists()
    compared = run(installed, "compare", folder=tmp_path, **variables)
    assert compared.returncode == 0, compared.stderr
    assert "sgd" in compared.stdout
