"""Figures that need no tracked run."""

import csv
import io

import numpy as np
import pytest
from torch import nn

from raycurv.benchmarks import quadratic_convergence, rosenbrock_trajectories, step_cost, step_memory
from raycurv.benchmarks.alarm_factor import COSTS, total_cost
from raycurv.benchmarks.step_cost import MeasuredOptimizer, PeakMemory
from raycurv.figures import alarm_factor, convergence, memory, trajectories
from raycurv.models.small_problems import RosenbrockProblem


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def matrix(rho, h):
    return np.array([[rho - h, -h], [rho - h, 1 - h]])


def test_the_rate_is_the_spectral_radius_and_the_region_is_that_of_the_theorem():
    random = np.random.default_rng(0)
    rho, h = random.uniform(0, 2, 300), random.uniform(0.01, 2, 300)
    wanted = [max(abs(np.linalg.eigvals(matrix(*pair)))) for pair in zip(rho, h, strict=True)]
    np.testing.assert_allclose(quadratic_convergence.rate(rho, h), wanted, atol=1e-7)
    clear = abs(np.array(wanted) - 1) > 1e-6
    np.testing.assert_array_equal(quadratic_convergence.converges(rho, h)[clear], np.array(wanted)[clear] < 1)


def test_the_rate_is_how_fast_curveballs_iteration_converges():
    rho, beta, h = 0.9, 0.3, 1.0
    z, x = 0.0, 1.0
    errors = []
    for _ in range(200):
        z = rho * z - beta * (h * z + h * x)
        x += z
        errors.append(np.hypot(z, x))
    found = (errors[-1] / errors[99]) ** (1 / 100)
    assert found == pytest.approx(float(quadratic_convergence.rate(np.array(rho), np.array(beta * h))), abs=0.01)


def test_the_region_is_drawn_with_its_numbers(tmp_path):
    drawn = convergence.draw(points=41)
    png, svg, data = drawn.save(tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()
    assert len(rows(data.read_text())) == 41**2
    with pytest.raises(ValueError, match="points is 1"):
        convergence.draw(points=1)


def test_the_cost_of_an_alarm_is_drawn_over_the_factor_for_every_constant(tmp_path):
    drawn = alarm_factor.draw(points=19)
    drawn.save(tmp_path)
    found = rows(drawn.data)
    assert {float(row["C"]) for row in found} == set(COSTS)
    assert {float(row["factor"]) for row in found} == set(range(2, 21))
    for row in found:
        assert float(row["cost"]) == pytest.approx(total_cost(float(row["factor"]), float(row["C"])), rel=1e-5)
    with pytest.raises(ValueError, match="points is 1"):
        alarm_factor.draw(points=1)


def test_ways_on_rosenbrock_end_at_the_minimum_or_say_that_they_do_not(tmp_path):
    subjects = [MeasuredOptimizer("curveball", {"damping": 1.0}), MeasuredOptimizer("sgd", {"learning_rate": 1e-5})]
    found = [rosenbrock_trajectories.follow(RosenbrockProblem(), subject, seed=3, limit=60) for subject in subjects]
    solved, slow = found
    assert solved.solved
    assert solved.points[-1] == pytest.approx((1.0, 1.0), abs=0.05)
    assert solved.points[0] == slow.points[0]
    assert slow.ended == "not solved after 60 steps"
    drawn = trajectories.draw(found)
    drawn.save(tmp_path)
    assert "2 runs, 1 of them not solved (sgd (learning_rate=1e-05)" in drawn.caption
    assert len(rows(drawn.data)) == len(solved.points) + 61
    with pytest.raises(ValueError, match="no trajectory"):
        trajectories.draw([])
    with pytest.raises(ValueError, match="limit is 0"):
        rosenbrock_trajectories.follow(RosenbrockProblem(), subjects[0], limit=0)


def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 10))


def test_the_memory_of_a_step_is_followed_up_to_its_peak_and_back(monkeypatch, tmp_path):
    monkeypatch.setitem(step_cost.WORKLOADS, "small", step_cost.images(small, 32, 3, 4, 4))
    found = step_memory.record_memories("small", (MeasuredOptimizer("curveball"), MeasuredOptimizer("red_sgd")))
    plain, curveball, _ = found
    stepper = step_cost.step_runner("small", MeasuredOptimizer("curveball"))
    stepper.step()
    with PeakMemory() as peak:
        stepper.step()
    assert max(curveball.bytes) == pytest.approx(peak.peak, rel=0.05)
    assert curveball.bytes[0] == 0
    assert curveball.bytes[-1] < peak.peak
    assert list(curveball.operations) == sorted(curveball.operations)
    assert 2.0 < curveball.operations[-1] / plain.operations[-1] < 2.5
    drawn = memory.draw(found)
    drawn.save(tmp_path)
    assert "sgd (1.00 C, 1.00 M), curveball (2." in drawn.caption
    assert {row["series"] for row in rows(drawn.data)} == {"sgd", "curveball", "red_sgd"}
    with pytest.raises(ValueError, match="no recording"):
        memory.draw([])
