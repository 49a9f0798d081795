"""``make demo``: a local Ray, and the main job submitted to it on images that need no download."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from raycurv.cli.main import script
from raycurv.tracking.settings import default_runs

if TYPE_CHECKING:
    from raycurv.service.local_ray import RayHead

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
# Lines of `ray job submit` itself, but for errors.
OF_RAY = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+\t(INFO|WARNING|SUCC) \w+\.py:\d+ -- |Running entrypoint for job ")
NEXT = """
Next:
  raycurv train digits --optimizer auto     the same network with another optimizer
  raycurv train mine:recipe                 a network of yours: docs/your_own.md, "Your recipe"
  raycurv --help                            all commands
"""


def default_keep() -> bool:
    """Whether ``KEEP`` of the environment is set."""
    return os.environ.get("KEEP", "") not in ("", "0")


@dataclass(frozen=True)
class Demo:
    """Start a local Ray, train CurveBall, SGD and Adam on small images with two workers, and show how they compare."""

    EXAMPLE: ClassVar = "make demo KEEP=1"
    LOADS: ClassVar = "Ray"

    runs: str = field(default_factory=default_runs)
    """Folder of all runs, where `raycurv compare` and `raycurv ui` look for them. RAYCURV_RUNS sets the default."""

    keep: bool = field(default_factory=default_keep)
    """Leave Ray running, for the next demo. KEEP=1 sets the default."""

    serve: bool = field(default_factory=sys.stdout.isatty)
    """Serve MLflow at the end, until Ctrl-C. By default on a terminal."""

    def run(self) -> None:
        """Write the data, start Ray, submit the job, and show where to look.

        Raises:
            SystemExit: the job failed; with its exit code.
        """
        began = time.monotonic()
        code = self._train()
        print(f"the demo took {time.monotonic() - began:.0f} s")
        if code:
            raise SystemExit(code)
        print(NEXT)
        if self.serve:
            from raycurv.cli.ui import Ui

            print("The runs in MLflow:", flush=True)
            Ui(runs=self.runs).run()

    def _train(self) -> int:
        from raycurv.data.digits import write_digits
        from raycurv.service import local_ray

        runs = Path(self.runs).expanduser().absolute()
        data = write_digits(runs / "data" / "digits")
        note = runs / "ray.json"
        with ExitStack() as stack:
            head = local_ray.saved(note)
            if head is not None:
                print(f"using the Ray that an earlier demo left running at {head.dashboard}")
            else:
                print("starting Ray on loopback …", flush=True)
                head = local_ray.start(max(WORKERS, os.cpu_count() or 1), outlive=self.keep)
                local_ray.save(head, note)
            if not self.keep:
                stack.callback(note.unlink, missing_ok=True)
                stack.callback(local_ray.stop, head)
            code = submit(head, str(data), runs)
            if self.keep:
                stop = f"token in {head.folder}/token; stop it with kill {head.pid}"
                print(f"Ray stays up: dashboard {head.dashboard}, {stop}")
        return code


def submit(head: RayHead, data: str, runs: Path) -> int:
    """Submit the main job, follow it, and return the exit code of `ray job submit`."""
    from raycurv.tracking import provenance

    origin = provenance.commit()
    commit = origin["commit"] + ("-dirty" if origin["dirty"] == "true" else "")
    variables = {"RAYCURV_COMMIT": commit, "RAYCURV_RUNS": str(runs)}
    ray = Path(sys.executable).parent / "ray"
    job = ["python", "jobs/imagenet_curveball.py", "--recipe", "digits", "--data", data]
    job += ["--workers", str(WORKERS), "--compare", "sgd", "adam"]
    environment = json.dumps({"env_vars": variables})
    command = [str(ray), "job", "submit", "--working-dir", ".", "--runtime-env-json", environment, "--", *job]
    return follow(command, os.environ | head.environment, runs / "logs" / "demo.log")


def follow(command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """Run `ray job submit`, show the lines of the job, and return the exit code.

    Args:
        command: program and arguments.
        environment: environment variables.
        log: file that gets all lines, Ray's own too.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    pipe = subprocess.PIPE
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        for line in process.stdout or ():
            file.write(line)
            if not OF_RAY.match(line):
                sys.stdout.write(line)
                sys.stdout.flush()
        return process.wait()


if __name__ == "__main__":
    script(Demo)
