"""Separate machines out of namespaces, by the machines kit: a Ray cluster, MLflow and S3 over a network."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240.0
HEAD = "head"
# Runs inside a machine. A process may end, or be a zombie without a command line, while the others are looked at.
SIGNAL = """
import contextlib, os, psutil, signal, sys

word, number = sys.argv[1], getattr(signal, sys.argv[2])
for process in psutil.process_iter(["cmdline", "name"]):
    words = process.info["cmdline"] or []
    if process.pid != os.getpid() and any(word in part for part in words) and "python" in process.info["name"]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
"""


def kit() -> Path | None:
    """Folder of the kit's scripts; None where there is none."""
    data = os.environ.get("RAYCURV_DATA")
    places = [Path(data).parent / "machines"] if data else []
    places.append(ROOT.parent / "shared" / "machines")
    return next((place for place in places if (place / "lib.sh").exists()), None)


def why_not() -> str:
    """Why there can be no machines here; empty if there can."""
    if kit() is None:
        return "needs the machines kit, in ../shared/machines or beside RAYCURV_DATA"
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    missing = [tool for tool in ("ip", "nsenter", "unshare", "setsid") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    tried = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--net", "true"], capture_output=True)
    return "" if tried.returncode == 0 else "needs permission for namespaces"


needs_machines = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are machines")


def note(measured: str) -> None:
    """Show a measurement, with `pytest -s`."""
    sys.stdout.write(f"\n{measured}\n")


class Job:
    """A process in a machine whose lines are kept with the time of their arrival."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    @property
    def output(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def wait_for(self, text: str, seconds: float = SECONDS, since: float = 0.0) -> float:
        """Wait until a line that came after `since` contains `text`; returns the time of that line."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None and not self._reader.is_alive()
            for when, line in list(self.lines):
                if when >= since and text in line:
                    return when
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"no line with {text!r} in:\n{self.output}")
            time.sleep(0.05)

    def finish(self, seconds: float = SECONDS) -> int:
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code


class Machines:
    """A head without CPUs, and worker machines with one CPU each.

    Args:
        workers: names of the worker machines that run Ray from the start.
        storage: whether the environment of the machines has RAYCURV_STORAGE.
    """

    def __init__(self, workers: Sequence[str] = ("n1", "n2"), storage: bool = True) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="raycurv-machines-", dir="/tmp"))
        self.names = [HEAD, "n1", "n2", "n3"]
        ours = {
            "MACHINES_DIR": str(self.folder),
            "MACHINES_CODE": str(ROOT),
            "MACHINES_TAG": f"rct{os.getpid()}",
            "NODES": " ".join(self.names),
            "SHM": "1g",
            "EXTRA_ENV": f"export PYTHONPATH={ROOT} OMP_NUM_THREADS=1 RAYCURV_TRUST=tests PYTHONUNBUFFERED=1",
        } | ({} if storage else {"STORAGE_LINE": ""})
        self.environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/root"), **ours}
        self._jobs: list[Job] = []
        self.script("net_up.sh")
        self.script("node_up.sh", HEAD, *workers)
        services = threading.Thread(target=self.script, args=("services_up.sh",))
        services.start()
        self.ray_up(*workers)
        services.join()
        self.python(
            HEAD, "import boto3, os; boto3.client('s3').create_bucket(Bucket='bucket', "
            "CreateBucketConfiguration={'LocationConstraint': 'us-west-2'})"
        )  # fmt: skip

    def script(self, name: str, *arguments: str, **variables: str) -> str:
        """Run a script of the kit."""
        folder = kit()
        assert folder is not None
        done = subprocess.run(
            ["bash", str(folder / name), *arguments],
            env=self.environment | variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ray_up(self, *workers: str) -> None:
        """Start Ray on machines that are up, and on the head if it is not there."""
        self.script("ray_up.sh", *workers)

    def boot(self, *workers: str) -> None:
        """Start machines, and Ray on all of them at once."""
        self.script("node_up.sh", *workers)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.ray_up, workers))

    def require(self, *workers: str) -> None:
        """Boot machines that are down, and wait until just these are in the cluster."""
        down = [worker for worker in workers if not (self.folder / "nodes" / worker / "init.pid").exists()]
        if down:
            self.boot(*down)
        code = "import ray, json; ray.init(address='auto', logging_level='error'); "
        code += "print(json.dumps([n['NodeManagerHostname'] for n in ray.nodes() if n['Alive']]))"
        deadline = time.monotonic() + SECONDS
        while sorted(self.python(HEAD, code)) != sorted([HEAD, *workers]):
            assert time.monotonic() < deadline, "the machines did not join"
            time.sleep(1)

    def end_jobs(self) -> None:
        """End the processes that tests have started on the head and that still run."""
        for job in self._jobs:
            if job.process.poll() is None:
                job.process.kill()
                job.process.wait()
        self._signal("jobs/train.py", "SIGKILL")

    def interrupt(self, run: str) -> None:
        """Ctrl-C for the driver of a run on the head."""
        self._signal(run, "SIGINT")

    def _signal(self, word: str, number: str) -> None:
        """Send a signal to the processes of the head that have a word in their command line."""
        self.run(HEAD, "python", "-c", SIGNAL, word, number)

    def kill(self, *workers: str, silent: bool = False) -> float:
        """Pull the plug of machines; returns when."""
        self.script("node_kill.sh", *workers, WIPE="1", SILENT="1" if silent else "0")
        return time.monotonic()

    def partition(self, worker: str, seconds: float) -> threading.Thread:
        """Pull the cable of a machine for some seconds; returns the thread that puts it back."""
        thread = threading.Thread(target=self.script, args=("partition.sh", worker, str(seconds)), daemon=True)
        thread.start()
        return thread

    def command(self, machine: str, *words: str) -> list[str]:
        """Command that runs words in a machine, with the environment of its shells."""
        return ["bash", "-c", f'source {kit()}/lib.sh; in_node "$@"', str(kit() / "lib.sh"), machine, *words]  # type: ignore[operator]

    def run(self, machine: str, *words: str, seconds: float = SECONDS) -> str:
        """Run a command in a machine to its end; returns its output."""
        done = subprocess.run(
            self.command(machine, *words), env=self.environment, capture_output=True, text=True, timeout=seconds
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, machine: str, code: str, seconds: float = SECONDS) -> Any:
        """Run Python in a machine; returns the last line that it prints as JSON, None if it prints none.

        Ray prints warnings among them, such as that of a raylet whose heartbeats are late.
        """
        for line in reversed(self.run(machine, "python", "-W", "ignore", "-c", code, seconds=seconds).splitlines()):
            with contextlib.suppress(json.JSONDecodeError):
                return json.loads(line)
        return None

    def start(self, machine: str, *words: str) -> Job:
        """Start a command in a machine."""
        process = subprocess.Popen(
            self.command(machine, *words),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        job = Job(process)
        self._jobs.append(job)
        return job

    def submit(self, *words: str, **variables: str) -> Job:
        """`ray job submit` on the head, with an empty working directory: all machines have the code."""
        self.run(HEAD, "mkdir", "-p", "/home/ray/empty")
        given = ["--runtime-env-json", json.dumps({"env_vars": variables})] if variables else []
        address = ["--address", "http://127.0.0.1:8265", "--working-dir", "/home/ray/empty"]
        return self.start(HEAD, "ray", "job", "submit", *address, *given, "--", *words)

    def train(self, *words: str, machine: str = HEAD) -> Job:
        """Start `jobs/train.py` in a machine."""
        return self.start(machine, "python", str(ROOT / "jobs" / "train.py"), *words)

    def values(self, run: str, metric: str) -> list[tuple[int, float]]:
        """All values of a metric of a run in MLflow, with their steps, in the order of the steps."""
        return [(step, value) for step, value, _ in self.history(run, metric)]

    def history(self, run: str, metric: str) -> list[tuple[int, float, float]]:
        """Step, value and time (seconds since 1970) of all values of a metric in MLflow, in the order of the steps."""
        code = (
            "import json, sys; from mlflow import MlflowClient; c = MlflowClient(); "
            "ids = [e.experiment_id for e in c.search_experiments()]; "
            f"r, = c.search_runs(ids, filter_string=\"tags.`raycurv.run_name` = '{run}'\"); "
            f"found = c.get_metric_history(r.info.run_id, {metric!r}); "
            "print(json.dumps([[m.step, m.value, m.timestamp / 1000] for m in found]))"
        )
        return sorted((step, value, when) for step, value, when in self.python(HEAD, code))

    def close(self) -> None:
        """End all machines."""
        for job in self._jobs:
            if job.process.poll() is None:
                job.process.kill()
                job.process.wait()
        self.script("net_down.sh")
        shutil.rmtree(self.folder, ignore_errors=True)
