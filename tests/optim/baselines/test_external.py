"""Methods from other packages: they are the packages' own, and the right weights are evaluated."""

import importlib
import sys

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from raycurv.data import Loader
from raycurv.objective.collectives import Local
from raycurv.train import CheckpointStore, load_trained_model, train
from tests.cases import BY_NAME
from tests.train.problems import Kept, blobs, config, network

PACKAGES = {
    "schedule_free_sgd": ("schedulefree", lambda m, p: m.SGDScheduleFree(p)),
    "schedule_free_adamw": ("schedulefree", lambda m, p: m.AdamWScheduleFree(p)),
    "schedule_free_adamw_algoperf": (
        "schedulefree",
        lambda m, p: m.AdamWScheduleFree(
            p, 0.0025, (0.9, 0.9955159689799007), weight_decay=0.08121616522670176, warmup_steps=4, r=0.75
        ),
    ),
    "prodigy": ("prodigyopt", lambda m, p: m.Prodigy(p)),
    "dadapt_adam": ("dadaptation", lambda m, p: m.DAdaptAdam(p)),
    "dog": ("dog", lambda m, p: m.DoG(p)),
}
CASE = BY_NAME["convolution"]
HORIZON = optim.Horizon(epochs=20, steps_per_epoch=10, training_samples=240)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def made(name, **settings):
    model = CASE.model()
    return model, raycurv.Objective(model, CASE.loss), optim.create(name, model, horizon=HORIZON, **settings)


@pytest.mark.parametrize("name", PACKAGES)
def test_steps_and_weights_to_evaluate_are_the_packages_own(name):
    model, objective, optimizer = made(name)
    plain = CASE.model()
    module, make = PACKAGES[name]
    reference = make(importlib.import_module(module), plain.parameters())
    averager = sys.modules["dog"].PolynomialDecayAverager(plain) if name == "dog" else None
    if hasattr(reference, "train"):
        reference.train()
    for _ in range(12):
        optimizer.step(objective.batch(CASE.inputs, CASE.targets))
        reference.zero_grad()
        nn.functional.cross_entropy(plain(CASE.inputs), CASE.targets).backward()
        reference.step()
        if averager is not None:
            averager.step()
    torch.testing.assert_close(flat(model), flat(plain), rtol=1e-9, atol=1e-12)
    if hasattr(reference, "eval"):
        reference.eval()
    trained = flat(model)
    with optimizer.evaluation_weights():
        expected = plain if averager is None else averager.averaged_model
        torch.testing.assert_close(flat(model), flat(expected), rtol=1e-9, atol=1e-12)
    assert torch.equal(flat(model), trained)


@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedule_free_adamw"])
def test_schedule_free_evaluates_the_mean_of_its_gradient_points(name):
    """Eq. 2 to 4 of the paper: with a constant rate, x is the plain mean of z₁ … z_t, and y = (1 − β) z + β x."""
    model, objective, optimizer = made(name)
    points = []
    for _ in range(6):
        optimizer.step(objective.batch(CASE.inputs, CASE.targets))
        points.append(torch.cat([optimizer.state[p]["z"].flatten() for p in model.parameters()]))
    mean = torch.stack(points).mean(0)
    torch.testing.assert_close(flat(model), 0.1 * points[-1] + 0.9 * mean, rtol=1e-9, atol=1e-12)
    with optimizer.evaluation_weights():
        torch.testing.assert_close(flat(model), mean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PACKAGES)
def test_an_evaluation_leaves_no_trace_on_the_training(name):
    (model, objective, optimizer), (other, others, plain) = made(name), made(name)
    for _ in range(4):
        optimizer.step(objective.batch(CASE.inputs, CASE.targets))
        plain.step(others.batch(CASE.inputs, CASE.targets))
        with optimizer.evaluation_weights():
            objective.batch(CASE.inputs, CASE.targets).value()
    assert torch.equal(flat(model), flat(other))


def test_a_state_saved_at_the_weights_to_evaluate_goes_on_from_the_training_point():
    model, objective, optimizer = made("schedule_free_sgd")
    optimizer.step(objective.batch(CASE.inputs, CASE.targets))
    optimizer.step(objective.batch(CASE.inputs, CASE.targets))
    copy, copied, other = made("schedule_free_sgd")
    with optimizer.evaluation_weights():
        copy.load_state_dict(model.state_dict())
        other.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(flat(copy), flat(model), rtol=1e-9, atol=1e-12)
    assert bool(other.step(copied.batch(CASE.inputs, CASE.targets)).finite)


def averages(name, state):
    """The weights to evaluate, out of a checkpoint by the papers' formulas."""
    optimizer = state["optimizer"]
    if name == "dog":
        return list(optimizer["average"]["av_model"].values())
    return [(y - 0.1 * optimizer["state"][i]["z"]) / 0.9 for i, y in enumerate(state["model"].values())]


@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedule_free_adamw", "dog"])
def test_a_run_evaluates_and_hands_on_the_average(tmp_path, name):
    """And not the point that it trains at."""
    store = CheckpointStore(str(tmp_path))
    wanted = config(optimizer=name)
    result = train(wanted, collectives=Local(), store=store, emit=Kept())
    data = blobs().evaluation
    inputs, targets = next(Loader(data, batch_size=99, seed=0, training=False, dtype=torch.float64).epoch(0))
    state, model = store.load(), network((4,), 3).double()

    def loss(weights):
        nn.utils.vector_to_parameters(torch.cat([w.flatten() for w in weights]), model.parameters())
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(inputs), targets))

    assert result.values["test/loss"] == pytest.approx(loss(averages(name, state)), rel=1e-9)
    assert result.values["test/loss"] == pytest.approx(loss(load_trained_model(store).model.parameters()), rel=1e-9)
    assert abs(loss(state["model"].values()) / result.values["test/loss"] - 1) > 1e-8


@pytest.mark.parametrize("name", ["schedule_free_sgd", "dog"])
def test_an_average_is_evaluated_with_batch_statistics_of_its_own(tmp_path, name):
    store = CheckpointStore(str(tmp_path))
    result = train(config(optimizer=name, norm=True), collectives=Local(), store=store, emit=Kept())
    inputs, targets = next(
        Loader(blobs().evaluation, batch_size=99, seed=0, training=False, dtype=torch.float64).epoch(0)
    )
    model, state = load_trained_model(store).model, store.load()
    with torch.no_grad():
        assert result.values["test/loss"] == pytest.approx(
            float(nn.functional.cross_entropy(model(inputs), targets)), rel=1e-9
        )
    assert not torch.allclose(model[1].running_mean, state["model"]["1.running_mean"])


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_names_the_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[name][0], None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'raycurv\[modern\]'"):
        made(name)


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adam", "dog"])
def test_the_rate_that_is_found_is_reported(name):
    _, objective, optimizer = made(name)
    found = [optimizer.step(objective.batch(CASE.inputs, CASE.targets)).scalars["learning_rate"] for _ in range(40)]
    assert 0 < found[0] < 1e-4 < found[-1]
