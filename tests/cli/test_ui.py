"""`raycurv ui`: MLflow at the right store and view."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from raycurv.cli.ui import Ui, free_port

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_data_base_the_command_that_writes_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there are no runs in .*/mlflow.db; `raycurv train` writes them"):
        Ui(runs=str(tmp_path), tracking_uri=None).run()


def test_a_port_in_use_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) > port


@pytest.mark.cluster
def test_a_data_base_is_served_on_loopback_at_its_experiment_until_ctrl_c(tmp_path: Path, data_base: Path) -> None:
    shutil.copy(data_base, tmp_path / "mlflow.db")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    log = tmp_path / "log"
    command = [sys.executable, "-m", "raycurv.cli", "ui", "--runs", str(tmp_path), "--port", str(free_port(5100))]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=clean | {"PYTHONPATH": str(ROOT)}, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while "Ctrl-C" not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        address = re.search(
            r"^(http://127\.0\.0\.1:\d+)/#/\S+\?workflowType=machine_learning\S*$", log.read_text(), re.M
        )
        assert address, log.read_text()
        with urllib.request.urlopen(f"{address[1]}/health", timeout=30) as answer:
            assert answer.status == 200
    finally:
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(60)
    assert code == 0, log.read_text()
