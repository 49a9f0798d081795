"""SF-NorMuon: a naive reference, the polar factor, bad settings."""

import pytest
import torch

import raycurv
from raycurv import optim
from raycurv.optim.baselines.schedule_free_normuon import polar
from tests.cases import BY_NAME
from tests.optim.baselines.averages import assert_steps_equal, flat
from tests.reference import baselines

NAME = "schedule_free_normuon"
CASES = ("mlp", "mlp-l2", "regression", "convolution", "batch-norm-l2")
# Settings of the optimizer, and the same ones of the reference.
OTHERS = [
    ({"learning_rate": 0.1, "warmup_steps": 0}, {"eta": 0.1, "warmup": 0}),
    ({"interpolation": 0.5, "beta2": 0.8, "momentum": 0.3}, {"beta": 0.5, "b2": 0.8, "mu": 0.3}),
    ({"weight_decay": 0.0, "warmup_steps": 4}, {"decay": 0.0, "warmup": 4}),
]


@pytest.mark.parametrize("case_name", CASES)
def test_the_steps_equal_the_naive_reference(case_name):
    assert_steps_equal(NAME, baselines.FreeNorMuon, BY_NAME[case_name], {}, {})


@pytest.mark.parametrize(("settings", "arguments"), OTHERS)
def test_the_steps_equal_the_naive_reference_at_other_settings(settings, arguments):
    assert_steps_equal(NAME, baselines.FreeNorMuon, BY_NAME["mlp-l2"], settings, arguments)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5)])
def test_the_polar_factor_keeps_the_directions_and_levels_the_singular_values(shape):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ polar(matrix) @ vt.T
    torch.testing.assert_close(found, torch.diag(found.diagonal()), rtol=0, atol=1e-9)
    assert 0.5 < float(found.diagonal().min()) <= float(found.diagonal().max()) < 1.3


def test_a_step_that_is_not_finite_moves_nothing():
    case = BY_NAME["mlp"]
    model = case.model()
    objective, optimizer = raycurv.Objective(model, case.loss), optim.create(NAME, model)
    optimizer.step(objective.batch(case.inputs, case.targets))
    before = flat(model)
    assert not bool(optimizer.step(objective.batch(case.inputs * float("nan"), case.targets)).finite)
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "schedule_free_normuon: learning_rate is 0.0"),
        ({"interpolation": 1.0}, r"interpolation is 1.0; it must be in \[0, 1\)"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"warmup_steps": 1.5}, "warmup_steps is 1.5"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.create(NAME, BY_NAME["mlp"].model(), **settings)
