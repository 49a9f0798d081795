"""J·z through two reverse passes, as CurveBall's official PyTorch code takes it: a comparison for the benchmark alone.

With any v in output space, Jᵀv is linear in v, so that its derivative by v, pulled back along z, is J·z. The graph of
Jᵀv costs a backward pass that can be differentiated, and J·z another one through it, each time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raycurv.arguments import require
from raycurv.objective import Batch
from raycurv.objective.direction import Direction
from raycurv.objective.linearisation import Linearisation


class DoubleBackward(Linearisation):
    """A forward pass whose tangents come from two reverse passes; one process only."""

    def __init__(self, batch: Batch, direction: Sequence[Tensor] | None) -> None:
        with torch.enable_grad():
            self._outputs = batch.outputs()
        super().__init__(batch, self._outputs)
        if direction is not None:
            self.tangent = self.push(direction)

    def push(self, direction: Sequence[Tensor | None]) -> Tensor:
        """J·z."""
        with torch.enable_grad():
            v = torch.zeros_like(self._outputs, requires_grad=True)
            pulled = torch.autograd.grad(self._outputs, self.batch.objective.parameters, v, create_graph=True)
        return torch.autograd.grad(pulled, v, list(direction))[0]

    def pull(self, cotangent: Tensor, *, keep: bool = True) -> Direction:
        """Jᵀ·u / B; the graph stays in any case, for the next tangent."""
        objective = self.batch.objective
        scaled = cotangent / self.batch.sample_weights.sum().to(cotangent.dtype)
        return objective.direction(torch.autograd.grad(self._outputs, objective.parameters, scaled, retain_graph=True))


class DoubleBackwardBatch(Batch):
    """A batch that is linearised by :class:`DoubleBackward`."""

    def linearise(
        self, direction: Sequence[Tensor] | None = None, *, record: bool = True, fraction: float = 1.0
    ) -> Linearisation:
        """One forward pass, for all samples.

        Raises:
            ValueError: `fraction` is below 1.
        """
        require("fraction", fraction, fraction == 1, "1: two reverse passes take all samples")
        return DoubleBackward(self, direction)
