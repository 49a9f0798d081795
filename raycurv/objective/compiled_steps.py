"""Compiled questions of an objective, by kind of batch.

The first batch of a kind is computed operator by operator, as without compilation, and shows which questions are asked.
At the second one, the passes are traced (:mod:`raycurv.curvature.phases`) and compiled. Later batches of the kind call
the compiled code. A kind is what decides on the trace: shapes, modes, and plain attributes of modules.

A compiled pass draws the random numbers that the model draws, and writes to buffers what the model writes. Its outputs
are compared with those of the model on two batches. If they differ, or the pass cannot be traced or compiled, a warning
gives the reason, and all batches of the kind are computed operator by operator.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from raycurv.curvature.phases import Question
from raycurv.objective.compiled_pass import CompiledPass, Executed, other_tensors
from raycurv.objective.direction import Direction
from raycurv.objective.linearisation import Linearisation

if TYPE_CHECKING:
    from raycurv.objective.batch import Batch

MOST_KINDS = 8  # kinds of batches that one question is compiled for, as many as torch.compile compiles for
_MOST_KEPT = 256  # kinds that are remembered: an attribute may change at every step
CHECKED_BATCHES = 2


@dataclass
class Kind:
    """What is known of one kind of batches.

    Attributes:
        questions: questions that have been asked after the forward pass.
        compiled: the compiled pass; None if there is none.
        checks: number of batches on which it will still be compared with the model.
        refused: whether it cannot be compiled.
    """

    questions: set[Question] = field(default_factory=set)
    compiled: CompiledPass | None = None
    checks: int = 0
    refused: bool = False


class CompiledSteps:
    """The compiled passes of one objective."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[Hashable, ...], Kind] = {}

    def outputs(self, batch: Batch, points: Sequence[Tensor] | None) -> Tensor | None:
        """Outputs of the model without a graph; None if they are not compiled.

        Args:
            batch: an undivided batch.
            points: values in place of the parameters; None is the parameters themselves.
        """
        compiled = self._kind(batch, "outputs").compiled
        if compiled is None:
            return None
        with batch.counted("forward", "NoneType"), batch.forward_context(None):
            return compiled.forward(batch, points).outputs

    def derivatives_along(
        self, batch: Batch, direction: Direction, points: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
        """Outputs of the model, and their first and second derivative; None if they are not compiled.

        Args:
            batch: an undivided batch.
            direction: one tensor per parameter.
            points: values in place of the parameters; None is the parameters themselves.
        """
        compiled = self._kind(batch, "along").compiled
        if compiled is None:
            return None
        with batch.counted("forward", "ForwardTape"), batch.forward_context(None):
            executed = compiled.forward(batch, points, direction)
        first, second = executed.kept
        return executed.outputs, first, second

    def linearise(self, batch: Batch, *, record: bool) -> Linearisation:
        """The linearisation of an undivided batch, compiled or not."""
        kind = self._kind(batch, "recorded" if record else "unrecorded")
        if kind.compiled is None:
            return _Observed(batch, kind, record=record)
        with batch.counted("forward", "Tape" if record else "NoneType"), batch.forward_context(None):
            executed = kind.compiled.forward(batch)
        return CompiledLinearisation(batch, executed, kind)

    def _kind(self, batch: Batch, question: str) -> Kind:
        """The kind of a batch for a question, compiled if another batch of this kind came before.

        Raises:
            OutOfMemoryError: memory runs out.
        """
        key = _key(batch, question)
        kind = self._kinds.get(key)
        if kind is None:
            kind = Kind()
            if len(self._kinds) < _MOST_KEPT:
                self._kinds[key] = kind
            return kind
        if kind.refused or (kind.compiled is not None and not kind.checks):
            return kind
        try:
            if kind.compiled is None:
                self._require_few_kinds(question)
            with _undisturbed(batch):
                if kind.compiled is None:
                    _require_no_generators(batch)
                    kind.compiled = CompiledPass(batch, kind.questions, along=question == "along")
                    kind.checks = CHECKED_BATCHES
                kind.compiled.check(batch)
                kind.checks -= 1
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # tracing and compiling raise errors of many classes
            kind.refused, kind.compiled = True, None
            warnings.warn(
                f"compile=True: batches like this one are computed operator by operator: {_reason(error)}",
                RuntimeWarning,
                stacklevel=2,
            )
        return kind

    def _require_few_kinds(self, question: str) -> None:
        """Compile for a few kinds of batches only.

        Raises:
            RuntimeError: the question has been compiled for too many kinds.
        """
        if sum(key[0] == question and kind.compiled is not None for key, kind in self._kinds.items()) >= MOST_KINDS:
            raise RuntimeError(
                f"there are more than {MOST_KINDS} kinds of batches, which differ in shapes, modes or attributes of "
                "modules"
            )


class CompiledLinearisation(Linearisation):
    """A linearisation whose products are compiled.

    Args:
        batch: the batch.
        executed: its forward pass.
        kind: the kind of the batch, which keeps what is asked.
    """

    def __init__(self, batch: Batch, executed: Executed, kind: Kind) -> None:
        super().__init__(batch, executed.outputs, executed)
        self._executed, self._kind = executed, kind
        self._uncompiled: Linearisation | None = None

    def _backward(self, cotangent: Tensor, *, keep: bool) -> Direction:
        self._take_graph(keep)
        if not self._answers("pull"):
            return self._operator_by_operator()._backward(cotangent, keep=True)
        with self.batch.counted("backward"):
            gradients = self._executed.pull(cotangent)
        return self.batch.objective.direction(gradients)

    def push(self, direction: Sequence[Tensor | None]) -> Tensor:
        """J·z, as in :meth:`Linearisation.push`."""
        return super().push(direction) if self._answers("push") else self._operator_by_operator().push(direction)

    def taylor_sums(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """Sums over this worker's samples, as in :meth:`Linearisation.taylor_sums`."""
        if self._answers("second_order"):
            return super().taylor_sums(direction)
        return self._operator_by_operator().taylor_sums(direction)

    def _answers(self, question: Question) -> bool:
        """Whether a question is compiled; if not, it will be for the next batch."""
        if not self._executed.answers(question):
            self._kind.questions.add(question)
            self._kind.compiled = None
        return self._executed.answers(question)

    def _operator_by_operator(self) -> Linearisation:
        if self._uncompiled is None:
            self._uncompiled = Linearisation(self.batch, *self.batch.recorded_outputs(record=True))
        return self._uncompiled


class _Observed(Linearisation):
    """A linearisation that is not compiled, and shows what is asked."""

    def __init__(self, batch: Batch, kind: Kind, *, record: bool) -> None:
        super().__init__(batch, *batch.recorded_outputs(record=record))
        self._kind = kind

    def _backward(self, cotangent: Tensor, *, keep: bool) -> Direction:
        self._kind.questions.add("pull")
        return super()._backward(cotangent, keep=keep)

    def push(self, direction: Sequence[Tensor | None]) -> Tensor:
        self._kind.questions.add("push")
        return super().push(direction)

    def taylor_sums(self, direction: Sequence[Tensor]) -> list[Tensor]:
        self._kind.questions.add("second_order")
        return super().taylor_sums(direction)


@contextlib.contextmanager
def _undisturbed(batch: Batch) -> Iterator[None]:
    """Context of passes that leave no trace, and that no mode sees."""
    with batch.objective.uncounted(), _disable_current_modes(), batch.rehearsal():
        yield


def _require_no_generators(batch: Batch) -> None:
    """Refuse a model that draws from other generators than torch's own.

    Raises:
        RuntimeError: it does.
    """
    if batch.objective.hidden_state.moves_generators:
        raise RuntimeError("the model draws from the generator of Python, of numpy or of its own")


def _key(batch: Batch, question: str) -> tuple[Hashable, ...]:
    device = batch.objective.device.type
    mixed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    _, structure = pytree.tree_flatten(batch.inputs)
    tensors = tuple((t.shape, t.stride(), t.dtype, t.device) for t in other_tensors(batch))
    return question, mixed, structure, tensors, _attributes(batch.objective.model)


def _attributes(model: nn.Module) -> tuple[Hashable, ...]:
    """Classes, modes, hooks and plain attributes of all modules."""
    return tuple(
        (
            type(module),
            len(module._forward_hooks) + len(module._forward_pre_hooks),
            *(value for value in vars(module).values() if isinstance(value, (bool, int, float, str))),
        )
        for module in model.modules()
    )


def _reason(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    if "InvalidCxxCompiler" in text or "No working C++ compiler" in text:
        return "there is no C++ compiler; install g++ or clang++, or leave compile=True out"
    return text.splitlines()[0]
