"""K-FAC against a naive version with dense Kronecker products, its limiting cases, and what it refuses."""

import copy
import sys

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from raycurv.objective.collectives import Local, ProcessGroup
from tests.cases import BY_NAME
from tests.objective import distributed
from tests.reference.baselines import TwoLayerKFAC


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def of_cross_entropy(output):
    p = torch.softmax(output, 0)
    return torch.diag(p) - torch.outer(p, p)


def of_squared_error(output):
    return 2 * torch.eye(len(output), dtype=output.dtype)


@pytest.mark.parametrize("memory", [0.0, 0.8])
@pytest.mark.parametrize(
    ("case_name", "hessian"),
    [("mlp", of_cross_entropy), ("mlp-l2", of_cross_entropy), ("regression", of_squared_error)],
)
def test_twenty_steps_equal_the_naive_reference(case_name, hessian, memory):
    case = BY_NAME[case_name]
    model, plain = case.model(), case.model()
    objective, reference = raycurv.Objective(model, case.loss, case.l2), TwoLayerKFAC(plain, hessian, case.l2)
    optimizer = optim.create("kfac", model, learning_rate=0.2, damping=0.05, memory=memory)
    for t in range(20):
        rows = torch.randperm(24, generator=torch.Generator().manual_seed(t))[: 5 if t % 4 == 3 else 12]
        optimizer.step(objective.batch(case.inputs[rows], case.targets[rows]))

        def loss(outputs, targets=case.targets[rows]):
            if hessian is of_cross_entropy:
                return nn.functional.cross_entropy(outputs, targets)
            return (outputs - targets).square().sum(1).mean()

        reference.step(loss, case.inputs[rows], 0.2, 0.05, memory)
        torch.testing.assert_close(flat(model), flat(plain), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("damping", [150.0, 1e-3])
@pytest.mark.parametrize(
    ("case_name", "hessian"),
    [("mlp-l2", of_cross_entropy), ("regression", of_squared_error)],
    ids=["mlp", "regression"],
)
def test_adaptive_rate_momentum_and_damping_equal_the_naive_reference(case_name, hessian, damping):
    case = BY_NAME[case_name]
    model, plain = case.model(), case.model()
    objective, reference = raycurv.Objective(model, case.loss, case.l2), TwoLayerKFAC(plain, hessian, case.l2)
    optimizer = optim.create("kfac", model, adaptive=True, damping=damping)
    reference.damping = damping
    for t in range(15):
        rows = torch.randperm(24, generator=torch.Generator().manual_seed(t))[: 5 if t % 4 == 3 else 12]
        report = optimizer.step(objective.batch(case.inputs[rows], case.targets[rows]))

        def loss(outputs, targets=case.targets[rows]):
            if hessian is of_cross_entropy:
                return nn.functional.cross_entropy(outputs, targets)
            return (outputs - targets).square().sum(1).mean()

        expected = reference.adaptive_step(loss, case.inputs[rows], 0.95)
        assert report.scalars.keys() == expected.keys()
        for name, value in expected.items():
            assert float(report.scalars[name]) == pytest.approx(value, rel=1e-6, abs=1e-9), (t, name)
        torch.testing.assert_close(flat(model), flat(plain), rtol=1e-8, atol=1e-8)


def test_adaptive_damping_begins_at_the_papers_and_falls_where_the_model_fits():
    case = BY_NAME["mlp"]
    model = case.model()
    optimizer = optim.create("kfac", model, adaptive=True)
    assert optimizer.damping == 150
    batch = raycurv.Objective(model, case.loss).batch(case.inputs, case.targets)
    for _ in range(5):
        report = optimizer.step(batch)
    assert float(report.scalars["reduction_ratio"]) > 0.75
    assert float(optimizer.step(batch).scalars["damping"]) == pytest.approx(150 * 0.95**5)


def test_a_checked_step_to_a_non_finite_loss_is_not_taken_and_raises_the_damping():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), Sqrt()).double()
    nn.init.constant_(model[0].weight, 0.5)
    inputs = torch.rand(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    batch = raycurv.Objective(model, "squared_error").batch(inputs, torch.full((8, 1), 0.2, dtype=torch.float64))
    optimizer = optim.create("kfac", model, adaptive=True, damping=1e3)
    for _ in range(4):
        assert bool(optimizer.step(batch).finite)
    optimizer.shared["damping"] = 1e-6
    before = flat(model).clone()
    assert not bool(optimizer.step(batch).finite)
    assert torch.equal(flat(model), before)
    assert optimizer.shared["damping"] == pytest.approx(1e-6 / 0.95**5)


class Sqrt(nn.Module):
    def forward(self, x):
        return x.sqrt()


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"adaptive": True}], ids=["plain", "momentum", "adaptive"])
def test_a_step_whose_factors_overflow_is_not_taken_and_leaves_their_averages(settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).float()
    inputs, targets = torch.randn(16, 6, dtype=torch.float32), torch.randint(3, (16,))
    objective, optimizer = raycurv.Objective(model, "cross_entropy"), optim.create("kfac", model, **settings)
    assert optimizer.step(objective.batch(inputs, targets)).finite
    before, kept = flat(model), copy.deepcopy(optimizer.state_dict())
    huge = inputs.clone()
    huge[3, 0] = 3e38  # its square overflows, while loss and gradient are finite
    report = optimizer.step(objective.batch(huge, targets))
    assert torch.isfinite(report.loss)
    assert not report.finite
    torch.testing.assert_close(flat(model), before, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict(), kept, rtol=0, atol=0)
    assert optimizer.step(objective.batch(inputs, targets)).finite
    assert torch.isfinite(flat(model)).all()


def test_momentum_is_that_of_a_heavy_ball():
    case = BY_NAME["mlp"]
    model = case.model()
    batch = raycurv.Objective(model, case.loss).batch(case.inputs, case.targets)
    settings = {"learning_rate": 1e8, "damping": 1e9}  # all but plain gradients
    optimizer, plain = optim.create("kfac", model, momentum=0.9, **settings), case.model()
    sgd = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        optimizer.step(batch)
        sgd.zero_grad()
        nn.functional.cross_entropy(plain(case.inputs), case.targets).backward()
        sgd.step()
    torch.testing.assert_close(flat(model), flat(plain), rtol=1e-6, atol=1e-8)


def test_linear_regression_is_solved_in_one_step():
    """The Gauss-Newton matrix of one linear layer is a Kronecker product."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    x, y = torch.randn(30, 5, dtype=torch.float64), torch.randn(30, 3, dtype=torch.float64)
    batch = raycurv.Objective(model, "squared_error").batch(x, y)
    optim.create("kfac", model, learning_rate=1.0, damping=1e-12).step(batch)
    assert float(batch.gradient().flat.norm()) < 1e-9


@pytest.mark.parametrize("case_name", ["mlp", "batch-norm", "dropout"])
def test_with_strong_damping_it_is_sgd(case_name):
    case = BY_NAME[case_name]
    model, other = case.model(), case.model()
    for m in (model, other):
        for layer in m.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.requires_grad_(False)  # its parameters take plain steps, here of 1e7
    for name, m, settings in (("kfac", model, {"learning_rate": 1e7, "damping": 1e9}), ("sgd", other, {})):
        torch.manual_seed(0)
        batch = raycurv.Objective(m, case.loss).batch(case.inputs, case.targets)
        optim.create(name, m, **settings).step(batch)
    torch.testing.assert_close(flat(model), flat(other), rtol=1e-6, atol=1e-9)
    for p, q in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(p, q)  # running statistics have moved once


def test_parameters_outside_linear_and_convolutional_layers_take_plain_steps():
    case = BY_NAME["batch-norm"]
    model = case.model()
    batch = raycurv.Objective(model, case.loss).batch(case.inputs, case.targets)
    before, gradient = [p.detach().clone() for p in model.parameters()], batch.gradient()
    optim.create("kfac", model, learning_rate=0.5).step(batch)
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    for p, old, g in zip(model.parameters(), before, gradient, strict=True):
        plain = torch.allclose(p, old - 0.5 * g, rtol=1e-12, atol=1e-14)
        assert plain == any(p is norm for norm in norms)


@pytest.mark.parametrize("case_name", ["mlp", "convolution", "batch-norm"])
def test_descends_faster_than_sgd_at_its_rate(case_name):
    case = BY_NAME[case_name]
    losses = {}
    for name in ("kfac", "sgd"):
        model = case.model()
        objective, optimizer = raycurv.Objective(model, case.loss), optim.create(name, model, learning_rate=0.1)
        for _ in range(30):
            loss = optimizer.step(objective.batch(case.inputs, case.targets)).loss
        losses[name] = float(loss)
    assert losses["kfac"] < 0.8 * losses["sgd"]


def trajectory(rank, workers, **settings):
    case = BY_NAME["convolution"]
    model = case.model()
    collectives = ProcessGroup() if workers > 1 else Local()
    objective = raycurv.Objective(model, case.loss, collectives=collectives)
    optimizer = optim.create("kfac", model, **settings)
    for rows in (torch.arange(24), torch.arange(7), torch.arange(1)):  # even, uneven, and an empty share
        share = rows.tensor_split(workers)[rank]
        optimizer.step(objective.batch(case.inputs[share], case.targets[share]))
    return flat(model)


def normalised():
    case = BY_NAME["batch-norm"]
    model = case.model()
    objective = raycurv.Objective(model, case.loss, collectives=ProcessGroup())
    try:
        optim.create("kfac", model).step(objective.batch(case.inputs, case.targets))
    except NotImplementedError as error:
        return str(error)


def on_worker(rank, workers):
    return trajectory(rank, workers), trajectory(rank, workers, adaptive=True), normalised()


@pytest.mark.slow
def test_two_workers_are_one_or_batch_normalisation_is_refused():
    single, adaptive = trajectory(0, 1), trajectory(0, 1, adaptive=True)
    for found, adapted, refusal in distributed.run(2, on_worker, 2):
        torch.testing.assert_close(found, single, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(adapted, adaptive, rtol=1e-8, atol=1e-10)
        assert "couples the samples of several workers" in refusal


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (lambda o, y: o.square().sum(1), {}, "must be 'cross_entropy' or 'squared_error'"),
        ("cross_entropy", {"weights": lambda y: 1.0 + y}, "neither weights nor micro_batch"),
        ("cross_entropy", {"micro_batch": 4}, "neither weights nor micro_batch"),
    ],
)
def test_objectives_without_factors_are_refused(loss, options, message):
    case = BY_NAME["mlp"]
    model = case.model()
    batch = raycurv.Objective(model, loss, **options).batch(case.inputs, case.targets)
    with pytest.raises(ValueError, match=message):
        optim.create("kfac", model).step(batch)


def test_a_deep_copy_goes_on_alone():
    case = BY_NAME["mlp"]
    model = case.model()
    optimizer = optim.create("kfac", model)
    optimizer.step(raycurv.Objective(model, case.loss).batch(case.inputs, case.targets))
    for m, o in ((model, optimizer), copied := copy.deepcopy((model, optimizer))):
        o.step(raycurv.Objective(m, case.loss).batch(case.inputs, case.targets))
    assert torch.equal(flat(model), flat(copied[0]))


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'raycurv\[kfac\]'"):
        optim.create("kfac", nn.Linear(1, 1))


@pytest.mark.parametrize("settings", [{"learning_rate": 0.0}, {"damping": -1.0}, {"memory": 1.0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is"):
        optim.create("kfac", nn.Linear(1, 1), **settings)
