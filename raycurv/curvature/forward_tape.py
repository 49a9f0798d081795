"""First and second derivatives along one direction, pushed while the operators are executed: nothing is kept.

A :class:`ForwardTape` is entered around ``outputs = model(inputs)`` as a :class:`~raycurv.curvature.tape.Tape` is. It
applies the derivative of each operator when the next one arrives. By then the model has let go of what it does not
need any more, so that the tangents of dead tensors can go too. Memory is that of a forward pass without gradients,
times three where the network is widest.

A tensor counts only while ``requires_grad`` says that gradients flow through it, so the graph must be there; what its
nodes would save for a backward pass is dropped at once.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from raycurv.curvature import propagation
from raycurv.curvature.propagation import Step
from raycurv.curvature.rules import Derivative, UnsupportedOperator
from raycurv.curvature.tape import Tape


class ForwardTape(Tape):
    """Pushes one direction through the operators between `parameters` and the outputs while it is entered.

    Args:
        parameters: the leaves whose tangents are given.
        tangents: one for each of them, in their order; None is zero.

    Attributes:
        first: after :meth:`finish`, the first derivative of the outputs along the tangents; None is zero.
        second: and the second.

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
        self._alias: Tensor | None = None  # the waiting operator's first argument, as its derivative holds it
        self._lasting = len(self._storages)  # the parameters' come first and stay
        self._device = parameters[0].device.type
        # Operators reach a tape below autograd, where a derivative that torch takes itself could not be computed.
        self._outside = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
        self._hooks: saved_tensors_hooks | None = None

    def __enter__(self) -> ForwardTape:
        """Start pushing, and drop what the graph saves."""
        super().__enter__()
        self._hooks = saved_tensors_hooks(lambda tensor: None, _refuse)
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Let the graph save again what it wants."""
        if self._hooks is not None:
            self._hooks.__exit__(*exception)
        super().__exit__(*exception)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Push through the operator before, then execute this one."""
        if not self._paused:
            self._advance()
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _as_kept(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
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
        own: bool = False,
    ) -> None:
        """Let an operator wait for the next one."""
        self._advance()
        super().record(name, slots, out, derivative, in_place=in_place, own=own)
        self._pending = self.steps.pop()
        if own:
            self._alias = None  # that of an operator before

    def finish(self, outputs: Tensor) -> None:
        """Push through the last operator.

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
        if alias is not None and propagation.alone(alias):
            alive.discard(step.inputs[0])  # only the derivative still needs it, if at all
        del alias
        dying = [slot for slot in step.inputs if slot is not None and slot not in alive]
        for table in (self._d, self._dd):
            for slot in [slot for slot in table if slot not in alive and slot not in dying]:
                del table[slot]
        with self._as_outside():
            d = propagation.incoming(step, self._d, dying)
            dd = propagation.incoming(step, self._dd, dying)
            propagation.push_both(step, d, dd, self._d, self._dd, dying)

    def _alive(self) -> set[int]:
        """The slots of tensors that are neither gone nor written over."""
        passing = itertools.islice(self._storages.items(), self._lasting, None)
        freed = [cdata for cdata, (reference, _) in passing if reference.expired()]
        for cdata in freed:
            for key in self._storages.pop(cdata)[1]:
                self._slots.pop(key, None)
        return set(self._slots.values())

    @contextlib.contextmanager
    def _as_outside(self) -> Iterator[None]:
        """Derivatives are computed as they would be after the forward pass."""
        paused, self._paused = self._paused, True
        guard = torch._C._ForceDispatchKeyGuard(*self._outside)
        mixed = torch.is_autocast_enabled(self._device)  # entering the context takes longer than a small operator
        exact = torch.autocast(self._device, enabled=False) if mixed else contextlib.nullcontext()
        try:
            with guard, torch.no_grad(), exact, saved_tensors_hooks(_same, _same):
                yield
        finally:
            self._paused = paused


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _refuse(_: Any) -> Tensor:
    raise UnsupportedOperator(
        "the model differentiates within its forward pass, which a curvature that keeps no activations cannot follow: "
        "ask for it with the activations (lean=False, or linearise and taylor)"
    )
