"""Optimizers that are evaluated at the average of their iterates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from raycurv.objective.direction import Direction
from raycurv.optim.base import StepOptimizer


class EvaluatedAverage(StepOptimizer):
    """An optimizer whose ``shared["x"]`` holds the average, a vector of all parameters."""

    evaluates_other_weights = True

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """While entered, the model holds the average."""
        if not self.shared:
            yield
            return
        parameters = self.param_groups[0]["params"]
        kept = [parameter.detach().clone() for parameter in parameters]
        try:
            with torch.no_grad():
                torch._foreach_copy_(parameters, list(Direction(self.shared["x"], parameters)))
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, kept)
