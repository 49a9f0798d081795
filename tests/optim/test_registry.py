import copy

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from raycurv.optim import registry
from tests.cases import BY_NAME


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'curveball'"):
        optim.create("curvball", nn.Linear(1, 1))


def test_unknown_settings_list_the_known():
    with pytest.raises(ValueError, match="sgd: setting 'lr' is unknown; all names: learning_rate, schedule"):
        optim.create("sgd", nn.Linear(1, 1), lr=0.1)


def test_a_model_without_trainable_parameters_is_refused():
    for name in optim.names():
        with pytest.raises(ValueError, match="no trainable parameter"):
            optim.create(name, nn.ReLU())


def test_a_users_own_optimizer_registers(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @optim.register("rprop")
    def rprop(model_or_params, *, horizon=None, learning_rate=0.01):
        return optim.FirstOrder(torch.optim.Rprop(optim.parameters_of(model_or_params), lr=learning_rate))

    case = BY_NAME["mlp"]
    model = case.model()
    batch = raycurv.Objective(model, case.loss).batch(case.inputs, case.targets)
    before = batch.value()
    optimizer = optim.create("rprop", model, learning_rate=0.001)
    for _ in range(5):
        optimizer.step(batch)
    assert batch.value() < before
    with pytest.raises(ValueError, match="already"):
        optim.register("rprop")(rprop)


@pytest.mark.parametrize("name", ["adam", "curveball"])
def test_a_deep_copy_goes_on_alone(name):
    case = BY_NAME["mlp"]
    model = case.model()
    optimizer = optim.create(name, model)
    optimizer.step(raycurv.Objective(model, case.loss).batch(case.inputs, case.targets))
    for m, o in ((model, optimizer), copied := copy.deepcopy((model, optimizer))):
        o.step(raycurv.Objective(m, case.loss).batch(case.inputs, case.targets))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), copied[0].parameters(), strict=True))


@pytest.mark.parametrize("bad", [0, -1])
def test_a_horizon_has_positive_lengths(bad):
    with pytest.raises(ValueError, match="epochs is"):
        optim.Horizon(bad, 1, 1)


TORCHS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "rmsprop_bias_corrected": lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.0, 0.999)),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, rho=0.9),
}


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("name", TORCHS)
def test_baselines_are_torchs_own(name, clip):
    case = BY_NAME["batch-norm"]
    ours, plain = case.model(), case.model()
    objective = raycurv.Objective(ours, case.loss)
    settings = {} if clip is None else {"clip_gradient": clip}
    optimizer, reference = optim.create(name, ours, **settings), TORCHS[name](plain.parameters())
    for _ in range(10):
        optimizer.step(objective.batch(case.inputs, case.targets))
        reference.zero_grad()
        nn.functional.cross_entropy(plain(case.inputs), case.targets).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        reference.step()
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_parameter_groups_keep_their_own_rates():
    case = BY_NAME["mlp"]
    model = case.model()
    first, second = list(model.parameters())[:2], list(model.parameters())[2:]
    optimizer = optim.create("sgd", [{"params": first, "lr": 0.0}, {"params": second}])
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step(raycurv.Objective(model, case.loss).batch(case.inputs, case.targets))
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert moved == [False, False, True, True]
