"""Methods that adapt their rates: two gloo processes equal one."""

import pytest
import torch

import raycurv
from raycurv import optim
from raycurv.objective.collectives import Local, ProcessGroup
from tests.cases import BY_NAME
from tests.objective import distributed

pytestmark = pytest.mark.slow

STEPS = 20
# Settings that move the rates within twenty steps; SALERA and SPALERA meet alarms.
METHODS = {
    "alera": {"learning_rate": 0.3, "memory": 0.1, "gain": 0.01},
    "salera": {"learning_rate": 12.0, "memory": 0.1, "gain": 0.01, "batch_ratio": 0.5},
    "spalera": {"learning_rate": 12.0, "memory": 0.1, "gain": 0.003, "batch_ratio": 0.5},
    "ag_adam": {"learning_rate": 0.01, "memory": 0.1, "gain": 0.01, "epsilon": 1e-3},
    "ntlr_sgd": {"learning_rate": 0.1},
    "hypergradient_additive": {"learning_rate": 0.1},
    "llr_first_order": {"learning_rate": 0.2, "meta_rate": 0.1, "on_validation": True},
    "llr_second_order": {"learning_rate": 0.2, "damping": 1.0},
    "step_tuned_sgd": {},
    "sps": {},
    "sls": {},
    "hessian_free": {"iterations": 6},
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


def differences(rank, workers):
    """Five losses in float64 of a float32 network, half of whose workers have no sample."""
    case = BY_NAME["batch-norm-l2"]
    model = case.model().float()
    collectives = ProcessGroup() if workers > 1 else Local()
    objective = raycurv.Objective(model, case.loss, case.l2, collectives=collectives)
    share = slice(0, 24) if rank == 0 else slice(0, 0)
    batch = objective.batch(case.inputs[share].float(), case.targets[share])
    optimizer = optim.create("llr_second_order", model, derivatives="differences", damping=1.0)
    report = optimizer.step(batch)
    return {"rate": optimizer.shared["rate"], "loss": report.loss}


def trajectories(rank, workers):
    found = {name: trajectory(rank, workers, name, settings) for name, settings in METHODS.items()}
    return found | {"differences": differences(rank, workers)}


@pytest.fixture(scope="module")
def single():
    return trajectories(0, 1)


@pytest.fixture(scope="module")
def two():
    return distributed.run(2, trajectories, 2)


def test_differences_of_two_workers_are_those_of_one(single, two):
    for found in two:
        for key, value in single["differences"].items():
            torch.testing.assert_close(found["differences"][key], value, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_two_workers_are_one_process(name, single, two):
    for found in two:
        for key, value in single[name].items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-8, atol=1e-10, msg=f"{name} {key}")
