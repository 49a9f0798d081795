"""A Ray of a job's own, which nobody else can reach and which leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from raycurv.service import local_ray, scratch
from tests.service.driving import ROOT, wait_until


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets lie in it, and their names are short."""
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.cluster
def test_a_job_without_a_cluster_starts_a_ray_on_loopback_that_ends_with_it(tmp_path: Path, short_folder: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    # Where no cluster of another user can be found.
    environment = clean | {"RAY_TMPDIR": str(short_folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    job = ("jobs/train.py", "--recipe", "tests.service.problems:mine", "--option", "pause=0.3", "--runs", str(tmp_path))
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = psutil.Popen(
            [sys.executable, *job], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        wait_until(lambda: "epoch 0." in log.read_text() or process.poll() is not None)
        family = [process, *process.children(recursive=True)] if process.is_running() else []
        addresses = {c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == "LISTEN"}
        code = process.wait(240)

    assert code == 0, log.read_text()
    assert "started a private Ray" in log.read_text()
    assert addresses
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    gone, alive = psutil.wait_procs(family, timeout=30)
    assert gone
    assert not alive


def test_a_head_that_is_gone_is_not_found_again(tmp_path: Path) -> None:
    note = tmp_path / "ray.json"
    assert local_ray.saved(note) is None

    local_ray.save(local_ray.RayHead(os.getpid(), 0.0, "127.0.0.1:1", "http://127.0.0.1:2", str(tmp_path)), note)
    assert local_ray.saved(note) is None  # this process has another start


@pytest.mark.cluster
def test_the_head_of_the_tests_is_found_while_it_runs(head: local_ray.RayHead, tmp_path: Path) -> None:
    local_ray.save(head, tmp_path / "ray.json")
    assert local_ray.saved(tmp_path / "ray.json") == head
    assert any(process.name() == "raylet" for process in head.processes())
    made, lock = scratch.locked_folder("raycurv-ray-", "/tmp")  # removes the folders of heads that do not run
    lock.close()
    shutil.rmtree(made)
    assert Path(head.folder, "token").exists()


@pytest.mark.cluster
def test_the_folder_of_a_head_whose_driver_was_killed_is_removed_by_the_next_start() -> None:
    code = (
        "import time\nfrom raycurv.service import local_ray\n"
        "head = local_ray.start(1)\nprint(head.pid, head.folder, flush=True)\ntime.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as driver:
        assert driver.stdout is not None
        pid, name = driver.stdout.readline().decode().split()
        driver.kill()
    folder = Path(name)
    wait_until(lambda: not psutil.pid_exists(int(pid)), 60)
    assert folder.exists()

    made, lock = scratch.locked_folder("raycurv-ray-", "/tmp")
    lock.close()
    shutil.rmtree(made)
    assert not folder.exists()


@pytest.mark.cluster
def test_another_thread_may_collect_garbage_while_ray_shuts_down(short_folder: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "tests.service.collecting"]
    environment = clean | {"RAY_TMPDIR": str(short_folder)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "still there" in ended.stdout
