"""Curvature and optimizers on a CUDA device; they need torch, numpy, pytest and this repository alone (`make gpu`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import raycurv
from raycurv import optim
from raycurv.objective.collectives import Local, ProcessGroup
from tests.cases import BY_NAME, CASES, Case

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
HORIZON = optim.Horizon(epochs=4, steps_per_epoch=5, training_samples=120)
PAPERS = (
    *("auto", "curveball", "curveball_free", "red_sgd", "red_rmsprop", "red_momentum", "red_adam", "ran_sgd"),
    *("red_adam_free", "red_sgd_free", "ntlr_sgd", "ntlr_adam", "alera", "salera", "spalera", "ag_adam"),
    *("llr_first_order", "llr_second_order", "sgd", "adam"),
)


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """TF32 off, as the comparisons with the CPU need it; what a test switched on is off after it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.set_float32_matmul_precision(before)


def made(case: Case, device: str, dtype: torch.dtype = torch.float64) -> tuple[raycurv.Objective, raycurv.Batch]:
    model = case.model().to(device, dtype)
    objective = raycurv.Objective(model, case.loss, case.l2)
    targets = case.targets.to(device, dtype) if case.targets.is_floating_point() else case.targets.to(device)
    return objective, objective.batch(case.inputs.to(device, dtype), targets)


def direction_of(objective: raycurv.Objective) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in objective.parameters]


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
@pytest.mark.parametrize("case", [case for case in CASES if case.name != "dropout"], ids=str)
def test_derivatives_are_those_of_the_cpu(case: Case, dtype: torch.dtype, rtol: float) -> None:
    (here, on_cpu), (there, on_device) = made(case, "cpu"), made(case, "cuda", dtype)
    for (value, gradient), (other, other_gradient) in [(on_cpu.value_and_gradient(), on_device.value_and_gradient())]:
        torch.testing.assert_close(other.cpu().double(), value.double(), rtol=rtol, atol=rtol)
        torch.testing.assert_close(other_gradient.flat.cpu().double(), gradient.flat, rtol=rtol, atol=rtol)
    first, second = on_cpu.taylor_along(direction_of(here)), on_device.taylor_along(direction_of(there))
    for name in ("value", "slope", "curvature", "absolute_curvature"):
        found, expected = getattr(second, name), getattr(first, name)
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), expected, rtol=rtol, atol=rtol)


def run(name: str, device: str, steps: int, case: Case) -> torch.Tensor:
    objective, batch = made(case, device)
    optimizer = optim.create(name, objective.model, horizon=HORIZON)
    for i in range(steps):
        rows = slice(i % 3, None, 2)
        held_out = objective.batch(batch.inputs[:8], batch.targets[:8]) if optimizer.needs_validation else None
        optimizer.step(objective.batch(batch.inputs[rows], batch.targets[rows]), validation=held_out)
    return torch.cat([p.detach().flatten().cpu() for p in objective.parameters])


@pytest.mark.parametrize("case_name", ["mlp-l2", "batch-norm"])
@pytest.mark.parametrize("name", PAPERS)
def test_steps_are_those_of_the_cpu(name: str, case_name: str) -> None:
    case = BY_NAME[case_name]
    torch.testing.assert_close(run(name, "cuda", 12, case), run(name, "cpu", 12, case), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PAPERS)
def test_no_step_waits_for_the_device(name: str) -> None:
    objective, batch = made(BY_NAME["batch-norm-l2"], "cuda", torch.float32)
    long = optim.Horizon(epochs=4, steps_per_epoch=500, training_samples=12_000)  # NTLR reads numbers once a window
    optimizer = optim.create(name, objective.model, horizon=long)
    if optimizer.synchronises:
        pytest.skip("the method reads numbers from the device in every step, and says so")
    batches = [objective.batch(batch.inputs[i::3], batch.targets[i::3]) for i in range(3)]
    held_out = batches[0] if optimizer.needs_validation else None
    for i in range(10):
        optimizer.step(batches[i % 3], validation=held_out)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # torch raises where a step waits
    for i in range(10):
        optimizer.step(batches[i % 3], validation=held_out)
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "channels_last"])
@pytest.mark.parametrize("name", ["auto", "curveball", "red_sgd", "llr_second_order"])
def test_faster_arithmetic_still_descends(name: str, precision: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4)
    ).cuda()
    inputs, targets = torch.randn(64, 3, 8, 8, device="cuda"), torch.randint(4, (64,), device="cuda")
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    if precision == "channels_last":
        model, inputs = model.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
    objective = raycurv.Objective(model, "cross_entropy")
    optimizer = optim.create(name, model, horizon=HORIZON)
    losses = []
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
        for _ in range(20):
            report = optimizer.step(objective.batch(inputs, targets))
            assert bool(report.finite)
            losses.append(float(report.loss))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", ["auto", "curveball", "salera"])
def test_a_group_of_nccl_with_one_member_is_no_group(name: str, tmp_path: object) -> None:
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        ends = []
        for collectives in (Local(), ProcessGroup()):
            case = BY_NAME["batch-norm"]
            model = case.model().cuda()
            objective = raycurv.Objective(model, case.loss, collectives=collectives)
            optimizer = optim.create(name, model, horizon=HORIZON)
            for _ in range(6):
                optimizer.step(objective.batch(case.inputs.cuda(), case.targets.cuda()))
            ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-10)
    finally:
        torch.distributed.destroy_process_group()
