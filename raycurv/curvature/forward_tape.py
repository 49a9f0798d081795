"""First and second derivatives along one direction, computed during the forward pass without keeping activations.

A :class:`ForwardTape` is entered around ``outputs = model(inputs)`` like a :class:`~raycurv.curvature.tape.Tape`. It
applies the derivative of each operator when the next operator arrives. By then the model has released the tensors that
it no longer needs, so that their tangents are freed too. Peak memory is 1.5 to 3.3 times that of a forward pass without
gradients on the measured image networks, and about that of a gradient or less (:mod:`raycurv.benchmarks.pass_memory`).

Tensors carry tangents only while ``requires_grad`` is true, so the forward pass builds a graph. What the graph's nodes
would save for a backward pass is dropped at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from raycurv.curvature import propagation
from raycurv.curvature.memory import Geometry
from raycurv.curvature.propagation import Step
from raycurv.curvature.rules import Derivative, UnsupportedOperator
from raycurv.curvature.tape import Storage, Tape
from raycurv.lazy import without_compiler


@without_compiler
class ForwardTape(Tape):
    """Pushes one direction through the operators between `parameters` and the outputs while it is entered.

    Args:
        parameters: leaf tensors whose tangents are given.
        tangents: one tensor or None per parameter; None is zero.

    Attributes:
        first: first derivative of the outputs along the tangents, after :meth:`finish`; None is zero.
        second: second derivative of the outputs along the tangents, after :meth:`finish`; None is zero.

    Raises:
        ValueError: there are more or fewer tangents than parameters.
    """

    def __init__(self, parameters: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> None:
        super().__init__(parameters)
        self.first: Tensor | None = None
        self.second: Tensor | None = None
        self._d = propagation.start(self.parameter_slots, tangents)
        self._dd: propagation.Tangents = {}
        self._pending: Step | None = None
        self._alias: Tensor | None = None  # first argument of the pending operator, as its derivative keeps it
        self._parameter_storages = len(self._storages)  # the first ones, which are never freed
        self._hooks: saved_tensors_hooks | None = None

    def __enter__(self) -> ForwardTape:
        """Start pushing; the graph saves nothing from here on."""
        super().__enter__()
        self._hooks = saved_tensors_hooks(lambda tensor: None, _refuse)
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop pushing; the graph saves tensors again."""
        if self._hooks is not None:
            self._hooks.__exit__(*exception)
        super().__exit__(*exception)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Push through the pending operator, then execute this one."""
        if not self._paused:
            self._advance()
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _saved_arguments(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self._alias = args[0].detach() if isinstance(args[0], Tensor) else None
        return args if self._alias is None else (self._alias, *args[1:])

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
        """Make an operator the pending one; the arguments are those of :meth:`Tape.record`."""
        self._advance()
        super().record(name, slots, out, derivative, in_place=in_place, custom=custom)
        if custom:
            self._alias = None  # it belongs to an earlier operator

    def tangents(self, slots: Sequence[int | None]) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """First and second derivatives that stand in the slots, after a push through the pending operator."""
        self._advance()
        return propagation.tangents_of(self._d, slots), propagation.tangents_of(self._dd, slots)

    def _append(self, step: Step) -> None:
        self._advance()
        self._pending = step

    def _put_together(self, key: Geometry, storage: Storage) -> int:
        slot = super()._put_together(key, storage)
        self._advance()  # before `_alias` is that of the operator that reads the view
        return slot

    def finish(self, outputs: Tensor) -> None:
        """End the pass: push through the last operator, and set `first` and `second`.

        Raises:
            UnsupportedOperator: the outputs do not depend on the parameters through recorded operators.
        """
        slot = self._slot_of_outputs(outputs)
        self._advance()
        self.first, self.second = self._d.get(slot), self._dd.get(slot)
        for table in (self._d, self._dd, self._slots, self._storages):
            table.clear()

    def _advance(self) -> None:
        step, self._pending = self._pending, None
        if step is None:
            return
        alias, self._alias = self._alias, None
        alive = self._alive()
        if alias is not None and propagation.owns_memory(alias):
            alive.discard(step.inputs[0])  # the derivative holds the only reference
        del alias
        last_reads = [slot for slot in step.inputs if slot is not None and slot not in alive]
        for table in (self._d, self._dd):
            for slot in [slot for slot in table if slot not in alive and slot not in last_reads]:
                del table[slot]
        with self._outside_dispatch():
            d = propagation.incoming(step, self._d, last_reads)
            dd = propagation.incoming(step, self._dd, last_reads)
            propagation.push_both(step, d, dd, self._d, self._dd, last_reads)

    def _alive(self) -> set[int]:
        """Slots of tensors that are neither freed nor overwritten."""
        others = itertools.islice(self._storages.items(), self._parameter_storages, None)
        freed = [cdata for cdata, storage in others if storage.reference.expired()]
        for cdata in freed:
            for key in self._storages.pop(cdata).keys:
                self._slots.pop(key, None)
        # A parameter is read again by its slot, also where a view of the same geometry has taken its key.
        written = (write.slot for storage in self._storages.values() for write in storage.writes)
        return {*self._slots.values(), *self._leaves.values(), *written}


def _refuse(_: Any) -> Tensor:
    raise UnsupportedOperator(
        "the model differentiates within its forward pass, which a curvature that keeps no activations cannot follow: "
        "ask for it with the activations (lean=False, or linearise and taylor)"
    )
