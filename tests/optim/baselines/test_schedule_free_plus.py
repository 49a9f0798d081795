"""ScheduleFree+: a naive reference, limiting cases, the weights that are evaluated."""

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from raycurv.data import Loader
from raycurv.objective.collectives import Local
from raycurv.train import CheckpointStore, load_trained_model, train
from tests.cases import BY_NAME
from tests.optim.baselines.averages import assert_steps_equal, flat
from tests.reference import baselines
from tests.train.problems import Kept, blobs, config, network

NAME = "schedule_free_plus"
CASE = BY_NAME["mlp"]
CASES = ("mlp", "mlp-l2", "regression", "batch-norm-l2", "dropout")
# Settings of the optimizer, and the same ones of the reference.
OTHERS = [
    ({"learning_rate": 0.3, "beta1": 0.5, "beta2": 0.8}, {"gamma": 0.3, "b1": 0.5, "b2": 0.8}),
    (
        {"interpolation": 0.5, "last_interpolation": 0.95, "interpolation_steps": 6},
        {"beta": 0.5, "last": 0.95, "steps": 6},
    ),
    ({"norm_memory": 0.7, "average_power": 2.0, "average_start": 3}, {"bp": 0.7, "r": 2.0, "start": 3}),
    ({"weight_decay": 20.0}, {"decay": 20.0}),
]


def rows_of(step):
    return torch.randperm(24, generator=torch.Generator().manual_seed(step))[:12]


def made(case=CASE, **settings):
    model = case.model()
    return model, raycurv.Objective(model, case.loss, case.l2), optim.create(NAME, model, **settings)


@pytest.mark.parametrize("case_name", CASES)
def test_the_steps_equal_the_naive_reference(case_name):
    assert_steps_equal(NAME, baselines.FreePlus, BY_NAME[case_name], {}, {})


@pytest.mark.parametrize(("settings", "arguments"), OTHERS)
def test_the_steps_equal_the_naive_reference_at_other_settings(settings, arguments):
    assert_steps_equal(NAME, baselines.FreePlus, BY_NAME["mlp-l2"], settings, arguments)


def test_without_interpolation_and_average_it_is_adam_at_polyak_s_rate():
    """β = 0 takes the gradient at z."""
    model, objective, optimizer = made(interpolation=0.0, beta2=0.999)
    other = CASE.model()
    others, adam = raycurv.Objective(other, CASE.loss), optim.create("adam", other)
    for t in range(6):
        rows = rows_of(t)
        report = optimizer.step(objective.batch(CASE.inputs[rows], CASE.targets[rows]))
        adam.param_groups[0]["lr"] = float(report.scalars["learning_rate"])
        adam.step(others.batch(CASE.inputs[rows], CASE.targets[rows]))
        torch.testing.assert_close(flat(model), flat(other), rtol=1e-9, atol=1e-9)


def test_an_average_that_has_not_begun_is_the_iterate():
    model, objective, optimizer = made(average_start=9)
    for _ in range(4):
        optimizer.step(objective.batch(CASE.inputs, CASE.targets))
    trained = flat(model)
    with optimizer.evaluation_weights():
        torch.testing.assert_close(flat(model), optimizer.shared["z"])
    assert torch.equal(flat(model), trained)


def test_a_step_that_is_not_finite_is_as_if_it_had_not_been():
    (model, objective, optimizer), (other, others, plain) = made(interpolation_steps=5), made(interpolation_steps=5)
    for t in range(6):
        if t == 3:
            assert not bool(optimizer.step(objective.batch(CASE.inputs * float("nan"), CASE.targets)).finite)
        optimizer.step(objective.batch(CASE.inputs, CASE.targets))
        plain.step(others.batch(CASE.inputs, CASE.targets))
    assert torch.equal(flat(model), flat(other))


@pytest.mark.parametrize("norm", [False, True])
def test_a_run_evaluates_and_hands_on_the_average(tmp_path, norm):
    store = CheckpointStore(str(tmp_path))
    result = train(config(optimizer=NAME, norm=norm), collectives=Local(), store=store, emit=Kept())
    inputs, targets = next(
        Loader(blobs().evaluation, batch_size=99, seed=0, training=False, dtype=torch.float64).epoch(0)
    )
    model, state = load_trained_model(store).model, store.load()
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model(inputs), targets))
    assert result.values["test/loss"] == pytest.approx(loss, rel=1e-9)
    average = state["optimizer"]["state"]["global"]["x"]
    torch.testing.assert_close(flat(model), average, rtol=0, atol=0)
    trained = network((4,), 3).double() if not norm else None
    if trained is not None:
        trained.load_state_dict(state["model"])
        assert not torch.allclose(flat(trained), average)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "schedule_free_plus: learning_rate is 0.0"),
        ({"interpolation": 1.0}, r"interpolation is 1.0; it must be in \[0, 1\)"),
        ({"norm_memory": -0.1}, "norm_memory is -0.1"),
        ({"interpolation_steps": -1}, "interpolation_steps is -1"),
        ({"average_start": 1.5}, "average_start is 1.5"),
        ({"average_power": float("inf")}, "average_power is inf"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        made(**settings)
