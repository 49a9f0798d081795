"""The demo, without its Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raycurv.cli import demo
from raycurv.cli.compare import Compare
from raycurv.cli.demo import Demo
from raycurv.cli.ui import Ui

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the demo does, in place of which it trains nothing."""
    done: list[Any] = []
    monkeypatch.setattr(Demo, "_train", lambda self: done.append(("train", self.runs)) or 0)
    monkeypatch.setattr(Ui, "run", lambda self: done.append(("serve", self.runs)))
    return done


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--help-all"]])
def test_help_is_shown_and_nothing_runs(words: list[str]) -> None:
    command = [sys.executable, "-m", "raycurv.cli.demo", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    assert done.stdout.startswith("usage: ")
    assert "--keep" in done.stdout
    assert "starting Ray" not in done.stdout


def test_an_unknown_option_is_refused_and_nothing_runs() -> None:
    command = [sys.executable, "-m", "raycurv.cli.demo", "--kep"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "did you mean --keep" in done.stderr


def test_its_runs_are_where_compare_and_ui_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAYCURV_RUNS", raising=False)
    assert Demo().runs == Compare().cluster.runs == Ui().runs
    monkeypatch.setenv("RAYCURV_RUNS", str(tmp_path))
    assert Demo().runs == Compare().cluster.runs == Ui().runs == str(tmp_path)


def test_it_ends_with_what_to_do_next_and_serves_mlflow_on_a_terminal(
    trained: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Demo(runs=str(tmp_path), serve=False).run()
    assert trained == [("train", str(tmp_path))]
    printed = capsys.readouterr().out
    assert "raycurv train mine:recipe" in printed
    assert "docs/your_own.md" in printed
    Demo(runs=str(tmp_path), serve=True).run()
    assert trained[1:] == [("train", str(tmp_path)), ("serve", str(tmp_path))]


def test_what_it_names_next_exists() -> None:
    assert (ROOT / "docs" / "your_own.md").read_text().count("## Your recipe")
    assert "raycurv train digits --optimizer auto" in demo.NEXT


def test_a_job_that_failed_ends_it_with_the_jobs_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Demo, "_train", lambda self: 3)
    with pytest.raises(SystemExit) as ended:
        Demo(runs=str(tmp_path), serve=True).run()
    assert ended.value.code == 3


def test_the_lines_of_the_job_are_shown_and_those_of_ray_are_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "2026-11-26 10:48:12,653\tINFO cli.py:42 -- \x1b[37mJob submission server address\x1b[39m: http://127.0.0.1:1",
        "2026-11-26 10:48:12,653\tWARNING working_dir.py:101 -- Directory '.git' is now ignored",
        "Running entrypoint for job raysubmit_1: python jobs/train.py",
        "training on 2 workers on the CPU",
        "2026-11-26 10:49:29,943\tSUCC cli.py:67 -- \x1b[32mJob 'raysubmit_1' succeeded\x1b[39m",
        "2026-11-26 10:49:29,943\tERR cli.py:67 -- Job 'raysubmit_1' failed",
    ]
    code = f"import sys\nfor line in {lines!r}: print(line)\nsys.exit(7)"
    log = tmp_path / "logs" / "demo.log"
    assert demo.follow([sys.executable, "-c", code], {}, log) == 7
    assert capsys.readouterr().out.splitlines() == [lines[3], lines[5]]
    assert log.read_text().splitlines() == lines
