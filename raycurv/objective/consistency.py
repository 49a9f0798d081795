"""Whether a model is a function of its parameters and inputs, found out by asking it twice about the first batch.

What :class:`~raycurv.objective.hidden_state.HiddenState` keeps, and dropout and batch normalisation, pass this check.
What does not: counters in attributes, parameters that the forward pass changes, generators that no module holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from raycurv.objective.batch import Batch

_REMEDY = (
    "an optimizer that asks several questions about one batch would get answers about different functions. Hold such "
    "state in buffers, and generators in attributes of the module, or accept it with "
    "Objective(…, check_consistency=False)"
)


class InconsistentModel(RuntimeError):
    """A model's forward pass is not a function of its parameters, its buffers, its inputs and known generators."""


class FirstPass:
    """What the first forward pass of a model finds, for comparison with a second one.

    Args:
        batch: the batch.
        points: values in place of the parameters, or None.
    """

    def __init__(self, batch: Batch, points: Sequence[Tensor] | None) -> None:
        self.batch, self.points = batch, points
        self._attributes = _attributes(batch.objective.model)

    def compare(self, outputs: Tensor) -> None:
        """Compare `outputs` of the first forward pass with those of a second one, which leaves no trace.

        Raises:
            InconsistentModel: they differ, or the forward pass has changed parameters.
        """
        objective = self.batch.objective
        moved = self._moved_attributes()
        with objective.uncounted(), torch.no_grad():
            versions = [tensor._version for tensor in self._parameters()]
            differ = _differ(outputs.detach(), self.batch.repeated_outputs(self.points)).double()
            changed = [tensor._version != v for tensor, v in zip(self._parameters(), versions, strict=True)]
            if objective.collectives.size > 1:
                differ = objective.collectives.sum(differ)  # all workers refuse the model together
            if not any(changed) and not differ:
                return
            objective.hidden_state.forget()
            if any(changed):
                raise InconsistentModel(
                    "the model changes parameters in its forward pass "
                    f"({', '.join(itertools.compress(objective.names, changed))}), as Embedding(max_norm=…) does: "
                    f"{_REMEDY}"
                )
            name = _first_difference(self.batch, self.points)
        about = f" (attributes that change: {', '.join(moved[:5])})" if moved else ""
        raise InconsistentModel(f"two forward passes on one batch differ, first in {name}{about}: {_REMEDY}")

    def _parameters(self) -> Sequence[Tensor]:
        return self.batch.objective.parameters if self.points is None else self.points

    def _moved_attributes(self) -> list[str]:
        now = _attributes(self.batch.objective.model)
        return [key for key, value in now.items() if self._attributes.get(key, value) != value]


def _attributes(model: nn.Module) -> dict[str, Any]:
    """Numbers and texts among the attributes of all modules, by path."""
    return {
        f"{path}.{name}" if path else name: value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (int, float, str)) and not name.startswith("_")
    }


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Whether two results differ by more than the order of additions explains, 0-d."""
    if a.shape != b.shape:
        return torch.ones((), dtype=torch.bool, device=a.device)
    a, b = a.to(b.dtype), b
    scale = torch.where(torch.isfinite(a), a.abs(), 0).max() if a.numel() else 0
    tolerance = torch.finfo(a.dtype).eps ** 0.5 if a.is_floating_point() else 0.0
    same = ((a - b).abs() <= tolerance * scale) | (a == b) | (torch.isnan(a) & torch.isnan(b))
    return ~same.all()


def _first_difference(batch: Batch, points: Sequence[Tensor] | None) -> str:
    """The first module, in the order in which they finish, whose outputs differ between two passes."""
    passes: list[list[tuple[str, list[Tensor]]]] = []
    for _ in range(2):
        found: list[tuple[str, list[Tensor]]] = []
        hooks = [
            module.register_forward_hook(_noting(found, path or type(module).__name__, type(module).__name__))
            for path, module in batch.objective.model.named_modules()
        ]
        try:
            batch.repeated_outputs(points)
        finally:
            for hook in hooks:
                hook.remove()
        passes.append(found)
    for (name, a), (other, b) in zip(*passes, strict=False):
        if name != other or len(a) != len(b) or any(bool(_differ(x, y)) for x, y in zip(a, b, strict=True)):
            return name
    return "the model's outputs"


def _noting(found: list[tuple[str, list[Tensor]]], path: str, kind: str) -> Any:
    def note(_: nn.Module, inputs: Any, outputs: Any) -> None:
        tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
        found.append((f"module {path!r} ({kind})", [tensor.detach().clone() for tensor in tensors]))

    return note
