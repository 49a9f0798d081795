"""Exact Newton, Levenberg-Marquardt and BFGS against naive versions, their limiting cases, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from raycurv import Objective, models, optim
from raycurv.models.small_problems import Rosenbrock
from raycurv.objective.collectives import Local, ProcessGroup
from raycurv.optim.baselines import bfgs, dense_curvature, levenberg_marquardt, line_search, newton
from tests.cases import BY_NAME
from tests.objective import distributed
from tests.reference import small_networks as small

NAMES = ("newton", "levenberg_marquardt", "bfgs")
POINTS = [(-1.2, 1.0), (0.3, -1.7), (1.9, 1.9), (0.0, 1.0)]


def rosenbrock(point, noise=1.0):
    model = Rosenbrock(torch.tensor(point, dtype=torch.float64))
    objective = Objective(model, "squared_error")
    return model, objective.batch(torch.tensor([noise], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64))


def network(l2=0.0):
    torch.manual_seed(0)
    model = models.mlp(3, (4,), widths=(5,)).double()
    inputs, targets = torch.randn(7, 4, dtype=torch.float64), torch.randint(3, (7,))
    weights = lambda y: 1.0 + y  # noqa: E731
    return Objective(model, "cross_entropy", l2=l2, weights=weights).batch(inputs, targets)


def quadratic(size=4, samples=30, seed=0):
    """Linear least squares with a residual: the objective is a strictly convex quadratic."""
    torch.manual_seed(seed)
    model = nn.Linear(size, 1).double()
    inputs, targets = torch.randn(samples, size, dtype=torch.float64), torch.randn(samples, 1, dtype=torch.float64)
    batch = Objective(model, "squared_error").batch(inputs, targets)
    design = torch.cat([inputs, torch.ones(samples, 1, dtype=torch.float64)], 1)
    return batch, torch.linalg.lstsq(design, targets).solution.flatten()


def flat(objective):
    return torch.cat([parameter.detach().flatten() for parameter in objective.parameters])


def place(objective, values):
    vector = torch.as_tensor(values, dtype=torch.float64)
    with torch.no_grad():
        nn.utils.vector_to_parameters(vector, objective.parameters)


# --- dense curvature -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", POINTS)
def test_dense_curvature_of_rosenbrock_is_the_hand_written_one(point):
    _, batch = rosenbrock(point, noise=2.5)
    exact, outer = dense_curvature.hessian(batch), dense_curvature.gauss_newton(batch)
    assert exact.matrix.numpy() == pytest.approx(small.rosenbrock_hessian(point, 2.5))
    assert outer.matrix.numpy() == pytest.approx(small.rosenbrock_gauss_newton(point, 2.5))
    for found in (exact, outer):
        assert found.gradient.numpy() == pytest.approx(small.rosenbrock_gradient(point, 2.5))
        assert float(found.loss) == pytest.approx(small.rosenbrock(point, 2.5))


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_the_hessian_of_a_network_agrees_with_differences_of_its_gradient(l2):
    batch = network(l2)
    start = flat(batch.objective).numpy()

    def gradient(values):
        place(batch.objective, values)
        return batch.gradient().flat.numpy()

    expected = small.difference_jacobian(gradient, start)
    place(batch.objective, start)
    found = dense_curvature.hessian(batch)
    assert found.matrix.numpy() == pytest.approx(expected, abs=1e-8)
    assert found.gradient.numpy() == pytest.approx(gradient(start))
    assert float(found.loss) == pytest.approx(float(batch.value()))


def test_the_gauss_newton_matrix_of_a_network_is_the_jacobian_around_the_loss_hessian():
    batch = network(l2=0.3)
    start = flat(batch.objective).numpy()

    def outputs(values):
        place(batch.objective, values)
        return batch.objective.model(batch.inputs).detach().flatten().numpy()

    jacobian = small.difference_jacobian(outputs, start).reshape(7, 3, -1)
    place(batch.objective, start)
    p = batch.objective.model(batch.inputs).detach().softmax(1).numpy()
    weights = 1.0 + batch.targets.numpy()
    expected = 0.3 * np.eye(len(start))
    for w, j, q in zip(weights, jacobian, p, strict=True):
        expected += w / weights.sum() * j.T @ (np.diag(q) - np.outer(q, q)) @ j
    assert dense_curvature.gauss_newton(batch).matrix.numpy() == pytest.approx(expected, abs=1e-8)


def test_a_parameter_that_the_outputs_do_not_depend_on_has_no_curvature():
    batch = network()
    batch.objective.model.register_parameter("idle", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    batch = Objective(batch.objective.model, "cross_entropy").batch(batch.inputs, batch.targets)
    for found in (dense_curvature.hessian(batch), dense_curvature.gauss_newton(batch)):
        idle = slice(0, 2)  # a module's own parameters come before those of its children
        assert not found.matrix[idle].any()
        assert not found.gradient[idle].any()


# --- Newton ----------------------------------------------------------------------------------------------------------


def test_newton_lands_on_the_minimum_of_a_quadratic_in_one_step():
    batch, minimum = quadratic()
    optim.create("newton", batch.objective.model, damping=0.0).step(batch)
    assert flat(batch.objective).numpy() == pytest.approx(minimum.numpy())


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_newton_takes_the_naive_version_s_steps(point, damping):
    model, batch = rosenbrock(point)
    optimizer = optim.create("newton", model, damping=damping)
    expected = np.array(point)
    for _ in range(4):
        expected = small.newton(expected, damping)
        optimizer.step(batch)
    assert model.point.detach().numpy() == pytest.approx(expected, rel=1e-9)


def test_newton_leaves_a_saddle_along_the_negative_curvature():
    gradient, eigenvalues = torch.tensor([0.2, -0.1]).double(), torch.tensor([-4.0, 2.0]).double()
    step = newton.newton_step(gradient, eigenvalues, torch.eye(2).double(), 0.0)
    assert step.tolist() == pytest.approx([-0.05, 0.05])


def test_newton_without_damping_does_not_move_where_curvature_is_rounding():
    eigenvalues, gradient = torch.tensor([1e-17, 1.0]).double(), torch.ones(2).double()
    step = newton.newton_step(gradient, eigenvalues, torch.eye(2).double(), 0.0)
    assert step.tolist() == [0.0, -1.0]


def test_newton_takes_full_steps_unasked_without_halvings():
    model, batch = rosenbrock((-1.2, 1.0))
    expected = model.point.detach() - torch.from_numpy(
        np.linalg.solve(small.rosenbrock_hessian((-1.2, 1.0)), small.rosenbrock_gradient((-1.2, 1.0)))
    )
    report = optim.create("newton", model, damping=0.0, halvings=0).step(batch)
    assert model.point.detach().numpy() == pytest.approx(expected.numpy())
    assert float(report.scalars["learning_rate"]) == 1.0


# --- Levenberg-Marquardt ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", POINTS)
def test_levenberg_marquardt_takes_the_naive_version_s_steps(point):
    model, batch = rosenbrock(point)
    optimizer = optim.create("levenberg_marquardt", model)
    expected, damping = np.array(point), 1e-2
    for _ in range(4):
        expected, damping = small.levenberg_marquardt(expected, damping)
        optimizer.step(batch)
    assert model.point.detach().numpy() == pytest.approx(expected, rel=1e-8)
    assert optimizer.shared["damping"] == pytest.approx(damping)


def test_levenberg_marquardt_without_damping_is_gauss_newton():
    _, batch = rosenbrock((0.3, -1.7))
    model = dense_curvature.gauss_newton(batch)
    step = levenberg_marquardt.damped_step(model, 1e-14)
    assert step.numpy() == pytest.approx(torch.linalg.solve(model.matrix, -model.gradient).numpy(), rel=1e-6)


def test_levenberg_marquardt_with_great_damping_is_a_short_scaled_gradient_step():
    _, batch = rosenbrock((0.3, -1.7))
    model = dense_curvature.gauss_newton(batch)
    step = levenberg_marquardt.damped_step(model, 1e10)
    assert step.numpy() == pytest.approx((-model.gradient / model.matrix.diagonal() / 1e10).numpy(), rel=1e-6)


def test_levenberg_marquardt_s_damping_grows_where_steps_fail_and_falls_where_they_succeed():
    model, batch = rosenbrock((-1.2, 1.0))
    optimizer = optim.create("levenberg_marquardt", model, damping=1e-8)
    optimizer.step(batch)
    assert optimizer.shared["damping"] > 1e-8  # the first Gauss-Newton step overshoots the valley
    before = optimizer.shared["damping"]
    model.point.data = torch.tensor([0.999, 0.998]).double()
    optimizer.step(batch)
    assert optimizer.shared["damping"] == pytest.approx(before / 10)


def test_levenberg_marquardt_s_damping_survives_an_exact_minimum():
    model, batch = rosenbrock((1.0, 1.0))
    optimizer = optim.create("levenberg_marquardt", model)
    for _ in range(30):
        optimizer.step(batch)
    assert optimizer.shared["damping"] == 1e-2
    place(batch.objective, (-1.2, 1.0))
    before = float(batch.value())
    optimizer.step(batch)
    assert float(batch.value()) < 0.5 * before


def test_levenberg_marquardt_s_damping_comes_back_after_the_minimum_of_one_batch():
    batch, optimum = quadratic()
    other, _ = quadratic(seed=1)
    place(batch.objective, optimum)
    optimizer = optim.create("levenberg_marquardt", batch.objective.model)
    for _ in range(30):
        optimizer.step(batch)
    moved = batch.objective.batch(other.inputs, other.targets)
    before = float(moved.value())
    optimizer.step(moved)
    assert float(moved.value()) < before


def test_levenberg_marquardt_stays_where_no_step_lowers_the_objective():
    model, batch = rosenbrock((1.0, 1.0))
    optim.create("levenberg_marquardt", model, attempts=3).step(batch)
    assert model.point.tolist() == [1.0, 1.0]


# --- BFGS ------------------------------------------------------------------------------------------------------------


def test_bfgs_solves_a_quadratic_in_one_more_step_than_it_has_dimensions():
    batch, minimum = quadratic()
    optimizer = optim.create("bfgs", batch.objective.model, decrease=1e-10, curvature=1e-9)
    for _ in range(len(minimum) + 1):
        optimizer.step(batch)
    assert flat(batch.objective).numpy() == pytest.approx(minimum.numpy(), rel=1e-5, abs=1e-7)


def test_bfgs_s_inverse_hessian_maps_the_change_of_the_gradient_to_the_step():
    model, batch = rosenbrock((-1.2, 1.0))
    optimizer = optim.create("bfgs", model)
    for _ in range(5):
        before, gradient = flat(batch.objective), batch.gradient().flat
        optimizer.step(batch)
        s, y = flat(batch.objective) - before, batch.gradient().flat - gradient
        inverse = optimizer.shared["inverse_hessian"]
        assert (inverse @ y).numpy() == pytest.approx(s.numpy(), rel=1e-8, abs=1e-12)
        assert (torch.linalg.eigvalsh(inverse) > 0).all()


def test_the_update_of_the_inverse_is_the_inverse_of_the_update():
    torch.manual_seed(0)
    root = torch.randn(4, 4).double()
    inverse, s, y = root @ root.T, torch.randn(4).double(), torch.randn(4).double()
    y = y * torch.sign(y @ s)
    found = bfgs.updated_inverse(inverse, s, y)
    assert found.numpy() == pytest.approx(small.inverse_by_entries(inverse.numpy(), s.numpy(), y.numpy()))


def test_bfgs_begins_again_with_the_gradient_where_its_line_search_fails():
    model, batch = rosenbrock((-1.2, 1.0))
    optimizer = optim.create("bfgs", model, evaluations=1)
    optimizer.shared["inverse_hessian"] = 1e6 * torch.eye(2).double()
    optimizer.step(batch)
    assert model.point.tolist() == [-1.2, 1.0]
    assert "inverse_hessian" not in optimizer.shared


def trial(polynomial):
    derivative = polynomial.deriv()
    return lambda step: line_search.LinePoint(step, float(polynomial(step)), float(derivative(step)))


def test_the_cubic_minimum_is_exact_on_cubics_and_quadratics():
    for polynomial, expected in ((np.poly1d([1, -3, 0, 5]), 2.0), (np.poly1d([2, -4, 1]), 1.0)):
        evaluate = trial(polynomial)
        assert line_search.cubic_minimum(evaluate(0.5), evaluate(4.0)) == pytest.approx(expected)


@pytest.mark.parametrize("first", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("curvature", [0.01, 0.5, 0.9])
def test_the_line_search_finds_a_step_that_satisfies_the_strong_wolfe_conditions(first, curvature):
    evaluate = trial(np.poly1d([1, -2, -3, 0.5, 0]) + np.poly1d([-1.0, 0]))
    start = evaluate(0.0)
    found = line_search.strong_wolfe(evaluate, start, first, curvature=curvature)
    assert found.value <= start.value + 1e-4 * found.step * start.slope
    assert abs(found.slope) <= -curvature * start.slope


def test_the_line_search_steps_back_from_where_the_objective_is_not_finite():
    def evaluate(step):
        value = (step - 1) ** 2 if step < 2 else math.nan
        return line_search.LinePoint(step, value, 2 * (step - 1) if step < 2 else math.nan)

    found = line_search.strong_wolfe(evaluate, evaluate(0.0), 64.0)
    assert 0 < found.step < 2


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_trained_to_a_smaller_loss_and_the_report_has_the_loss_before_the_step(name):
    batch = network(l2=1e-3)
    optimizer = optim.create(name, batch.objective.model)
    before = float(batch.value())
    reports = [optimizer.step(batch) for _ in range(8)]
    assert float(reports[0].loss) == pytest.approx(before)
    assert all(report.finite for report in reports)
    assert float(batch.value()) < 0.2 * before


@pytest.mark.parametrize("name", NAMES)
def test_nothing_moves_where_the_loss_is_not_finite(name):
    model, batch = rosenbrock((math.nan, 1.0))
    with torch.no_grad():
        model.point[0] = math.inf
    report = optim.create(name, model).step(batch)
    assert not report.finite
    assert model.point.tolist() == [math.inf, 1.0]


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_optimizer_goes_on_as_the_original(name):
    model, batch = rosenbrock((-1.2, 1.0))
    optimizer = optim.create(name, model)
    for _ in range(3):
        optimizer.step(batch)
    other, same = rosenbrock(model.point.tolist())
    restored = optim.create(name, other)
    restored.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        optimizer.step(batch)
        restored.step(same)
    assert torch.equal(model.point, other.point)


def trajectories(rank, workers):
    """Losses and final weights of each method on a global batch of 23 samples, cut for the workers."""
    case, found = BY_NAME["mlp-l2"], {}
    for name in NAMES:
        model = case.model()
        objective = Objective(model, case.loss, case.l2, collectives=ProcessGroup() if workers > 1 else Local())
        share = torch.arange(23).tensor_split(workers)[rank]
        optimizer = optim.create(name, model)
        losses = [optimizer.step(objective.batch(case.inputs[share], case.targets[share])).loss for _ in range(5)]
        found[name] = torch.cat([torch.stack(losses), flat(objective)])
    return found


def normalised(rank, workers):
    case = BY_NAME["batch-norm"]
    objective = Objective(case.model(), case.loss, collectives=ProcessGroup())
    try:
        dense_curvature.hessian(objective.batch(case.inputs, case.targets))
    except NotImplementedError as error:
        return str(error)


@pytest.mark.slow
def test_two_workers_take_the_steps_of_one():
    alone = trajectories(0, 1)
    for found in distributed.run(2, trajectories, 2):
        for name in NAMES:
            torch.testing.assert_close(found[name], alone[name], rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_an_exact_hessian_through_batch_normalisation_is_refused_on_several_workers():
    assert all("train on one worker" in found for found in distributed.run(2, normalised, 2))


@pytest.mark.parametrize("name", NAMES)
def test_a_large_network_is_refused_with_a_way_out(name):
    with pytest.raises(ValueError, match=r"at most max_parameters=1000 parameters; the model has 1010.*use curveball"):
        optim.create(name, nn.Linear(100, 10))
    optim.create(name, nn.Linear(100, 10), max_parameters=2000)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("newton", {"damping": -1.0}, "newton: damping is -1.0; it must be finite and at least 0"),
        ("newton", {"halvings": -1}, "newton: halvings is -1"),
        (
            "levenberg_marquardt",
            {"damping": 0.0},
            "levenberg_marquardt: damping is 0.0; it must be a positive finite number",
        ),
        ("levenberg_marquardt", {"factor": 1.0}, "factor is 1.0; it must be finite and above 1"),
        ("levenberg_marquardt", {"attempts": 0}, "attempts is 0; it must be finite and at least 1"),
        ("bfgs", {"decrease": 0.95}, "bfgs: decrease is 0.95; it must be between 0 and curvature, which is 0.9"),
        ("bfgs", {"evaluations": 0}, "evaluations is 0"),
        ("bfgs", {"clip_gradient": 1.0}, "clip_gradient has no meaning"),
    ],
)
def test_settings_out_of_bounds_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        optim.create(name, nn.Linear(2, 1), **settings)
