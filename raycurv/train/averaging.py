"""An exponential moving average of the weights, evaluated beside the raw ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class AveragedWeights:
    """w̄ ← decay·w̄ + (1 − decay)·w after every step, from the weights after the first.

    `torch.optim.swa_utils.AveragedModel` reads its counter from the device at every step; this class keeps it on the
    host, so that no step waits for the device.

    Args:
        model: the model whose parameters are averaged; its buffers are not (see `applied`).
        decay: decay of the average, between 0 and 1.

    Attributes:
        steps: number of updates.
        weights: the average of each parameter.
        buffers: the model's buffers that belong to the average; empty before the first `applied`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._parameters: list[Tensor] = list(model.parameters())
        self.decay = decay
        self.steps = 0
        self.weights = copies(self._parameters)
        self.buffers: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights of the model to the average."""
        share = 1.0 if self.steps == 0 else 1.0 - self.decay
        torch._foreach_lerp_(self.weights, self._parameters, share)
        self.steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the model's weights by the average within the block, and restore weights and buffers afterwards.

        The buffers at the end of the block are kept with the average, so update running statistics in the block.
        """
        kept = copies([*self._parameters, *self._model.buffers()])
        self.copy_to_model()
        try:
            yield
            self.buffers = copies(self._model.buffers())
        finally:
            overwrite([*self._parameters, *self._model.buffers()], kept)

    def copy_to_model(self) -> None:
        """Overwrite the model's parameters by the average, and its buffers by those of the average if there are any."""
        overwrite(self._parameters, self.weights)
        if self.buffers:
            overwrite(list(self._model.buffers()), self.buffers)

    def state_dict(self) -> dict[str, Any]:
        """The state of the average, for a checkpoint."""
        return {"steps": self.steps, "weights": list(self.weights), "buffers": list(self.buffers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.steps = state["steps"]
        overwrite(self.weights, state["weights"])
        own = list(self._model.buffers())
        self.buffers = [stored.to(buffer.device) for stored, buffer in zip(state["buffers"], own, strict=False)]


def copies(tensors: Any) -> list[Tensor]:
    """Detached copies."""
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def overwrite(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
