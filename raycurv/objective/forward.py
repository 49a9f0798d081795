"""One forward pass: recorded or not, through DDP or not, with the random numbers and buffers of the first question."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from raycurv.curvature import Tape
from raycurv.objective.checks import tensor_of

if TYPE_CHECKING:
    from raycurv.objective.objective import Objective


class ForwardModule(nn.Module):
    """The model as DDP sees it: recorded while a tape is set, with a ticket whose gradient carries the weight."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.tape: Tape | None = None
        self.armed = False  # DDP has seen a forward pass whose backward pass it will reduce
        wide = objective.dtype if objective.dtype in (torch.float32, torch.float64) else torch.float32
        self.carrier = nn.Parameter(torch.zeros(1, dtype=wide, device=objective.device))

    def run(self, inputs: Any) -> Tensor:
        """The model's outputs, one tensor."""
        return tensor_of(self.model(inputs))

    def forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """Outputs, and the ticket."""
        with recording(self.tape):
            outputs = self.run(inputs)
        # Before DDP passes the outputs on through a function of its own.
        return finished(self.tape, outputs), self.carrier.clone()


class Generators:
    """The state of the random number generators at a batch's first question, to be played again for the others."""

    def __init__(self, device: torch.device) -> None:
        self._device: torch.device | None = device if device.type == "cuda" else None
        self._at_start = self._get()

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """While entered, the generators draw what they drew at the first question."""
        now = self._get()
        self._set(self._at_start)
        try:
            yield
        finally:
            self._set(now)

    def _get(self) -> tuple[Tensor, Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if self._device is not None else None

    def _set(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None and self._device is not None:
            torch.cuda.set_rng_state(state[1], self._device)


@contextlib.contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Bring the buffers back at the end, also those that the model replaced by other tensors."""
    found = [(m, name, buffer) for m in model.modules() for name, buffer in m._buffers.items() if buffer is not None]
    kept = [buffer.clone() for _, _, buffer in found]
    try:
        yield
    finally:
        for (module, name, buffer), value in zip(found, kept, strict=True):
            buffer.data.copy_(value)  # .data: a graph that waits for its backward pass has saved this buffer
            module._buffers[name] = buffer


def leaves_of(outputs: Tensor) -> set[int]:
    """Identities of the leaves that the graph of `outputs` reaches."""
    seen, found, stack = set(), set(), [outputs.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        stack.extend(following for following, _ in node.next_functions)
    return found


def recording(tape: Tape | None) -> contextlib.AbstractContextManager[Any]:
    """The tape as a context, or none."""
    return contextlib.nullcontext() if tape is None else tape


def finished(tape: Tape | None, outputs: Tensor) -> Tensor:
    """The outputs, which the tape now knows as such."""
    if tape is not None:
        tape.finish(outputs)
    return outputs


def without_autocast(outputs: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Derivatives are taken in the dtypes that the forward pass has chosen."""
    return torch.autocast(outputs.device.type, enabled=False)
