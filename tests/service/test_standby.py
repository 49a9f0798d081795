"""Workers that start while the driver prepares its runs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from raycurv.service import Cluster
from raycurv.service.standby import WorkerGroup, workers_on_standby
from tests.service.driving import Driver


def test_neither_the_driver_nor_the_controller_imports_torch_to_start_workers() -> None:
    code = (
        "import sys; import raycurv.cli.train, raycurv.service.standby, raycurv.service.mailbox; "
        "import raycurv.service.ray_trainer; print([m for m in ('torch', 'mlflow') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_workers_start_later_without_a_running_ray_and_for_a_run_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with workers_on_standby(Cluster(runs=str(tmp_path))) as workers:
        assert workers is None
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")  # would be looked for
    with workers_on_standby(Cluster(runs=str(tmp_path), run_name="mine", resume="auto")) as workers:
        assert workers is None


class Group(WorkerGroup):
    """Workers whose controller comes up after a while, and whose call of Ray ends with it."""

    def __init__(self) -> None:
        self._given = False
        self._trainer, self.killed = Mock(), threading.Event()
        self.fit: Any = threading.Thread(target=self.killed.wait, args=(20,))
        self.fit.start()
        answers = iter([None, None])
        self.mailbox = SimpleNamespace(
            controller=SimpleNamespace(remote=lambda: next(answers, "controller")),
            give_job=SimpleNamespace(remote=lambda job: None),
        )


def with_ray(monkeypatch: pytest.MonkeyPatch, group: Group) -> Mock:
    ray = Mock(get=lambda value: value, put=lambda value: value)
    ray.kill.side_effect = lambda controller: group.killed.set()
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def test_workers_that_get_no_run_end_before_ray_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group()
    ray = with_ray(monkeypatch, group)
    group.end()
    ray.kill.assert_called_with("controller")
    assert not group.fit.is_alive()
    group._trainer.give_back.assert_called_once_with()


def test_workers_with_runs_are_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group()
    ray = with_ray(monkeypatch, group)
    group.give(Mock())
    group.end()
    ray.kill.assert_not_called()
    group.killed.set()


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_a_launch_that_is_refused_ends_soon_and_without_a_crash(driver: Driver) -> None:
    began = time.monotonic()
    finished = driver.run("jobs/train.py", "--recipe", "no_such_recipe", "--workers", "2")
    assert finished.code == 2
    assert "no_such_recipe" in finished.output
    assert "Check failed" not in finished.output
    assert time.monotonic() - began < 90  # on a loaded machine
