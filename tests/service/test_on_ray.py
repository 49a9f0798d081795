"""Jobs on a real Ray, followed in a real MLflow."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from raycurv.data import storage
from raycurv.data.digits import write_digits
from raycurv.train import CheckpointStore
from tests.service.driving import Driver, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]
# Four epochs of eight steps; the pauses leave time to kill something.
MINE = ("jobs/train.py", "--recipe", "tests.service.problems:mine", "--option", "epochs=4", "pause=0.2")
TWO = ("--workers", "2", "--system-metrics-every", "0")
STEPS = 32


def runs_of(driver: Driver) -> list[Run]:
    client = client_of(driver)
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


def client_of(driver: Driver) -> MlflowClient:
    return MlflowClient(f"sqlite:///{driver.runs}/mlflow.db")


def steps_of(driver: Driver, run: Run, name: str = "train/loss") -> list[int]:
    return [metric.step for metric in client_of(driver).get_metric_history(run.info.run_id, name)]


def state_of(folder: Path) -> dict[str, Any]:
    state = CheckpointStore(str(folder)).load()
    assert state is not None
    return state


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for key in value:
            yield from tensors(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def assert_equal_states(one: dict[str, Any], other: dict[str, Any]) -> None:
    for part in ("model", "optimizer"):
        pairs = list(zip(tensors(one[part]), tensors(other[part]), strict=True))
        assert pairs
        assert all(torch.equal(a, b) for a, b in pairs), part


@pytest.fixture(scope="module")
def uninterrupted(head: Any, tmp_path_factory: pytest.TempPathFactory, data_base: Path) -> Iterator[Driver]:
    """The run that nothing happens to, submitted as a job, beside another optimizer on the same batches."""
    import shutil

    driver = Driver(head, tmp_path_factory.mktemp("uninterrupted") / "runs")
    shutil.copy(data_base, driver.runs)
    modules = driver.runs / "modules.txt"
    job = driver.submit(*MINE, f"modules={modules}", "--compare", "sgd", *TWO, "--run-name", "whole")
    wait_until(lambda: job.process.poll() is not None or "epoch 0.25" in job.output)
    driver.listening = listening(driver)
    wait_until(lambda: job.process.poll() is not None or "raycurv_step_seconds" in driver.scrape())
    driver.scraped = driver.scrape()
    driver.finished = job.finish()
    assert driver.finished.code == 0, driver.finished.output
    yield driver
    driver.end()


def listening(driver: Driver) -> dict[str, set[str]]:
    """The addresses on which the processes of Ray listen, by the name of the process."""
    found: dict[str, set[str]] = {}
    for process in driver.head.processes():
        addresses = {c.laddr.ip for c in process.net_connections("tcp") if c.status == "LISTEN"}
        found.setdefault(process.name(), set()).update(addresses)
    return found


def test_a_submitted_job_ends_with_its_runs_in_mlflow(uninterrupted: Driver) -> None:
    parent, curveball, sgd = runs_of(uninterrupted)

    assert [run.info.status for run in (parent, curveball, sgd)] == ["FINISHED"] * 3
    assert parent.info.run_name == "whole · points · curveball, sgd · 2 runs"
    assert curveball.info.run_name == "whole · points · curveball · seed 0"
    assert curveball.data.tags["raycurv.status"] == "finished"
    assert "jobs/train.py --recipe" in curveball.data.params["launch.command"]
    assert "torch " in curveball.data.params["launch.versions"]
    assert re.search(r"--run-name whole .*--resume\n", curveball.data.tags["mlflow.note.content"])
    assert curveball.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert curveball.data.tags["raycurv.run_name"] == "whole-curveball"
    assert curveball.data.params["optimizer"] == "curveball"
    assert len(curveball.data.tags["raycurv.commit"]) == 40
    trained = 1000 * curveball.data.metrics["result/seconds"]
    assert parent.info.start_time < curveball.info.start_time <= sgd.info.start_time - 0.9 * trained
    assert f"runs:/{sgd.info.run_id}/whole-sgd" in sgd.data.tags["mlflow.note.content"]
    for run in (curveball, sgd):
        assert steps_of(uninterrupted, run) == list(range(1, STEPS + 1))
        assert steps_of(uninterrupted, run, "test/accuracy") == [8, 16, 24, 32]
    assert {"optimizer/momentum", "optimizer/learning_rate", "optimizer/damping"} <= set(curveball.data.metrics)
    cost = [run.data.metrics["result/operations"] for run in (curveball, sgd)]
    assert 1.5 < cost[0] / cost[1] < 3


def test_the_run_that_gathers_the_others_has_table_report_and_figures(uninterrupted: Driver) -> None:
    parent, *_ = runs_of(uninterrupted)
    client = client_of(uninterrupted)
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    drawn = {file.path for file in client.list_artifacts(parent.info.run_id, "figures/points")}

    assert files >= {"report.html", "decision.md", "decision.csv", "decision.tex", "figures"}
    assert {"figures/points/test-accuracy-by-epoch.svg", "figures/points/test-accuracy-by-epoch.csv"} <= drawn
    report = (uninterrupted.runs / "launches" / "whole" / "report.html").read_text()
    assert "whole-curveball" in report
    assert "all runs of a recipe have the same configuration" in report


def test_it_shows_progress_a_summary_and_how_to_open_mlflow(uninterrupted: Driver) -> None:
    output = uninterrupted.finished.output

    assert "curveball: step 2 of 32, epoch 0.25 of 4, loss " in output
    assert "curveball: epoch 4 done: loss " in output
    assert re.search(r"^run +steps +loss +test loss +accuracy +images/s +seconds$", output, re.MULTILINE)
    assert f"raycurv ui --tracking-uri sqlite:///{uninterrupted.runs}/mlflow.db" in output
    assert "Traceback" not in output
    assert "Warning:" not in output


def test_loss_speed_and_pace_are_on_the_dashboard_while_it_runs(uninterrupted: Driver) -> None:
    lines = [line for line in uninterrupted.scraped.splitlines() if "raycurv_" in line and not line.startswith("#")]

    assert lines, uninterrupted.scraped[:2000]
    for name in ("raycurv_train_loss", "raycurv_images_per_second", "raycurv_step_seconds"):
        (line,) = [line for line in lines if name in line]
        assert 'run="whole-curveball"' in line.replace("Run=", "run=")
        assert 'optimizer="curveball"' in line
        assert float(line.split()[-1]) > 0


def test_workers_import_no_tracking_and_no_plotting(uninterrupted: Driver) -> None:
    modules = set((uninterrupted.runs / "modules.txt").read_text().split())

    assert "torch" in modules
    assert not modules & {"mlflow", "matplotlib", "sklearn", "tyro", "raycurv.tracking.client"}


def test_nothing_listens_beyond_loopback(uninterrupted: Driver) -> None:
    found = uninterrupted.listening

    assert any("RayTrainWorker" in name for name in found), found
    beyond = {name: ips for name, ips in found.items() if not ips <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}}
    assert not beyond


def test_a_checkpoint_and_a_logged_model_evaluate_alike(uninterrupted: Driver) -> None:
    run = runs_of(uninterrupted)[1]
    both = []
    for model in (str(uninterrupted.checkpoints("whole-curveball")), f"runs:/{run.info.run_id}/model"):
        command = ("jobs/evaluate.py", "--model", model, "--tracking-uri", f"sqlite:///{uninterrupted.runs}/mlflow.db")
        finished = uninterrupted.run(*command, experiment=False)
        assert finished.code == 0, finished.output
        both.append(json.loads(finished.output.splitlines()[-1]))

    assert both[0]["test/accuracy"] == pytest.approx(run.data.metrics["test/accuracy"])
    assert {**both[0], "model": ""} == {**both[1], "model": ""}


def test_a_killed_worker_is_started_again_and_nothing_is_lost(uninterrupted: Driver, driver: Driver) -> None:
    job = driver.start(*MINE, *TWO, "--run-name", "again")
    job.wait_for("epoch 1 done")
    os.kill(driver.workers()[-1].pid, signal.SIGKILL)
    finished = job.finish()

    assert finished.code == 0, finished.output
    assert "after a failure" in finished.output
    (run,) = runs_of(driver)
    assert steps_of(driver, run) == list(range(1, STEPS + 1))
    assert_equal_states(state_of(driver.checkpoints("again")), state_of(uninterrupted.checkpoints("whole-curveball")))


def test_a_killed_driver_is_reaped_and_its_run_goes_on(uninterrupted: Driver, driver: Driver) -> None:
    command = (*MINE, *TWO, "--run-name", "again")
    job = driver.start(*command)
    job.wait_for("epoch 1 done")
    job.process.kill()
    job.process.wait()
    (before,) = runs_of(driver)
    reaped = driver.run("jobs/tracking.py", "reap")
    (closed,) = runs_of(driver)

    assert before.info.status == "RUNNING"
    assert "closed 1 runs as KILLED" in reaped.output
    assert closed.info.status == "KILLED"

    refused = driver.run(*command)
    assert refused.code == 2
    assert "--resume" in refused.output

    finished = driver.run(*command, "--resume")
    assert finished.code == 0, finished.output
    assert "goes on at step" in finished.output
    assert "starts: " not in finished.output  # of the sitting before
    (run,) = runs_of(driver)
    assert run.info.run_id == before.info.run_id
    assert run.info.status == "FINISHED"
    assert steps_of(driver, run) == list(range(1, STEPS + 1))
    assert_equal_states(state_of(driver.checkpoints("again")), state_of(uninterrupted.checkpoints("whole-curveball")))


def test_data_and_checkpoints_may_lie_on_s3(s3_server: Callable[[], str], driver: Driver, tmp_path: Path) -> None:
    bucket = s3_server()
    files, base = storage.resolve(bucket)
    for file in write_digits(tmp_path / "digits").iterdir():
        with files.open_output_stream(f"{base}/digits/{file.name}") as stream:
            stream.write(file.read_bytes())
    command = ["jobs/train.py", "--recipe", "digits", "--option", f"data={bucket}/digits", "--epochs", "1"]
    command += ["--storage", f"{bucket}/runs", "--run-name", "far", "--workers", "2"]
    finished = driver.submit(
        *command, **{name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    ).finish()

    assert finished.code == 0, finished.output
    state = CheckpointStore(f"{bucket}/runs/far").load()
    assert state is not None
    (run,) = runs_of(driver)
    assert steps_of(driver, run)[-1] == state["step"] == 23
    assert not (driver.runs / "checkpoints").exists()


def test_an_interrupted_run_is_closed_as_killed_with_a_checkpoint(driver: Driver) -> None:
    job = driver.start(*MINE, *TWO, "--run-name", "stopped")
    job.wait_for("epoch 1 done")
    job.process.send_signal(signal.SIGINT)
    finished = job.finish()

    assert finished.code == 130
    assert "go on with --run-name stopped --resume" in finished.output
    assert "Traceback" not in finished.output
    (run,) = runs_of(driver)
    assert run.info.status == "KILLED"
    assert 8 <= state_of(driver.checkpoints("stopped"))["step"] < STEPS


def test_a_stopped_job_is_closed_as_killed_before_ray_loses_patience(driver: Driver) -> None:
    job = driver.submit(*MINE, *TWO, "--run-name", "stopped", "--epochs", "100")
    job.wait_for("epoch 1 done")
    driver.stop(job)
    job.finish()

    (run,) = runs_of(driver)
    assert run.info.status == "KILLED"
    assert run.info.end_time is not None
    assert state_of(driver.checkpoints("stopped"))["step"] >= 8


def test_a_job_that_fails_says_why_and_has_an_exit_code(driver: Driver) -> None:
    job = driver.submit("jobs/train.py", "--recipe", "tests.service.problems:broken", *TWO)
    finished = job.finish()

    assert finished.code == 1
    assert "not finite" in finished.output
    assert "smaller learning rate" in finished.output
    (run,) = runs_of(driver)
    assert run.info.status == "FAILED"
    assert run.data.tags["raycurv.status"] == "diverged"
    assert "was not finite (loss" in run.data.tags["raycurv.reason"]
    (report,) = (driver.runs / "failures").iterdir()
    assert "NonFiniteLoss" in report.read_text()


def test_more_workers_than_there_can_be_are_refused(driver: Driver) -> None:
    finished = driver.run(*MINE, "--workers", "9", "--worker-timeout", "3")

    assert finished.code == 1
    assert "9 workers with 1 CPU each were asked for and the cluster has room for 2" in finished.output
    assert not runs_of(driver)
