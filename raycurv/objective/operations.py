"""Floating-point operations of a run: each question of a batch counted once, and summed over what is asked.

Counting is slow, because it sees every operator of torch. So a question (forward pass, backward pass, tangent, second
derivative) is counted at the first time that its kind and shapes come, and later only added. The sum therefore follows
what the optimizer does: steps that ask more, checks that depend on the data, a smaller last batch.

What an optimizer computes outside its questions (the products of Muon, SOAP or K-FAC) is counted in its first
:data:`WATCHED_STEPS` steps. Later steps add the mean of these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from raycurv.lazy import without_compiler

WATCHED_STEPS = 20  # first steps, in which everything is counted


class OperationCounter:
    """Floating-point operations of the steps of an optimizer, on this worker.

    Matrix products, convolutions and attention count, as in torch's ``FlopCounterMode``; element-wise operations do
    not. Only what happens within :meth:`step` counts.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}  # operations by kind and shapes of the question
        self._sum = 0.0
        self._stepping = False
        self._watched, self._outside = 0, 0.0  # steps so far that were watched, and their operations outside questions
        self._uncounted = 0  # operations of this step that do not belong to the optimizer

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Context of one step of an optimizer."""
        asked, self._stepping = self._sum, True
        try:
            if self._watched == WATCHED_STEPS:
                yield
                self._sum += self._outside / WATCHED_STEPS
                return
            self._uncounted = 0
            with _CountingMode() as mode:
                yield
            counted = asked + mode.operations - self._uncounted
            self._outside += counted - self._sum
            self._sum = counted
            self._watched += 1
        finally:
            self._stepping = False

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Context whose operations do not count."""
        if not self._stepping:
            yield
            return
        self._stepping = False  # for the questions inside
        try:
            with _CountingMode() as mode:
                yield
            self._uncounted += mode.operations
        finally:
            self._stepping = True

    @contextlib.contextmanager
    def question(self, *key: Hashable) -> Iterator[None]:
        """Context of one question.

        Args:
            *key: kind and shapes; equal keys must cost the same.
        """
        if not self._stepping:
            yield
            return
        if key not in self._known:
            before = self._uncounted
            with _CountingMode() as mode:
                yield
            self._known[key] = mode.operations - (self._uncounted - before)
        else:
            yield
        self._sum += self._known[key]

    def take(self) -> float:
        """Operations since the last call."""
        taken, self._sum = self._sum, 0.0
        return taken


@without_compiler
class _CountingMode(TorchDispatchMode):
    """Counts as torch's ``FlopCounterMode``, without its hooks on modules, and never fails for lack of a formula."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # the import takes 0.1 s: it brings triton

        super().__init__()
        self.operations, self._formulas = 0, flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Execute one operator and add its operations."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            with contextlib.suppress(AssertionError, ValueError):  # shapes that the formula does not know
                self.operations += formula(*args, **kwargs, out_val=out)
        return out


def question(counter: OperationCounter | None, *key: Hashable) -> contextlib.AbstractContextManager[None]:
    """:meth:`OperationCounter.question`, or an empty context without a counter."""
    return contextlib.nullcontext() if counter is None else counter.question(*key)
