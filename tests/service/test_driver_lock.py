"""Never two drivers on one run."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raycurv.service import driver_lock as module
from raycurv.service.driver_lock import LockHolder, driver_lock
from raycurv.service.errors import LockLost, RunLocked
from raycurv.train import CheckpointError, CheckpointStore
from raycurv.train.checkpoint_folder import open_folder
from tests.service.driving import ROOT
from tests.service.problems import mine


@pytest.fixture(params=["disk", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, s3_server: Callable[[], str]) -> str:
    """A folder of a run, on a disk and in an object store."""
    return str(tmp_path / "run") if request.param == "disk" else f"{s3_server()}/runs/one"


def claims(folder: str) -> list[str]:
    return [name for name in open_folder(folder).names() if name.endswith(".lock")]


def claim_as(holder: LockHolder, folder: str, term: int = 1) -> str:
    """Write the claim of another driver."""
    name = f"driver-{term:06d}-{'0' * 16}.lock"
    content = json.dumps(dataclasses.asdict(holder)).encode()

    def fill(file: object) -> None:
        file.write(content)  # type: ignore[attr-defined]

    open_folder(folder).write(name, fill)
    return name


def elsewhere(**fields: object) -> LockHolder:
    """A driver on another machine that held the folder a second ago."""
    now = time.time()
    holder = LockHolder("other", "another machine", 1, now - 100, since=now - 50, heartbeat=now - 1, holds=True)
    return dataclasses.replace(holder, **fields)  # type: ignore[arg-type]


def test_a_second_driver_is_refused_with_who_holds_the_run(folder: str) -> None:
    with driver_lock([folder], print) as lock:
        held = rf"process {os.getpid()} on .* since .*kill {os.getpid()}"
        with pytest.raises(RunLocked, match=held), driver_lock([folder], print):
            pass
        lock.require()
        assert len(claims(folder)) == 1

    with driver_lock([folder], print):
        pass


def test_nothing_is_left_behind(folder: str) -> None:
    with driver_lock([folder], print):
        assert not CheckpointStore(folder).exists()
    assert claims(folder) == []
    assert "://" in folder or not Path(folder).exists()


def test_of_many_that_claim_at_once_one_holds(folder: str) -> None:
    for _ in range(2 if "://" in folder else 10):
        begin, end = threading.Barrier(6, timeout=60), threading.Barrier(6, timeout=60)

        def claim(begin: threading.Barrier = begin, end: threading.Barrier = end) -> bool:
            begin.wait()
            try:
                with driver_lock([folder], print):
                    end.wait()
                    return True
            except RunLocked:
                end.wait()
                return False

        with ThreadPoolExecutor(6) as pool:
            held = list(pool.map(lambda _: claim(), range(6)))
        assert sum(held) == 1


def test_the_lock_of_a_killed_driver_is_replaced_at_once(tmp_path: Path) -> None:
    code = "import sys, time; from raycurv.service.driver_lock import driver_lock\n"
    code += "with driver_lock([sys.argv[1]], print): print('held', flush=True); time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunLocked, match=f"process {process.pid}"), driver_lock([str(tmp_path)], print):
            pass
        process.kill()
        process.wait()

    began = time.monotonic()
    with driver_lock([str(tmp_path)], print):
        assert time.monotonic() - began < 1
        assert len(claims(str(tmp_path))) == 1


def test_a_suspended_driver_loses_its_run_and_does_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path / "run")
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 1000.0)
    with driver_lock([folder], print) as first:
        store = CheckpointStore(folder)
        store.before_write = first.claims[folder].require
        store.begin(mine())
        later = time.time() + module.EXPIRY_SECONDS + 1
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: later)
            with driver_lock([folder], print) as second:
                second.require()
                for write in (lambda: store.save({"step": 1}), lambda: store.begin(mine())):
                    with pytest.raises(LockLost, match="was it suspended"):
                        write()
                with pytest.raises(LockLost, match="this one stops, and the other one goes on"):
                    first.require()
                second.require()
        with pytest.raises(LockLost):
            first.require()  # also when the other one has ended
    assert store.newest() is None


def test_a_process_that_is_suspended_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXPIRY_SECONDS", 1.0)
    code = "import sys, time; from raycurv.service import driver_lock as d\n"
    code += "d.EXPIRY_SECONDS, d.HEARTBEAT_SECONDS = 1.0, 0.1\n"
    code += "with d.driver_lock([sys.argv[1]], print) as lock:\n"
    code += " print('held', flush=True)\n"
    code += " while True:\n  time.sleep(0.1)\n  lock.require()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stdout, process.stderr:
        assert process.stdout.readline() == b"held\n"
        time.sleep(1.5)  # longer than a lock lasts: the heartbeat goes on
        with pytest.raises(RunLocked), driver_lock([str(tmp_path)], print):
            pass
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.2)
        with driver_lock([str(tmp_path)], print) as lock:
            process.send_signal(signal.SIGCONT)
            assert process.wait(30) == 1
            assert b"another driver has taken over" in process.stderr.read()
            lock.require()


def test_a_driver_on_another_machine_that_gives_a_sign_of_life_is_not_disturbed(folder: str) -> None:
    name = claim_as(elsewhere(), folder)
    threading.Timer(0.7, lambda: claim_as(elsewhere(heartbeat=time.time()), folder)).start()

    with pytest.raises(RunLocked, match="process 1 on other since"), driver_lock([folder], print):
        pass
    assert claims(folder) == [name]


def test_a_driver_on_another_machine_without_a_sign_of_life_is_replaced(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EXPIRY_SECONDS", 1.0)
    name = claim_as(elsewhere(), folder, term=7)
    lines: list[str] = []
    began = time.monotonic()
    with driver_lock([folder], lines.append):
        assert 1 <= time.monotonic() - began < 10
        assert name not in claims(folder)
        assert claims(folder)[0].startswith("driver-000008-")
    (line,) = lines
    assert line.startswith("waiting up to 1 s for a sign of life in ")
    assert "process 1 on other" in line


def test_the_claim_of_a_machine_that_died_long_ago_is_void_at_once(folder: str) -> None:
    claim_as(elsewhere(heartbeat=time.time() - 3600), folder)
    began = time.monotonic()
    with driver_lock([folder], print):
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"pid": "x"}', b"[" * 100_000])
def test_a_claim_that_cannot_be_read_expires(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXPIRY_SECONDS", 0.5)
    (tmp_path / f"driver-000001-{'0' * 16}.lock").write_bytes(content)
    lines: list[str] = []
    with driver_lock([str(tmp_path)], lines.append):
        pass
    assert "a driver whose claim cannot be read" in lines[0]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    reason = r"cannot lock .*file/run for this driver: .*correct the permissions"
    with pytest.raises(CheckpointError, match=reason), driver_lock([str(tmp_path / "file" / "run")], print):
        pass


def test_all_folders_are_locked_or_none(tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    with driver_lock([two], print):
        with pytest.raises(RunLocked), driver_lock([one, two], print):
            pass
        assert not Path(one).exists()
