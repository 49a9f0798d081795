"""Memory of a step over its course: bytes of all its tensors after every operator (RED, Fig. 5).

The clock of a step is the work done so far, counted in floating-point operations: it is the same on every machine. The
seconds are there too, longer than without the recording.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from raycurv.benchmarks.step_cost import BASELINE, MeasuredOptimizer, PeakMemory, step_runner


@dataclass(frozen=True)
class StepMemory:
    """Memory over the course of one step.

    Attributes:
        workload: name of the network.
        subject: label of the optimizer.
        operations: floating-point operations done so far, after every operator.
        seconds: seconds since the step began, after every operator.
        bytes: bytes of the live tensors that the step has made, after every operator.
    """

    workload: str
    subject: str
    operations: tuple[int, ...]
    seconds: tuple[float, ...]
    bytes: tuple[int, ...]


def record_memory(workload: str, subject: MeasuredOptimizer) -> StepMemory:
    """The second step of an optimizer, on the CPU: a first one may do less or more than the others.

    Raises:
        ValueError: the workload is unknown, or the optimizer refuses it.
    """
    stepper = step_runner(workload, subject)
    stepper.step()
    operations, seconds, sizes = [0], [0.0], [0]
    began = time.perf_counter()
    with FlopCounterMode(display=False) as counter:

        def note(total: int) -> None:
            operations.append(counter.get_total_flops())
            seconds.append(time.perf_counter() - began)
            sizes.append(total)

        with PeakMemory(on_operator=note):
            stepper.step()
    return StepMemory(workload, subject.label, tuple(operations), tuple(seconds), tuple(sizes))


def record_memories(workload: str, subjects: tuple[MeasuredOptimizer, ...], threads: int = 1) -> list[StepMemory]:
    """The plain gradient's step first, then those of the subjects, on one network."""
    torch.set_num_threads(threads)
    return [record_memory(workload, subject) for subject in (MeasuredOptimizer(BASELINE), *subjects)]
