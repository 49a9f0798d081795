"""Jobs on a real Ray, and faults of processes that they rely on: bit by bit the undisturbed run, all of it in MLflow.

One Ray serves all faults of a kind, but for the raylet's, where each job has a Ray of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

from raycurv.data import storage
from raycurv.service import local_ray
from raycurv.service.outcome_log import OutcomeLog
from raycurv.train import CheckpointStore
from tests.data.faulty_proxy import RESET, FaultyProxy
from tests.reliability import driver_kills
from tests.reliability.equality import difference, undisturbed
from tests.service.driving import ROOT, SECONDS, Driver, Finished, Job, wait_until
from tests.service.serving import Server

Note = Callable[[int, str], None]
MINE = ("jobs/train.py", "--recipe", "tests.service.problems:mine", "--option", "epochs=4", "pause=0.1")
TWO = ("--workers", "2", "--system-metrics-every", "0")
STEPS, STEPS_AN_EPOCH, EPOCHS = 32, 8, 4


@dataclass
class Bench:
    """Where the faults of a kind happen.

    Attributes:
        driver: starts jobs.
        tracking: address of MLflow; None is the data base in the folder of runs.
        storage: address of checkpoints; None is the folder of runs.
        arguments: further arguments of every job.
    """

    driver: Driver
    tracking: str | None = None
    storage: str | None = None
    arguments: list[str] = field(default_factory=list)

    def start(self, name: str, *more: str, workers: tuple[str, ...] = TWO) -> Job:
        """Start a run, or go on with it."""
        return self.driver.start(*MINE, *workers, "--run-name", name, *self._where(), *more)

    def finish(self, name: str, *more: str) -> Finished:
        """Go on with a run to its end, should it not have ended."""
        return self.start(name, "--resume", *more).finish()

    def _where(self) -> list[str]:
        tracking = [] if self.tracking is None else ["--tracking-uri", self.tracking]
        return [*tracking, *([] if self.storage is None else ["--storage", self.storage]), *self.arguments]

    def store(self, name: str) -> CheckpointStore:
        """The checkpoints of a run."""
        return CheckpointStore(f"{self.storage}/{name}" if self.storage else str(self.driver.checkpoints(name)))

    def whole(self) -> None:
        """Train the run that nothing happens to, unless it is there."""
        if self.store(undisturbed()).finished() is None:
            shutil.rmtree(self.driver.checkpoints(undisturbed()), ignore_errors=True)
            finished = self.start(undisturbed()).finish()
            assert finished.code == 0, finished.output

    def lost(self, name: str) -> str:
        """What is wrong with a run that has ended; empty if nothing."""
        if different := difference(*(self.store(each).load() for each in (name, undisturbed()))):
            return different
        runs = self.runs(name)
        if [run.info.status for run in runs] != ["FINISHED"]:
            return f"MLflow has {[run.info.status for run in runs]}"
        for metric, expected in {
            "train/loss": list(range(1, STEPS + 1)),
            "test/loss": list(range(STEPS_AN_EPOCH, STEPS + 1, STEPS_AN_EPOCH)),
        }.items():
            steps = sorted(point.step for point in self.client().get_metric_history(runs[0].info.run_id, metric))
            if steps != expected:
                there, twice = len(set(steps) & set(expected)), len(steps) - len(set(steps))
                return f"{metric}: {there} of {len(expected)}, {twice} twice"
        return ""

    def runs(self, name: str) -> list[Run]:
        """The runs of a name in MLflow."""
        experiment = self.client().get_experiment_by_name("test")
        assert experiment is not None
        return list(self.client().search_runs([experiment.experiment_id], f"tags.`raycurv.run_name` = '{name}'"))

    def client(self) -> MlflowClient:
        """A client of MLflow."""
        return MlflowClient(self.tracking or f"sqlite:///{self.driver.runs}/mlflow.db")

    def forget(self, name: str) -> None:
        """Remove what an interrupted campaign left of a run."""
        shutil.rmtree(self.driver.checkpoints(name), ignore_errors=True)
        with contextlib.suppress(Exception):
            for run in self.runs(name):
                self.client().delete_run(run.info.run_id)


@contextlib.contextmanager
def bench(folder: Path, *, ray: bool = True) -> Iterator[Bench]:
    """A Ray of two CPUs, and a folder of runs that outlasts interruptions."""
    with contextlib.ExitStack() as stack:
        environment = {"PYTHONPATH": str(ROOT), "RAYCURV_TRUST": "tests"}
        if ray:
            head: Any = stack.enter_context(local_ray.local_ray(2, environment=environment))
        else:
            head = NoRay()
        runs = folder / "runs"
        kept = folder / "kept"
        if runs.exists():
            runs.rename(kept)
        driver = Driver(head, runs)
        if kept.exists():
            runs.rmdir()
            kept.rename(runs)
        driver.environment |= environment
        stack.callback(driver.end)
        yield Bench(driver)


class NoRay:
    """No Ray that is up: each job starts its own."""

    environment: Mapping[str, str] = MappingProxyType({})


def _until_training(job: Job, draw: random.Random) -> None:
    """Wait until a run has begun its first steps, and a random time of it."""
    deadline = time.monotonic() + SECONDS
    while "epoch 0" not in job.output and "goes on" not in job.output and job.process.poll() is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    time.sleep(draw.uniform(0.0, 2.5))


def _completed(bench: Bench, name: str, finished: Finished) -> str:
    """What is lost after a job has ended, and after one more start if it has failed or MLflow did not take all."""
    if finished.code != 0 or "MLflow did not take everything" in finished.output:
        again = bench.finish(name)
        if again.code != 0:
            return f"exit {finished.code}, then {again.code}: {again.output[-300:]}"
    return bench.lost(name)


def _each(first: int, stop: int, note: Note, one: Callable[[int, random.Random], str]) -> None:
    for number in range(first, stop):
        try:
            lost = one(number, random.Random(number))
        except (AssertionError, subprocess.TimeoutExpired) as error:
            lost = f"{type(error).__name__}: {str(error)[-300:]}"
        note(number, lost)


def run_worker(first: int, stop: int, folder: Path, note: Note) -> None:
    """One of two workers is killed; the job starts it again, or is started again."""
    with bench(folder / "worker") as found:
        found.whole()

        def one(number: int, draw: random.Random) -> str:
            name = f"worker-{number}"
            found.forget(name)
            job = found.start(name)
            _until_training(job, draw)
            workers = found.driver.workers()
            if not workers:
                return "" if job.finish().code == 0 else "no worker to kill"
            draw.choice(workers).kill()
            return _completed(found, name, job.finish())

        _each(first, stop, note, one)


def run_worker_start(first: int, stop: int, folder: Path, note: Note) -> None:
    """One of two workers is killed before it trains: while it imports, connects to the other, or waits for its run."""
    with bench(folder / "worker") as found:
        found.whole()

        def one(number: int, draw: random.Random) -> str:
            name = f"worker-start-{number}"
            found.forget(name)
            job = found.start(name)
            wait_until(lambda: found.driver.workers() or job.process.poll() is not None)
            began, seconds = time.monotonic(), draw.uniform(0.0, 8.0)
            while "starts: " not in job.output and time.monotonic() < began + seconds:
                time.sleep(0.05)
            wait_until(lambda: found.driver.workers() or job.process.poll() is not None)
            workers = found.driver.workers()
            assert workers, "no worker to kill"
            draw.choice(workers).kill()
            finished = job.finish()
            return f"exit {finished.code}: {finished.output[-300:]}" if finished.code else found.lost(name)

        _each(first, stop, note, one)


def run_driver(first: int, stop: int, folder: Path, note: Note) -> None:
    """The driver is killed five times in one run."""
    _kill_drivers(first, stop, folder / "driver", note)


def _kill_drivers(first: int, stop: int, folder: Path, note: Note, *, without_ray: bool = False) -> None:
    with driver_kills.campaign(folder, without_ray=without_ray) as made:

        def one(number: int, draw: random.Random) -> str:
            row = made.run(number)
            return "" if row.complete else str(row)

        _each(first, stop, note, one)


def run_driver_without_ray(first: int, stop: int, folder: Path, note: Note) -> None:
    """As :func:`run_driver`, with the driver and the training in one process."""
    _kill_drivers(first, stop, folder / "driver_without_ray", note, without_ray=True)


def run_mlflow(first: int, stop: int, folder: Path, note: Note) -> None:
    """The server is killed, or stopped by SIGSTOP, for seconds; the job never waits for it, and loses nothing."""
    with bench(folder / "mlflow") as found:
        server = Server(found.driver.runs)
        server.start()
        found.tracking = server.uri
        try:
            found.whole()

            def one(number: int, draw: random.Random) -> str:
                name = f"mlflow-{number}"
                found.forget(name)
                job = found.start(name)
                _until_training(job, draw)
                seconds = draw.uniform(1.0, 15.0)
                if number % 2:
                    server.stop()
                    time.sleep(seconds)
                    server.start()
                else:
                    group = server._process.pid  # type: ignore[union-attr]
                    os.killpg(group, signal.SIGSTOP)
                    time.sleep(seconds)
                    os.killpg(group, signal.SIGCONT)
                return _completed(found, name, job.finish())

            _each(first, stop, note, one)
        finally:
            server.stop()


def run_s3(first: int, stop: int, folder: Path, note: Note) -> None:
    """Checkpoints on an S3 server, all of whose connections are reset for seconds."""
    import boto3
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    away = {"until": 0.0}
    proxy = FaultyProxy(port, lambda number, head: RESET if time.monotonic() < away["until"] else None)
    keys = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    os.environ |= keys
    boto3.client("s3", endpoint_url=keys["AWS_ENDPOINT_URL"], region_name="us-east-1").create_bucket(Bucket="mine")
    try:
        with bench(folder / "s3") as found:
            for path in found.driver.runs.iterdir():  # a new server, so nothing of before
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            found.driver.environment |= keys
            found.storage = "s3://mine/runs"
            storage.resolve(found.storage)
            found.whole()

            def one(number: int, draw: random.Random) -> str:
                name = f"s3-{number}"
                job = found.start(name)
                _until_training(job, draw)
                away["until"] = time.monotonic() + draw.uniform(0.5, 12.0)
                finished = job.finish()
                while time.monotonic() < away["until"]:
                    time.sleep(0.1)
                return _completed(found, name, finished)

            _each(first, stop, note, one)
    finally:
        proxy.close()
        moto.stop()


def run_sweep(first: int, stop: int, folder: Path, note: Note) -> None:
    """The driver of a sweep is killed; with --resume every trial is there once."""
    trials = 30
    with bench(folder / "sweep") as found:

        def one(number: int, draw: random.Random) -> str:
            name = f"sweep-{number}"
            command = ("-m", "tests.service.sweeping", "--trials", str(trials), "--run-name", name)
            path = found.driver.runs / "sweeps" / name / "outcomes.jsonl"
            shutil.rmtree(path.parent, ignore_errors=True)
            job = found.driver.start(*command, experiment=False)
            wanted = draw.randint(0, trials - 5)
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline and job.process.poll() is None:
                if path.exists() and len(path.read_bytes().splitlines()) >= wanted:
                    break
                time.sleep(0.05)
            time.sleep(draw.uniform(0.0, 0.5))
            job.process.kill()
            job.process.wait()
            again = found.driver.run(*command, "--resume", experiment=False)
            if again.code != 0:
                return f"exit {again.code}: {again.output[-300:]}"
            lines = path.read_bytes().splitlines()
            if len(lines) != trials or len(OutcomeLog(path).done) != trials:
                return f"{len(lines)} lines of {len(OutcomeLog(path).done)} trials"
            return _sweep_in_mlflow(found, name, trials)

        _each(first, stop, note, one)


def _sweep_in_mlflow(found: Bench, name: str, trials: int) -> str:
    client = found.client()
    experiment = client.get_experiment_by_name("raycurv")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`raycurv.sweep` = '{name}'", max_results=1000)
    names = [run.data.tags["raycurv.run_name"] for run in runs]
    running = sum(run.info.status == "RUNNING" for run in runs)
    if running or len(names) != len(set(names)) or len(names) not in (trials, trials + 1):
        return f"MLflow has {len(names)} runs of {len(set(names))} names, {running} of them running"
    return ""


def run_raylet(first: int, stop: int, folder: Path, note: Note) -> None:
    """The raylet of the job's own Ray is killed; the job ends with a message, and goes on with --resume."""
    with bench(folder / "raylet", ray=False) as found:
        found.whole()

        def one(number: int, draw: random.Random) -> str:
            name = f"raylet-{number}"
            found.forget(name)
            job = found.start(name)
            _until_training(job, draw)
            raylets = [p for p in _below(job.process.pid) if p.name() == "raylet"]
            if not raylets:
                return "" if job.finish().code == 0 else f"no raylet to kill: {job.output[-300:]}"
            raylets[0].kill()
            began = time.monotonic()
            finished = job.finish()
            if time.monotonic() - began > 120:
                return f"it took {time.monotonic() - began:.0f} s to end"
            return _completed(found, name, finished)

        _each(first, stop, note, one)


def run_supervisor(first: int, stop: int, folder: Path, note: Note) -> None:
    """The actor of Ray that supervises a submitted job is killed; the run goes on with --resume."""
    with bench(folder / "supervisor") as found:
        found.whole()

        def one(number: int, draw: random.Random) -> str:
            name = f"supervisor-{number}"
            found.forget(name)
            job = found.driver.submit(*MINE, *TWO, "--run-name", name, RAYCURV_TRUST="tests")
            _until_training(job, draw)
            supervisors = [p for p in found.driver.head.processes() if "JobSupervisor" in " ".join(_words(p))]
            if not supervisors:
                return "no supervisor to kill"
            supervisors[0].kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(60)
            job.process.kill()
            drivers = [p for p in psutil.process_iter() if name in _words(p) and "jobs/train.py" in _words(p)]
            for driver in drivers:  # a driver that outlives its supervisor comes to its end
                with contextlib.suppress(psutil.TimeoutExpired, psutil.NoSuchProcess):
                    driver.wait(90)
            again = found.finish(name)
            return f"exit {again.code}: {again.output[-300:]}" if again.code else found.lost(name)

        _each(first, stop, note, one)


def _below(pid: int) -> list[psutil.Process]:
    """All processes of a job: its children, and those of the Ray that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children(recursive=True)
        return [process for process in children if process.is_running()]
    return []


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return process.cmdline()
    return []
