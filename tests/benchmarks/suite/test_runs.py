import math

import pytest

from raycurv.benchmarks.suite.runs import SuiteRuns, best_loss, cost_to_target, final_loss, mean_loss, median_cost
from tests.benchmarks.suite.cases import ADAM, AUTO, EASY, HARD, RATES, TUNED, outcome

nan = math.nan


def test_the_cost_is_that_of_the_steps_up_to_the_first_evaluation_at_the_target():
    found = outcome(EASY, ADAM, [0.5, 0.95, 0.8, 0.96], operations=4e9)
    assert EASY.step_reached(found) == 20
    assert cost_to_target(EASY, found) == 2e9
    assert cost_to_target(EASY, found, "seconds") == 20 * 0.25
    assert math.isnan(cost_to_target(EASY, outcome(EASY, ADAM, [0.95], step_seconds=0.0), "seconds"))
    assert math.isnan(median_cost(EASY, [found, outcome(EASY, ADAM, [0.95], step_seconds=0.0)], "seconds"))


def test_a_loss_falls_to_its_target_and_nan_never_reaches_one():
    assert HARD.step_reached(outcome(HARD, ADAM, [0.6, 0.5, 0.4, 0.3])) == 20
    assert HARD.step_reached(outcome(HARD, ADAM, [nan, 0.7])) is None
    assert EASY.step_reached(outcome(EASY, ADAM, [nan, 0.91], status="diverged")) == 20


def test_a_target_counts_as_missed_where_half_of_the_seeds_miss_it():
    hit, missed = outcome(EASY, ADAM, [0.95]), outcome(EASY, ADAM, [0.5])
    assert median_cost(EASY, [hit, hit, missed]) == 1e9
    assert median_cost(EASY, [hit, missed, missed]) == math.inf
    assert median_cost(EASY, [hit, missed]) == math.inf


def test_the_final_loss_has_a_floor_and_a_run_that_did_not_finish_has_none():
    assert final_loss(EASY, outcome(EASY, ADAM, [0.9], loss=1e-5)) == EASY.floor
    assert final_loss(EASY, outcome(EASY, ADAM, [0.9], status="diverged")) == math.inf
    assert final_loss(EASY, outcome(EASY, ADAM, [0.9], loss=nan)) == math.inf
    assert mean_loss(EASY, [outcome(EASY, ADAM, [0.9], loss=x) for x in (0.1, 0.4)]) == pytest.approx(0.2)


def grid(*values, losses=(0.2, 0.2, 0.2)):
    return [
        outcome(EASY, TUNED, [v], settings=point, loss=loss)
        for point, v, loss in zip(RATES, values, losses, strict=False)
    ]


def test_the_best_point_of_a_grid_reaches_the_target_first_then_ends_best():
    early = outcome(EASY, TUNED, [0.95, 0.91], settings=RATES[1])
    late = outcome(EASY, TUNED, [0.5, 0.99], settings=RATES[0])
    broken = outcome(EASY, TUNED, [0.99], settings=RATES[2], status="diverged")
    assert SuiteRuns([late, early, outcome(EASY, TUNED, [0.5], settings=RATES[2])]).best_point(EASY, TUNED) == RATES[1]
    assert SuiteRuns(grid(0.3, 0.5, 0.4)).best_point(EASY, TUNED) == RATES[1]
    assert (
        SuiteRuns([*grid(0.3, 0.2), outcome(EASY, TUNED, [0.8], settings=RATES[2], status="diverged")]).best_point(
            EASY, TUNED
        )
        == RATES[0]
    )
    assert SuiteRuns([late, early, broken]).best_point(EASY, TUNED) == RATES[1]


def test_a_grid_that_is_not_done_has_no_best_point_and_no_runs():
    runs = SuiteRuns(grid(0.3, 0.5))
    assert runs.best_point(EASY, TUNED) is None
    assert runs.of(EASY, TUNED) == []
    assert len(runs.search(EASY, TUNED)) == 2


def test_runs_are_found_whatever_the_order_of_their_settings():
    method = type(ADAM)("m", "adam", {"schedule": "one_cycle", "learning_rate": 3e-3})
    found = outcome(EASY, method, [0.9], settings={"learning_rate": 0.003, "schedule": "one_cycle"}, seed=2)
    assert SuiteRuns([found]).of(EASY, method) == [found]


def test_the_best_loss_is_over_all_settings_tuned_ones_included():
    runs = SuiteRuns([*grid(0.9, 0.9, 0.9, losses=(0.5, 0.05, 0.3)), outcome(EASY, AUTO, [0.9], loss=0.1)])
    assert best_loss(EASY, runs) == pytest.approx(0.05)
    assert best_loss(HARD, runs) == math.inf
