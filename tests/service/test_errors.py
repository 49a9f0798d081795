from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raycurv.service.connection import ConnectionRefused
from raycurv.service.errors import LaunchError, Stopped, reported
from raycurv.train import NonFiniteLoss


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("x"), 2), (LaunchError("x"), 1), (KeyError("x"), 1), (Stopped("x"), 130), (KeyboardInterrupt(), 130)],
)
def test_every_error_ends_the_process_with_a_code_that_is_not_zero(
    error: BaseException, code: int, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught, reported(str(tmp_path)):
        raise error
    assert caught.value.code == code


def test_the_message_is_short_and_the_traceback_is_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), reported(str(tmp_path)):
        raise LaunchError("the loss was infinite: lower the rate", details="Traceback of the worker")

    (path,) = (tmp_path / "failures").iterdir()
    written = capsys.readouterr().err
    assert written == f"\nerror: the loss was infinite: lower the rate\n(the whole traceback: {path})\n"
    assert "Traceback of the worker" in path.read_text()


def test_what_the_package_refuses_needs_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = {"__name__": "raycurv.somewhere", "refusal": ConnectionRefused("MLflow has a run of this name already")}
    with pytest.raises(SystemExit), reported(str(tmp_path)):
        exec("raise refusal", package)  # as a function of the package would
    assert capsys.readouterr().err == "\nerror: MLflow has a run of this name already\n"
    assert not (tmp_path / "failures").exists()


def test_a_surprise_is_named_with_its_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), reported(str(tmp_path)):
        raise ZeroDivisionError("division by zero")
    assert "error: ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_an_explained_error_stands_for_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), reported(str(tmp_path)):
        raise NonFiniteLoss("step 3 was not finite")
    assert "error: step 3 was not finite" in capsys.readouterr().err


def test_a_stop_ends_the_process_with_its_code_while_a_thread_waits_in_ray() -> None:
    code = (
        "import os, threading, time\n"
        "from raycurv.service.errors import FIT_THREAD, Stopped, reported\n"
        "threading.Thread(target=time.sleep, args=(60,), name=FIT_THREAD).start()\n"  # joined by a normal end
        "with reported(): raise Stopped('at step 3')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr.strip()) == (130, "stopped: at step 3")
