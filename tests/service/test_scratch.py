"""Temporary folders of launches and sweeps."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from raycurv.service.scratch import PREFIXES, scratch_folder
from tests.service.driving import ROOT


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_folder_ends_with_its_block(prefix: str, temporary: Path) -> None:
    with scratch_folder(prefix) as folder:
        (folder / "file").touch()
    assert list(temporary.iterdir()) == []


def test_those_of_killed_processes_are_removed_and_those_of_living_ones_kept(temporary: Path) -> None:
    code = "import time; from raycurv.service.scratch import scratch_folder\n"
    code += "with scratch_folder('raycurv-train-') as folder: print(folder, flush=True); time.sleep(100)"
    command = [sys.executable, "-c", code]
    environment = {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    earlier = temporary / "raycurv-tune-of-an-earlier-version"
    earlier.mkdir()
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".lock").touch()
    (temporary / "raycurv-train-link").symlink_to(elsewhere)
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().decode().strip())
        with scratch_folder("raycurv-tune-"):
            assert folder.exists()
        process.kill()
        process.wait()
    assert folder.exists()

    with scratch_folder("raycurv-tune-"):
        assert not folder.exists()
        assert earlier.exists()
        assert elsewhere.exists()
