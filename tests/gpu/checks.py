"""What must hold on a device, as functions of it: a GPU's tests call them, and so do tests on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import raycurv
from raycurv import optim
from raycurv.benchmarks.step_cost import WORKLOADS, MeasuredOptimizer, StepRunner
from raycurv.objective.collectives import Local, ProcessGroup
from tests.cases import BY_NAME, Case

HORIZON = optim.Horizon(epochs=4, steps_per_epoch=5, training_samples=120)
LONG = optim.Horizon(epochs=4, steps_per_epoch=500, training_samples=12_000)  # NTLR reads numbers once a window
# Methods of this project, which must not wait; of baselines of other packages it is only shown.
OWN = (
    *("auto", "curveball", "curveball_free", "red_sgd", "red_rmsprop", "red_momentum", "red_adam", "ran_sgd"),
    *("red_adam_free", "red_sgd_free", "ntlr_sgd", "ntlr_adam", "alera", "salera", "spalera", "ag_adam"),
    *("llr_first_order", "llr_second_order", "sgd", "adam"),
)
PRECISIONS = ("tf32", "bf16", "fp16", "channels_last")
_MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextlib.contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """Context of steps in one of :data:`PRECISIONS`; ``fp32`` has TF32 off."""
    before, allowed = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device, _MIXED.get(precision, torch.bfloat16), enabled=precision in _MIXED):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = allowed


def made(case: Case, device: str, dtype: torch.dtype = torch.float64) -> tuple[raycurv.Objective, raycurv.Batch]:
    """The objective of a case on a device, and a batch of all its samples."""
    objective = raycurv.Objective(case.model().to(device, dtype), case.loss, case.l2)
    targets = case.targets.to(device, dtype) if case.targets.is_floating_point() else case.targets.to(device)
    return objective, objective.batch(case.inputs.to(device, dtype), targets)


def direction_of(objective: raycurv.Objective) -> list[Tensor]:
    """The same direction on every device."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in objective.parameters]


def derivatives_are_those_of_float64(
    case: Case, device: str, dtype: torch.dtype, rtol: float, precision: str = "fp32"
) -> None:
    """Value, gradient, J·z, slope and second derivatives against those of the CPU in float64."""
    (here, exact), (there, found) = made(case, "cpu"), made(case, device, dtype)
    z, u = direction_of(here), direction_of(there)
    with arithmetic(precision, device):
        answers = (*found.value_and_gradient(), found.linearise(u).tangent, found.taylor_along(u))
    expected = (*exact.value_and_gradient(), exact.linearise(z).tangent, exact.taylor_along(z))
    for mine, right in zip(_numbers(*answers), _numbers(*expected), strict=True):
        assert mine.device.type == device
        scale = float(right.abs().max())
        torch.testing.assert_close(mine.cpu().double(), right, rtol=rtol, atol=rtol * max(scale, 1e-3))


def _numbers(value: Tensor, gradient: Any, tangent: Tensor | None, taylor: raycurv.Taylor) -> list[Tensor]:
    assert tangent is not None
    return [value, gradient.flat, tangent, taylor.slope, taylor.curvature, taylor.absolute_curvature]


def weights_after(name: str, device: str, steps: int, case: Case) -> Tensor:
    """All weights after some steps in float64."""
    objective, batch = made(case, device)
    optimizer = optim.create(name, objective.model, horizon=HORIZON)
    for i in range(steps):
        rows = slice(i % 3, None, 2)
        held_out = objective.batch(batch.inputs[:8], batch.targets[:8]) if optimizer.needs_validation else None
        optimizer.step(objective.batch(batch.inputs[rows], batch.targets[rows]), validation=held_out)
    return torch.cat([p.detach().flatten().cpu() for p in objective.parameters])


class _ReadsAreErrors(TorchDispatchMode):
    """On the CPU, refuses what would wait for a GPU: numbers that Python reads from tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero"):
            raise RuntimeError(f"{func.overloadpacket.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def waits_are_errors(device: str) -> Iterator[None]:
    """Context in which a step that waits for the device raises RuntimeError."""
    if device != "cuda":
        with _ReadsAreErrors():
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def steps_without_a_wait(name: str, device: str, precision: str = "fp32") -> None:
    """Ten steps after ten others, in which torch raises where a step waits; nothing for methods that say they wait."""
    objective, batch = made(BY_NAME["batch-norm-l2"], device, torch.float32)
    optimizer = optim.create(name, objective.model, horizon=LONG)
    if optimizer.synchronises:
        return
    batches = [objective.batch(batch.inputs[i::3], batch.targets[i::3]) for i in range(3)]
    held_out = batches[0] if optimizer.needs_validation else None
    with arithmetic(precision, device):
        for i in range(10):
            optimizer.step(batches[i % 3], validation=held_out)
        with waits_are_errors(device):
            for i in range(10):
                optimizer.step(batches[i % 3], validation=held_out)


def losses_of(name: str, device: str, precision: str, steps: int = 20) -> list[float]:
    """Losses of steps in other arithmetic, all of them sound."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4))
    inputs, targets = torch.randn(64, 3, 8, 8), torch.randint(4, (64,))
    model, inputs, targets = model.to(device), inputs.to(device), targets.to(device)
    if precision == "channels_last":
        model, inputs = model.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
    objective = raycurv.Objective(model, "cross_entropy")
    optimizer = optim.create(name, model, horizon=HORIZON)
    losses = []
    with arithmetic(precision, device):
        for _ in range(steps):
            batch = objective.batch(inputs, targets)
            report = optimizer.step(batch)
            assert bool(batch.is_sound(report.finite, report.loss))
            losses.append(float(report.loss))
    return losses


def memory_ratio(subject: MeasuredOptimizer, workload: str, device: str) -> float:
    """Peak memory of a step, as a ratio to that of SGD."""
    sizes = []
    for measured in (subject, MeasuredOptimizer("sgd")):
        runner = StepRunner(WORKLOADS[workload], measured, torch.device(device))
        runner.step()
        sizes.append(runner.memory())
    return sizes[0] / sizes[1]


def compiled_losses(name: str, device: str, *, compile: bool, steps: int = 8) -> list[float]:
    """Losses of steps in float32, compiled or not."""
    case = BY_NAME["convolution"]
    objective = raycurv.Objective(case.model().to(device, torch.float32), case.loss, compile=compile)
    optimizer = optim.create(name, objective.model, horizon=HORIZON)
    inputs, targets = case.inputs.to(device, torch.float32), case.targets.to(device)
    with arithmetic("fp32", device):
        return [float(optimizer.step(objective.batch(inputs, targets)).loss) for _ in range(steps)]


def shared_steps(rank: int, workers: int, name: str, device: str) -> Tensor:
    """Weights after steps of several workers that share one device; every worker calls it.

    Tensors on a GPU go over gloo through the memory of the machine: NCCL refuses two processes on one GPU.
    """
    case = BY_NAME["batch-norm-l2"]
    model = case.model().to(device)
    collectives = ProcessGroup() if workers > 1 else Local()
    objective = raycurv.Objective(model, case.loss, case.l2, collectives=collectives)
    optimizer = optim.create(name, model, horizon=HORIZON)
    inputs, targets = case.inputs.to(device), case.targets.to(device)
    for step in range(6):
        rows = torch.arange(24).roll(step)[: 11 + step].tensor_split(workers)[rank].to(device)
        optimizer.step(objective.batch(inputs[rows], targets[rows]))
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])
