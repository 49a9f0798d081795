"""Stores that cannot be used: read-only ones, and an experiment that is deleted while a run writes to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raycurv.service import Cluster
from raycurv.tracking.client import Tracking
from raycurv.train import Record
from tests.service.problems import mine

pytestmark = [pytest.mark.filterwarnings("ignore")]
TAGS = {"recipe": "points", "optimizer": "curveball", "seed": "0"}
OPEN = """
import sys
from raycurv.service import Cluster
from raycurv.tracking.client import Tracking, TrackingError
from tests.service.problems import mine

try:
    tracking = Tracking(Cluster(runs=sys.argv[1], system_metrics_every=0), print)
    tracking.open(mine(), {"recipe": "points", "optimizer": "curveball", "seed": "0"}, None, resume=False)
except TrackingError as error:
    print(f"refused: {error}")
"""


def steps(first: int, stop: int) -> list[Record]:
    return [Record("step", step, 0.0, 1.0, {"train/loss": 0.5}) for step in range(first, stop)]


@pytest.mark.parametrize(
    ("place", "reason", "remedy"),
    [("", "the folder of all runs cannot be written", "--runs"), ("mlflow.db", "MLflow at sqlite:", "--tracking-uri")],
)
def test_a_read_only_store_is_refused_with_what_to_do(tmp_path: Path, place: str, reason: str, remedy: str) -> None:
    Tracking(Cluster(runs=str(tmp_path), system_metrics_every=0), print).finish()
    path = str(tmp_path / place)
    mount = subprocess.run(["mount", "--bind", path, path], capture_output=True)
    if mount.returncode:
        pytest.skip("needs the right to mount a folder")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)
        done = subprocess.run([sys.executable, "-c", OPEN, str(tmp_path)], capture_output=True, text=True, timeout=120)
    finally:
        subprocess.run(["umount", path], check=True)
    assert done.returncode == 0, done.stderr
    assert f"refused: {reason}" in done.stdout
    assert remedy in done.stdout


def test_an_experiment_that_is_deleted_in_mid_run_stops_nothing_and_loses_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    cluster = Cluster(runs=str(tmp_path), experiment="gone", system_metrics_every=0)
    tracking = Tracking(cluster, said.append)
    run = tracking.open(mine(), TAGS, None, resume=False)
    run.log(steps(0, 5))
    assert tracking.save()
    client = MlflowClient(tracking.uri)
    assert tracking.finish() is None
    tracking = Tracking(cluster, said.append)
    run = tracking.open(mine(), TAGS, None, resume=True)
    client.delete_experiment(tracking.experiment)
    run.log(steps(5, 10))
    run.close("FINISHED")
    assert tracking.finish() is None
    assert any("refused" in line and "active" in line for line in said)

    again = Tracking(cluster, said.append)  # restores the experiment
    (refused,) = (tmp_path / "unsent").glob("*/*.refused")
    refused.rename(refused.with_suffix(".jsonl"))
    again.send_unsent()
    assert again.finish() is None
    assert [m.step for m in client.get_metric_history(run.id, "train/loss")] == [*range(10)]
    assert client.get_run(run.id).info.status == "FINISHED"
