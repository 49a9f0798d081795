"""A sweep whose MLflow has no room left: nothing that has ended is lost, and all of it arrives later."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raycurv.service.cluster import Cluster
from raycurv.service.failures import LaunchError
from raycurv.service.sweep import Ledger, Limits, Sweep
from raycurv.service.tracking import Tracking
from raycurv.train.outcomes import Outcome, Point
from tests.service.sweeping import many

pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Four megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave a page."""
    (folder / "filler").write_bytes(b"x" * (shutil.disk_usage(folder).free - 4096))


def test_a_ledger_without_room_says_what_to_do_and_keeps_what_it_has(small_disk: Path) -> None:
    ledger = Ledger(small_disk / "outcomes.jsonl")
    ledger.add(Outcome("one", "r", "sgd"))
    fill(small_disk)
    with pytest.raises(LaunchError, match=r"cannot write down how two ended: .*No space left.*make room"):
        ledger.add(Outcome("two", "r", "sgd", reason="x" * 9000))
    (small_disk / "filler").unlink()
    again = Ledger(ledger.path)
    assert set(again.done) == {"one"}
    again.add(Outcome("two", "r", "sgd"))
    assert set(Ledger(ledger.path).done) == {"one", "two"}


def test_trials_stay_while_mlflow_has_no_room_and_arrive_when_it_has(
    small_disk: Path, tmp_path: Path, data_base: Path
) -> None:
    shutil.copy(data_base, small_disk)
    said: list[str] = []
    uri = f"sqlite:///{small_disk}/mlflow.db"
    cluster = Cluster(runs=str(tmp_path), tracking_uri=uri, tracking_patience=0.5, system_metrics_every=0)
    tracking = Tracking(cluster, said.append)
    parent = tracking.parent("full", {"sweep": "full"}, False)
    ledger = Ledger(tmp_path / "sweeps" / "full" / "outcomes.jsonl")
    sweep = Sweep("full", cluster, Limits(), ledger, tracking, parent, said.append)
    trials = many(3)
    begun = [sweep._begun(trial) for trial in trials]
    points = (Point(1.0, 4, 0.5, {"train/epoch_loss": 1.0}),)
    ended = [Outcome(**{**vars(outcome), "status": "finished", "points": points, "steps": 4}) for outcome in begun]

    fill(small_disk)
    for outcome, trial in zip(ended, trials, strict=True):
        sweep.take(outcome, [], dataclasses.replace(trial.config, name=outcome.name).to_json())
    assert set(Ledger(ledger.path).done) == {outcome.name for outcome in ended}
    (message,) = [line for line in said if "MLflow lacks" in line]
    assert "database or disk is full" in message
    assert "--run-name full --resume" in message

    (small_disk / "filler").unlink()
    sweep._log_late()
    tracking.finish()
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("raycurv")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`raycurv.optimizer` = 'sgd'")
    assert sorted(run.data.tags["raycurv.run_name"] for run in runs) == sorted(o.name for o in ended)
    assert {(run.info.status, run.data.metrics["train/epoch_loss"]) for run in runs} == {("FINISHED", 1.0)}
