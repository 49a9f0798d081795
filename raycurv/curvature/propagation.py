"""Propagation of tangents through one recorded operator: f' and f'' from d and dd, in place where that is safe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raycurv.curvature.rules import Derivative, Tangent, moves

Tangents = dict[int, Tensor]  # by slot


@dataclass(slots=True)  # not frozen: that takes three times as long to make
class Step:
    """One recorded operator.

    Attributes:
        name: name of the operator.
        inputs: slots of its tensor arguments; None where no tangent arrives.
        outputs: slots of its outputs; None for those without tangents.
        dtypes: dtypes of its outputs.
        derivative: its derivative at the point.
    """

    name: str
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    dtypes: tuple[torch.dtype | None, ...]
    derivative: Derivative


def start(slots: Sequence[int], tangents: Sequence[Tangent]) -> Tangents:
    """The tangents of the parameters, which are never overwritten.

    Raises:
        ValueError: there are more or fewer tangents than parameters.
    """
    if len(slots) != len(tangents):
        raise ValueError(f"a direction has one tensor for each of the {len(slots)} parameters, not {len(tangents)}")
    # Views: the caller's tensors share each storage, so that none counts as reusable.
    return {slot: tangent.detach() for slot, tangent in zip(slots, tangents, strict=True) if tangent is not None}


def tangents_of(table: Tangents, slots: Sequence[int | None]) -> list[Tangent]:
    """The tangents in these slots."""
    return [None if slot is None else table.get(slot) for slot in slots]


def incoming(step: Step, table: Tangents, last_reads: Sequence[int]) -> list[Tangent]:
    """The tangents of a step's inputs; those in the slots `last_reads` are removed from the table."""
    found = tangents_of(table, step.inputs)
    for slot in last_reads:
        table.pop(slot, None)
    return found


def push(step: Step, d: list[Tangent], first: Tangents) -> None:
    """Compute f' and store it in the table."""
    if moves(d):
        _store(step, step.derivative.first(*d), first, d)


def push_both(
    step: Step, d: list[Tangent], dd: list[Tangent], first: Tangents, second: Tangents, last_reads: Sequence[int]
) -> None:
    """Compute f' and f'' and store them in their tables; the list `d` is emptied early, to free its tensors."""
    derivative = step.derivative
    if not moves(d):
        return
    if derivative.both is not None:
        last_read = bool(step.inputs) and step.inputs[0] in last_reads
        reusable = [t if last_read and t is not None and owns_memory(t) else None for t in (d[0], dd[0])]
        slope, curvature = derivative.both(d, dd, reusable)
        _store(step, slope, first, d)
        _store(step, curvature, second, dd)
        return
    quadratic = derivative.quadratic(*d) if derivative.quadratic is not None else None
    _store(step, derivative.first(*d), first, d)
    d.clear()
    if moves(dd):
        quadratic = _sum(derivative.first(*dd), quadratic)
    _store(step, quadratic, second, dd)


def _store(step: Step, values: Any, table: Tangents, given: Sequence[Tangent]) -> None:
    """Store the tangents of an operator's outputs, in the outputs' dtypes (autocast mixes those of its inputs)."""
    several = values if isinstance(values, tuple) else (values,)
    for slot, dtype, value in zip(step.outputs, step.dtypes, several, strict=False):
        if slot is None or value is None:
            continue
        tangent: Tensor = value if value.dtype is dtype else value.to(dtype)
        for other in given:
            if other is tangent:
                # A view, where one tensor would stand under two slots: only tensors are counted as users of a storage.
                tangent = tangent.detach()
                break
        table[slot] = tangent


def _sum(linear: Any, quadratic: Any) -> Any:
    """Their sum, in the memory of `quadratic` if no other tensor uses it."""
    if isinstance(linear, tuple) or isinstance(quadratic, tuple):
        left, right = linear or (None,) * len(quadratic), quadratic or (None,) * len(linear)
        return tuple(_sum(x, y) for x, y in zip(left, right, strict=True))
    if linear is None or quadratic is None:
        return quadratic if linear is None else linear
    if linear.shape == quadratic.shape and linear.dtype == quadratic.dtype and owns_memory(quadratic):
        return quadratic.add_(linear)
    return linear + quadratic


def owns_memory(tensor: Tensor) -> bool:
    """Whether no other tensor uses this one's storage and no two of its elements share memory."""
    storage = tensor.untyped_storage()
    # Two references: the tensor and `storage`.
    if _references(storage) != 2 or storage.nbytes() != tensor.numel() * tensor.itemsize:
        return False
    return not any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _references(storage: torch.UntypedStorage) -> int:
    return int(torch._C._storage_Use_Count(storage._cdata))
