"""Derivatives of custom ``torch.autograd.Function`` classes.

A Function's forward pass runs where nothing is recorded, and its backward pass need not be the derivative of it. So a
tape takes its derivative from, in this order,

1. functions given to :func:`register_operator`;
2. the ``jvp`` of the class, for the first derivative. The second one is that of its backward pass;
3. nothing: reading its output raises an error that names the class and what to write.

Functions of torch itself that compute what other operators compute are replaced by these while a tape records.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from raycurv.curvature import rules
from raycurv.curvature.rules import Call, Derivative, Rule, generic

if TYPE_CHECKING:
    from raycurv.curvature.tape import Tape

FUNCTION_RULES: dict[type[Function], Rule] = {}

_entered = threading.local()  # .tapes: those that this thread has entered, the innermost last
_lock = threading.Lock()
_count = 0  # tapes entered in all threads
_original: Any = Function.__dict__["apply"]


def register_operator(
    operator: Any, first: Callable[..., Any] | None = None, second: Callable[..., Any] | None = None
) -> None:
    """Give the derivatives of an operator or ``torch.autograd.Function`` of your own.

    ::

        register_operator(torch.ops.mylib.cube, lambda x, d: 3 * x**2 * d, lambda x, d: 6 * x * d**2)
        register_operator(StraightThrough)

    Both functions get the operator's positional arguments, followed by the tangent of each tensor among them. A tangent
    is None where it is zero. They return the tangent of the output, or a tuple for several outputs.

    Without functions, the derivatives are those that the operator's backward pass defines. That is what
    straight-through estimators, gradient reversal and quantisation want: slope and curvature are those of the function
    whose gradient the backward pass claims to be, and not of the values of the forward pass. For a backward pass that
    is linear and independent of the inputs, the second derivative is 0.

    Args:
        operator: an operator of ``torch.ops``, the result of ``torch.library.custom_op``, the name ``"library::name"``,
            or a subclass of ``torch.autograd.Function``.
        first: function of (arguments, tangents): the derivative along the tangents, linear in them.
        second: function of (arguments, tangents): the second derivative along the tangents. None is 0 where `first` is
            given.

    Raises:
        TypeError: `operator` is neither an operator nor a Function, or `second` is given without `first`.
    """
    if first is None and second is not None:
        raise TypeError("register_operator: the second derivative is given without the first one; give both")
    if isinstance(operator, type) and issubclass(operator, Function):
        FUNCTION_RULES[operator] = _given(first, second, operator.apply, operator.__name__)
        return
    name = _qualified_name(operator)
    rules.RULES[name] = _given(first, second, None, name)
    rules.KEEPS_INPUT.add(name)
    rules.WITHIN_FUNCTIONS.add(name)


def _qualified_name(operator: Any) -> str:
    found = getattr(operator, "_qualname", None) or getattr(operator, "_qualified_op_name", None) or operator
    found = found if isinstance(found, str) else getattr(getattr(operator, "_schema", None), "name", None)
    if not isinstance(found, str) or "::" not in found:
        raise TypeError(
            f"operator must be an operator of torch.ops, 'library::name' or a subclass of torch.autograd.Function, not "
            f"{operator!r}"
        )
    return found.removeprefix("aten::")


def _given(
    first: Callable[..., Any] | None, second: Callable[..., Any] | None, apply: Any, name: str
) -> Callable[[Call], Derivative]:
    def rule(call: Call) -> Derivative:
        if first is None:
            return by_backward(call, apply, name)
        args, kwargs = call.args, call.kwargs
        return Derivative(
            lambda *d: first(*args, *d, **kwargs),
            None if second is None else lambda *d: second(*args, *d, **kwargs),
            differentiates=True,  # perhaps
        )

    return rule


def by_backward(call: Call, apply: Any, name: str) -> Derivative:
    """The derivatives that the backward pass of an operator defines."""
    return generic(call, apply or rules.out_of_place(call), name, forward_mode=False)


def entered(tape: Tape) -> None:
    """Let `tape` see the Functions that this thread applies."""
    global _count
    with _lock:
        _count += 1
        if _count == 1:
            Function.apply = classmethod(_apply)
    # Functions of torch.jit.script are executed operator by operator, if their first execution is.
    _tapes().append((tape, torch._C._get_graph_executor_optimize(False)))


def left() -> None:
    """End what :func:`entered` has begun."""
    global _count
    _, optimized = _tapes().pop()
    torch._C._get_graph_executor_optimize(optimized)
    with _lock:
        _count -= 1
        if _count == 0:
            Function.apply = _original


def _tapes() -> list[tuple[Tape, bool]]:
    if not hasattr(_entered, "tapes"):
        _entered.tapes = []
    return _entered.tapes


def _apply(function: type[Function], *args: Any, **kwargs: Any) -> Any:
    """Apply a Function, and record it on the innermost tape of this thread."""
    apply = _original.__get__(None, function)
    tape = _tapes()[-1][0] if _tapes() else None
    if tape is None or tape.is_paused or not torch.is_grad_enabled():
        return apply(*args, **kwargs)
    replaced = REPLACED.get((function.__module__, function.__name__))
    if replaced is not None:
        return replaced(*args, **kwargs)
    rule = FUNCTION_RULES.get(function) or (_by_jvp if function.jvp is not Function.jvp else None)
    if rule is None:
        return apply(*args, **kwargs)
    inputs = [argument for argument in args if isinstance(argument, Tensor)]
    slots, versions = tape.slots(inputs, function.__name__), [tensor._version for tensor in inputs]
    out = apply(*args, **kwargs)
    overwritten = any(tensor._version != version for tensor, version in zip(inputs, versions, strict=True))
    if any(slot is not None for slot in slots) and not overwritten:
        constant = tuple(x.detach() if isinstance(x, Tensor) else x for x in args)
        call = Call(None, function.__name__, constant, kwargs, [slot is not None for slot in slots], out)
        call.function = function
        tape.record(function.__name__, slots, out, rule(call), custom=True)
    return out


def _by_jvp(call: Call) -> Derivative:
    function = call.function
    assert function is not None
    return generic(call, function.apply, function.__name__)


def unknown_tangent(reader: str, node: Any) -> str:
    """Message for a tensor whose tangent is unknown, with what to write."""
    function = getattr(node, "_forward_cls", None)
    if "DifferentiableGraph" in node.name():
        return (
            f"{reader} reads a tensor whose tangent is unknown, because a function of torch.jit.script made it that "
            "was optimised before: run the model's first pass under torch.jit.optimized_execution(False), or do not "
            "script it"
        )
    if function is None:
        return (
            f"{reader} reads a tensor whose tangent is unknown, because {node.name()} made it in a way that the tape "
            "does not see: write it with torch operators, or out of place"
        )
    name = function.__name__
    return (
        f"{reader} reads a tensor whose tangent is unknown, because {node.name()} made it: the custom "
        f"autograd.Function {name} in {function.__module__} has no derivative that is known to be that of its forward "
        f"pass. If its backward pass is what you want, also for straight-through estimators, write "
        f"`raycurv.curvature.register_operator({name})`; otherwise give it `@staticmethod def jvp(ctx, *tangents)`"
    )


# --- Functions of torch ----------------------------------------------------------------------------------------------


def _checkpointed(run_function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
    return run_function(*args)  # a tape keeps or drops activations by itself


def _cross_map_lrn(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1) -> Tensor:
    channel, reach = torch.arange(x.shape[1], device=x.device), int((size - 1) / 2)
    near = (channel - channel[:, None]).abs() <= reach
    near[:, 0] = True  # torch's sliding window keeps the first channel
    squares = torch.einsum("ij,njhw->nihw", near.to(x.dtype), x.square())
    return x * (k + alpha / size * squares) ** -beta


def _conditional(condition: Any, if_true: Callable[..., Any], if_false: Callable[..., Any], *args: Any) -> Any:
    return if_true(*args) if condition else if_false(*args)  # which branch is a constant, as in backward


# By module and name: importing all of these modules would take time.
REPLACED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch.utils.checkpoint", "CheckpointFunction"): _checkpointed,
    ("torch.nn.modules._functions", "CrossMapLRN2d"): _cross_map_lrn,
    ("torch._higher_order_ops.cond", "CondAutogradOp"): _conditional,
}
