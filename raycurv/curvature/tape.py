"""A recorded forward pass, through which tangents are pushed afterwards without computing it again.

A :class:`Tape` is entered around ``outputs = model(inputs)`` while gradients are enabled. It sees every operator that
torch executes, below autograd, where modules, functions and composite operators have been resolved into a small set.
For each operator that depends on a parameter, it keeps the derivative at the point (:mod:`raycurv.curvature.rules`).
The autograd graph stays as it is, so that the same forward pass can be followed by ``backward``. One pass gives

- ``push(tangents)``: J·z on the kept activations, any number of times, at the cost of the products alone;
- ``second_order(tangents)``: J·z and d²/dt² of the outputs along Θ + t·z.

:class:`~raycurv.curvature.forward_tape.ForwardTape` keeps no activations and takes a single direction. A
:class:`PushingTape` pushes a first direction while it records.

Identity of tensors: torch may pass a view to the next operator as another object than the one this mode saw. Tensors
are therefore identified by storage and geometry. They carry tangents only while ``requires_grad`` is true: what the
model detaches or computes under ``no_grad`` is a constant here, as it is for ``backward``.

Writes through views (``x[:, 0] = …``): a tape keeps the writes to each storage (:mod:`raycurv.curvature.memory`). The
tangent of a view that such a write has changed is put together when the model reads this view.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from raycurv.curvature import custom_functions, memory, propagation, rules
from raycurv.curvature.memory import Geometry, Write
from raycurv.curvature.propagation import Step
from raycurv.curvature.rules import Call, Derivative, UnsupportedOperator, carries_tangents
from raycurv.lazy import without_compiler

# Operators whose outputs never carry a tangent.
_IGNORED = frozenset(
    ["detach", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_empty"]
) | frozenset(["new_zeros", "new_ones", "new_full", "sym_size", "sym_stride", "sym_numel", "is_same_size"])


@dataclass(frozen=True, slots=True)
class _Operator:
    """What a tape needs to know of an operator at every execution, found once.

    Attributes:
        name: its name (:func:`raycurv.curvature.rules.name_of`).
        plain: the name without the underscore of an in-place form.
        in_place: whether it overwrites its first argument.
        ignored: whether its outputs never carry a tangent.
    """

    name: str
    plain: str
    in_place: bool
    ignored: bool


@functools.cache
def _operator(func: Any) -> _Operator | None:
    """Names of an operator; None for a higher-order operator and for those of nested tensors."""
    if not isinstance(func, OpOverload) or func._opname.startswith("_nested"):
        return None
    name = rules.name_of(func)
    in_place = name.endswith("_") and not name.endswith("__")
    return _Operator(name, name.rstrip("_") if in_place else name, in_place, name in _IGNORED)


@dataclass
class Storage:
    """What a tape knows of one storage.

    Attributes:
        reference: weak reference, so that no other storage gets the same identity after this one is freed.
        keys: geometries of the tensors in it that have a slot.
        writes: after a write in place, all that is known of the storage's tangent, the earliest write first.
    """

    reference: StorageWeakRef
    keys: set[Geometry] = field(default_factory=set)
    writes: list[Write] = field(default_factory=list)


@without_compiler
class Tape(TorchDispatchMode):
    """Records the operators between `parameters` and the outputs while it is entered.

    Args:
        parameters: leaf tensors whose tangents will be pushed, in this order.
    """

    supports_higher_order_operators = True  # so that they are named

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self._slots: dict[Geometry, int] = {}
        self._storages: dict[int, Storage] = {}
        self._number_of_slots = 0
        self._paused = False
        self._custom: set[int] = set()  # slots of outputs of custom autograd functions with a known derivative
        self._materialised: set[int] = set()  # slots of tensors that torch makes of views with a conjugate or sign bit
        self.steps: list[Step] = []
        self.parameter_slots = tuple(self._register(parameter) for parameter in parameters)
        self._leaves = dict(self._slots)
        # The slot of every other leaf that requires a gradient: no tangent is ever stored in it.
        self._constant = self._number_of_slots
        self._number_of_slots += 1
        self._output_slot: int | None = None
        self._last_reads: list[tuple[int, ...]] = []  # of each step, the slots that no later step reads
        self._device = parameters[0].device.type
        # Operators reach a tape below autograd, where torch cannot compute the derivatives of the generic rule.
        self._outer_keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()

    def __enter__(self) -> Tape:
        """Start recording."""
        super().__enter__()
        custom_functions.entered(self)
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop recording."""
        custom_functions.left()
        super().__exit__(*exception)

    # --- recording -------------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Execute one operator, and record its derivative if a tangent can reach it.

        Raises:
            UnsupportedOperator: a tangent reaches an operator without a rule.
        """
        kwargs = kwargs or {}
        operator = _operator(func)
        if operator is None:
            return self._without_rule(func, args, kwargs)
        name = operator.name
        if name == "detach" and self._materialised:
            self._materialised.discard(self._slots.get(memory.geometry(args[0]), -1))
        # Computations under no_grad, also in place, are constants here as they are for backward.
        if self._paused or operator.ignored or not (torch.is_grad_enabled() or name in rules.WITHIN_FUNCTIONS):
            return func(*args, **kwargs)
        tensors = rules.tensors_of(args)
        slots = tuple([self._slot_of(tensor, name) for tensor in tensors])
        active = [slot is not None for slot in slots]
        if True not in active:
            return self._constant_result(name, args, func(*args, **kwargs))
        if any(isinstance(value, Tensor) and value.requires_grad for value in kwargs.values()):
            raise UnsupportedOperator(f"{func} takes a differentiable tensor by keyword, for which there is no rule")
        plain, in_place = operator.plain, operator.in_place
        call = Call(func, plain, self._saved_arguments(args), kwargs, active)
        if in_place and rules.keeps_input(call):
            call.args = (args[0].clone(), *args[1:])
        out = func(*args, **kwargs)
        single = isinstance(out, Tensor)
        if not (carries_tangents(out) if single else any(map(carries_tangents, rules.tensors_of([out])))):
            if out is None and func._schema.is_mutable:
                raise UnsupportedOperator(f"{func} writes in place and returns nothing: write it out of place")
            return out  # item(), equal(), comparisons, argmax: no tangent leaves them
        call.out = out
        within = name in rules.WITHIN_FUNCTIONS
        self.record(name, slots, out, self._derivative(call, slots), in_place=in_place, custom=within)
        # Torch resolves conjugates and signs in tensors of its own, below autograd, that require no gradient.
        if slots[0] is not None and (
            (plain == "clone" and (tensors[0].is_conj() or tensors[0].is_neg()))
            or (in_place and not tensors[0].requires_grad)
        ):
            self._materialised.add(self._slots[memory.geometry(out)])
        return out

    def _without_rule(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute a higher-order operator or one of nested tensors, of constants alone.

        Raises:
            UnsupportedOperator: a tangent reaches it.
        """
        out = func(*args, **kwargs)
        moving = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves((args, kwargs)))
        tensors = any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(out))
        if moving and tensors and not self._paused and torch.is_grad_enabled():
            # Here, because an error within the operators of nested tensors ends the process.
            raise UnsupportedOperator(
                f"{func} has no rule: there is none for nested tensors and higher-order operators"
            )
        return out

    def _saved_arguments(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of an operator that its derivative keeps."""
        return args

    def _constant_result(self, name: str, args: tuple[Any, ...], out: Any) -> Any:
        """The result of an operator that no tangent reaches."""
        return out

    def _derivative(self, call: Call, slots: Sequence[int | None]) -> Derivative:
        """The derivative of an operator, whose tensor arguments have these slots."""
        return rules.derivative(call)

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
            self._prepare_write(outs[0])
        known = len(outs) if derivative.outputs is None else derivative.outputs
        new_slots = tuple(
            [
                self._register(tensor)
                if index < known and isinstance(tensor, Tensor) and carries_tangents(tensor)
                else None
                for index, tensor in enumerate(outs)
            ]
        )
        if in_place and new_slots[0] is not None:
            memory.add_write(self._storage_of(outs[0]).writes, Write(memory.geometry(outs[0]), new_slots[0]))
        if custom:
            self._custom.update(slot for slot in new_slots if slot is not None)
        dtypes = tuple([tensor.dtype if isinstance(tensor, Tensor) else None for tensor in outs])
        self._append(Step(name, slots, new_slots, dtypes, derivative))

    def _append(self, step: Step) -> None:
        self.steps.append(step)

    def paused(self) -> _Paused:
        """A context in which operators are executed without being recorded."""
        return _Paused(self)

    @property
    def is_paused(self) -> bool:
        """Whether operators are executed without being recorded."""
        return self._paused

    @contextlib.contextmanager
    def _outside_dispatch(self) -> Iterator[None]:
        """Context in which operators are executed as they are after the forward pass."""
        paused, self._paused = self._paused, True
        guard = torch._C._ForceDispatchKeyGuard(*self._outer_keys)
        mixed = torch.is_autocast_enabled(self._device)  # entering the context takes longer than a small operator
        exact = torch.autocast(self._device, enabled=False) if mixed else contextlib.nullcontext()
        try:
            with guard, torch.no_grad(), exact, saved_tensors_hooks(_unchanged, _unchanged):
                yield
        finally:
            self._paused = paused

    def slots(self, tensors: Sequence[Tensor | None], name: str) -> tuple[int | None, ...]:
        """Slots of an operator's inputs; None for those that no tangent reaches."""
        return tuple(None if tensor is None else self._slot_of(tensor, name) for tensor in tensors)

    def tangents(self, slots: Sequence[int | None]) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """First and second derivatives that already stand in the slots: none, because tangents are pushed later."""
        return [None] * len(slots), [None] * len(slots)

    def _slot_of(self, tensor: Tensor, name: str) -> int | None:
        if not tensor.requires_grad:
            if not self._materialised:
                return None
            slot = self._slots.get(memory.geometry(tensor))
            return slot if slot in self._materialised else None
        key = memory.geometry(tensor)
        slot, node = self._slots.get(key), tensor.grad_fn
        if node is None:
            return self._leaves.get(key, self._constant)
        # The backward pass of a custom autograd.Function need not be the derivative of its forward pass.
        if slot is None or (isinstance(node, BackwardCFunction) and slot not in self._custom):
            storage = self._storages.get(key[0])
            if storage is None or not storage.writes or isinstance(node, BackwardCFunction):
                raise UnsupportedOperator(custom_functions.unknown_tangent(name, node))
            return self._put_together(key, storage)
        if self._materialised:
            self._materialised.discard(slot)  # the model's own tensor: what it detaches is a constant
        return slot

    def _register(self, tensor: Tensor) -> int:
        key = memory.geometry(tensor)
        return self._new_slot(key, self._storages.get(key[0]) or self._storage_of(tensor))

    def _new_slot(self, key: Geometry, storage: Storage) -> int:
        storage.keys.add(key)
        slot = self._number_of_slots
        self._slots[key] = slot
        self._number_of_slots += 1
        return slot

    def _storage_of(self, tensor: Tensor) -> Storage:
        storage = tensor.untyped_storage()
        found = self._storages.get(storage._cdata)
        if found is None:
            found = self._storages[storage._cdata] = Storage(StorageWeakRef(storage))
        return found

    def _prepare_write(self, tensor: Tensor) -> None:
        """Keep what is known of the storage beside `tensor`, and remove the slots of views that the write changes."""
        storage, written = self._storage_of(tensor), memory.geometry(tensor)
        if not storage.writes and storage.keys != {written}:
            for key in sorted(storage.keys, key=memory.number_of_elements, reverse=True):
                memory.add_write(storage.writes, Write(key, self._slots[key]), only_if_new=True)
        for key in [key for key in storage.keys if not memory.disjoint(key, written)]:
            self._slots.pop(key, None)
            storage.keys.discard(key)

    def _put_together(self, key: Geometry, storage: Storage) -> int:
        """The slot of a view that writes in place have changed: its tangent is put together from theirs."""
        if len(storage.writes) > 1:
            whole, derivative = memory.assemble(storage.writes)
            slot = self._number_of_slots
            self._number_of_slots += 1
            inputs = tuple(write.slot for write in storage.writes)
            self._append(Step("write through a view", inputs, (slot,), (whole[4],), derivative))
            storage.writes[:] = [Write(whole, slot)]
        (write,) = storage.writes
        slot = self._new_slot(key, storage)
        self._append(Step("view of a write", (write.slot,), (slot,), (key[4],), memory.view_of(write.key, key)))
        return slot

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
        read_later: set[int] = set()
        self._last_reads = []
        for step in steps:  # from the last one on
            reads = {slot for slot in step.inputs if slot is not None}
            self._last_reads.append(tuple(reads - read_later))
            read_later |= reads
        self._last_reads.reverse()

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
        for step, last_reads in zip(self.steps, self._last_reads, strict=True):
            propagation.push(step, propagation.incoming(step, first, last_reads), first)
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
        for step, last_reads in zip(self.steps, self._last_reads, strict=True):
            d, dd = propagation.incoming(step, first, last_reads), propagation.incoming(step, second, last_reads)
            propagation.push_both(step, d, dd, first, second, last_reads)
        return first.get(self._output()), second.get(self._output())

    def _output(self) -> int:
        if self._output_slot is None:
            raise RuntimeError("Tape.finish(outputs) must be called before tangents are pushed")
        return self._output_slot


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


class PushingTape(Tape):
    """A tape that pushes a first direction while it records.

    Tangents are then known where synchronised batch normalisation sums its statistics over the workers, and travel with
    them. They are kept until the forward pass ends: peak memory is at most 2.3 times that of a gradient on the measured
    networks, where a recorded tape takes at most 1.5 times (:mod:`raycurv.benchmarks.pass_memory`).

    Args:
        parameters: leaf tensors whose tangents will be pushed, in this order.
        tangents: the first direction, one tensor or None per parameter; None is zero.

    Attributes:
        tangent: tangent of the outputs along the first direction, after :meth:`finish`; None is zero.

    Raises:
        ValueError: there are more or fewer tangents than parameters.
    """

    def __init__(self, parameters: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> None:
        super().__init__(parameters)
        self.tangent: Tensor | None = None
        self._first = propagation.start(self.parameter_slots, tangents)
        self._pushed = 0  # steps through which the direction has been pushed

    def tangents(self, slots: Sequence[int | None]) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """First derivatives that stand in the slots, after a push through all steps so far; no second ones."""
        self._advance()
        return propagation.tangents_of(self._first, slots), [None] * len(slots)

    def finish(self, outputs: Tensor) -> None:
        """End the recording, and set `tangent`.

        Raises:
            UnsupportedOperator: the outputs do not depend on the parameters through recorded operators.
        """
        slot = self._slot_of_outputs(outputs)
        self._advance()
        self.tangent = self._first.get(slot)
        self._first.clear()
        super().finish(outputs)

    def _advance(self) -> None:
        with self._outside_dispatch():
            for step in self.steps[self._pushed :]:
                propagation.push(step, propagation.incoming(step, self._first, ()), self._first)
        self._pushed = len(self.steps)


class _Paused:
    """Context in which a tape does not record."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape

    def __enter__(self) -> None:
        self.tape._paused = True

    def __exit__(self, *_: object) -> None:
        self.tape._paused = False
