"""One forward pass and the questions after it as code that Inductor has made of their operators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from raycurv.curvature import Tape
from raycurv.curvature.phases import Phase, Question, trace, trace_along
from raycurv.objective.forward import recording

if TYPE_CHECKING:
    from raycurv.objective.batch import Batch

# Differences that rounding explains, relative to the largest number.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
_HALF_PRECISION_TOLERANCE = 0.1

Function = Callable[..., Sequence[Any]]


def compile_graph(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Function:
    """Compile a graph by Inductor for inputs like these; random numbers are those of torch's own operators."""
    from torch import _inductor  # the import takes seconds

    return _inductor.compile(graph, [*inputs], options={"fallback_random": True})


class CompiledPass:
    """A compiled pass for batches like one.

    Args:
        batch: the undivided batch, whose questions leave no trace meanwhile (:meth:`Batch.rehearsal`).
        questions: questions to compile, beside the outputs.
        along: whether the forward pass takes a direction and returns the derivatives along it.

    Raises:
        RuntimeError: the pass cannot be traced or compiled, or the compiled code does not compute the same.
    """

    def __init__(self, batch: Batch, questions: Iterable[Question] = (), *, along: bool = False) -> None:
        objective, parameters = batch.objective, batch.objective.parameters
        with torch.no_grad():
            outputs = batch.repeated_outputs()

        def forward(tape: Tape | None) -> Tensor:
            buffers = _buffers(objective.model)
            with recording(tape):
                found = objective.outputs(batch.inputs)
            _require_same(buffers, _buffers(objective.model))
            return found

        recorded = along or not {"push", "second_order"}.isdisjoint(questions)
        with _user_code_uncompiled(), batch.forward_context(Tape(parameters) if recorded else None):
            tensors = other_tensors(batch)  # here, where the context may have replaced buffers
            if along:
                self._traced = trace_along(forward, parameters, tensors)
            else:
                self._traced = trace(forward, parameters, tensors, questions, outputs)
        self._along = along
        self._read_later = {index for phase in self._traced.questions.values() for index in phase.reads}
        self._tolerance = _tolerance(outputs)
        self._compile(batch, outputs)

    def _compile(self, batch: Batch, outputs: Tensor) -> None:
        """Compile the phases, and compare each with its graph.

        Raises:
            RuntimeError: compiled code gives other numbers.
        """
        traced = self._traced
        u, *z = _random_like([outputs, *batch.objective.parameters])
        values = [*self._values(batch, None), *(z if self._along else [])]
        with batch.forward_context(None):
            self._forward = _compiled(traced.forward, values)
            results = _run(traced.forward, self._forward, values)
        with batch.forward_context(None):
            expected = _run(traced.forward, traced.forward.graph, values)
        first_kept = 1 + len(traced.written)
        self._require_equal(results[:first_kept], expected[:first_kept], "outputs")
        if self._along:
            for index, name in enumerate(("first derivative", "second derivative"), first_kept):
                if not _close_on_average(results[index], expected[index], self._tolerance):
                    raise RuntimeError(f"compiled code gives other numbers ({name})")
        self._functions: dict[Question, Function] = {}
        for question, phase in traced.questions.items():
            given = [u] if question == "pull" else z
            asked = [*values, *results[first_kept:], *given]
            self._functions[question] = _compiled(phase, asked)
            self._require_equal(
                _run(phase, self._functions[question], asked), _run(phase, phase.graph, asked), question
            )

    @property
    def questions(self) -> frozenset[Question]:
        """Questions that are compiled."""
        return frozenset(self._traced.questions)

    def check(self, batch: Batch) -> None:
        """Compare the outputs for a batch with those of the model, while questions leave no trace.

        Raises:
            RuntimeError: they differ.
        """
        z = [p.detach() for p in batch.objective.parameters] if self._along else []
        with batch.forward_context(None):
            found = self.forward(batch, None, z).outputs
        self._require_equal([found], [batch.repeated_outputs()], "outputs")

    def forward(
        self, batch: Batch, points: Sequence[Tensor] | None = None, direction: Sequence[Tensor] = ()
    ) -> Executed:
        """Execute the forward pass in the context of :meth:`Batch.forward_context`, and write to buffers.

        Args:
            batch: a batch of this kind.
            points: values in place of the parameters; None is the parameters themselves.
            direction: the direction, if the pass takes one.
        """
        values, written = self._values(batch, points), self._traced.written
        outputs, *results = _run(self._traced.forward, self._forward, [*values, *_contiguous(direction)])
        for index, value in zip(written, results, strict=False):
            buffer = values[index]
            if index in self._read_later:
                values[index] = buffer.clone()
            buffer.data.copy_(value)  # .data: a graph that waits for its backward pass may have saved this buffer
        return Executed(self, batch, outputs, values, results[len(written) :])

    def ask(self, question: Question, values: Sequence[Any]) -> Sequence[Tensor | None]:
        """Execute a phase on the values of the forward pass and what comes with the question."""
        return _run(self._traced.questions[question], self._functions[question], values)

    def _values(self, batch: Batch, points: Sequence[Tensor] | None) -> list[Tensor]:
        parameters = batch.objective.parameters if points is None else points
        # detach: compiled code refuses to return what requires a gradient.
        return [t.detach() for t in (*parameters, *other_tensors(batch), *self._traced.constants)]

    def _require_equal(self, found: Sequence[Any], expected: Sequence[Any], what: str) -> None:
        if not _close(found, expected, self._tolerance):
            raise RuntimeError(f"compiled code gives other numbers ({what})")


class Executed:
    """One execution of a compiled forward pass: what a tape and a graph would keep.

    Args:
        compiled: the pass.
        batch: the batch.
        outputs: outputs of the model, (B, …).
        values: the tensors of the pass.
        kept: what the forward pass has kept.
    """

    def __init__(
        self, compiled: CompiledPass, batch: Batch, outputs: Tensor, values: list[Tensor], kept: Sequence[Any]
    ) -> None:
        self.outputs, self.kept = outputs, kept
        self._compiled, self._batch, self._values = compiled, batch, values
        self._versions = self._parameter_versions()

    def answers(self, question: Question) -> bool:
        """Whether the question is compiled."""
        return question in self._compiled.questions

    def pull(self, cotangent: Tensor) -> Sequence[Tensor | None]:
        """Jᵀu, one tensor per parameter; None is zero.

        Raises:
            RuntimeError: a parameter has been written to since the forward pass.
        """
        if self._parameter_versions() != self._versions:
            raise RuntimeError("a parameter has been modified in place since the forward pass, so that it has no pull")
        return self._ask("pull", [cotangent.to(self.outputs.dtype)])

    def push(self, tangents: Sequence[Tensor | None]) -> Tensor | None:
        """J·z; None is zero."""
        return self._ask("push", self._directions(tangents))[0]

    def second_order(self, tangents: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
        """First and second derivative of the outputs along Θ + t·z at t = 0; None is zero."""
        first, second = self._ask("second_order", self._directions(tangents))
        return first, second

    def _ask(self, question: Question, given: Sequence[Tensor]) -> Sequence[Tensor | None]:
        return self._compiled.ask(question, [*self._values, *self.kept, *_contiguous(given)])

    def _parameter_versions(self) -> list[int]:
        return [parameter._version for parameter in self._batch.objective.parameters]

    def _directions(self, tangents: Sequence[Tensor | None]) -> list[Tensor]:
        parameters = self._batch.objective.parameters
        return [torch.zeros_like(p) if z is None else z for p, z in zip(parameters, tangents, strict=True)]


def other_tensors(batch: Batch) -> list[Tensor]:
    """What a forward pass may read beside the parameters: frozen parameters, buffers, attributes, inputs."""
    trained = {id(parameter) for parameter in batch.objective.parameters}
    found: dict[int, Tensor] = {}
    for module in batch.objective.model.modules():
        for source in (module._parameters, module._buffers, vars(module)):
            for tensor in source.values():
                if isinstance(tensor, Tensor) and id(tensor) not in trained:
                    found[id(tensor)] = tensor
    return [*found.values(), *pytree.tree_leaves(batch.inputs)]


def _user_code_uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Context in which modules that the user has given to torch.compile are executed as they are, to be traced."""
    from torch._dynamo import config  # the import takes seconds

    return config.patch(error_on_nested_fx_trace=False)


def _buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor | None]]:
    return [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]


def _require_same(before: Sequence[tuple[nn.Module, str, Any]], after: Sequence[tuple[nn.Module, str, Any]]) -> None:
    """Refuse a model that replaces its buffers, of which a graph knows nothing.

    Raises:
        RuntimeError: it does.
    """
    for old, new in zip(before, after, strict=True):
        if old[2] is not new[2]:
            raise RuntimeError(
                f"{type(old[0]).__name__} replaces its buffer {old[1]!r} in the forward pass; write to it in place "
                "(copy_) instead"
            )


def _random_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(t.shape, dtype=t.dtype, generator=generator).to(t.device) for t in tensors]


def _compiled(phase: Phase, values: Sequence[Any]) -> Function:
    with torch.no_grad(), _without_autocast(values[0].device.type):
        return compile_graph(phase.graph, [values[index] for index in phase.reads])


def _run(phase: Phase, function: Function, values: Sequence[Any]) -> Sequence[Any]:
    with torch.no_grad(), _without_autocast(values[0].device.type):
        return function(*(values[index] for index in phase.reads))


def _without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Context without autocast, whose casts are operators of the graph."""
    mixed = torch.is_autocast_enabled(device)  # entering the context takes longer than a small operator
    return torch.autocast(device, enabled=False) if mixed else contextlib.nullcontext()


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().contiguous() for tensor in tensors]


def _tolerance(outputs: Tensor) -> float:
    mixed = torch.is_autocast_enabled(outputs.device.type)
    return _HALF_PRECISION_TOLERANCE if mixed else _TOLERANCES.get(outputs.dtype, _HALF_PRECISION_TOLERANCE)


def _close_on_average(found: Tensor | None, expected: Tensor | None, tolerance: float) -> bool:
    """Whether the mean difference is small beside the mean size.

    For derivatives that are computed beside the outputs: single ones jump where rounding moves an input of ReLU over 0.
    """
    if found is None or expected is None:
        return found is expected
    finite = torch.isfinite(found) & torch.isfinite(expected)
    difference = torch.where(finite, found - expected, 0).abs().double().sum()
    return bool(difference <= tolerance * torch.where(finite, expected, 0).abs().double().sum())


def _close(found: Sequence[Tensor | None], expected: Sequence[Tensor | None], tolerance: float) -> bool:
    """Whether tensors are equal up to a tolerance relative to the largest number in all of them.

    Relative to each alone, what is 0 up to rounding would differ, as the gradient of a bias before a normalisation.
    """
    differences, largest = [], []
    for one, other in zip(found, expected, strict=True):
        if one is None or other is None:
            if one is not other:
                return False
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if not other.is_floating_point():
            if not torch.equal(one, other):
                return False
            continue
        finite = torch.isfinite(one) & torch.isfinite(other)
        differences.append(torch.where(finite, one - other, 0).abs().amax().double())
        largest.append(torch.where(finite, other, 0).abs().amax().double())
    return not differences or bool(torch.stack(differences).amax() <= tolerance * torch.stack(largest).amax())
