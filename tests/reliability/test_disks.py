"""Full, read-only and slow disks below what a driver writes: nothing is lost, and the user learns what to do."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raycurv.results.outcomes import Outcome
from raycurv.service import Cluster
from raycurv.service.errors import LaunchError
from raycurv.service.outcome_log import OutcomeLog
from raycurv.tracking.client import Tracking
from raycurv.train import Record
from tests.reliability import disks, small_disk
from tests.reliability.disks import DiskFault, hurt
from tests.reliability.small_disk import SmallDisk
from tests.service.driving import wait_until
from tests.service.problems import mine
from tests.service.serving import Server

needs_disks = pytest.mark.skipif(bool(small_disk.why_not()), reason=small_disk.why_not() or "there are disks")
needs_slow = pytest.mark.skipif(bool(small_disk.why_not_slow()), reason=small_disk.why_not_slow() or "there are disks")


TAGS = {"recipe": "points", "optimizer": "curveball", "seed": "0"}
LOG = """
import os, sys
from raycurv.service import Cluster
from raycurv.tracking.client import Tracking
from raycurv.train import Record
from tests.reliability.test_disks import TAGS
from tests.service.problems import mine

cluster = Cluster(runs=sys.argv[1], tracking_uri=sys.argv[2], experiment="test", system_metrics_every=0)
tracking = Tracking(cluster, print)
run = tracking.open(mine(), TAGS, None, resume=False)
os.sync()
run.log([Record("step", step, 0.0, 1.0, {"train/loss": 0.5}) for step in range(100)])
run.close("FINISHED")
assert tracking.finish() is None
os._exit(0)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk", tmp_path / "disk.img")
    yield disk
    disk.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all runs, so that the one that nothing happens to is trained once."""
    return Path(tmp_path_factory.mktemp("disks"))


@needs_disks
@pytest.mark.parametrize(("fault", "reason"), [("full", "No space left"), ("read-only", "Read-only file system")])
def test_a_log_of_outcomes_that_cannot_be_written_names_the_file_and_what_to_do(
    disk: SmallDisk, fault: str, reason: str
) -> None:
    log = OutcomeLog(disk.folder / "outcomes.jsonl")
    log.add(Outcome("one", "r", "sgd"))
    disk.fill() if fault == "full" else disk.read_only()
    with pytest.raises(LaunchError, match=rf"{reason}.*in {re.escape(str(log.path))}: free disk space.*--resume"):
        log.add(Outcome("two", "r", "sgd", reason="x" * 9000))
    if fault == "full":
        disk.make_room()
    else:
        disk.unmount()
        disk.mount()
    again = OutcomeLog(log.path)
    assert set(again.done) == {"one"}
    again.add(Outcome("two", "r", "sgd"))
    assert set(OutcomeLog(log.path).done) == {"one", "two"}


@needs_slow
def test_a_log_of_outcomes_on_a_slow_disk_has_every_outcome_before_it_counts(disk: SmallDisk) -> None:
    log = OutcomeLog(disk.folder / "outcomes.jsonl")
    disk.slow(disks.WRITES)
    began = time.monotonic()
    for name in ("one", "two", "three"):
        log.add(Outcome(name, "r", "sgd"))
        assert name in OutcomeLog(log.path).done
    assert time.monotonic() - began > 0.2


@needs_slow
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "place", "seconds", "said"),
    [
        ("full", "both", 0.0, "cannot be written to"),
        ("read-only", "mlflow", 0.0, "MLflow does not answer"),
        ("slow", "both", 4.0, "finished after"),
    ],
)
def test_a_disk_that_fails_below_the_queue_or_mlflow_loses_nothing_and_stops_no_step(
    folder: Path, fault: str, place: str, seconds: float, said: str
) -> None:
    found = DiskFault(folder, place)
    try:
        lost, finished = hurt(found, fault, seconds, 10)
    finally:
        found.close()
    assert not lost, finished.output
    assert said in finished.output


@needs_disks
@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 200_000])
def test_a_disk_that_is_full_before_the_first_step_is_an_error_that_names_it(folder: Path, left: int) -> None:
    found = DiskFault(folder, "both")
    try:
        found.disk.fill(left)
        finished = found.start().finish()
        assert finished.code == 1, finished.output
        assert "Traceback" not in finished.output
        assert str(found.runs) in finished.output.split("error: ")[1]
        assert re.search("disk space|disk has room", finished.output)
        found.disk.make_room()
        assert not found.completed(finished)
    finally:
        found.close()


@needs_disks
@pytest.mark.slow
def test_what_mlflow_has_taken_is_on_its_disk(disk: SmallDisk, data_base: Path, tmp_path: Path) -> None:
    shutil.copy(data_base, disk.folder)
    uri = f"sqlite:///{disk.folder}/mlflow.db"
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOG, str(tmp_path), uri], check=True, timeout=240)
    disk.read_only()  # takes back what the kernel has not written, as a power cut does
    disk.unmount()
    disk.mount()
    with contextlib.closing(sqlite3.connect(disk.folder / "mlflow.db")) as connection:
        steps = connection.execute("SELECT step FROM metrics WHERE key = 'train/loss' ORDER BY step").fetchall()
        ((status,),) = connection.execute("SELECT status FROM runs").fetchall()
    assert [step for (step,) in steps] == list(range(100))
    assert status == "FINISHED"


@needs_disks
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_server_whose_disk_is_full_gets_everything_once_it_has_room(
    disk: SmallDisk, data_base: Path, tmp_path: Path
) -> None:
    shutil.copy(data_base, disk.folder)
    server = Server(disk.folder)
    server.start()
    said: list[str] = []
    try:
        runs = str(tmp_path / "runs")
        cluster = Cluster(runs=runs, tracking_uri=server.uri, experiment="full", system_metrics_every=0)
        tracking = Tracking(cluster, said.append)
        run = tracking.open(mine(), TAGS, None, resume=False)
        disk.fill()
        longest = 0.0
        for step in range(100):
            began = time.monotonic()
            run.log([Record("step", step, 0.0, 1.0, {"train/loss": 0.5})])
            assert tracking.save()
            longest = max(longest, time.monotonic() - began)
        run.text("config.json", mine().to_json())
        run.close("FINISHED")
        wait_until(lambda: said)
        disk.make_room()
        assert tracking.finish() is None, said
        client = MlflowClient(server.uri)
        assert [m.step for m in client.get_metric_history(run.id, "train/loss")] == list(range(100))
        assert client.get_run(run.id).info.status == "FINISHED"
    finally:
        server.stop()
    assert longest < 1.0
    assert "MLflow does not answer" in said[0]
