"""Collectives and bytes of a step of every kind of optimizer, on two gloo processes."""

import itertools

import pytest
import torch
import torch.distributed
from torch import nn

import raycurv
from raycurv import optim
from raycurv.objective.collectives import ProcessGroup
from tests.cases import BY_NAME
from tests.objective import distributed

pytestmark = pytest.mark.slow

NORMS = (0, 1, 4)  # batch normalisations of the network
FIRST, STEPS = 20, 10  # until then `auto` measures in every step; it does in one of five afterwards
# Mean number of collectives of a step, for each number of batch normalisations.
ROUNDS = {
    "sgd": (1, 3, 9),
    "adam": (1, 3, 9),
    "ntlr_sgd": (1, 3, 9),
    "salera": (1, 3, 9),
    "llr_first_order": (1, 3, 9),
    "llr_second_order": (2, 5, 14),
    "auto": (1.2, 3.4, 10),
    "red_sgd": (2, 5, 14),
    "red_sgd:lean=True": (2, 5, 14),
    "red_adam_free": (1.2, 3.4, 10),
    "curveball": (2.2, 6.4, 19),
    "curveball:damping_interval=None": (2, 6, 18),
}


def network(norms: int) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 2, 3))]
    for channels, index in zip((1, 4, 4, 4), range(max(norms, 1)), strict=False):
        layers += [nn.Conv2d(channels, 4, 3, padding=1), *([nn.BatchNorm2d(4)] if index < norms else []), nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 4))


def optimizer_of(entry: str, model: nn.Module) -> optim.StepOptimizer:
    name, _, setting = entry.partition(":")
    settings = {"lean=True": {"lean": True}, "damping_interval=None": {"damping_interval": None}}.get(setting, {})
    return optim.create(name, model, **settings)


def traffic(rank: int) -> dict[str, torch.Tensor]:
    """Collectives as torch counts them, as the objective counts them, and bytes: (STEPS, 3) for each case."""
    found, case = {}, BY_NAME["mlp"]
    group = torch.distributed.distributed_c10d._get_default_group()
    for entry, norms in itertools.product(ROUNDS, NORMS):
        collectives, model = ProcessGroup(), network(norms).double()
        objective = raycurv.Objective(model, case.loss, 1e-3, collectives=collectives)
        optimizer, rows = optimizer_of(entry, model), []
        for _ in range(FIRST + STEPS):
            before = group._get_sequence_number_for_group(), collectives.traffic.rounds, collectives.traffic.bytes
            optimizer.step(objective.batch(case.inputs[rank::2], case.targets[rank::2]))
            after = group._get_sequence_number_for_group(), collectives.traffic.rounds, collectives.traffic.bytes
            rows.append([b - a for a, b in zip(before, after, strict=True)])
        found[f"{entry} {norms}"] = torch.tensor(rows[FIRST:])
    return found


@pytest.fixture(scope="module")
def measured():
    return distributed.run(2, traffic)


@pytest.mark.parametrize("entry", ROUNDS)
def test_a_step_takes_no_more_collectives_than_documented(measured, entry):
    found = tuple(measured[0][f"{entry} {norms}"][:, 0].double().mean().item() for norms in NORMS)
    assert found == pytest.approx(ROUNDS[entry])


def test_the_objective_counts_every_collective(measured):
    for key, rows in measured[0].items():
        assert torch.equal(rows[:, 0], rows[:, 1]), key


def test_without_batch_norm_a_step_sends_one_gradient_and_a_few_scalars(measured):
    gradient = sum(p.numel() for p in network(0).parameters())
    for entry in ROUNDS:
        sent = measured[0][f"{entry} 0"][:, 2]
        # Loss and weight travel with the gradient; other sums are at most eight numbers each.
        assert sent.min() >= 8 * (gradient + 2), entry
        assert sent.max() <= 8 * (gradient + 2 + 2 * 8), entry
