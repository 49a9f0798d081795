"""Sweeps on a real Ray Tune."""

from __future__ import annotations

import dataclasses
import re
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raycurv.recipes.search import SweepTrial
from raycurv.results.outcomes import EvaluationPoint, Outcome
from raycurv.service.cluster import Cluster
from raycurv.service.limits import Limits
from raycurv.service.outcome_log import OutcomeLog
from raycurv.service.sweep import sweeping
from raycurv.service.tune_callback import SweepSummary
from tests.service.driving import Driver, wait_until
from tests.service.sweeping import config

pytestmark = [pytest.mark.filterwarnings("ignore")]
TRIALS = 200
SCRIPT = ("-m", "tests.service.sweeping")


def lines_of(driver: Driver, name: str) -> list[Outcome]:
    path = driver.runs / "sweeps" / name / "outcomes.jsonl"
    return [Outcome.from_json(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.cluster
def test_two_hundred_trials_survive_a_killed_driver_and_none_is_done_twice(driver: Driver) -> None:
    command = (*SCRIPT, "--trials", str(TRIALS), "--run-name", "many")
    job = driver.start(*command, experiment=False)
    wait_until(lambda: len(lines_of(driver, "many")) >= 40 or job.process.poll() is not None)
    assert job.process.poll() is None, job.output
    job.process.kill()
    job.process.wait()
    before = lines_of(driver, "many")
    again = driver.run(*command, "--resume", experiment=False)

    assert again.code == 0, again.output
    assert f"{len(before)} of {TRIALS} trials are done already" in again.output
    outcomes = lines_of(driver, "many")
    assert len(outcomes) == len({o.name for o in outcomes}) == TRIALS
    assert [o.name for o in outcomes[: len(before)]] == [o.name for o in before]
    diverged = [o for o in outcomes if o.status == "diverged"]
    assert {o.setting for o in diverged} == {"learning_rate=3e+38"}
    assert all(o.steps == 4 and o.operations > 0 for o in outcomes if o.status == "finished")
    client = MlflowClient(f"sqlite:///{driver.runs}/mlflow.db")
    experiment = client.get_experiment_by_name("raycurv")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    names = [run.data.tags["raycurv.run_name"] for run in runs]
    assert len(names) == len(set(names)) == TRIALS + 1
    assert {run.info.status for run in runs} <= {"FINISHED", "FAILED"}
    finished = [run for run in runs if run.data.tags.get("raycurv.status") == "finished"]
    sets = [{entry.dataset.name for entry in run.inputs.dataset_inputs} for run in finished]
    assert sets.count({"points-training", "points-test"}) > len(finished) // 2  # one that --resume logs lacks them


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_a_sweep_that_is_interrupted_keeps_what_is_done(driver: Driver, number: signal.Signals) -> None:
    command = (*SCRIPT, "--trials", str(TRIALS), "--run-name", "broken")
    job = driver.start(*command, experiment=False)
    wait_until(lambda: lines_of(driver, "broken") or job.process.poll() is not None)
    job.process.send_signal(number)
    finished = job.finish()

    assert finished.code == 130, finished.output
    done = lines_of(driver, "broken")
    assert 0 < len(done) < TRIALS
    assert "go on with --run-name broken --resume" in finished.output
    assert "failed" not in {o.status for o in done}
    client = MlflowClient(f"sqlite:///{driver.runs}/mlflow.db")
    (parent,) = client.search_runs(["1"], "tags.`raycurv.run_name` = 'broken'")
    assert parent.info.status == "KILLED"


@pytest.mark.cluster
def test_a_trial_may_hang_or_die_and_the_others_go_on(driver: Driver) -> None:
    finished = driver.run(*SCRIPT, "--trouble", "--run-name", "trouble", experiment=False)

    assert finished.code == 0, finished.output
    ended = {o.labels["trouble"]: o for o in lines_of(driver, "trouble")}
    assert ended["none"].status == "finished"
    assert ended["slow"].status == "out of time"
    assert "--time-limit" in ended["slow"].reason
    assert ended["hangs"].status == "out of time"
    assert ended["dies once"].status == "finished"
    assert ended["dies once"].steps == 8
    assert ended["raises"].status == "failed"
    assert "this network is broken" in ended["raises"].reason


@pytest.mark.cluster
def test_a_trial_may_be_trained_by_several_workers(driver: Driver) -> None:
    finished = driver.run(*SCRIPT, "--trials", "1", "--workers", "2", "--run-name", "two", experiment=False)

    assert finished.code == 0, finished.output
    (outcome,) = lines_of(driver, "two")
    assert (outcome.status, outcome.steps) == ("finished", 4)


@pytest.mark.cluster
def test_a_grid_search_ends_in_a_table_that_decides(driver: Driver) -> None:
    finished = driver.run(
        "jobs/sweep.py", "grid", "--recipe", "tests.service.problems:mine", "--epochs", "5", "--baselines", "sgd",
        "--free", "curveball", "--rates", "0.01", "0.3", "--seeds", "2", "--run-name", "grid",
    )  # fmt: skip

    assert finished.code == 0, finished.output
    assert re.search(r"^sgd +learning_rate=0\.3, best of 2 +\d", finished.output, re.M), finished.output
    assert re.search(r"^curveball +defaults +\d", finished.output, re.M)
    folder = driver.runs / "sweeps" / "grid"
    assert {path.name for path in folder.iterdir()} >= {"decision.md", "decision.csv", "decision.tex", "report.html"}
    assert (folder / "figures" / "points" / "train-epoch_loss-by-epoch.svg").exists()
    assert len(lines_of(driver, "grid")) == 2 + 2 * 2

    compared = driver.run("jobs/compare.py", "--output", str(driver.runs / "compared"))
    assert compared.code == 0, compared.output
    again, before = (path / "decision.md" for path in (driver.runs / "compared", folder))
    assert [line.split(" | ")[:6] for line in again.read_text().splitlines()] == [
        line.split(" | ")[:6] for line in before.read_text().splitlines()
    ]


@pytest.mark.cluster
def test_more_than_the_cluster_can_ever_give_is_refused_at_once(driver: Driver) -> None:
    finished = driver.run(
        "jobs/sweep.py", "grid", "--recipe", "tests.service.problems:mine", "--cpus-per-worker", "64",
        "--worker-timeout", "1", "--run-name", "huge",
    )  # fmt: skip
    assert finished.code == 1
    assert "1 workers with 64 CPU each were asked for and the cluster has room for 0" in finished.output
    assert not lines_of(driver, "huge")


def test_what_is_not_allowed_is_refused_before_anything_starts(tmp_path: Path) -> None:
    cluster = Cluster(runs=str(tmp_path / "runs"))
    refused = {
        "did you mean 'sgd'": [SweepTrial(config(optimizer="sgdd"))],
        "the sweep has no trial; give it at least one optimizer and one point": [],
        "two trials are named": [SweepTrial(config()), SweepTrial(config())],
        "did you mean 'learning_rate'": [SweepTrial(config(optimizer_settings={"learning_rat": 0.1}))],
    }
    for message, trials in refused.items():
        with pytest.raises(ValueError, match=message), sweeping("x", trials, cluster, Limits()):
            pass
    with pytest.raises(ValueError, match=r"run_name \(--run-name\) is '../../x'; it must be 1 to 128 letters"):
        dataclasses.replace(cluster, run_name="../../x")
    assert not (tmp_path / "runs").exists()


def test_the_ledger_leaves_out_a_line_that_was_not_finished(tmp_path: Path) -> None:
    ledger = OutcomeLog(tmp_path / "sweep" / "outcomes.jsonl")
    ledger.add(Outcome("one", "r", "sgd", points=(EvaluationPoint(1.0, 4, 0.5, {"train/epoch_loss": 1.0}),)))
    with ledger.path.open("a") as file:
        file.write(Outcome("two", "r", "sgd").to_json()[:40])
    again = OutcomeLog(ledger.path)
    assert again.done == ledger.done

    again.add(Outcome("two", "r", "sgd"))
    again.add(Outcome("three", "r", "sgd"))
    assert set(OutcomeLog(ledger.path).done) == {"one", "two", "three"}


def test_where_a_sweep_stands_is_one_line() -> None:
    standing = SweepSummary(4)
    standing.add(
        Outcome("a", "r", "adam", "learning_rate=0.1", points=(EvaluationPoint(1, 4, 1, {"train/epoch_loss": 0.5}),)), 2
    )
    standing.add(Outcome("b", "r", "sgd", status="diverged"), 1)
    assert "2 of 4 trials done, 1 running, 1 diverged, best adam learning_rate=0.1: training loss 0.5" in str(standing)


def test_limits_out_of_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="time_limit is 0; it must be None or a positive number"):
        Limits(time_limit=0)
    with pytest.raises(ValueError, match=r"gpu_share is 2; it must be in \(0, 1\]"):
        Limits(gpu_share=2)


def test_outcomes_are_read_as_they_were_written() -> None:
    outcome = Outcome(
        "a", "r", "adam", points=(EvaluationPoint(1.0, 4, 0.5, {"train/epoch_loss": float("nan")}),), labels={"x": "y"}
    )
    again = Outcome.from_json(outcome.to_json())
    assert again.to_json() == outcome.to_json()
    assert again.points[0].values.keys() == {"train/epoch_loss"}
