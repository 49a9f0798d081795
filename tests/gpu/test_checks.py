"""The checks of :mod:`tests.gpu.checks` themselves, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from raycurv import optim
from raycurv.benchmarks.step_cost import MeasuredOptimizer, images
from raycurv.models.lenet import lenet
from tests.cases import BY_NAME
from tests.gpu import checks, report
from tests.objective import distributed


def test_every_own_method_is_registered():
    assert set(checks.OWN) <= set(optim.names())


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-3)])
def test_derivatives_on_the_cpu_are_those_of_the_cpu(dtype, rtol):
    checks.derivatives_are_those_of_float64(BY_NAME["batch-norm-l2"], "cpu", dtype, rtol)


def test_wrong_derivatives_are_found(monkeypatch):
    monkeypatch.setattr(checks, "direction_of", lambda objective: [torch.randn_like(p) for p in objective.parameters])
    with pytest.raises(AssertionError):
        checks.derivatives_are_those_of_float64(BY_NAME["mlp"], "cpu", torch.float64, 1e-9)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["auto", "curveball", "red_adam", "salera", "ag_adam", "llr_second_order"])
def test_no_step_reads_a_number(name, precision):
    checks.steps_without_a_wait(name, "cpu", precision)


def test_a_read_is_found():
    with pytest.raises(RuntimeError, match="waits for the device"), checks.waits_are_errors("cpu"):
        torch.ones(()).item()


@pytest.mark.parametrize("precision", checks.PRECISIONS)
def test_faster_arithmetic_still_descends(precision):
    losses = checks.losses_of("curveball", "cpu", precision)
    assert losses[-1] < 0.7 * losses[0]


def test_memory_is_a_ratio_to_sgd(monkeypatch):
    workload = images(lambda: lenet(input_shape=(1, 28, 28)), 4, 1, 28, 28)
    monkeypatch.setitem(checks.WORKLOADS, "small", workload)
    assert checks.memory_ratio(MeasuredOptimizer("sgd"), "small", "cpu") == 1
    assert 1 < checks.memory_ratio(MeasuredOptimizer("curveball"), "small", "cpu") < 2.5


def test_weights_after_steps_repeat():
    case = BY_NAME["mlp-l2"]
    assert torch.equal(*(checks.weights_after("curveball", "cpu", 4, case) for _ in range(2)))


@pytest.mark.slow
def test_two_workers_on_one_device_are_one_process():
    expected = checks.shared_steps(0, 1, "curveball", "cpu")
    for found in distributed.run(2, checks.shared_steps, 2, "curveball", "cpu"):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("compile", [False, True])
def test_the_report_is_a_table_and_a_file(monkeypatch, tmp_path: Path, capsys, compile):
    workload = images(lambda: lenet(input_shape=(1, 28, 28)), 2, 1, 28, 28)
    monkeypatch.setattr(report, "WORKLOADS", {"small": workload})
    monkeypatch.setattr(report, "StepRunner", Quick)
    file = tmp_path / "report" / "gpu.json"
    arguments = ["--device", "cpu", "--rounds", "2", "--output", str(file), "--optimizers", "curveball", "newton"]
    report.main([*arguments, *(["--no-compile"] if not compile else [])])
    stored = json.loads(file.read_text())
    assert stored["device"] == "cpu"
    assert stored["torch"] == torch.__version__
    sgd, curveball, newton = stored["rows"]
    assert (sgd["subject"], sgd["to_sgd"], sgd["operations"], sgd["memory"]) == ("sgd", 1.0, 1.0, 1.0)
    assert curveball["operations"] > 2
    assert min(sgd["milliseconds"], curveball["milliseconds"], curveball["to_sgd"]) > 0
    assert (curveball["compiled_to_compiled_sgd"] is not None) == compile
    assert newton["skipped"]
    printed = capsys.readouterr().out
    assert "| small | curveball |" in printed
    assert newton["skipped"] in printed


class Quick(report.StepRunner):
    """Says that it compiles, and does not."""

    def __init__(self, workload, subject, device, *, compile=False):
        if subject.optimizer == "newton":
            raise ValueError("too many parameters")
        super().__init__(workload, subject, device)

    def warm_up(self):
        self.step()
        return 0.5
