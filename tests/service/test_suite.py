"""The benchmark suite on a real Ray Tune."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from raycurv.benchmarks.suite import tables
from raycurv.benchmarks.suite.runs import SuiteRuns, cost_to_target
from raycurv.results.outcomes import Outcome
from raycurv.service import suite
from raycurv.service.cluster import Cluster
from raycurv.service.outcome_log import OutcomeLog
from tests.service.driving import Driver, wait_until
from tests.service.tiny_suite import METHODS, PLAN, TASKS

pytestmark = [pytest.mark.filterwarnings("ignore")]
TUNED, ADAM = METHODS


def lines_of(driver: Driver) -> list[Outcome]:
    path = driver.runs / "sweeps" / "tiny" / "outcomes.jsonl"
    return [Outcome.from_json(line) for line in path.read_text().splitlines()] if path.exists() else []


def started(driver: Driver) -> list[str]:
    """Weights from which runs in MLflow started."""
    with contextlib.closing(sqlite3.connect(driver.runs / "mlflow.db")) as store:
        return [
            value for (value,) in store.execute("SELECT value FROM params WHERE key = 'start_from'") if value != "None"
        ]


@pytest.mark.cluster
def test_a_suite_survives_a_killed_driver_and_repeats_no_run(driver: Driver) -> None:
    command = ("-m", "tests.service.tiny_suite", "--run-name", "tiny")
    job = driver.start(*command, experiment=False)
    wait_until(lambda: len(lines_of(driver)) >= 2 or job.process.poll() is not None)
    assert job.process.poll() is None, job.output
    job.process.kill()
    job.process.wait()
    before = lines_of(driver)

    again = driver.run(*command, "--resume", experiment=False)

    assert again.code == 0, again.output
    outcomes = lines_of(driver)
    assert len(outcomes) == len({o.name for o in outcomes}) == sum(map(PLAN.expected, TASKS)) == 10
    assert [o.name for o in outcomes[: len(before)]] == [o.name for o in before]
    runs = SuiteRuns(suite.stored(Cluster(runs=str(driver.runs), run_name="tiny")))
    for task in TASKS:
        assert runs.best_point(task, TUNED) == {"learning_rate": 0.1}
        assert [o.seed for o in runs.of(task, TUNED)] == [o.seed for o in runs.of(task, ADAM)] == [0, 1]
        for outcome in runs.of(task, ADAM):
            assert [p.step for p in outcome.points if task.metric in p.values] == [
                *range(task.every, task.steps + 1, task.every)
            ]
            assert outcome.operations > 0
            assert "training_set/loss" in outcome.points[-1].values
    start = driver.runs / "checkpoints" / "suite-start-points"
    trained = json.loads((start / "result.json").read_text())
    assert (trained["steps"], trained["stopped"]) == (16, False)
    assert started(driver) == [str(start)] * PLAN.expected(TASKS[1])
    assert cost_to_target(TASKS[1], runs.of(TASKS[1], ADAM)[0]) == float("inf")
    page = (driver.runs / "sweeps" / "tiny" / "suite.md").read_text()
    assert page == tables.page(PLAN, runs)
    assert tables.progress(PLAN, runs) in again.output


def test_a_suite_that_ran_in_parts_is_shown_as_one(tmp_path: Path) -> None:
    outcomes = [Outcome(f"{name}-x", "first", "adam", seed=seed) for seed, name in enumerate(("one", "two"))]
    for name, outcome in zip(("one", "two"), outcomes, strict=True):
        OutcomeLog(tmp_path / "sweeps" / name / "outcomes.jsonl").add(outcome)
    assert suite.stored(Cluster(runs=str(tmp_path)), ["one", "two"]) == outcomes
    assert suite.stored(Cluster(runs=str(tmp_path), run_name="two")) == outcomes[1:]


def test_a_suite_that_has_not_run_has_no_outcomes(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"there are no outcomes at .*/sweeps/suite/outcomes.jsonl: run the suite first"
    ):
        suite.stored(Cluster(runs=str(tmp_path)))
