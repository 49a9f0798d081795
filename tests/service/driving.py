"""Jobs as users start them: processes with a command line, an exit code and an output."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from raycurv.service import local_ray

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240.0  # enough for a loaded machine


@dataclass(frozen=True)
class Finished:
    """A job that has ended."""

    code: int
    output: str


class Job:
    """A job that runs."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=dict(environment), stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Wait until it has written `text`."""
        wait_until(lambda: text in self.output or self.process.poll() is not None)
        assert text in self.output, self.output

    def finish(self) -> Finished:
        """Wait for its end."""
        code = self.process.wait(SECONDS)
        return Finished(code, self.output)


class Driver:
    """Starts jobs."""

    def __init__(self, head: local_ray.RayHead, runs: Path) -> None:
        self.head, self.runs = head, runs
        self._jobs: list[Job] = []
        self.finished = Finished(-1, "")
        self.listening: dict[str, set[str]] = {}
        self.scraped = ""
        # An MLflow that an earlier test of this process talked to is none of this job's business.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        self.environment = {**clean, **head.environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        runs.mkdir(parents=True, exist_ok=True)

    def start(self, *arguments: str, experiment: bool = True, **variables: str) -> Job:
        """Run a job's script in a process of its own."""
        own = ["--runs", str(self.runs), *(["--experiment", "test"] if experiment else [])]
        return self._start([sys.executable, *arguments, *own], variables)

    def run(self, *arguments: str, experiment: bool = True, **variables: str) -> Finished:
        """Run a job's script to its end."""
        return self.start(*arguments, experiment=experiment, **variables).finish()

    def submit(self, *arguments: str, **variables: str) -> Job:
        """`ray job submit`, with environment variables for the job and its workers."""
        ray = str(Path(sys.executable).parent / "ray")
        job = ["python", *arguments, "--runs", str(self.runs), "--experiment", "test"]
        told = ["--runtime-env-json", json.dumps({"env_vars": variables})] if variables else []
        return self._start([ray, "job", "submit", "--working-dir", str(ROOT), *told, "--", *job], {})

    def stop(self, job: Job) -> None:
        """`ray job stop`."""
        (name,) = set(re.findall(r"raysubmit_\w+", job.output))
        ray = str(Path(sys.executable).parent / "ray")
        subprocess.run([ray, "job", "stop", name], env=self.environment, check=True, capture_output=True)

    def scrape(self) -> str:
        """What Ray tells those who scrape its metrics, as Prometheus does; empty if it does not answer."""
        found = Path(self.head.folder) / "ray" / "prom_metrics_service_discovery.json"
        text = ""
        for target in [t for group in json.loads(found.read_text()) for t in group["targets"]]:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as answer:
                text += answer.read().decode()
        return text

    def checkpoints(self, name: str) -> Path:
        """Where those of a run lie."""
        return self.runs / "checkpoints" / name

    def workers(self) -> list[psutil.Process]:
        """The processes that train, as Ray names them."""
        named = [p for p in self.head.processes() if "RayTrainWorker" in " ".join(_command(p))]
        return sorted(named, key=lambda process: process.pid)

    def end(self) -> None:
        """End what still runs."""
        for job in self._jobs:
            if job.process.poll() is None:
                job.process.kill()
                job.process.wait()

    def _start(self, command: list[str], variables: Mapping[str, str]) -> Job:
        job = Job(command, self.environment | dict(variables), self.runs / f"job-{len(self._jobs)}.log")
        self._jobs.append(job)
        return job


def wait_until(condition: Callable[[], Any], seconds: float = SECONDS) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
