"""An exponential average of the weights, evaluated beside the raw ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class AveragedWeights:
    """w̄ ← decay·w̄ + (1 − decay)·w after every step, from the weights after the first.

    `torch.optim.swa_utils.AveragedModel` asks the device for its counter at every step; this one never waits for it.

    Args:
        model: whose parameters are averaged; its buffers are not (see `applied`).
        decay: between 0 and 1.
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
        """Take in the weights of the model as they are now."""
        share = 1.0 if self.steps == 0 else 1.0 - self.decay
        torch._foreach_lerp_(self.weights, self._parameters, share)
        self.steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in place of the model's weights, for a renewal of its running statistics and an evaluation.

        The buffers as the block leaves them are kept with the average; the model has its own back afterwards.
        """
        kept = copies([*self._parameters, *self._model.buffers()])
        self.impose()
        try:
            yield
            self.buffers = copies(self._model.buffers())
        finally:
            overwrite([*self._parameters, *self._model.buffers()], kept)

    def impose(self) -> None:
        """Overwrite the model by the average, and by the buffers that belong to it once there are some."""
        overwrite(self._parameters, self.weights)
        if self.buffers:
            overwrite(list(self._model.buffers()), self.buffers)

    def state_dict(self) -> dict[str, Any]:
        """The average, for a checkpoint."""
        return {"steps": self.steps, "weights": list(self.weights), "buffers": list(self.buffers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
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
