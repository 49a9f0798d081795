"""A forward pass and the questions after it as graphs of torch's operators: traced once, and cut into phases.

:func:`trace` executes a forward pass under a :class:`~raycurv.curvature.tape.Tape`, a backward pass and a push, and
records their operators in one graph, in which writes in place have become values. The graph is cut by what its nodes
depend on:

- ``forward`` depends neither on a cotangent nor on a direction. It returns the outputs, the new values of buffers and
  the values that later phases read.
- ``pull`` depends on a cotangent u and returns Jᵀu.
- ``push`` and ``second_order`` depend on a direction z. They return J·z, or both derivatives of the outputs.

A later phase computes again what the forward pass itself does not need and what is element-wise. Products, sums and
random numbers are kept.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from raycurv.curvature import rules
from raycurv.curvature.forward_tape import ForwardTape
from raycurv.curvature.tape import Tape

Question = Literal["pull", "push", "second_order"]
Forward = Callable[[Tape | None], Tensor]  # executes the model, recorded by the tape
Given = Literal["pass", "cotangent", "direction"]  # what a node of the graph depends on


@dataclass(frozen=True)
class Phase:
    """One part of a traced pass.

    Attributes:
        graph: module that takes the values of `reads` and returns a tuple; None is zero.
        reads: indices of its arguments among the pass's tensors, followed by what the forward pass keeps, followed by
            what comes with the question (u or z).
    """

    graph: fx.GraphModule
    reads: tuple[int, ...]


@dataclass(frozen=True)
class TracedPass:
    """A traced forward pass and the questions after it.

    Attributes:
        constants: tensors of the model's code that the pass reads after those given to the trace.
        forward: returns the outputs, the new value of each tensor in `written`, and the values that are kept.
        written: indices of the tensors that the forward pass writes to.
        questions: the phases after the forward pass.
    """

    constants: list[Tensor]
    forward: Phase
    written: tuple[int, ...]
    questions: dict[Question, Phase]


def trace(
    forward: Forward,
    parameters: Sequence[Tensor],
    others: Sequence[Tensor],
    questions: Iterable[Question],
    cotangent: Tensor,
) -> TracedPass:
    """Trace a forward pass and the questions after it, which keep its activations.

    Args:
        forward: executes the model while the tape records it, and returns the outputs.
        parameters: the parameters, leaf tensors.
        others: other tensors that may differ from pass to pass: frozen parameters, buffers, inputs.
        questions: questions to trace.
        cotangent: a tensor in the shape and dtype of the outputs.

    Raises:
        RuntimeError: Python decides on values of tensors, or the pass cannot be traced for another reason.
    """
    asked = set(questions)

    def joint(tensors: list[Tensor], u: Tensor, z: list[Tensor]) -> tuple[Any, ...]:
        tape = None if asked.isdisjoint(("push", "second_order")) else Tape(parameters)
        with torch.set_grad_enabled(bool(asked)):
            outputs = forward(tape)
        answers: dict[Question, list[Tensor | None]] = {}
        if "pull" in asked:
            answers["pull"] = list(torch.autograd.grad(outputs, parameters, u, allow_unused=True))
        if tape is not None:
            tape.finish(outputs)
            with torch.autocast(outputs.device.type, enabled=False):
                if "push" in asked:
                    answers["push"] = [tape.push(z)]
                if "second_order" in asked:
                    answers["second_order"] = list(tape.second_order(z))
        return outputs.detach(), answers

    graph, constants, outs = _traced(joint, [*parameters, *others], cotangent.contiguous(), _directions(parameters))
    cut = _Cut(graph, len(parameters) + len(others), len(constants))
    return cut.traced([outs[0]], constants, outs[1])


def trace_along(forward: Forward, parameters: Sequence[Tensor], others: Sequence[Tensor]) -> TracedPass:
    """Trace a forward pass that takes a direction z after its tensors and keeps no activations.

    Its ``forward`` keeps the first and the second derivative of the outputs along z.

    Args:
        forward: executes the model while the tape records it, and returns the outputs.
        parameters: the parameters, leaf tensors.
        others: other tensors that may differ from pass to pass: frozen parameters, buffers, inputs.

    Raises:
        RuntimeError: Python decides on values of tensors, or the pass cannot be traced for another reason.
    """

    def joint(tensors: list[Tensor], u: Tensor, z: list[Tensor]) -> tuple[Any, ...]:
        tape = ForwardTape(parameters, z)
        with torch.enable_grad():
            outputs = forward(tape)
        with torch.autocast(outputs.device.type, enabled=False):
            tape.finish(outputs)
        return outputs.detach(), [tape.first, tape.second]

    none = parameters[0].new_zeros(())
    graph, constants, outs = _traced(joint, [*parameters, *others], none, _directions(parameters))
    cut = _Cut(graph, len(parameters) + len(others), len(constants))
    return cut.whole([outs[0], *outs[1]], constants)


def _directions(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros(p.shape, dtype=p.dtype, device=p.device) for p in parameters]


def _traced(
    joint: Callable[..., Any], tensors: list[Tensor], u: Tensor, z: list[Tensor]
) -> tuple[fx.Graph, list[Tensor], Any]:
    """The graph without writes in place, the constants that it reads, and its outputs in the structure of `joint`.

    Placeholders are in the order tensors, u, z, constants. A write to one of them stays, as a ``copy_``.
    """
    structure: list[Any] = []

    def flat(*leaves: Tensor) -> list[Any]:
        n = len(tensors)
        found, spec = pytree.tree_flatten(joint(list(leaves[:n]), leaves[n], list(leaves[n + 1 :])))
        structure.append(spec)
        return found

    with _whole_chunks(), torch.no_grad():
        # The very tensors that the model holds: it is traced as it stands.
        module = make_fx(flat, tracing_mode="real")(*tensors, u, *z)
        constants = _lift_constants(module)
        with torch.autocast(u.device.type, enabled=False):
            given = [t.detach() for t in (*tensors, u, *z, *constants)]
            module = make_fx(torch.func.functionalize(module), tracing_mode="fake")(*given)
    end = next(node for node in module.graph.nodes if node.op == "output")
    return module.graph, constants, pytree.tree_unflatten(list(end.args[0]), structure[-1])


def _lift_constants(module: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that the graph holds into further arguments, and return them.

    Raises:
        RuntimeError: the graph holds something else than tensors.
    """
    constants: dict[str, Tensor] = {}
    last = [node for node in module.graph.nodes if node.op == "placeholder"][-1]
    placeholders: dict[str, fx.Node] = {}
    for node in [node for node in module.graph.nodes if node.op == "get_attr"]:
        name = str(node.target)
        value = getattr(module, name)
        if not isinstance(value, Tensor):
            raise RuntimeError(f"the graph holds a {type(value).__name__}")
        if name not in placeholders:
            constants[name] = value
            with module.graph.inserting_after(last):
                last = placeholders[name] = module.graph.placeholder(f"constant_{name}")
        node.replace_all_uses_with(placeholders[name])
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return list(constants.values())


@contextlib.contextmanager
def _whole_chunks() -> Iterator[None]:
    """Context in which rules do not work chunk by chunk: a compiler does that."""
    sizes = rules.CHUNK_SIZE, rules.DEVICE_CHUNK_SIZE
    rules.CHUNK_SIZE = rules.DEVICE_CHUNK_SIZE = 1 << 62
    try:
        yield
    finally:
        rules.CHUNK_SIZE, rules.DEVICE_CHUNK_SIZE = sizes


class _Cut:
    """Cuts the graph of a pass into phases.

    Args:
        graph: graph of :func:`_traced`.
        tensors: number of its first placeholders, the tensors of the pass.
        constants: number of its last placeholders.
    """

    def __init__(self, graph: fx.Graph, tensors: int, constants: int) -> None:
        self.graph = graph
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        end = len(placeholders) - constants
        self.tensors = [*placeholders[:tensors], *placeholders[end:]]
        self.cotangent, self.direction = placeholders[tensors : tensors + 1], placeholders[tensors + 1 : end]
        self.writes = {
            self.tensors.index(node.args[0]): node.args[1]
            for node in graph.nodes
            if node.target is torch.ops.aten.copy_.default and node.args[0] in self.tensors
        }
        self.random = [node for node in graph.nodes if _is_random(node)]

    def whole(self, ends: list[fx.Node | None], constants: list[Tensor]) -> TracedPass:
        """The pass as one phase, which takes the direction after the tensors."""
        roots = [ends[0], *self.writes.values(), *ends[1:]]
        graph, reads = self._phase(roots, [*self.tensors, *self.direction], set(), also=self.random)
        return TracedPass(constants, Phase(graph, reads), tuple(self.writes), {})

    def traced(
        self, ends: list[fx.Node | None], constants: list[Tensor], questions: dict[Question, list[fx.Node | None]]
    ) -> TracedPass:
        """The pass in phases.

        Args:
            ends: outputs of the forward pass.
            constants: constants that the graph reads.
            questions: outputs of each question.
        """
        given = self._dependences()
        roots = [*ends, *self.writes.values()]
        needed = _ancestors([*roots, *self.random])
        costly = self._costly(needed, given)

        def keeps(node: fx.Node) -> bool:
            """Whether a phase reads this value of the forward pass instead of computing it."""
            if given[node] != "pass" or isinstance(node.meta.get("val"), (tuple, list)):
                return False
            return node in costly or (node in needed and not _is_view(_source(node)))

        kept: dict[fx.Node, None] = {}
        for outs in questions.values():
            for node in _ancestors(outs, stop=keeps):
                if node.op != "placeholder" and keeps(node):
                    kept[node] = None
        forward, reads = self._phase([*roots, *kept], self.tensors, set(), also=self.random)
        phases = {}
        for question, outs in questions.items():
            extra = self.cotangent if question == "pull" else self.direction
            phases[question] = Phase(*self._phase(outs, [*self.tensors, *kept, *extra], set(kept)))
        return TracedPass(constants, Phase(forward, reads), tuple(self.writes), phases)

    def _dependences(self) -> dict[fx.Node, Given]:
        given: dict[fx.Node, Given] = {}
        for node in self.graph.nodes:
            if node in self.cotangent:
                given[node] = "cotangent"
            elif node in self.direction:
                given[node] = "direction"
            else:
                found = {given[read] for read in node.all_input_nodes} - {"pass"}
                if len(found) > 1 and node.op != "output":
                    raise RuntimeError(f"{node.target} reads a cotangent and a direction")
                given[node] = found.pop() if len(found) == 1 else "pass"
        return given

    def _costly(self, needed: set[fx.Node], given: dict[fx.Node, Given]) -> set[fx.Node]:
        """Values of the forward pass that only later phases read and that are no element-wise functions of others."""
        costly: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node.op != "call_function" or node in needed or given[node] != "pass":
                continue
            if not _is_cheap(_source(node)):
                costly.add(node)
        return costly

    def _phase(
        self,
        outs: Sequence[fx.Node | None],
        available: Sequence[fx.Node],
        kept: set[fx.Node],
        also: Sequence[fx.Node] = (),
    ) -> tuple[fx.GraphModule, tuple[int, ...]]:
        """The graph that computes `outs` from what is available, and the indices of what it reads.

        Args:
            outs: nodes to return.
            available: values that it may take.
            kept: values that it takes instead of computing them.
            also: nodes to execute without returning them.
        """
        index = {node: position for position, node in enumerate(available)}
        nodes = _ancestors([*outs, *also], stop=lambda node: node in kept)
        inputs = sorted((node for node in nodes if node.op == "placeholder" or node in kept), key=index.__getitem__)
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in inputs:
            copies[node] = graph.placeholder(node.name)
        for node in sorted(nodes.difference(inputs), key=self.order.__getitem__):
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(None if node is None else copies[node] for node in outs))
        return fx.GraphModule(torch.nn.Module(), graph), tuple(index[node] for node in inputs)


def _ancestors(nodes: Iterable[fx.Node | None], stop: Callable[[fx.Node], bool] = lambda node: False) -> set[fx.Node]:
    """These nodes and all that they read; what `stop` holds for is included, and what it reads is not."""
    found: set[fx.Node] = set()
    waiting = [node for node in nodes if node is not None]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            if not stop(node):
                waiting.extend(node.all_input_nodes)
    return found


def _source(node: fx.Node) -> Any:
    """The operator that a node is an output of."""
    return node.args[0] if node.target is operator.getitem else node


def _is_random(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _is_view(node: Any) -> bool:
    if not isinstance(node, fx.Node) or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(value.alias_info is not None for value in node.target._schema.returns)


_CHEAP = ("_to_copy", "clone", "masked_fill", "scalar_tensor", "full", "zeros_like", "full_like", "ones_like", "zeros")


def _is_cheap(node: Any) -> bool:
    """Whether a node is a view, an element-wise function or a constant: computed again in the kernel that reads it."""
    if not isinstance(node, fx.Node) or node.op == "placeholder":
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or _is_random(node):
        return False
    name = rules.name_of(node.target)
    return _is_view(node) or torch.Tag.pointwise in node.target.tags or name in _CHEAP
