"""One Ray and one MLflow server for all tests: starting one takes longer than most of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycurv.service import local_ray
from tests.service.driving import ROOT, Driver
from tests.service.serving import Server


@pytest.fixture(autouse=True)
def no_mlflow_left_behind() -> Iterator[None]:
    """MLflow writes its tracking URI into the environment, where the jobs of later tests would find it.

    Fixtures of a whole module do so before a test begins, hence at both ends.
    """
    _forget_mlflow()
    yield
    _forget_mlflow()


def _forget_mlflow() -> None:
    client = sys.modules.get("raycurv.tracking.client")
    kept = {} if client is None else client.ENVIRONMENT  # the time-outs that it sets must outlive every test
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ.update(kept)


@pytest.fixture(scope="session")
def head() -> Iterator[local_ray.RayHead]:
    """A local Ray with two CPUs."""
    often = {"RAY_metrics_report_interval_ms": "1000"}  # ten times as often as usual
    with local_ray.local_ray(2, environment={"PYTHONPATH": str(ROOT), **often}) as head:
        yield head


@pytest.fixture(scope="session")
def data_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow data base with its tables, to be copied: making them takes seconds."""
    folder = tmp_path_factory.mktemp("data-base")
    code = "import sys; from raycurv.service import Cluster; from raycurv.tracking.client import Tracking;"
    code += "Tracking(Cluster(runs=sys.argv[1], tracking_uri=None), print).finish()"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=ROOT)
    return folder / "mlflow.db"


@pytest.fixture
def driver(head: local_ray.RayHead, tmp_path: Path, data_base: Path) -> Iterator[Driver]:
    """Runs jobs as processes of their own, against the local Ray and a fresh folder of runs."""
    driver = Driver(head, tmp_path / "runs")
    shutil.copy(data_base, driver.runs)
    yield driver
    driver.end()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, data_base: Path) -> Iterator[Server]:
    """An MLflow server with a data base of its own; whoever ends it starts it again."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(data_base, folder / "mlflow.db")
    server = Server(folder)
    server.start()
    yield server
    server.stop()
