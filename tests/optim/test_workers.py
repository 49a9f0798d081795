"""Methods that adapt their rates: two gloo processes equal one."""

import pytest
import torch

import raycurv
from raycurv import optim
from raycurv.collectives import Local, ProcessGroup
from tests import distributed
from tests.cases import BY_NAME

STEPS = 20
# Settings that move the rates within twenty steps; SALERA and SPALERA meet alarms.
METHODS = {
    "alera": {"learning_rate": 0.3, "memory": 0.1, "gain": 0.01},
    "salera": {"learning_rate": 12.0, "memory": 0.1, "gain": 0.01, "batch_ratio": 0.5},
    "spalera": {"learning_rate": 12.0, "memory": 0.1, "gain": 0.003, "batch_ratio": 0.5},
    "ag_adam": {"learning_rate": 0.01, "memory": 0.1, "gain": 0.01, "epsilon": 1e-3},
    "ntlr_sgd": {"learning_rate": 0.1},
    "hypergradient_additive": {"learning_rate": 0.1},
}
HORIZON = optim.Horizon(1, 20, 240)  # windows of four steps


def share_of(step, rank, workers):
    """Global batches of 12, now and then 9 (uneven) or 2 (an empty share)."""
    rows = torch.randperm(24, generator=torch.Generator().manual_seed(step))[: 9 if step % 4 == 3 else 12]
    if step == 10:
        return rows[:2] if rank == 0 else rows[:0]
    return rows.tensor_split(workers)[rank]


def trajectory(rank, workers, name, settings):
    case = BY_NAME["batch-norm-l2"]
    model = case.model()
    collectives = ProcessGroup() if workers > 1 else Local()
    objective = raycurv.Objective(model, case.loss, case.l2, collectives=collectives)
    optimizer, reports = optim.create(name, model, horizon=HORIZON, **settings), []
    for step in range(STEPS):
        share = share_of(step, rank, workers)
        batch = objective.batch(case.inputs[share], case.targets[share])
        held_out = objective.batch(case.inputs[share.flip(0)], case.targets[share.flip(0)])
        report = optimizer.step(batch, validation=held_out if optimizer.needs_validation else None)
        reports.append(torch.stack([value.double() for _, value in sorted(report.scalars.items())] + [report.loss]))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return {"reports": torch.cat(reports), **state}


def trajectories(rank, workers):
    return {name: trajectory(rank, workers, name, settings) for name, settings in METHODS.items()}


@pytest.fixture(scope="module")
def single():
    return trajectories(0, 1)


@pytest.fixture(scope="module")
def two():
    return distributed.run(2, trajectories, 2)


@pytest.mark.parametrize("name", METHODS)
def test_two_workers_are_one_process(name, single, two):
    for found in two:
        for key, value in single[name].items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-8, atol=1e-10, msg=f"{name} {key}")
