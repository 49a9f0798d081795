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
    "soap": ("pytorch_optimizer", lambda m, p: m.SOAP(p)),
    "ademamix": ("pytorch_optimizer", lambda m, p: m.AdEMAMix(p, weight_decouple=True, t_alpha_beta3=200)),
    "mechanic_adam": ("mechanic_pytorch", lambda m, p: m.mechanize(torch.optim.Adam, store_delta=True)(p, lr=1.0)),
    "momo_adam": ("momo", lambda m, p: m.MomoAdam(p)),
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
        loss = nn.functional.cross_entropy(plain(CASE.inputs), CASE.targets)
        loss.backward()
        if name == "soap":  # its steps differ where gradients differ by rounding alone
            same = raycurv.Objective(plain, CASE.loss).batch(CASE.inputs, CASE.targets).gradient()
            for p, g in zip(plain.parameters(), same, strict=True):
                p.grad = g
        reference.step(**({"loss": loss} if name == "momo_adam" else {}))
        if averager is not None:
            averager.step()
    tolerance = 1e-5 if name == "momo_adam" else 1e-9  # the package keeps one average in float32
    torch.testing.assert_close(flat(model), flat(plain), rtol=tolerance, atol=1e-3 * tolerance)
    if hasattr(reference, "eval"):
        reference.eval()
    trained = flat(model)
    with optimizer.evaluation_weights():
        expected = plain if averager is None else averager.averaged_model
        torch.testing.assert_close(flat(model), flat(expected), rtol=tolerance, atol=1e-3 * tolerance)
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


def test_momo_s_rate_is_the_one_at_which_the_averaged_model_reaches_the_lower_bound():
    """Algorithm 2 of the paper in its first step: τ = min(α, (f − f*)/‖g‖²_D⁻¹) along D⁻¹g, with D = |g| + ε."""
    model, objective, optimizer = made("momo_adam", learning_rate=1e6)
    loss, gradient = objective.batch(CASE.inputs, CASE.targets).value_and_gradient()
    before, g = flat(model), gradient.flat.clone()
    optimizer.step(objective.batch(CASE.inputs, CASE.targets))
    mean, size = 0.1 * g, g.abs() + 1e-8
    rate = 0.1 * loss / (mean * mean / size).sum()
    torch.testing.assert_close(flat(model), before - rate * mean / size, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["momo_adam", "mechanic_adam"])
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(name):
    (model, objective, optimizer), (other, others, plain) = made(name), made(name)
    for t in range(6):
        if t == 3:
            assert not bool(optimizer.step(objective.batch(CASE.inputs * float("nan"), CASE.targets)).finite)
        optimizer.step(objective.batch(CASE.inputs, CASE.targets))
        plain.step(others.batch(CASE.inputs, CASE.targets))
    assert torch.equal(flat(model), flat(other))


def test_momo_refuses_parameter_groups():
    with pytest.raises(ValueError, match="takes no parameter groups"):
        optim.create("momo_adam", [{"params": [p]} for p in CASE.model().parameters()])


def test_ademamix_without_a_horizon_has_a_constant_slow_average():
    assert optim.create("ademamix", CASE.model()).param_groups[0]["t_alpha_beta3"] is None
    assert made("ademamix")[2].follows_horizon


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adam", "dog", "mechanic_adam"])
def test_the_rate_that_is_found_is_reported(name):
    _, objective, optimizer = made(name)
    found = [optimizer.step(objective.batch(CASE.inputs, CASE.targets)).scalars["learning_rate"] for _ in range(40)]
    assert 0 < found[0] < 1e-4 < found[-1]
