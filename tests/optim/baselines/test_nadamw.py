"""NAdamW: a naive reference, and the methods that it contains."""

import pytest
import torch

import raycurv
from raycurv import optim
from tests.cases import BY_NAME
from tests.reference import baselines

SETTINGS = {"learning_rate": 0.02, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1}


def rows_of(step):
    return torch.randperm(24, generator=torch.Generator().manual_seed(step))[:12]


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(name, case, steps=20, **settings):
    model = case.model()
    objective, optimizer = raycurv.Objective(model, case.loss, case.l2), optim.create(name, model, **settings)
    for t in range(steps):
        torch.manual_seed(t)
        optimizer.step(objective.batch(case.inputs[rows_of(t)], case.targets[rows_of(t)]))
    return flat(model)


@pytest.mark.parametrize("case_name", ["mlp", "mlp-l2", "batch-norm-l2", "dropout"])
def test_twenty_steps_equal_the_naive_reference(case_name):
    case = BY_NAME[case_name]

    def loss(outputs, labels):
        return torch.nn.functional.cross_entropy(outputs, labels, reduction="none")

    reference = baselines.Nesterov(case.model(), loss, case.l2)
    for t in range(20):
        reference.batch(case.inputs[rows_of(t)], case.targets[rows_of(t)], seed=t)
        reference.step(*SETTINGS.values())
    torch.testing.assert_close(trained("nadamw", case, **SETTINGS), reference.w, rtol=1e-10, atol=1e-10)


def test_without_momentum_it_is_adamw_without_momentum():
    settings = {**SETTINGS, "beta1": 0.0}
    case = BY_NAME["mlp"]
    torch.testing.assert_close(
        trained("nadamw", case, **settings), trained("adamw", case, **settings), rtol=1e-10, atol=1e-12
    )
