from __future__ import annotations

import pytest

from raycurv.results.outcomes import Outcome
from raycurv.service.run_state import MOST_STEPS, RunState
from raycurv.tracking.messages import (
    LogRecords,
    RunFailed,
    RunFinished,
    RunStarted,
    from_bytes,
    to_bytes,
)
from raycurv.train import Record, Result

RATE = "optimizer/learning_rate"


def step(number: int) -> Record:
    return Record("step", number, number / 4, 100.0 + number, {"train/loss": 1 / number, RATE: 0.1 * number})


def evaluation(number: int) -> Record:
    return Record("evaluation", number, number / 4, 100.5 + number, {"train/epoch_loss": 2 / number})


def state(*records: Record) -> RunState:
    run = RunState(Outcome("one", "points", "sgd", status="failed", reason="it did not begin"))
    run.add(RunStarted("one", 100.0))
    run.add(LogRecords("one", records))
    return run


def test_a_finished_run_has_the_evaluations_of_its_result_and_the_scalars_of_their_steps() -> None:
    run = state(*map(step, range(1, 5)), evaluation(4))
    run.add(RunFinished("one", Result("one", 4, 1.0, {}, (evaluation(4),), 3.0, 50.0, operations=40.0)))
    outcome = run.outcome()

    assert (outcome.status, outcome.reason, outcome.steps, outcome.seconds) == ("finished", "", 4, 3.0)
    assert outcome.operations == 40.0
    (point,) = outcome.points
    assert (point.step, point.seconds) == (4, 3.0)
    assert point.values == {"train/epoch_loss": 0.5, RATE: pytest.approx(0.4)}


def test_the_newest_description_of_the_data_is_kept() -> None:
    data = [Record("data", 0, 0.0, 100.0, {}, text) for text in ('{"name": "points"}', '{"name": "others"}')]
    run = state(data[0], step(1), data[1])
    assert run.data == [data[1]]
    assert run.steps == [step(1)]


@pytest.mark.parametrize(
    ("error", "status"),
    [("NonFiniteLoss", "diverged"), ("TimeLimitExceeded", "out of time"), ("KeyError", "failed")],
)
def test_an_error_is_an_outcome(error: str, status: str) -> None:
    run = state(step(1), evaluation(1), step(2), Record("progress", 2, 0.5, 102.0, {"progress/operations": 20.0}))
    run.add(RunFailed("one", error, "because", "Traceback", 0, 107.0))
    outcome = run.outcome()

    assert (outcome.status, outcome.steps, outcome.seconds, outcome.operations) == (status, 2, 7.0, 20.0)
    assert outcome.reason.endswith("because")
    assert [(point.step, point.seconds) for point in outcome.points] == [(1, 1.5)]


def test_the_first_error_of_several_counts() -> None:
    run = state()
    run.add(RunFailed("one", "NonFiniteLoss", "first", "", 1, 101.0))
    run.add(RunFailed("one", "KeyError", "second", "", 0, 102.0))
    assert run.outcome().reason == "first"


def test_records_that_come_twice_count_once() -> None:
    run = state(step(1), step(2), evaluation(2), step(3))
    run.add(RunStarted("one", 200.0))
    run.add(LogRecords("one", (step(2), evaluation(2), step(3), step(4), evaluation(4))))

    assert [record.step for record in run.steps] == [1, 2, 3, 4]
    assert [record.step for record in run.evaluations] == [2, 4]
    assert run.outcome().points[-1].seconds == 4.5  # since its first start


def test_records_of_an_earlier_sitting_are_told_from_new_ones() -> None:
    run = state(step(1), step(2))
    assert run.of_this_sitting([step(1), step(2)]) == [step(1), step(2)]
    run.add(RunStarted("one", 102.5))
    assert run.of_this_sitting([step(1), step(2), step(3)]) == [step(3)]


def test_a_long_run_keeps_some_of_its_steps() -> None:
    run = state()
    for number in range(1, 5001):
        run.add(from_bytes(to_bytes(LogRecords("one", (step(number),)))))

    assert len(run.steps) <= MOST_STEPS
    assert run.steps[0].step == 1
    assert run.outcome().steps == 5000


def test_a_run_that_only_stopped_has_not_finished() -> None:
    run = state(step(1))
    run.add(RunFinished("one", Result("one", 1, 0.25, {}, (), 1.0, 4.0, stopped=True)))
    assert (run.outcome().status, run.outcome().reason) == ("failed", "it did not begin")


def test_a_run_whose_loss_exploded_has_diverged_though_it_came_to_its_end() -> None:
    run = state(step(1), evaluation(1))
    run.add(RunFinished("one", Result("one", 1, 0.25, {}, (evaluation(1),), 1.0, 4.0, diverged="it ended at 1e13")))
    assert (run.outcome().status, run.outcome().reason) == ("diverged", "it ended at 1e13")


def test_the_pace_of_the_steps_comes_with_the_result() -> None:
    run = state(step(1))
    run.add(RunFinished("one", Result("one", 1, 0.25, {}, (), 1.0, 4.0, step_seconds=0.5, startup_seconds=0.25)))
    assert (run.outcome().step_seconds, run.outcome().startup_seconds) == (0.5, 0.25)
