"""One rule per operator: its derivative at a point, and its second derivative along a direction.

A :class:`Derivative` holds two functions of the tangents of the operator's tensor arguments (None is zero):

- ``first(*d)`` = Df·d, linear;
- ``quadratic(*d)`` = D²f[d, d]; None for operators that are linear.

Along a path with x' = d and x'' = dd, the output has f' = first(d) and f'' = first(dd) + quadratic(d). Where computing
both at once costs less memory or time, a third function does.

Four families cover nearly everything: linear operators (:mod:`~raycurv.curvature.linear`), products
(:mod:`~raycurv.curvature.products`), element-wise functions (:mod:`~raycurv.curvature.elementwise`) and normalisations
(:mod:`~raycurv.curvature.norms`). An operator without a rule falls back on torch's forward mode for the first
derivative, and on reverse mode for the second: torch's nested forward mode gives wrong values for some layers.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

aten = torch.ops.aten
Tangent = Tensor | None
Both = Callable[[Sequence[Tangent], Sequence[Tangent], Sequence[Tangent]], tuple[Any, Any]]


# Elements per chunk, where one layer would need several temporaries of its own size: 256 KB of float32 stay in the
# cache.
CHUNK_SIZE = 1 << 16
# Elsewhere than on the CPU, where every chunk costs the launch of its kernels: 64 MB of float32.
DEVICE_CHUNK_SIZE = 1 << 24


def chunk_size(x: Tensor) -> int:
    """Elements per chunk of operations on `x`."""
    return CHUNK_SIZE if x.device.type == "cpu" else DEVICE_CHUNK_SIZE


class UnsupportedOperator(NotImplementedError):
    """An operator has neither a derivative rule here nor a forward-mode rule in torch; the message names it."""


@dataclass(frozen=True)
class Derivative:
    """The derivative of one operator at a point.

    Attributes:
        first: function of the tangents of the tensor arguments; returns the tangent (or tuple of tangents) of the
            outputs.
        quadratic: function of the same tangents; returns D²f[d, d] in memory of its own. None if the operator is
            linear.
        both: function of (d, dd, reusable); returns (f', f'') in place of the two functions above. `reusable` holds
            the first tensor argument's tangents in d and dd if they may be overwritten and returned, else None.
        outputs: number of outputs, the first ones, whose tangents these functions give; None is all. The tangents of
            the others are unknown.
        differentiates: whether the functions use torch's automatic differentiation.
    """

    first: Callable[..., Any]
    quadratic: Callable[..., Any] | None = None
    both: Both | None = None
    outputs: int | None = None
    differentiates: bool = False


@dataclass
class Call:
    """One execution of an operator.

    Attributes:
        func: overload of the operator.
        name: name of the operator, without the underscore of an in-place form (:func:`name_of`).
        args: positional arguments.
        kwargs: keyword arguments.
        active: whether each of the tensors among `args` may carry a tangent.
        out: tensor or tuple of tensors that the operator returned.
        function: subclass of ``torch.autograd.Function``, where that was applied in place of an operator.
    """

    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    active: list[bool]
    out: Any = field(default=None)
    function: Any = None


Rule = Callable[[Call], Derivative]
RULES: dict[str, Rule] = {}
KEEPS_INPUT: set[str] = set()
# Registered operators, which torch executes without recording a graph where an autograd.Function calls them.
WITHIN_FUNCTIONS: set[str] = set()


def name_of(func: Any) -> str:
    """Name of an operator: ``"mul"`` in torch's own library, ``"library::name"`` in any other."""
    name = func.overloadpacket.__name__
    return name if func.namespace == "aten" else f"{func.namespace}::{name}"


def rule(*names: str, keeps_input: bool = False, outputs: int | None = None) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name.

    Args:
        *names: names of operators (:func:`name_of`).
        keeps_input: whether the rule needs the first argument as it was before the call.
        outputs: number of outputs, the first ones, whose tangents the rule gives; None is all.
    """

    def register(function: Rule) -> Rule:
        def limited(call: Call) -> Derivative:
            return dataclasses.replace(function(call), outputs=outputs)

        for name in names:
            RULES[name] = function if outputs is None else limited
            if keeps_input:
                KEEPS_INPUT.add(name)
        return function

    return register


def derivative(call: Call) -> Derivative:
    """The derivative of this call at its arguments."""
    found = RULES.get(call.name)
    return found(call) if found is not None else generic(call)


def keeps_input(call: Call) -> bool:
    """Whether the rule needs the first argument's values, so that an in-place operator needs a copy of it."""
    if call.name in ("mul", "div"):
        return len(call.active) > 1 and call.active[1]
    return call.name in KEEPS_INPUT or call.name not in RULES


def tensors_of(args: Sequence[Any]) -> list[Tensor]:
    """The tensors among positional arguments, those of lists included, in order."""
    found: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found.extend(item for item in arg if isinstance(item, Tensor))
    return found


def carries_tangents(tensor: Tensor) -> bool:
    """Whether a tensor can have a tangent: real or complex numbers, no integers."""
    return tensor.is_floating_point() or tensor.is_complex()


def moves(tangents: Sequence[Tangent]) -> bool:
    """Whether any of the tangents is not zero."""
    return any(tangent is not None for tangent in tangents)


def total(*terms: Tangent) -> Tangent:
    """The sum of the terms that are not None."""
    result: Tangent = None
    for term in terms:
        if term is not None:
            result = term if result is None else result + term
    return result


# --- operators without a rule: torch's derivatives -------------------------------------------------------------------


def generic(
    call: Call,
    equivalent: Callable[..., Any] | None = None,
    name: str | None = None,
    *,
    forward_mode: bool = True,
) -> Derivative:
    """Torch's derivatives: forward mode for the first, or reverse mode twice where torch has no forward mode.

    The second derivative takes reverse mode three times, which is slow and exact.

    Args:
        call: execution of the operator.
        equivalent: function that computes the same as the operator and is differentiated in its place.
        name: name of the operator in errors; None is that of the function.
        forward_mode: whether the first derivative may be taken in forward mode.

    Raises:
        UnsupportedOperator: torch has neither rule, the operator draws random numbers, or the model has overwritten
            its arguments.
    """
    func = equivalent or out_of_place(call)
    # The call itself would keep its output alive.
    args, kwargs, active, operator = call.args, call.kwargs, list(call.active), call.func
    name = name or str(call.func or func)

    def evaluate(*tensors: Tensor) -> Any:
        given = iter(tensors)
        return func(*refill(args, given), **kwargs)

    points = tensors_of(args)
    versions = [point._version for point in points]

    def forward(*d: Tangent) -> Any:
        _load_forward_mode()
        with forward_ad.dual_level():
            duals = [x if t is None else forward_ad.make_dual(x, t.to(x.dtype)) for x, t in zip(points, d, strict=True)]
            out = evaluate(*duals)
            many = isinstance(out, (list, tuple))
            tangents = tuple(_tangent(o) for o in (out if many else (out,)))
            if all(tangent is None for tangent in tangents):
                raise NotImplementedError("no tangent")  # a constant, or an operator without a rule
            return tangents if many else tangents[0]

    def check() -> None:
        if any(point._version != version for point, version in zip(points, versions, strict=True)):
            raise UnsupportedOperator(
                f"an argument of {name} was overwritten before its derivative was taken: write out of place what "
                "comes after it"
            )
        if operator is not None and torch.Tag.nondeterministic_seeded in operator.tags:
            raise UnsupportedOperator(
                f"{name} draws random numbers, has no rule in raycurv.curvature.rules, and would "
                "draw others if it were computed again"
            )

    def first(*d: Tangent) -> Any:
        check()
        if not forward_mode:
            return by_reverse_mode(_first_derivative, None, *d)
        try:
            return forward(*d)
        except torch.OutOfMemoryError:
            raise
        except (NotImplementedError, RuntimeError) as error:
            return by_reverse_mode(_first_derivative, error, *d)

    def by_reverse_mode(differentiate: Callable[..., Tangent], error: Exception | None, *d: Tangent) -> Any:
        try:
            with torch.enable_grad():
                moves = [a and t is not None for a, t in zip(active, d, strict=True)]
                xs = [x.detach().requires_grad_(moving) for x, moving in zip(points, moves, strict=True)]
                moving = [x for x in xs if x.requires_grad]
                along = [t for x, t in zip(xs, d, strict=True) if x.requires_grad]
                out = evaluate(*xs)
                many = isinstance(out, (list, tuple))
                found = tuple(differentiate(o, moving, along) for o in (out if many else (out,)))
            return found if many else found[0]
        except torch.OutOfMemoryError:
            raise
        except (NotImplementedError, RuntimeError) as second_error:
            raise UnsupportedOperator(
                f"{name} has no rule in raycurv.curvature.rules and torch cannot differentiate it as often as needed: "
                f"{error or second_error}"
            ) from second_error

    def quadratic(*d: Tangent) -> Any:
        check()
        return by_reverse_mode(_second_derivative, None, *d)

    return Derivative(first, quadratic, differentiates=True)


@functools.cache
def _load_forward_mode() -> None:
    """Import torch's compiled forward-mode rules without the deprecation warning that the import raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def _tangent(out: Any) -> Tangent:
    return forward_ad.unpack_dual(out).tangent if isinstance(out, Tensor) and carries_tangents(out) else None


def refill(args: Sequence[Any], tensors: Iterator[Tensor]) -> list[Any]:
    """Positional arguments with other tensors in the places of theirs."""
    filled: list[Any] = []
    for arg in args:
        if isinstance(arg, Tensor):
            filled.append(next(tensors))
        elif isinstance(arg, (list, tuple)) and any(isinstance(item, Tensor) for item in arg):
            filled.append([next(tensors) if isinstance(item, Tensor) else item for item in arg])
        else:
            filled.append(arg)
    return filled


def _along(out: Tensor, xs: list[Tensor], d: list[Any]) -> Tangent:
    """J·d as a differentiable function of xs, by differentiating vᵀJ with respect to v.

    Raises:
        RuntimeError: vᵀJ cannot be differentiated.
    """
    v = torch.zeros_like(out, requires_grad=True)
    pulled = torch.autograd.grad(out, xs, v, create_graph=True, allow_unused=True, materialize_grads=True)
    if any(_differentiable_once(p) for p in pulled):
        raise RuntimeError("its backward pass cannot be differentiated (once_differentiable)")
    if not any(p.requires_grad for p in pulled):
        return None
    return torch.autograd.grad(pulled, v, d, create_graph=True, allow_unused=True)[0]


def _differentiable_once(pulled: Tensor) -> bool:
    """Whether the graph of a gradient ends where torch would raise an error, and would take 0 without one."""
    nodes, seen = [pulled.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name() in ("Error", "torch::autograd::Error"):
            return True
        seen.add(node)
        nodes.extend(following for following, _ in node.next_functions)
    return False


def _first_derivative(out: Any, xs: list[Tensor], d: list[Any]) -> Tangent:
    if not isinstance(out, Tensor) or not carries_tangents(out) or not out.requires_grad:
        return None
    slope = _along(out, xs, d)
    return None if slope is None else slope.detach()


def _second_derivative(out: Any, xs: list[Tensor], d: list[Any]) -> Tangent:
    if not isinstance(out, Tensor) or not carries_tangents(out) or not out.requires_grad:
        return None
    slope = _along(out, xs, d)
    if slope is None or not slope.requires_grad:
        return None
    second = _along(slope, xs, d)
    return None if second is None else second.detach()


def required(tangent: Tangent) -> Tensor:
    """The tangent, which must not be None.

    Raises:
        RuntimeError: it is None: no tangent reaches the operator.
    """
    if tangent is None:
        raise RuntimeError("an operator was asked for its derivative without any tangent")
    return tangent


def out_of_place(call: Call) -> Any:
    """The operator, or the out-of-place form of an in-place operator.

    Raises:
        UnsupportedOperator: it has no out-of-place form.
    """
    func = call.func
    if not func._schema.is_mutable:
        return func
    if call.name == "transpose":  # its in-place and out-of-place overloads differ in name
        return aten.transpose.int
    functional = getattr(getattr(torch.ops, func.namespace), call.name.split("::")[-1], None)
    if functional is None or not hasattr(functional, func._overloadname):
        raise UnsupportedOperator(f"{func} works in place and has no out-of-place form: write it out of place")
    return getattr(functional, func._overloadname)
