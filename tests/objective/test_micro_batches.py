"""Batches in several forward passes: micro-batches, and curvature from some of the samples."""

import pytest
import torch

import raycurv
from raycurv import optim
from raycurv.objective.collectives import Local, ProcessGroup
from tests.cases import BY_NAME, CASES, Case
from tests.objective import distributed
from tests.objective.test_objective import random_direction

WITHOUT_COUPLING = [case for case in CASES if "batch-norm" not in case.name and case.name != "dropout"]


def batch_of(case: Case, **options) -> raycurv.Batch:
    torch.manual_seed(0)
    return raycurv.Objective(case.model(), case.loss, case.l2, **options).batch(case.inputs, case.targets)


def answers(batch: raycurv.Batch) -> dict[str, torch.Tensor]:
    """Every question."""
    d, e = random_direction(batch.objective), random_direction(batch.objective, 6)
    taylor, linear = batch.taylor_along(d, at=0.1), batch.linearise(d)
    curved = linear.hessian(linear.tangent)
    pushed = linear.push(e)
    along = linear.taylor(e)
    return {
        "value": batch.value(),
        "gradient": batch.gradient().flat,
        "along": batch.values_along(d, [0.0, 0.3]),
        "taylor": torch.stack([taylor.value, taylor.slope, taylor.curvature, taylor.absolute_curvature]),
        "linear taylor": torch.stack([along.value, along.slope, along.curvature, along.absolute_curvature]),
        "curvature": batch.curvature_along(e),
        "means": linear.means(linear.inner(pushed, curved), linear.inner(linear.gradient, pushed)),
        "pulled": linear.pull(curved + linear.gradient).flat,
    }


@pytest.mark.parametrize("size", [1, 7, 24, 100])
@pytest.mark.parametrize("case", WITHOUT_COUPLING, ids=str)
def test_micro_batches_answer_as_the_whole_batch(case, size):
    whole, parts = answers(batch_of(case)), answers(batch_of(case, micro_batch=size))
    for name, expected in whole.items():
        torch.testing.assert_close(parts[name], expected, rtol=1e-10, atol=1e-12, msg=name)


def test_batch_norm_takes_the_statistics_of_each_micro_batch():
    case = BY_NAME["batch-norm-l2"]
    batch = batch_of(case, micro_batch=8)
    d = random_direction(batch.objective)
    alone = [raycurv.Objective(case.model(), case.loss, case.l2).batch(case.inputs[i : i + 8], case.targets[i : i + 8])
             for i in (0, 8, 16)]  # fmt: skip
    torch.testing.assert_close(batch.gradient().flat, sum(b.gradient().flat for b in alone) / 3)
    torch.testing.assert_close(batch.curvature_along(d), sum(b.curvature_along(d) for b in alone) / 3)


def test_every_question_about_micro_batches_sees_the_same_dropout_masks():
    batch = batch_of(BY_NAME["dropout"], micro_batch=5)
    d = random_direction(batch.objective)
    value, step = batch.value(), 1e-5
    ahead, behind = batch.values_along(d, [step, -step])
    torch.testing.assert_close(batch.linearise(d).means()[0], value)
    torch.testing.assert_close((ahead - behind) / (2 * step), batch.gradient().dot(d), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["curveball", "red_adam", "llr_second_order"])
def test_optimizers_go_the_same_way_on_micro_batches(name):
    case, ends = BY_NAME["mlp-l2"], []
    for size in (None, 5):
        model = case.model()
        objective, optimizer = raycurv.Objective(model, case.loss, case.l2, micro_batch=size), optim.create(name, model)
        for _ in range(10):
            optimizer.step(objective.batch(case.inputs, case.targets))
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


def trajectory(rank: int, workers: int, options: dict, settings: dict) -> dict[str, torch.Tensor]:
    """Ten steps on shares of uneven sizes, one of which is empty now and then."""
    case = BY_NAME["mlp-l2"]
    model = case.model()
    collectives = ProcessGroup() if workers > 1 else Local()
    objective = raycurv.Objective(model, case.loss, case.l2, collectives=collectives, **options)
    optimizer = optim.create("curveball", model, **settings)
    losses = []
    for step in range(10):
        rows = torch.arange(13 if step % 3 else 24)
        share = [rows[:9], rows[9:]][rank] if step % 2 and workers > 1 else [rows, rows[:0]][rank]
        losses.append(optimizer.step(objective.batch(case.inputs[share], case.targets[share])).loss)
    return {"losses": torch.stack(losses), "end": torch.cat([p.detach().flatten() for p in model.parameters()])}


@pytest.mark.slow
def test_micro_batches_on_two_workers_equal_one_process():
    one = trajectory(0, 1, {}, {})
    for worker in distributed.run(2, trajectory, 2, {"micro_batch": 4}, {}):
        torch.testing.assert_close(worker["losses"], one["losses"], rtol=1e-9, atol=0)
        torch.testing.assert_close(worker["end"], one["end"], rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_two_workers_with_a_fraction_stay_equal():
    first, second = distributed.run(2, trajectory, 2, {}, {"curvature_fraction": 0.5})
    torch.testing.assert_close(first["end"], second["end"], rtol=0, atol=0)
    assert first["losses"][-1] < first["losses"][0]


def test_a_fraction_leaves_the_gradient_whole_and_the_curvature_to_the_first_samples():
    case = BY_NAME["mlp-l2"]
    whole, d = batch_of(case), random_direction(batch_of(case).objective)
    linear = batch_of(case).linearise(d, fraction=0.25)
    first = raycurv.Objective(case.model(), case.loss, case.l2).batch(case.inputs[:6], case.targets[:6])
    torch.testing.assert_close(linear.tangent[:6], first.linearise(d).tangent)
    assert bool((linear.tangent[6:] == 0).all())
    taylor = linear.taylor(d)
    torch.testing.assert_close(taylor.value, whole.value())
    torch.testing.assert_close(taylor.absolute_curvature, first.curvature_along(d))
    gradient = linear.pull(linear.gradient)
    gradient.flat.add_(linear.batch.objective.l2_gradient(linear.batch.objective.parameters).flat)
    torch.testing.assert_close(gradient.flat, whole.gradient().flat)
    with pytest.raises(RuntimeError, match="once per linearisation"):
        linear.pull(linear.gradient)


def test_a_batch_that_has_answered_as_a_whole_is_not_divided():
    batch = batch_of(BY_NAME["mlp"])
    batch.value()
    with pytest.raises(RuntimeError, match="before its first question"):
        batch.linearise(fraction=0.5)
    with pytest.raises(ValueError, match=r"fraction is 1.5; it must be in \(0, 1\]"):
        batch.linearise(fraction=1.5)
    with pytest.raises(ValueError, match="micro_batch is 0"):
        batch_of(BY_NAME["mlp"], micro_batch=0)
