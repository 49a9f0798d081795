"""A real MLflow server, which goes away and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raycurv.service import Cluster
from raycurv.tracking.client import Tracking
from raycurv.tracking.tracked_run import TrackedRun
from raycurv.train import Record
from tests.service.driving import Driver, wait_until
from tests.service.problems import mine
from tests.service.serving import Server

pytestmark = [pytest.mark.filterwarnings("ignore")]
TAGS = {"recipe": "points", "optimizer": "curveball", "seed": "0"}


@pytest.mark.parametrize("trouble", ["killed", "frozen", "failing"])
def test_a_server_in_trouble_loses_nothing_and_keeps_nobody_waiting(
    server: Server, tmp_path: Path, trouble: str
) -> None:
    said: list[str] = []
    cluster = Cluster(runs=str(tmp_path), tracking_uri=server.uri, experiment=trouble, system_metrics_every=0)
    tracking = Tracking(cluster, said.append)
    run = tracking.open(mine(), TAGS, None, resume=False)
    later = tracking.open_later(replace(mine(), name="later"), TAGS, None, resume=False)
    longest = 0.0
    log_steps(run, tracking, range(50))
    time.sleep(1.0)
    with getattr(server, trouble)():
        for step in range(50, 100):
            began = time.monotonic()
            log_steps(run, tracking, [step])
            longest = max(longest, time.monotonic() - began)
        later.begin(1000.0)
        log_steps(later, tracking, range(50))
        wait_until(lambda: said)
    later.close("FINISHED", 1010.0)
    run.close("FINISHED")

    assert longest < 1.0
    assert tracking.finish() is None
    assert "does not answer" in said[0]
    client = MlflowClient(server.uri)
    assert [m.step for m in client.get_metric_history(run.id, "train/loss")] == list(range(100))
    assert client.get_run(run.id).info.status == "FINISHED"
    assert len(client.search_runs([tracking.experiment])) == 2
    created = tracking.find("later")
    assert created is not None
    assert (created.info.start_time, created.info.end_time) == (1_000_000, 1_010_000)
    assert [m.step for m in client.get_metric_history(created.info.run_id, "train/loss")] == list(range(50))


def log_steps(run: TrackedRun, tracking: Tracking, steps: Iterable[int]) -> None:
    run.log([Record("step", step, 0.0, 1.0, {"train/loss": 0.5}) for step in steps])
    assert tracking.save()


def test_a_server_that_stays_away_leaves_a_file_that_the_next_start_delivers(server: Server, tmp_path: Path) -> None:
    cluster = Cluster(
        runs=str(tmp_path), tracking_uri=server.uri, experiment="away", system_metrics_every=0, tracking_patience=0.5
    )
    tracking = Tracking(cluster, print)
    run = tracking.open(mine(), TAGS, None, resume=False)
    server.stop()
    run.log([Record("step", 1, 0.0, 1.0, {"train/loss": 0.5})])
    run.close("FINISHED")
    left = tracking.finish()
    assert left is not None
    assert left.exists()

    server.start()
    again = Tracking(cluster, print)
    assert again.send_unsent() >= 2
    again.finish()
    assert again.client.get_run(run.id).info.status == "FINISHED"
    assert again.client.get_run(run.id).data.metrics["train/loss"] == 0.5


@pytest.mark.cluster
def test_a_job_writes_to_a_server(server: Server, driver: Driver) -> None:
    finished = driver.run(
        "jobs/train.py", "--recipe", "tests.service.problems:mine", "--run-name", "served", "--tracking-uri", server.uri
    )

    assert finished.code == 0, finished.output
    assert any(line.strip().startswith(server.uri) for line in finished.output.splitlines()[-4:])
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == list(range(1, 17))
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"config.json"}


@pytest.mark.cluster
def test_a_server_that_is_not_there_stops_a_job_before_it_has_begun(driver: Driver) -> None:
    finished = driver.run(
        "jobs/train.py", "--recipe", "tests.service.problems:mine", MLFLOW_TRACKING_URI="http://127.0.0.1:9"
    )

    assert finished.code == 1
    assert "MLflow at http://127.0.0.1:9 cannot be used" in finished.output
    assert "training on" not in finished.output
    assert not [*(driver.runs / "checkpoints").glob("*")]
