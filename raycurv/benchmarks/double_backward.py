"""J·z through two reverse passes, as CurveBall's official PyTorch code takes it: a comparison for the benchmark alone.

With any v in output space, Jᵀv is linear in v, so that its derivative by v, pulled back along z, is J·z. The graph of
Jᵀv costs a backward pass that can be differentiated, and J·z another one through it, each time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raycurv.objective import Batch
from raycurv.objective.direction import Direction
from raycurv.objective.linearisation import Linearisation


class DoubleBackward(Linearisation):
    """A forward pass whose tangents come from two reverse passes; one process only."""

    def __init__(self, batch: Batch, direction: Sequence[Tensor] | None) -> None:
        with torch.enable_grad():
            self._kept = batch._forward(None)
        super().__init__(batch, None, self._kept, None)
        if direction is not None:
            self.tangent = self.push(direction)

    def push(self, direction: Sequence[Tensor | None]) -> Tensor:
        """J·z."""
        with torch.enable_grad():
            v = torch.zeros_like(self._kept, requires_grad=True)
            pulled = torch.autograd.grad(self._kept, self.batch.objective.parameters, v, create_graph=True)
        return torch.autograd.grad(pulled, v, list(direction))[0]

    def pull(self, cotangent: Tensor, *, keep: bool = True) -> Direction:
        """Jᵀ·u / B; the graph stays in any case, for the next tangent."""
        objective = self.batch.objective
        scaled = cotangent / self.batch.sample_weights.sum().to(cotangent.dtype)
        return objective.direction(torch.autograd.grad(self._kept, objective.parameters, scaled, retain_graph=True))


class DoubleBackwardBatch(Batch):
    """A batch that is linearised by :class:`DoubleBackward`."""

    def linearise(
        self,
        direction: Sequence[Tensor] | None = None,
        *,
        points: Sequence[Tensor] | None = None,
        record: bool = True,
        fraction: float = 1.0,
    ) -> Linearisation:
        """As of a batch, at the parameters and for all samples.

        Raises:
            ValueError: other points or a fraction are asked for.
        """
        if points is not None or fraction != 1:
            raise ValueError("two reverse passes are made at the parameters and for all samples")
        return DoubleBackward(self, direction)
