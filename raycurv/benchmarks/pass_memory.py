"""Peak memory of one pass with tangents, beside a forward pass without gradients and the gradient's pass.

Counted are the bytes of all tensors that a pass has alive at once, its direction and its outputs included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from raycurv.benchmarks.step_cost import WORKLOADS, PeakMemory
from raycurv.curvature import ForwardTape, PushingTape, Tape
from raycurv.objective import Objective


@dataclass(frozen=True)
class PassMemory:
    """Peak bytes of the passes of one network on one mini-batch.

    Attributes:
        workload: name of the network.
        parameters: bytes of the parameters, which are those of a direction.
        forward: forward pass without gradients.
        gradient: forward and backward pass.
        forward_tape: forward pass with first and second derivatives, which keeps no activations.
        tape: forward pass that records its operators, and one push through them.
        pushing_tape: forward pass that pushes while it records, as with synchronised batch normalisation.
    """

    workload: str
    parameters: int
    forward: int
    gradient: int
    forward_tape: int
    tape: int
    pushing_tape: int

    def row(self) -> str:
        """Row of a table."""
        sizes = (self.forward, self.gradient, self.forward_tape, self.tape, self.pushing_tape)
        return f"| {self.workload} | {' | '.join(f'{size / 2**20:.1f}' for size in sizes)} |"


HEAD = (
    "| MiB | forward | gradient | `ForwardTape` | `Tape` and a push | `PushingTape` |\n"
    "|---|---|---|---|---|---|"
)  # fmt: skip


def measure(workload: str) -> PassMemory:
    """Measure the passes of one of :data:`~raycurv.benchmarks.step_cost.WORKLOADS` on the CPU."""
    chosen = WORKLOADS[workload]
    torch.manual_seed(0)
    model = chosen.build()
    objective = Objective(model, chosen.loss, weights=chosen.weights, check_consistency=False)
    inputs = chosen.inputs()
    targets = chosen.targets(inputs)
    direction = [torch.randn_like(parameter) for parameter in objective.parameters]

    def forward() -> Any:
        with torch.no_grad():
            return model(inputs)

    def outputs(tape: Tape) -> Any:
        with torch.enable_grad():
            return objective.batch(inputs, targets).outputs(None, tape)

    def pushed() -> Any:
        tape = Tape(objective.parameters)
        kept = outputs(tape)
        return kept, tape.push(direction)

    return PassMemory(
        workload,
        sum(parameter.nbytes for parameter in objective.parameters),
        forward=_peak(forward),
        gradient=_peak(lambda: objective.batch(inputs, targets).gradient()),
        forward_tape=_peak(lambda: outputs(ForwardTape(objective.parameters, direction))),
        tape=_peak(pushed),
        pushing_tape=_peak(lambda: outputs(PushingTape(objective.parameters, direction))),
    )


def _peak(run: Callable[[], Any]) -> int:
    with PeakMemory() as memory:
        kept = run()
    del kept
    return memory.peak
