"""Optimizers that are evaluated at the average of their iterates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from raycurv.objective import Objective
from raycurv.objective.direction import Direction
from raycurv.optim.base import StepOptimizer


class EvaluatedAverage(StepOptimizer):
    """An optimizer whose ``shared["x"]`` holds the average, a vector of all parameters."""

    evaluates_other_weights = True

    def _first_state(self, y: Tensor, scalars: Sequence[str]) -> dict[str, Tensor]:
        """State before the first step at the parameters `y`: averages x and z at `y`, all else 0."""
        zeros = {key: torch.zeros((), dtype=torch.float64, device=y.device) for key in ("steps", *scalars)}
        return {**zeros, "x": y.clone(), "z": y.clone(), "m": torch.zeros_like(y), "v": torch.zeros_like(y)}

    def _take(
        self, objective: Objective, y: Tensor, new: dict[str, Tensor], interpolation: Tensor | float, *numbers: Tensor
    ) -> Tensor:
        """Keep the new state and move to the new y where `numbers` and z are finite; return whether they are."""
        state = self.shared
        checked = [*numbers, torch.linalg.vector_norm(new["z"])]
        finite = torch.isfinite(torch.stack([number.double() for number in checked])).all()
        state.update({key: torch.where(finite, value, state[key]) for key, value in new.items()})
        moved = torch.where(finite, torch.lerp(state["z"], state["x"], interpolation), y)
        torch._foreach_copy_(objective.parameters, list(Direction(moved, objective.parameters)))
        return finite

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
