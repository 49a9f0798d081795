"""The commands that the README begins with, on a machine that has nothing but the package."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from raycurv.service import local_ray
from tests.service.driving import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]
SECTION = re.search(r"^## From the command line\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)[1]
COMMANDS = [line.split(" #")[0] for line in re.search(r"```sh\n(.*?)```", SECTION, re.S)[1].splitlines()]
PREPARE = re.search(r"`(raycurv prepare [^`]*)`", SECTION)[1]


def test_the_first_commands_train_three_optimizers_and_compare_them(head: local_ray.RayHead, tmp_path: Path) -> None:
    environment = head.environment | {
        "HOME": str(tmp_path),
        "PATH": str(Path(sys.executable).parent),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    for command in [PREPARE, *COMMANDS]:
        program, *words = shlex.split(command)
        assert program == "raycurv"
        done = subprocess.run(
            [sys.executable, "-m", "raycurv.cli", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if words[0] == "train":
            accuracy = re.search(r"^curveball .* (\d+\.\d\d)% ", done.stdout, re.M)
            assert accuracy, done.stdout
            assert float(accuracy[1]) > 90, done.stdout  # far from chance
    for optimizer in ("curveball", "sgd", "adam"):
        assert re.search(rf"\b{optimizer}\b", done.stdout), done.stdout
