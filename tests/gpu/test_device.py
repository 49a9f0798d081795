"""Curvature and optimizers on a CUDA device; they need torch, numpy, pytest and this repository alone (`make gpu`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import raycurv
from raycurv import optim
from raycurv.benchmarks.step_cost import MeasuredOptimizer
from raycurv.objective.collectives import Local, ProcessGroup
from tests.cases import BY_NAME, CASES, Case
from tests.gpu import checks
from tests.objective import distributed

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
OTHERS = tuple(name for name in optim.names() if name not in checks.OWN)


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """TF32 off, as the comparisons with the CPU need it."""
    with checks.arithmetic("fp32", "cuda"):
        yield


@pytest.mark.parametrize(
    ("dtype", "rtol", "precision"),
    [(torch.float64, 1e-9, "fp32"), (torch.float32, 2e-3, "fp32"), (torch.float32, 3e-2, "tf32")],
    ids=["float64", "float32", "tf32"],
)
@pytest.mark.parametrize("case", [case for case in CASES if case.name != "dropout"], ids=str)
def test_derivatives_are_those_of_the_cpu(case: Case, dtype: torch.dtype, rtol: float, precision: str) -> None:
    checks.derivatives_are_those_of_float64(case, "cuda", dtype, rtol, precision)


@pytest.mark.parametrize("case_name", ["mlp-l2", "batch-norm"])
@pytest.mark.parametrize("name", checks.OWN)
def test_steps_are_those_of_the_cpu(name: str, case_name: str) -> None:
    found, expected = (checks.weights_after(name, device, 12, BY_NAME[case_name]) for device in ("cuda", "cpu"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", checks.OWN)
def test_no_step_waits_for_the_device(name: str, precision: str) -> None:
    checks.steps_without_a_wait(name, "cuda", precision)


@pytest.mark.parametrize("name", OTHERS)
def test_a_baseline_that_waits_is_shown(name: str) -> None:
    try:
        checks.steps_without_a_wait(name, "cuda")
    except ImportError as error:
        pytest.skip(f"needs a package: {error}")
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        # Some baselines read numbers in every step, as their papers do; the report of the tests names them.
        pytest.xfail(f"waits for the device: {error}")


@pytest.mark.parametrize("precision", checks.PRECISIONS)
@pytest.mark.parametrize("name", ["auto", "curveball", "red_sgd", "llr_second_order", "salera"])
def test_faster_arithmetic_still_descends(name: str, precision: str) -> None:
    losses = checks.losses_of(name, "cuda", precision)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("subject", "limit"),
    [
        (MeasuredOptimizer("auto"), 2.0),
        (MeasuredOptimizer("curveball"), 2.0),
        (MeasuredOptimizer("red_sgd"), 2.0),
        (MeasuredOptimizer("red_sgd", {"lean": True}), 1.3),
        (MeasuredOptimizer("llr_second_order"), 1.3),
        (MeasuredOptimizer("salera"), 1.3),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
@pytest.mark.parametrize("workload", ["basic CNN + BN", "LeNet-tanh"])
def test_memory_of_a_step_stays_near_that_of_sgd(subject: MeasuredOptimizer, limit: float, workload: str) -> None:
    assert checks.memory_ratio(subject, workload, "cuda") <= limit


@pytest.mark.parametrize("name", ["sgd", "curveball", "red_sgd"])
def test_compiled_steps_are_the_steps(name: str) -> None:
    found, expected = (checks.compiled_losses(name, "cuda", compile=compile) for compile in (True, False))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["auto", "curveball", "salera"])
def test_two_workers_on_one_device_are_one_process(name: str) -> None:
    expected = checks.shared_steps(0, 1, name, "cuda")
    for found in distributed.run(2, checks.shared_steps, 2, name, "cuda"):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["auto", "curveball", "salera"])
def test_a_group_of_nccl_with_one_member_is_no_group(name: str, tmp_path: Path) -> None:
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        ends = []
        for collectives in (Local(), ProcessGroup()):
            case = BY_NAME["batch-norm"]
            model = case.model().cuda()
            objective = raycurv.Objective(model, case.loss, collectives=collectives)
            optimizer = optim.create(name, model, horizon=checks.HORIZON)
            for _ in range(6):
                optimizer.step(objective.batch(case.inputs.cuda(), case.targets.cuda()))
            ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-10)
    finally:
        torch.distributed.destroy_process_group()
