"""The README is true: its Python runs, its commands exist and take the flags that it shows."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from raycurv import recipes
from raycurv.objective.collectives import Local
from raycurv.train import CheckpointStore, train

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+) ?([^\n]*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SNIPPETS = [code for language, title, code in BLOCKS if language == "python" and not title]
FILES = {title: code for language, title, code in BLOCKS if language == "python" and title.endswith(".py")}
NOTEBOOK = next(code for _, title, code in BLOCKS if title == "notebook")
COMMANDS = [
    line.split("#")[0].strip()
    for language, _, code in BLOCKS
    if language == "sh"
    for line in code.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_snippet_learns():
    done = subprocess.run([sys.executable, "-c", SNIPPETS[0]], capture_output=True, text=True, timeout=120, check=True)
    assert float(re.search(r"loss ([\d.]+)", done.stdout)[1]) < 1.0


def test_a_users_own_recipe_trains(tmp_path, monkeypatch):
    for name, code in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = recipes.build("mypackage.recipes:mine", {})
    result = train(
        config, collectives=Local(), store=CheckpointStore(str(tmp_path / "store")), emit=lambda records: None
    )
    assert result.values["test/accuracy"] > 0.5


def test_the_notebook_shows_tracked_runs(tmp_path):
    store = "from tests.tracking.many_runs import main; import sys; main(sys.argv[1], '20', '5', 'raycurv')"
    run = [sys.executable, "-c"]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"RAYCURV_RUNS": str(tmp_path)}
    subprocess.run([*run, store, str(tmp_path)], check=True, cwd=ROOT, timeout=300, env=environment)
    code = f"{NOTEBOOK}\nprint(len(runs), len(losses))"
    done = subprocess.run([*run, code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "test/accuracy  best test/accuracy  seconds" in done.stdout
    assert done.stdout.splitlines()[-1] == "20 100"


@pytest.mark.parametrize("command", [c for c in COMMANDS if "jobs/" in c])
def test_commands_take_their_flags(command):
    words = shlex.split(command)
    job = next(word for word in words if word.startswith("jobs/"))
    assert (ROOT / job).exists()
    text = subprocess.run(
        [sys.executable, str(ROOT / job), "--help"], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    for flag in [word for word in words[words.index(job) :] if word.startswith("--")]:
        assert flag in text, f"{job} has no {flag}"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for command in COMMANDS:
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE), command


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:raycurv|jobs)/[\w/.]*)`", README))))
def test_places_exist(path):
    assert (ROOT / path).exists()
