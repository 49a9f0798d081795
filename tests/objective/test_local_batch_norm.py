"""Batch normalisation by the statistics of each worker's own share: each share is a function of its own."""

import pytest
import torch
import torch.distributed

import raycurv
from raycurv import optim
from raycurv.objective.collectives import ProcessGroup
from tests.cases import BY_NAME
from tests.objective import distributed

pytestmark = pytest.mark.slow

CASE = BY_NAME["batch-norm-l2"]
SHARES = (tuple(range(9)), tuple(range(9, 23)))  # uneven
Tensors = dict[str, torch.Tensor]


def objective_of(**settings) -> raycurv.Objective:
    return raycurv.Objective(CASE.model(), CASE.loss, CASE.l2, weights=lambda t: 1.0 + t, **settings)


def answers(objective: raycurv.Objective, share: list[int]) -> Tensors:
    batch = objective.batch(CASE.inputs[share], CASE.targets[share])
    d = objective.direction(torch.ones_like(p) * (i + 1) / 10 for i, p in enumerate(objective.parameters))
    linear = batch.linearise(d)
    taylor = batch.taylor_along(d, at=0.05)
    kept = linear.taylor(d)
    return {
        "weight": batch.sample_weights.sum(),
        "gradient": linear.pull(linear.gradient).flat,
        "product": linear.means(linear.inner(linear.tangent, linear.hessian(linear.tangent)))[1],
        "value": batch.value(),
        "taylor": torch.stack([taylor.value, taylor.slope, taylor.curvature, taylor.absolute_curvature]),
        "kept": torch.stack([kept.value, kept.slope, kept.curvature, kept.absolute_curvature]),
        "statistics": torch.cat([b.double().flatten() for b in objective.model.buffers() if b.is_floating_point()]),
    }


def blank(rank: int, layer: torch.nn.Module, inputs: torch.Tensor) -> Tensors:
    """Gradient and statistics where the first worker has all of the samples, and then one and the other one none."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), layer).double()
    torch.nn.init.constant_(model[0].weight, 0.1)
    objective = raycurv.Objective(model, "squared_error", collectives=ProcessGroup(), batch_norm="local")
    found = {}
    for count in (5, 1):
        share = inputs[: count if rank == 0 else 0]
        gradient = objective.batch(share, torch.ones(len(share), 4, dtype=share.dtype)).gradient().flat
        found[f"{count}"] = torch.cat([gradient, layer.running_mean])
    return found


def worker(rank: int) -> dict[str, Tensors]:
    collectives = ProcessGroup()
    group = torch.distributed.distributed_c10d._get_default_group()
    found = answers(objective_of(collectives=collectives, batch_norm="local"), list(SHARES[rank]))
    objective = objective_of(collectives=collectives, batch_norm="local")
    optimizer = optim.create("curveball", objective.model, damping_interval=None)
    for _ in range(3):
        before = group._get_sequence_number_for_group()
        optimizer.step(objective.batch(CASE.inputs[rank::2], CASE.targets[rank::2]))
    found["rounds"] = torch.tensor(group._get_sequence_number_for_group() - before)
    return {"answers": found, "blank": blank(rank, torch.nn.BatchNorm1d(4), BY_NAME["mlp"].inputs)}


@pytest.fixture(scope="module")
def two():
    return distributed.run(2, worker)


def test_answers_are_weighted_means_over_the_shares(two):
    alone = [answers(objective_of(), list(share)) for share in SHARES]
    weights = torch.stack([found["weight"] for found in alone])
    for key in ("gradient", "product", "value", "taylor", "kept"):
        expected = sum(w * found[key] for w, found in zip(weights, alone, strict=True)) / weights.sum()
        for found in two:
            torch.testing.assert_close(found["answers"][key], expected, rtol=1e-9, atol=1e-12, msg=key)


def test_each_worker_keeps_its_own_running_statistics(two):
    for found, share in zip(two, SHARES, strict=True):
        expected = answers(objective_of(), list(share))["statistics"]
        torch.testing.assert_close(found["answers"]["statistics"], expected)


def test_batch_normalisation_takes_no_collective(two):
    assert two[0]["answers"]["rounds"] == 2


def test_shares_of_one_sample_or_none_leave_everything_finite(two):
    for found in two:
        for value in found["blank"].values():
            assert value.isfinite().all()
    untouched = two[1]["blank"]["1"][-4:]
    assert torch.equal(untouched, torch.zeros(4, dtype=untouched.dtype))


def test_other_statistics_are_refused():
    with pytest.raises(ValueError, match=r"batch_norm is .global.; it must be one of synchronised, local"):
        objective_of(batch_norm="global")
