"""The small problems, the grid search against torch's optimizers, and what a few runs can show of Table 1."""

import csv
import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from raycurv import optim
from raycurv.benchmarks import batched_grid_search, curveball_table1
from raycurv.models.small_problems import RahimiRechtProblem, RosenbrockProblem, problems
from tests.reference import small_networks as small

ROOT = Path(__file__).parents[2]
COLUMNS = {problem.name: problem for problem in problems()}
FEW_SAMPLES = {"Rahimi-Recht": RahimiRechtProblem(samples=50)}
NOISY = RosenbrockProblem(0.0, 3.0)


# --- the problems ----------------------------------------------------------------------------------------------------


def test_a_batch_of_rosenbrock_is_one_evaluation_of_the_noisy_function():
    instance = NOISY.instance(3)
    point = instance.objective.model.point.tolist()
    noises = []
    for batch in itertools.islice(instance.batches, 3):
        noises.append(float(batch.inputs))
        assert float(batch.value()) == pytest.approx(small.rosenbrock(point, noises[-1]))
        assert batch.gradient()[0].numpy() == pytest.approx(small.rosenbrock_gradient(point, noises[-1]))
    assert len(set(noises)) == 3
    assert instance.error() == pytest.approx(small.rosenbrock(point))


def test_noise_and_starts_fill_their_ranges():
    noise = torch.cat([NOISY.noise(0, block) for block in range(8)])
    starts = torch.stack([NOISY.begin(seed) for seed in range(200)])
    for values, low, high in ((noise, 0.0, 3.0), (starts, -2.0, 2.0)):
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.15)


def test_the_deterministic_function_has_no_noise():
    assert (RosenbrockProblem().noise(0, 0) == 1).all()


def test_the_matrix_of_rahimi_and_recht_has_the_stated_condition_number():
    matrix, inputs, layers = RahimiRechtProblem().draw(5)
    assert float(torch.linalg.cond(matrix)) == pytest.approx(1e5, rel=1e-6)
    assert (tuple(matrix.shape), tuple(inputs.shape)) == ((10, 6), (1000, 6))
    assert [tuple(layer.shape) for layer in layers] == [(6, 6), (10, 6)]


def test_rahimi_and_recht_s_network_can_fit_its_data():
    instance = RahimiRechtProblem().instance(0)
    matrix, _, _ = RahimiRechtProblem().draw(0)
    with torch.no_grad():
        instance.objective.model.first.copy_(torch.eye(6))
        instance.objective.model.second.copy_(matrix)
    assert instance.error() == pytest.approx(0, abs=1e-25)


@pytest.mark.parametrize("column", COLUMNS)
def test_runs_side_by_side_are_the_single_runs(column):
    problem, seeds = COLUMNS[column], (0, 7, 3)
    stack = problem.stack(seeds)
    rows = torch.tensor([0, 1, 2, 1])
    points = [start[rows] for start in stack.start]
    for iteration in (0, 2):
        errors = stack.errors(points, rows)
        gradients = stack.gradients(points, rows, iteration)
        for row, which in enumerate(rows.tolist()):
            instance = problem.instance(seeds[which])
            batch = next(itertools.islice(instance.batches, iteration, None))
            assert float(errors[row]) == pytest.approx(instance.error())
            for found, expected in zip(gradients, batch.gradient(), strict=True):
                assert found[row].numpy() == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-12)


def test_noise_bounds_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="0 ≤ low ≤ high"):
        RosenbrockProblem(2.0, 1.0)


# --- the grid search -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", batched_grid_search.GRIDS)
@pytest.mark.parametrize("column", ["Rosenbrock U[0,3]", "Rahimi-Recht"])
def test_the_grid_takes_the_steps_of_torch_s_optimizers(rule, column):
    problem, seeds, trajectory = FEW_SAMPLES.get(column, COLUMNS[column]), (4, 9), 30
    values = {name: numbers[:2] for name, numbers in batched_grid_search.GRIDS[rule].items()}
    values["learning_rate"] = (5e-4, 1e-4)
    result = batched_grid_search.search(
        rule, problem, seeds, trajectory=trajectory, limit=trajectory, tolerance=1e-4, grid=values
    )
    for point, error in zip(result.points, result.errors.tolist(), strict=True):
        ends = []
        for seed in seeds:
            instance = problem.instance(seed)
            optimizer = optim.create(rule, instance.objective.model, **point)
            for step, batch in enumerate(itertools.islice(instance.batches, trajectory)):
                optimizer.step(batch)
                if step >= trajectory - 10:
                    ends.append(instance.error())
        expected = np.mean(ends) if np.isfinite(ends).all() else np.inf
        assert error == pytest.approx(expected, rel=1e-9)


def test_the_grid_counts_iterations_as_a_single_run_does_also_beyond_the_trajectory():
    problem, point = RahimiRechtProblem(samples=50), {"learning_rate": 0.1, "momentum": 0.9}
    values = {"learning_rate": (0.1, 0.05), "momentum": (0.9,)}
    result = batched_grid_search.search(
        "momentum", problem, (0, 1), trajectory=10, limit=600, tolerance=1e-4, grid=values
    )
    expected = [curveball_table1.run(problem, "momentum", point, seed, limit=600) for seed in (0, 1)]
    assert result.points[0] == point
    assert result.iterations[0].tolist() == expected


def test_a_grid_point_that_overflows_is_never_selected():
    values = {"learning_rate": (0.1, 0.0001), "momentum": (0.9,)}
    result = batched_grid_search.search(
        "momentum", RosenbrockProblem(), range(5), trajectory=50, limit=50, tolerance=1e-4, grid=values
    )
    assert result.errors[0] == torch.inf
    assert result.selected() == 1
    assert result.fastest() is None


def test_the_fastest_grid_point_solves_every_run():
    iterations = torch.tensor([[5, -1], [9, 11], [7, 14]])
    assert batched_grid_search.GridResult(({}, {}, {}), iterations, torch.tensor([3.0, 2.0, 1.0])).fastest() == 1


def test_a_limit_below_the_trajectory_is_refused():
    with pytest.raises(ValueError, match="at least the trajectory of 50"):
        batched_grid_search.search("adam", NOISY, (0,), trajectory=50, limit=49, tolerance=1e-4)


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", [name for name in COLUMNS if name.startswith("Rosenbrock")])
def test_curveball_needs_as_many_iterations_as_the_paper_reports(column):
    row = curveball_table1.select(["curveball"])[0]
    counts = [curveball_table1.run(COLUMNS[column], row.optimizer, row.settings, seed, limit=100) for seed in range(15)]
    assert None not in counts
    assert 10 < np.mean(counts) < 14


@pytest.mark.parametrize(
    "row", [row for row in curveball_table1.ROWS if row.rule is None], ids=lambda row: row.optimizer
)
@pytest.mark.parametrize("column", ["Rosenbrock deterministic", "Rahimi-Recht"])
def test_every_second_order_method_solves_the_problems(row, column):
    counts = [curveball_table1.run(COLUMNS[column], row.optimizer, row.settings, seed, limit=80) for seed in range(2)]
    assert None not in counts


@pytest.mark.parametrize("rule", ["rmsprop", "adagrad", "adadelta"])
def test_the_methods_of_footnote_3_underperform_at_every_point_of_their_grids(rule):
    found = batched_grid_search.search(
        rule, RosenbrockProblem(), range(5), trajectory=10, limit=1000, tolerance=curveball_table1.TOLERANCE
    )
    assert found.fastest() is None


def test_the_table_has_rows_for_the_methods_of_footnote_3():
    rows = {row.optimizer: row for row in curveball_table1.ROWS}
    for name in ("rmsprop", "adagrad", "adadelta"):
        assert rows[name].rule == name
        assert not any(rows[name].paper)


@pytest.mark.parametrize("rule", ["momentum", "adam"])
def test_first_order_methods_solve_rosenbrock_slowly(rule):
    point = (
        {"learning_rate": (5e-4,), "momentum": (0.9,)}
        if rule == "momentum"
        else {"learning_rate": (0.1,), "beta1": (0.9,), "beta2": (0.99,)}
    )
    found = batched_grid_search.search(
        rule,
        RosenbrockProblem(),
        range(10),
        trajectory=10,
        limit=4000,
        tolerance=curveball_table1.TOLERANCE,
        grid=point,
    )
    assert found.iterations.min() >= 0
    assert found.iterations.double().mean() > 300


def test_a_run_that_overflows_or_meets_the_limit_has_failed():
    assert curveball_table1.run(RosenbrockProblem(), "sgd", {"learning_rate": 10.0}, seed=0, limit=50) is None
    assert curveball_table1.run(RosenbrockProblem(), "sgd", {"learning_rate": 1e-4}, seed=0, limit=3) is None


def test_the_table_has_an_entry_for_every_row_and_column_with_the_paper_s_beside():
    experiment = curveball_table1.Table1Settings(runs=2, grid_limits=(40, 300), trajectories=(40, 200))
    measured = list(curveball_table1.cells(experiment, curveball_table1.select(["momentum", "curveball"])))
    text = curveball_table1.to_markdown(measured)
    lines = text.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "SGD + momentum",
        "SGD + momentum, fastest",
        "CurveBall",
    ]
    assert "all 2 failed [370 ± 40]" in text
    assert "[35 ± 11]" in text
    written = list(csv.DictReader(io.StringIO(curveball_table1.to_csv(measured))))
    assert len(written) == len(measured)
    assert {line["failed"] for line in written} == {"0", "2"}
    assert written[-1]["settings"] == "damping=1"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: curveball_table1.Table1Settings(runs=0), "Table1Settings.runs is 0"),
        (lambda: curveball_table1.Table1Settings(seed=-1), "Table1Settings.seed is -1"),
        (lambda: curveball_table1.Table1Settings(trajectories=(5, 200)), "Table1Settings.trajectories"),
        (lambda: curveball_table1.select(["curveball", "lion"]), "no row for lion"),
        (lambda: curveball_table1.select([]), "no row for nothing"),
    ],
)
def test_bad_settings_of_the_experiment_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- the job ---------------------------------------------------------------------------------------------------------


def job(*arguments):
    command = [sys.executable, str(ROOT / "jobs" / "benchmark.py"), "table1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)


def test_the_job_prints_the_table_and_writes_it_down(tmp_path):
    done = job("--runs", "2", "--optimizers", "levenberg_marquardt", "--output", str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Levenberg-Marquardt") == 4  # progress, one line an entry
    table = (tmp_path / "new" / "table1.md").read_text(encoding="utf-8")
    assert table in done.stdout
    assert len((tmp_path / "new" / "table1.csv").read_text(encoding="utf-8").splitlines()) == 5


def test_the_job_fails_with_what_to_change():
    done = job("--optimizers", "lion")
    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        "its optimizers are momentum, adam, rmsprop, adagrad, adadelta, levenberg_marquardt, bfgs, newton, curveball"
    )
