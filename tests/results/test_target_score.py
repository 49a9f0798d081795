import math
import random

import pytest

from raycurv.results.performance_profile import PerformanceProfile
from raycurv.results.target_score import profiles_of, score, separation
from tests.reference.target_score import naive_scores

MISSED = math.inf


def test_the_score_is_the_integral_of_the_naive_profile():
    draw = random.Random(0)
    methods, tasks = [f"method {i}" for i in range(7)], 9
    costs = {m: [MISSED if draw.random() < 0.2 else draw.uniform(1, 9) for _ in range(tasks)] for m in methods}
    found = profiles_of({m: {str(i): cost for i, cost in enumerate(row)} for m, row in costs.items()})
    expected = naive_scores(costs, 4.0, 30_001)
    assert {p.name: score(p) for p in found} == pytest.approx(expected, abs=1e-4)


def test_scores_of_two_methods_by_hand():
    fast, slow = profiles_of({"fast": {"a": 10.0, "b": MISSED}, "slow": {"a": 25.0, "b": 7.0}})
    assert fast.ratios == (1.0, MISSED)
    assert slow.ratios == (1.0, 2.5)
    assert score(fast) == 0.5
    assert score(slow) == pytest.approx((1 + (4 - 2.5) / 3) / 2)


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, 1.0), (4.0, 0.0), (9.0, 0.0), (MISSED, 0.0), (2.5, 0.5)])
def test_one_ratio_adds_its_share(ratio, expected):
    assert score(PerformanceProfile("one", (ratio,))) == pytest.approx(expected)


def test_a_target_that_nobody_reaches_is_missed_by_all():
    assert [p.ratios for p in profiles_of({"a": {"x": MISSED}, "b": {"x": MISSED}})] == [(MISSED,), (MISSED,)]


def test_tasks_and_methods_that_have_not_run_are_left_out():
    found = profiles_of({"a": {"x": 2.0, "y": 1.0}, "b": {"x": 1.0}, "c": {}})
    assert {p.name: p.ratios for p in found} == {"a": (1.0, 2.0), "b": (1.0,)}


@pytest.mark.parametrize("cost", [0.0, -1.0, math.nan])
def test_a_cost_that_is_not_positive_is_refused(cost):
    with pytest.raises(ValueError, match=r"cost of 'x' is .*; it must be positive, or infinite"):
        profiles_of({"a": {"x": cost}})


def test_a_difference_is_measured_in_its_spread():
    assert separation([1.0, 2.0, 3.0]) == pytest.approx(2 * math.sqrt(3) / 1.0)
    assert separation([-1.0, -2.0, -3.0]) == pytest.approx(-2 * math.sqrt(3))
    assert separation([0.5, 0.5]) == math.inf
    assert separation([0.0, 0.0, 0.0]) == 0.0
    assert math.isnan(separation([1.0]))
