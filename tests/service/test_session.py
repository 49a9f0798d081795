"""Signals of a driver, and a terminal that is closed beside it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raycurv.service.session import signals_handled
from raycurv.train import CheckpointStore
from tests.service.driving import ROOT, wait_until

HANDLED = """
import signal, sys, time
from pathlib import Path
from raycurv.service.session import signals_handled
from raycurv.service.terminal import TerminalProgress
progress, asked = TerminalProgress(), []
with signals_handled([signal.SIGHUP], asked.append):
    progress.notify("ready")
    while not asked:
        time.sleep(0.05)
for line in range(3):
    progress.notify(f"stopping, {line}")
sys.stderr.write("stopped\\n")
sys.stderr.flush()
Path(sys.argv[1]).write_text(asked[0].name)
"""


@pytest.fixture(autouse=True)
def _hang_up_is_not_ignored() -> Iterator[None]:
    """The default for SIGHUP, which child processes inherit, also where the tests themselves were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_driver_goes_on_to_its_end_when_its_terminal_is_closed(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", HANDLED, str(tmp_path / "asked")],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # which makes it the controlling terminal
    )
    os.close(theirs)
    assert b"ready" in os.read(ours, 100)
    os.close(ours)

    assert process.wait(30) == 0
    assert (tmp_path / "asked").read_text() == "SIGHUP"


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_handled([signal.SIGHUP, signal.SIGTERM], lambda number: None):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.cluster
def test_a_closed_terminal_leaves_a_checkpoint_and_a_closed_run(tmp_path: Path) -> None:
    """Also where Ray's processes are in the foreground of that terminal."""
    temporary = tmp_path / "t"
    temporary.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp", ignore_cleanup_errors=True) as short:
        environment = clean | {"RAY_TMPDIR": short, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
        job = ("jobs/train.py", "--recipe", "tests.service.problems:mine", "--option", "epochs=100", "pause=0.1")
        command = [sys.executable, *job, "--runs", str(tmp_path), "--run-name", "closed"]
        log = tmp_path / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        wait_until(lambda: "epoch 1 done" in log.read_text() or process.poll() is not None)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGHUP)
        code = process.wait(60)

    assert code == 130, log.read_text()
    assert time.monotonic() - began < 30
    assert "go on with --run-name closed --resume" in log.read_text()
    state = CheckpointStore(str(tmp_path / "checkpoints" / "closed")).load()
    assert state is not None
    assert state["step"] > 8
    (run,) = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])
    assert run.info.status == "KILLED"
    assert not [folder for folder in temporary.iterdir() if folder.name.startswith("raycurv-")]
