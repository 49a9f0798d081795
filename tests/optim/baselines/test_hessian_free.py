"""Hessian-free against a naive version with dense matrices, its limiting cases, and its conjugate gradients."""

import math

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from raycurv.optim.baselines.hessian_free import conjugate_gradients
from tests.cases import BY_NAME
from tests.reference import baselines


def loss_of(case):
    if case.loss == "cross_entropy":
        return lambda o, y: nn.functional.cross_entropy(o, y, reduction="none")
    return lambda o, y: ((o - y) ** 2).sum(1)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("case_name", ["mlp", "mlp-l2", "regression", "batch-norm-l2", "dropout"])
def test_twenty_steps_equal_the_naive_reference(case_name):
    case = BY_NAME[case_name]
    model, settings = case.model(), {"iterations": 8}
    objective, optimizer = raycurv.Objective(model, case.loss, case.l2), optim.create("hessian_free", model, **settings)
    reference = baselines.HessianFree(case.model(), loss_of(case), case.l2)
    for t in range(20):
        rows = torch.randperm(24, generator=torch.Generator().manual_seed(t))[:12]
        reference.batch(case.inputs[rows], case.targets[rows], seed=t)
        expected = reference.step(**settings)
        torch.manual_seed(t)
        report = optimizer.step(objective.batch(case.inputs[rows], case.targets[rows]))
        torch.testing.assert_close(flat(model), reference.w, rtol=1e-10, atol=1e-10)
        for key, value in expected.items():
            found = report.loss if key == "loss" else report.scalars[key]
            assert float(found) == pytest.approx(value, rel=1e-9, abs=1e-10), (t, key)


def system(size=12, seed=0):
    torch.manual_seed(seed)
    factor = torch.randn(size, size, dtype=torch.float64)
    return factor @ factor.T + torch.eye(size, dtype=torch.float64), torch.randn(size, dtype=torch.float64)


def test_conjugate_gradients_solve_a_system_in_as_many_iterations_as_it_has_unknowns():
    matrix, g = system()
    iterates, count = conjugate_gradients(lambda v: matrix @ v, g, torch.zeros_like(g), 12)
    assert count == 12
    torch.testing.assert_close(iterates[-1], torch.linalg.solve(matrix, -g), rtol=1e-6, atol=1e-8)


def test_conjugate_gradients_stop_where_the_quadratic_no_longer_falls():
    torch.manual_seed(0)
    spread, g = torch.logspace(0, 0.2, 200, dtype=torch.float64), torch.randn(200, dtype=torch.float64)
    iterates, count = conjugate_gradients(lambda v: spread * v, g, torch.zeros_like(g), 200)
    assert count == 12  # ten after the second, which was within 0.5 % of the minimum already
    torch.testing.assert_close(iterates[-1], -g / spread, rtol=1e-6, atol=1e-8)


def test_conjugate_gradients_begin_at_zero_where_the_start_is_worse():
    matrix, g = system()
    from_bad, _ = conjugate_gradients(lambda v: matrix @ v, g, 1e3 * g, 4)
    from_zero, _ = conjugate_gradients(lambda v: matrix @ v, g, torch.zeros_like(g), 4)
    assert all(torch.equal(x, y) for x, y in zip(from_bad, from_zero, strict=True))


def test_conjugate_gradients_keep_iterates_at_growing_distances():
    matrix, g = system(60)
    iterates, count = conjugate_gradients(lambda v: matrix @ v, g, torch.zeros_like(g), 9)
    assert (len(iterates), count) == (6, 9)  # 2, 3, 4, 5, 7 and 9


def linear_regression(damping, l2=0.0):
    torch.manual_seed(0)
    model = nn.Linear(5, 2).double()
    x, y = torch.randn(30, 5, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    batch = raycurv.Objective(model, "squared_error", l2).batch(x, y)
    return model, batch, optim.create("hessian_free", model, damping=damping)


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_without_damping_one_step_solves_linear_regression(l2):
    _, batch, optimizer = linear_regression(1e-12, l2)
    report = optimizer.step(batch)
    assert float(batch.gradient().flat.norm()) < 1e-5
    assert float(report.scalars["reduction_ratio"]) == pytest.approx(1, abs=1e-6)


def test_with_strong_damping_a_step_goes_down_the_gradient():
    model, batch, optimizer = linear_regression(1e9)
    before, gradient = flat(model), batch.gradient().flat
    optimizer.step(batch)
    torch.testing.assert_close((flat(model) - before) * 1e9, -gradient, rtol=1e-5, atol=1e-5)


def test_damping_falls_where_the_model_is_right_and_grows_where_it_is_not():
    _, batch, optimizer = linear_regression(1e-3)
    optimizer.step(batch)
    assert optimizer.shared["damping"] == pytest.approx(2e-3 / 3)
    bent = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(bent.weight, 2.0)
    steep = raycurv.Objective(bent, lambda o, y: o.square().add(1).log().sum(1))  # bends down beyond |o| = 1
    optimizer = optim.create("hessian_free", bent, damping=1e-3)
    optimizer.step(steep.batch(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1)))
    assert optimizer.shared["damping"] == pytest.approx(1.5e-3)


def test_micro_batches_give_the_same_step():
    case = BY_NAME["mlp-l2"]
    models = [case.model(), case.model()]
    for model, size in zip(models, (None, 7), strict=True):
        objective = raycurv.Objective(model, case.loss, case.l2, micro_batch=size)
        optimizer = optim.create("hessian_free", model)
        for _ in range(3):
            optimizer.step(objective.batch(case.inputs, case.targets))
    torch.testing.assert_close(flat(models[0]), flat(models[1]), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"damping": 0.0}, "damping is 0.0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"memory": math.nan}, "memory is nan"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.create("hessian_free", nn.Linear(1, 1), **settings)
