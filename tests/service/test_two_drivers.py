"""Two drivers of one name at once, as processes on a real Ray."""

from __future__ import annotations

import pytest

from raycurv.results.outcomes import Outcome
from raycurv.service import Cluster, launch
from raycurv.service.errors import RunLocked
from tests.service.driving import Driver, Finished
from tests.service.problems import mine
from tests.service.test_on_ray import MINE, STEPS, TWO, runs_of, steps_of

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]


def assert_one_worked(finished: list[Finished]) -> None:
    """Only one of two did the work; the other one says who does."""
    refused, worked = sorted(finished, key=lambda job: "another driver is at work" not in job.output)
    assert refused.code == 1, refused.output
    assert "Wait for its end, or stop it by `kill " in refused.output
    assert "Traceback" not in refused.output
    assert worked.code == 0, worked.output


def test_of_two_that_resume_a_run_one_trains_and_a_living_driver_is_not_disturbed(driver: Driver) -> None:
    command = (*MINE, *TWO, "--run-name", "again")
    job = driver.start(*command)
    job.wait_for("epoch 1 done")
    cluster = Cluster(workers=2, run_name="again", resume=True, runs=str(driver.runs), experiment="test")
    with pytest.raises(RunLocked, match=f"checkpoints/again: process {job.process.pid} on "):
        launch([mine(epochs=4, pause=0.2)], cluster)
    assert job.process.poll() is None, job.output
    job.process.kill()
    job.process.wait()

    assert_one_worked([job.finish() for job in [driver.start(*command, "--resume", "auto") for _ in range(2)]])

    (run,) = runs_of(driver)
    assert run.info.status == "FINISHED"
    assert steps_of(driver, run) == list(range(1, STEPS + 1))
    assert steps_of(driver, run, "test/accuracy") == [8, 16, 24, 32]
    assert not [file for file in driver.checkpoints("again").iterdir() if file.suffix == ".lock"]


def test_of_two_sweeps_of_one_name_one_works(driver: Driver) -> None:
    command = ("-m", "tests.service.sweeping", "--trials", "30", "--run-name", "twice", "--resume")
    both = [driver.start(*command, experiment=False) for _ in range(2)]

    assert_one_worked([job.finish() for job in both])

    log = driver.runs / "sweeps" / "twice" / "outcomes.jsonl"
    outcomes = [Outcome.from_json(line) for line in log.read_text().splitlines()]
    assert len(outcomes) == len({outcome.name for outcome in outcomes}) == 30
    assert "failed" not in {outcome.status for outcome in outcomes}
