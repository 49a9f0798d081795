"""A recorded forward pass, through which tangents are pushed afterwards without computing it again.

A :class:`Tape` is entered around ``outputs = model(inputs)`` while gradients are enabled. It sees every operator that
torch executes, below autograd, where modules, functions and composite operators have been resolved into a small set.
For each operator that depends on a parameter, it keeps the derivative at the point (:mod:`raycurv.curvature.rules`).
The autograd graph stays as it is, so that the same forward pass can be followed by ``backward``. One pass gives

- ``push(tangents)``: J·z on the kept activations, any number of times, at the cost of the products alone;
- ``second_order(tangents)``: J·z and d²/dt² of the outputs along Θ + t·z.

:class:`~raycurv.curvature.forward_tape.ForwardTape` keeps no activations and takes a single direction.

Identity of tensors: torch may pass a view to the next operator as another object than the one this mode saw. Tensors
are therefore identified by storage and geometry. They carry tangents only while ``requires_grad`` is true: what the
model detaches or computes under ``no_grad`` is a constant here, as it is for ``backward``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from raycurv.curvature import propagation, rules
from raycurv.curvature.propagation import Step
from raycurv.curvature.rules import Call, Derivative, UnsupportedOperator

_Key = tuple[Any, ...]
# Operators whose outputs never carry a tangent.
_IGNORED = frozenset(
    ["detach", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_empty"]
) | frozenset(["new_zeros", "new_ones", "new_full", "sym_size", "sym_stride", "sym_numel", "is_same_size"])

_NO_PERIOD = 1 << 62  # larger than any storage: addresses modulo it are the addresses


class Tape(TorchDispatchMode):
    """Records the operators between `parameters` and the outputs while it is entered.

    Args:
        parameters: leaf tensors whose tangents will be pushed, in this order.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self._slots: dict[_Key, int] = {}
        self._storages: dict[int, tuple[StorageWeakRef, set[_Key]]] = {}
        self._number_of_slots = 0
        self._paused = False
        self._custom: set[int] = set()  # slots of outputs of custom autograd functions with a known derivative
        self.steps: list[Step] = []
        self.parameter_slots = tuple(self._register(parameter) for parameter in parameters)
        self._leaves = dict(self._slots)
        # The slot of every other leaf that requires a gradient: no tangent is ever stored in it.
        self._constant = self._number_of_slots
        self._number_of_slots += 1
        self._output_slot: int | None = None
        self._last_use: list[int] = []

    # --- recording -------------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Execute one operator, and record its derivative if a tangent can reach it.

        Raises:
            UnsupportedOperator: a tangent reaches an operator without a rule.
        """
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        # Computations under no_grad, also in place, are constants here as they are for backward.
        if self._paused or name in _IGNORED or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        tensors = rules.tensors_of(args)
        slots = tuple(self._slot_of(tensor, name) for tensor in tensors)
        if all(slot is None for slot in slots):
            return func(*args, **kwargs)
        if any(isinstance(value, Tensor) and value.requires_grad for value in kwargs.values()):
            raise UnsupportedOperator(f"{func} takes a differentiable tensor by keyword, for which there is no rule")
        in_place = name.endswith("_") and not name.endswith("__")
        plain = name.rstrip("_") if in_place else name
        call = Call(func, plain, self._saved_arguments(args), kwargs, [slot is not None for slot in slots])
        if in_place and rules.keeps_input(call):
            call.args = (args[0].clone(), *args[1:])
        out = func(*args, **kwargs)
        if not any(tensor.is_floating_point() for tensor in rules.tensors_of([out])):
            return out  # item(), equal(), comparisons, argmax: no tangent leaves them
        call.out = out
        self.record(name, slots, out, rules.derivative(call), in_place=in_place)
        return out

    def _saved_arguments(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of an operator that its derivative keeps."""
        return args

    def record(
        self,
        name: str,
        slots: tuple[int | None, ...],
        out: Any,
        derivative: Derivative,
        *,
        in_place: bool = False,
        custom: bool = False,
    ) -> None:
        """Append one operator.

        Args:
            name: name of the operator.
            slots: slots of its tensor arguments.
            out: tensor or tuple of tensors that it returned.
            derivative: its derivative at the point.
            in_place: whether it has overwritten its first argument.
            custom: whether it is a custom ``autograd.Function``.
        """
        outs = (out,) if isinstance(out, Tensor) else tuple(out)
        if in_place:
            self._forget_views(outs[0])
        new_slots = tuple(
            self._register(tensor) if isinstance(tensor, Tensor) and tensor.is_floating_point() else None
            for tensor in outs
        )
        if custom:
            self._custom.update(slot for slot in new_slots if slot is not None)
        dtypes = tuple(tensor.dtype if isinstance(tensor, Tensor) else None for tensor in outs)
        self.steps.append(Step(name, slots, new_slots, dtypes, derivative))

    def paused(self) -> _Paused:
        """A context in which operators are executed without being recorded."""
        return _Paused(self)

    def slots(self, tensors: Sequence[Tensor | None], name: str) -> tuple[int | None, ...]:
        """Slots of an operator's inputs; None for those that no tangent reaches."""
        return tuple(None if tensor is None else self._slot_of(tensor, name) for tensor in tensors)

    def tangents(self, slots: Sequence[int | None]) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """First and second derivatives that already stand in the slots: none, because tangents are pushed later."""
        return [None] * len(slots), [None] * len(slots)

    def _slot_of(self, tensor: Tensor, name: str) -> int | None:
        if not tensor.requires_grad:
            return None
        slot, node = self._slots.get(_key(tensor)), tensor.grad_fn
        if node is None:
            return self._leaves.get(_key(tensor), self._constant)
        # The backward pass of a custom autograd.Function need not be the derivative of its forward pass.
        if slot is None or (isinstance(node, BackwardCFunction) and slot not in self._custom):
            raise UnsupportedOperator(
                f"{name} reads a tensor whose tangent is unknown, because {node.name()} made it: "
                "a custom autograd.Function, complex numbers, or a write through a view (x[:, 0] = …, an in-place "
                "operation on one of two views). Write it with real torch operators, out of place"
            )
        return slot

    def _register(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = _key(tensor)
        # A weak reference, so that no other storage gets the same identity after this one is freed.
        _, keys = self._storages.setdefault(storage._cdata, (StorageWeakRef(storage), set()))
        keys.add(key)
        slot = self._number_of_slots
        self._slots[key] = slot
        self._number_of_slots += 1
        return slot

    def _forget_views(self, tensor: Tensor) -> None:
        """Remove the slots of views that an in-place write to `tensor` has changed."""
        _, keys = self._storages.get(tensor.untyped_storage()._cdata, (None, set[_Key]()))
        written = _key(tensor)
        for key in [key for key in keys if not _disjoint(key, written)]:
            self._slots.pop(key, None)
            keys.discard(key)

    def finish(self, outputs: Tensor) -> None:
        """End the recording: the tangents of `outputs` are wanted.

        Raises:
            UnsupportedOperator: the outputs do not depend on the parameters through recorded operators.
        """
        self._output_slot = self._slot_of_outputs(outputs)
        self._slots.clear()
        self._storages.clear()
        needed, steps = {self._output_slot}, []
        for step in reversed(self.steps):
            if needed.intersection(step.outputs):
                needed.update(s for s in step.inputs if s is not None)
                steps.append(step)
        self.steps = steps[::-1]
        self._last_use = [-1] * self._number_of_slots
        for index, step in enumerate(self.steps):
            for read in step.inputs:
                if read is not None:
                    self._last_use[read] = index

    def _slot_of_outputs(self, outputs: Tensor) -> int:
        slot = self._slot_of(outputs, "the loss")
        if slot is None:
            raise UnsupportedOperator(
                "the outputs of the model do not depend on its parameters (detached, or no_grad?)"
            )
        return slot

    # --- replaying -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def push(self, tangents: Sequence[Tensor | None]) -> Tensor | None:  # type: ignore[override]  # torch's method enters modes
        """J·z: the tangent of the outputs for these tangents of the parameters; None is zero.

        Args:
            tangents: one tensor or None per parameter.

        Raises:
            ValueError: there are more or fewer tangents than parameters.
        """
        first = propagation.start(self.parameter_slots, tangents)
        for index, step in enumerate(self.steps):
            propagation.push(step, propagation.incoming(step, first, self._last_reads(step, index)), first)
        return first.get(self._output())

    @torch.no_grad()
    def second_order(self, tangents: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
        """First and second derivative of the outputs along Θ + t·z at t = 0; None is zero.

        Args:
            tangents: one tensor or None per parameter.

        Raises:
            ValueError: there are more or fewer tangents than parameters.
        """
        first = propagation.start(self.parameter_slots, tangents)
        second: dict[int, Tensor] = {}
        for index, step in enumerate(self.steps):
            last_reads = self._last_reads(step, index)
            d, dd = (propagation.incoming(step, table, last_reads) for table in (first, second))
            propagation.push_both(step, d, dd, first, second, last_reads)
        return first.get(self._output()), second.get(self._output())

    def _output(self) -> int:
        if self._output_slot is None:
            raise RuntimeError("Tape.finish(outputs) must be called before tangents are pushed")
        return self._output_slot

    def _last_reads(self, step: Step, index: int) -> list[int]:
        """Slots among the inputs of a step that no later step reads."""
        return [slot for slot in step.inputs if slot is not None and self._last_use[slot] == index]


class _Paused:
    """Context in which a tape does not record."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape

    def __enter__(self) -> None:
        self.tape._paused = True

    def __exit__(self, *_: object) -> None:
        self.tape._paused = False


def _key(tensor: Tensor) -> _Key:
    return (
        tensor.untyped_storage()._cdata,
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
    )


def _disjoint(a: _Key, b: _Key) -> bool:
    """Whether two views of one storage certainly share no element, such as the chunks of a tensor.

    They share none if for some stride their addresses modulo this stride lie in separate intervals.
    """
    if a[-1] != b[-1]:
        return False
    for period in {stride for stride in (*a[3], *b[3], _NO_PERIOD) if stride > 0}:
        (start, end), (other_start, other_end) = _interval(a, period), _interval(b, period)
        if max(end, other_end) <= period and (end <= other_start or other_end <= start):
            return True
    return False


def _interval(key: _Key, period: int) -> tuple[int, int]:
    """First and end of a view's addresses modulo `period`; an end above `period` wraps around."""
    _, offset, shape, strides, _ = key
    span = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True) if size > 1 and stride % period)
    return offset % period, offset % period + span + 1
