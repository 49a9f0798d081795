"""One recorded operator applied to tangents: f' and f'' out of d and dd, in as little memory as is safe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raycurv.curvature.rules import Derivative, Tangent

Tangents = dict[int, Tensor]  # by slot


@dataclass(frozen=True)
class Step:
    """One recorded operator: the slots that it reads and writes, and its derivative at the point."""

    name: str
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    dtypes: tuple[torch.dtype | None, ...]
    derivative: Derivative


def start(slots: Sequence[int], tangents: Sequence[Tangent]) -> Tangents:
    """The tangents of the parameters, which are never written over.

    Raises:
        ValueError: there are more or fewer tangents than parameters.
    """
    if len(slots) != len(tangents):
        raise ValueError(f"a direction has one tensor for each of the {len(slots)} parameters, not {len(tangents)}")
    # Views, so that the caller's own tensors keep each storage from counting as spare.
    return {slot: tangent.detach() for slot, tangent in zip(slots, tangents, strict=True) if tangent is not None}


def incoming(step: Step, table: Tangents, dying: Sequence[int]) -> list[Tangent]:
    """The tangents of a step's inputs; those of `dying` slots leave the table."""
    found = [None if slot is None else table.get(slot) for slot in step.inputs]
    for slot in dying:
        table.pop(slot, None)
    return found


def push(step: Step, d: list[Tangent], first: Tangents) -> None:
    """f' into the table."""
    if any(tangent is not None for tangent in d):
        _store(step, step.derivative.first(*d), first, d)


def push_both(
    step: Step, d: list[Tangent], dd: list[Tangent], first: Tangents, second: Tangents, dying: Sequence[int]
) -> None:
    """f' and f'' into their tables. `d` and `dd` are emptied as soon as they have served."""
    derivative = step.derivative
    if all(tangent is None for tangent in d):
        return
    if derivative.both is not None:
        dead = bool(step.inputs) and step.inputs[0] in dying
        spare = [t if dead and t is not None and alone(t) else None for t in (d[0], dd[0])]
        slope, bend = derivative.both(d, dd, spare)
        _store(step, slope, first, d)
        _store(step, bend, second, dd)
        return
    quadratic = derivative.quadratic(*d) if derivative.quadratic is not None else None
    _store(step, derivative.first(*d), first, d)
    d.clear()
    if any(tangent is not None for tangent in dd):
        quadratic = _sum(derivative.first(*dd), quadratic)
    _store(step, quadratic, second, dd)


def _store(step: Step, values: Any, table: Tangents, given: Sequence[Tangent]) -> None:
    """Keep the tangents of an operator's outputs, in the outputs' dtypes (autocast mixes those of its inputs)."""
    several = values if isinstance(values, tuple) else (values,)
    for slot, dtype, value in zip(step.outputs, step.dtypes, several, strict=False):
        if slot is not None and value is not None:
            kept = value.to(dtype)
            # One tensor under two slots would not count twice in its storage.
            table[slot] = kept.detach() if any(kept is other for other in given) else kept


def _sum(linear: Any, quadratic: Any) -> Any:
    """Their sum, in the memory of `quadratic` where it has one of its own."""
    if isinstance(linear, tuple) or isinstance(quadratic, tuple):
        left, right = linear or (None,) * len(quadratic), quadratic or (None,) * len(linear)
        return tuple(_sum(x, y) for x, y in zip(left, right, strict=True))
    if linear is None or quadratic is None:
        return quadratic if linear is None else linear
    if linear.shape == quadratic.shape and linear.dtype == quadratic.dtype and alone(quadratic):
        return quadratic.add_(linear)
    return linear + quadratic


def alone(tensor: Tensor) -> bool:
    """Whether this is the only tensor on its memory, and each of its elements has a place of its own."""
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        return False
    storage = tensor.untyped_storage()
    # One count for the tensor, one for `storage`.
    return storage.nbytes() == tensor.numel() * tensor.itemsize and _uses(storage) == 2


def _uses(storage: torch.UntypedStorage) -> int:
    return int(torch._C._storage_Use_Count(storage._cdata))
