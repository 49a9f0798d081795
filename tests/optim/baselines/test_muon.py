"""Muon: torch's own methods on both kinds of parameters, and what a state holds."""

import copy

import torch
from torch import nn

import raycurv
from raycurv import optim
from tests.cases import BY_NAME

CASE = BY_NAME["convolution"]


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def steps(model, optimizer, count):
    objective = raycurv.Objective(model, CASE.loss)
    for _ in range(count):
        optimizer.step(objective.batch(CASE.inputs, CASE.targets))


def test_matrices_go_with_torch_s_muon_and_the_rest_with_torch_s_adamw():
    model, plain = CASE.model(), CASE.model()
    steps(model, optim.create("muon", model, learning_rate=0.01, adamw_rate=0.003, weight_decay=0.05), 8)
    matrices, rest = ([p for p in plain.parameters() if (p.ndim == 2) == matrix] for matrix in (True, False))
    assert matrices
    assert {p.ndim for p in rest} == {1, 4}
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.05, adjust_lr_fn="original")
    adamw = torch.optim.AdamW(rest, lr=0.003, betas=(0.9, 0.95), weight_decay=0.05)
    for _ in range(8):
        plain.zero_grad()
        nn.functional.cross_entropy(plain(CASE.inputs), CASE.targets).backward()
        muon.step()
        adamw.step()
    torch.testing.assert_close(flat(model), flat(plain), rtol=1e-9, atol=1e-12)


def test_a_model_without_matrices_is_trained_by_adamw():
    models = [nn.Conv1d(2, 3, 1).double(), nn.Conv1d(2, 3, 1).double()]
    models[1].load_state_dict(models[0].state_dict())
    inputs, targets = torch.randn(5, 2, 1, dtype=torch.float64), torch.zeros(5, 3, 1, dtype=torch.float64)
    settings = {"muon": {}, "adamw": {"learning_rate": 3e-4, "beta2": 0.95}}
    for (name, own), model in zip(settings.items(), models, strict=True):
        objective, optimizer = raycurv.Objective(model, "squared_error"), optim.create(name, model, **own)
        optimizer.step(objective.batch(inputs, targets))
    assert torch.equal(flat(models[0]), flat(models[1]))


def test_a_copy_and_a_restored_state_go_on_alike():
    model = CASE.model()
    optimizer = optim.create("muon", model)
    steps(model, optimizer, 3)
    twin, copied = copy.deepcopy((model, optimizer))
    third = copy.deepcopy(model)
    restored = optim.create("muon", third)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, copied), (third, restored)):
        steps(m, o, 3)
    assert torch.equal(flat(model), flat(twin))
    assert torch.equal(flat(model), flat(third))


def test_groups_keep_their_rates():
    model = CASE.model()
    first, last = list(model.parameters())[:1], list(model.parameters())[1:]
    optimizer = optim.create("muon", [{"params": first, "lr": 0.5}, {"params": last}])
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [3e-4, 0.02, 0.5]
