"""Collectives and bytes of a step of every kind of optimizer, as docs/cluster.md has them, on two gloo processes."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
CHANNELS = 4  # of each
FIRST, STEPS = 20, 10  # until then `auto` measures in every step; it does in one of five afterwards
PAGE = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"
SETTINGS: dict[str, dict[str, Any]] = {
    "": {},
    " with `lean=True`": {"lean": True},
    " with `damping_interval=None`": {"damping_interval": None},
}


@dataclass(frozen=True)
class Row:
    """One optimizer of the documented table: mean numbers of a step."""

    rounds: float
    rounds_per_norm: float
    numbers: float
    numbers_per_channel: float


def documented() -> dict[tuple[str, str], Row]:
    """The table by name and text of the settings."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r"\| (`.*) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", line):
            names, setting = re.fullmatch(r"(`[^=]*?`)( with .*)?", found[1]).groups()
            values = Row(*map(float, found.groups()[1:]))
            rows |= {(name.strip("` "), setting or ""): values for name in names.split(",")}
    return rows


TABLE = documented()


def network(norms: int) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 2, 3))]
    for channels, index in zip((1, *[CHANNELS] * 3), range(max(norms, 1)), strict=False):
        layers += [
            nn.Conv2d(channels, CHANNELS, 3, padding=1),
            *([nn.BatchNorm2d(CHANNELS)] if index < norms else []),
            nn.Tanh(),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * CHANNELS, 4))


def traffic(rank: int) -> dict[str, torch.Tensor]:
    """Collectives as torch counts them, as the objective counts them, and bytes: (STEPS, 3) for each case."""
    found, case = {}, BY_NAME["mlp"]
    group = torch.distributed.distributed_c10d._get_default_group()
    for (name, setting), norms in itertools.product(TABLE, NORMS):
        collectives, model = ProcessGroup(), network(norms).double()
        objective = raycurv.Objective(model, case.loss, 1e-3, collectives=collectives)
        optimizer, rows = optim.create(name, model, **SETTINGS[setting]), []
        for _ in range(FIRST + STEPS):
            before = group._get_sequence_number_for_group(), collectives.traffic.rounds, collectives.traffic.bytes
            optimizer.step(objective.batch(case.inputs[rank::2], case.targets[rank::2]))
            after = group._get_sequence_number_for_group(), collectives.traffic.rounds, collectives.traffic.bytes
            rows.append([b - a for a, b in zip(before, after, strict=True)])
        found[f"{name}{setting} {norms}"] = torch.tensor(rows[FIRST:])
    return found


@pytest.fixture(scope="module")
def measured():
    return distributed.run(2, traffic)


def test_the_documented_table_is_found():
    assert len(TABLE) == 12


@pytest.mark.parametrize("entry", TABLE, ids="".join)
def test_a_step_takes_as_many_collectives_as_documented(measured, entry):
    found = [measured[0][f"{''.join(entry)} {norms}"][:, 0].double().mean().item() for norms in NORMS]
    row = TABLE[entry]
    assert found == pytest.approx([row.rounds + norms * row.rounds_per_norm for norms in NORMS])


@pytest.mark.parametrize("entry", TABLE, ids="".join)
def test_a_step_sends_no_more_than_documented(measured, entry):
    row = TABLE[entry]
    for norms in NORMS:
        gradient = sum(p.numel() for p in network(norms).parameters())
        sent = measured[0][f"{''.join(entry)} {norms}"][:, 2].double().mean().item() / 8 - gradient
        allowed = row.numbers + norms * CHANNELS * row.numbers_per_channel
        assert 0.75 * allowed <= sent <= allowed + 1e-9, norms


def test_the_objective_counts_every_collective(measured):
    for key, rows in measured[0].items():
        assert torch.equal(rows[:, 0], rows[:, 1]), key
