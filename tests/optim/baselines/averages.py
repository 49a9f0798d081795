"""Steps of an optimizer that is evaluated at an average, beside those of its naive reference."""

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def named_loss(case):
    if case.loss == "cross_entropy":
        return lambda o, y: nn.functional.cross_entropy(o, y, reduction="none")
    return lambda o, y: ((o - y) ** 2).sum(1)


def assert_steps_equal(name, reference_class, case, settings, arguments, *, steps=15):
    model = case.model()
    objective, optimizer = raycurv.Objective(model, case.loss, case.l2), optim.create(name, model, **settings)
    reference = reference_class(case.model(), named_loss(case), case.l2)
    for t in range(steps):
        rows = torch.randperm(24, generator=torch.Generator().manual_seed(t))[:12]
        reference.batch(case.inputs[rows], case.targets[rows], seed=t)
        expected = reference.step(**arguments)
        torch.manual_seed(t)
        report = optimizer.step(objective.batch(case.inputs[rows], case.targets[rows]))
        assert float(report.scalars["learning_rate"]) == pytest.approx(expected["learning_rate"], rel=1e-8)
        assert float(report.loss) == pytest.approx(expected["loss"], rel=1e-8)
        torch.testing.assert_close(flat(model), reference.w, rtol=1e-8, atol=1e-9)
    with optimizer.evaluation_weights():
        torch.testing.assert_close(flat(model), reference.mean, rtol=1e-8, atol=1e-9)
