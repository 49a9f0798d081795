"""One rule for each operator: its derivative at a point, and its second derivative along a direction.

A :class:`Derivative` holds two functions of the tangents of the operator's tensor arguments (None is zero):

- ``first(*d)`` = Df·d, linear;
- ``quadratic(*d)`` = D²f[d, d]; None for operators that are linear.

so that along a path with x' = d and x'' = dd the output has f' = first(d) and f'' = first(dd) + quadratic(d).
Four families cover nearly everything: linear operators (tangents go through the operator itself), bilinear ones
(products), element-wise ones (φ′, φ″) and normalisations. An operator without a rule falls back on torch's own
forward mode
for the first derivative and on reverse mode for the second, because torch's nested forward mode is silently wrong
for some layers.
"""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

aten = torch.ops.aten
Tangent = Tensor | None


class UnsupportedOperator(NotImplementedError):
    """An operator has no derivative rule here nor a forward-mode rule in torch; the message names it."""


@dataclass(frozen=True)
class Derivative:
    """The derivative of one operator at a point.

    Attributes:
        first: tangents of the tensor arguments to the tangent (or tuple of tangents) of the outputs.
        quadratic: tangents to D²f[d, d]; None where the operator is linear.
    """

    first: Callable[..., Any]
    quadratic: Callable[..., Any] | None = None


@dataclass
class Call:
    """One execution of an operator: its arguments, which of its tensors carry tangents, and what came out."""

    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    active: list[bool]
    out: Any = field(default=None)


Rule = Callable[[Call], Derivative]
RULES: dict[str, Rule] = {}
_KEEPS_INPUT: set[str] = set()


def rule(*names: str, keeps_input: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name; `keeps_input` if it needs the first argument as it was before the call."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
            if keeps_input:
                _KEEPS_INPUT.add(name)
        return function

    return register


def derivative(call: Call) -> Derivative:
    """The derivative of this call at its arguments."""
    found = RULES.get(call.name)
    return found(call) if found is not None else _generic(call)


def keeps_input(call: Call) -> bool:
    """Whether the rule needs the first argument's values, so that an in-place operator needs a copy."""
    if call.name in ("mul", "div"):
        return len(call.active) > 1 and call.active[1]
    return call.name in _KEEPS_INPUT or call.name not in RULES


def tensors_of(args: Sequence[Any]) -> list[Tensor]:
    """The tensors among positional arguments, those of lists included, in order."""
    found: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found.extend(item for item in arg if isinstance(item, Tensor))
    return found


def total(*terms: Tangent) -> Tangent:
    """The sum of the terms that are there."""
    result: Tangent = None
    for term in terms:
        if term is not None:
            result = term if result is None else result + term
    return result


# --- linear: the tangent goes through the operator itself ------------------------------------------------------------


@rule(
    "t", "transpose", "permute", "unsqueeze", "squeeze", "select", "slice", "alias", "expand", "clone", "_to_copy",
    "contiguous", "mean", "sum", "neg", "flip", "roll", "repeat", "diagonal", "reflection_pad1d",
    "reflection_pad2d", "replication_pad1d", "replication_pad2d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "upsample_nearest2d",
    "upsample_bilinear2d", "im2col", "col2im", "cumsum", "tril", "triu", "unfold", "movedim", "pixel_shuffle",
    "pixel_unshuffle", "lift_fresh", "index_select", "gather", "index", "split", "split_with_sizes",
    "unbind", "chunk", "unsafe_split", "channel_shuffle", "trace", "native_channel_shuffle", "expand_as",
    "squeeze_copy", "narrow", "rot90",
)  # fmt: skip
def _linear(call: Call) -> Derivative:
    # Out of place even where the model was not: tangents share memory with each other and with the direction.
    func, rest, kwargs, many = _out_of_place(call), call.args[1:], call.kwargs, isinstance(call.out, (list, tuple))

    def first(d: Tensor, *_: Tangent) -> Any:
        out = func(d, *rest, **kwargs)
        return tuple(out) if many else out

    return Derivative(first)


def _out_of_place(call: Call) -> Any:
    """The operator itself, or its form that writes nothing.

    Raises:
        UnsupportedOperator: it has none.
    """
    func = call.func
    if not func._schema.is_mutable:
        return func
    if call.name == "transpose":  # the only one whose overloads have other names
        return aten.transpose.int
    functional = getattr(getattr(torch.ops, func.namespace), call.name, None)
    if functional is None or not hasattr(functional, func._overloadname):
        raise UnsupportedOperator(f"{func} works in place and has no out-of-place form: write it out of place")
    return getattr(functional, func._overloadname)


@rule("constant_pad_nd")
def _pad(call: Call) -> Derivative:
    func, padding = call.func, call.args[1]
    return Derivative(lambda d: func(d, padding))  # the constant around it does not move


@rule("embedding")
def _embedding(call: Call) -> Derivative:
    func, indices, rest = call.func, call.args[1], call.args[2:]
    padding = rest[0] if rest else -1
    if len(rest) > 1 and rest[1]:
        raise UnsupportedOperator(f"{func} with scale_grad_by_freq has a backward pass that is not its derivative")

    def first(d: Tensor, *_: Tangent) -> Tensor:
        moved = func(d, indices, *rest)
        # The row of the padding is a constant, as it is for the backward pass.
        return moved if padding < 0 else moved.masked_fill((indices == padding)[..., None], 0)

    return Derivative(first)


# --- random numbers: those of the forward pass, never drawn again ----------------------------------------------------


@rule("native_dropout")
def _dropout(call: Call) -> Derivative:
    p, train, kept = call.args[1], call.args[2], call.out[1]
    scale = 1 if train is False else 0 if p == 1 else 1 / (1 - p)
    return Derivative(lambda d: d * kept * scale)


@rule("rrelu_with_noise", keeps_input=True)
def _rrelu(call: Call) -> Derivative:
    x, noise, lower, upper, training = (*call.args, 1 / 8, 1 / 3, False)[:5] if len(call.args) < 3 else call.args[:5]
    slope = noise if training else torch.where(x > 0, 1.0, (lower + upper) / 2)
    return Derivative(lambda d, *_: d * slope)


@rule("bernoulli", "normal", "uniform", "exponential", "cauchy", "geometric", "log_normal", "random", "poisson")
def _drawn(call: Call) -> Derivative:
    return Derivative(lambda *_: None)  # torch gives what is drawn a derivative of zero


@rule("view", "_unsafe_view", "_reshape_alias")
def _view(call: Call) -> Derivative:
    shape = call.out.shape  # a tangent may lie in memory otherwise than its tensor
    return Derivative(lambda d, *_: d.reshape(shape))


@rule("as_strided")
def _as_strided(call: Call) -> Derivative:
    x, rest = call.args[0], call.args[1:]
    shape, stride = x.shape, x.stride()
    whole = x.storage_offset() == 0 and x.numel() * x.itemsize == x.untyped_storage().nbytes()

    def first(d: Tensor) -> Tensor:
        if not whole:
            raise UnsupportedOperator("as_strided on a part of a tensor has no derivative rule: use slices and views")
        return d.new_empty_strided(shape, stride).copy_(d).as_strided(*rest)

    return Derivative(first)


@rule("add", "sub", "rsub")
def _add(call: Call) -> Derivative:
    alpha = call.args[2] if len(call.args) > 2 else call.kwargs.get("alpha", 1)
    shape = call.out.shape
    left, right = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[call.name]
    if not isinstance(call.args[1], Tensor):
        return Derivative(lambda d: d if left == 1 else d * left)

    def first(dx: Tangent, dy: Tangent) -> Tensor:
        if dx is not None and dy is not None and left == 1:
            return torch.add(dx, dy, alpha=right)
        x = None if dx is None else dx if left == 1 else dx * left
        y = None if dy is None else dy if right == 1 else dy * right
        return _required(total(x, y)).expand(shape)

    # An argument that is itself a number as a tensor has its tangent in first place only when it comes first.
    return Derivative(first if isinstance(call.args[0], Tensor) else lambda dy: dy if right == 1 else dy * right)


@rule("copy")
def _copy(call: Call) -> Derivative:
    shape, dtype = call.out.shape, call.out.dtype
    return Derivative(lambda _, source: None if source is None else source.to(dtype).expand(shape))


@rule("cat", "stack")
def _cat(call: Call) -> Derivative:
    func, rest, kwargs, pieces = call.func, call.args[1:], call.kwargs, call.args[0]
    like = [(piece.shape, piece.dtype, piece.device) for piece in pieces]

    def first(*d: Tangent) -> Tensor:
        filled = [
            torch.zeros(shape, dtype=dtype, device=device) if x is None else x
            for x, (shape, dtype, device) in zip(d, like, strict=True)
        ]
        return func(filled, *rest, **kwargs)

    return Derivative(first)


@rule("where")
def _where(call: Call) -> Derivative:
    condition, shape = call.args[0], call.out.shape
    tensors = [isinstance(argument, Tensor) for argument in call.args[1:]]

    def first(_: Tangent, *d: Tangent) -> Tensor:
        given = iter(d)
        x, y = (next(given) if tensor else None for tensor in tensors)
        zero = _required(total(x, y)).new_zeros(())
        return torch.where(condition, zero if x is None else x, zero if y is None else y).expand(shape)

    return Derivative(first)


@rule("masked_fill")
def _masked_fill(call: Call) -> Derivative:
    mask, shape, by_tensor = call.args[1], call.out.shape, isinstance(call.args[2], Tensor)

    def first(d: Tangent, _: Tangent, *value: Tangent) -> Tensor:
        inside = value[0] if by_tensor and value[0] is not None else None
        if d is None:
            return torch.where(mask, _required(inside), 0.0).expand(shape)
        return d.masked_fill(mask, 0.0) if inside is None else torch.where(mask, inside, d)

    return Derivative(first)


@rule("max_pool2d_with_indices", "adaptive_max_pool2d", "max_pool3d_with_indices", "adaptive_max_pool3d")
def _max_pool(call: Call) -> Derivative:
    indices, dimensions = call.out[1], 3 if "3d" in call.name else 2

    def first(d: Tensor) -> Tensor:
        return d.flatten(-dimensions).gather(-1, indices.flatten(-dimensions)).view(indices.shape)

    return Derivative(first)


@rule("max", "min")
def _max_along(call: Call) -> Derivative:
    if not isinstance(call.out, (list, tuple)) or len(call.args) < 2 or isinstance(call.args[1], Tensor):
        return _generic(call)
    indices, dim = call.out[1], call.args[1]
    keep = len(call.args) > 2 and bool(call.args[2])

    def first(d: Tensor) -> Tensor:
        at = indices if keep or d.dim() == 0 else indices.unsqueeze(dim)
        taken = d.gather(dim, at) if d.dim() else d
        return taken if keep or d.dim() == 0 else taken.squeeze(dim)

    return Derivative(first)


# --- bilinear: products ----------------------------------------------------------------------------------------------


def _product(
    call: Call,
    multiply: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    dx: Callable[..., Tangent],
    dy: Callable[..., Tangent],
    additive: Callable[..., Tangent] = lambda *_: None,
) -> Derivative:
    """x·y (+ a linear term): first = ẋ·y + x·ẏ, quadratic = 2 ẋ·ẏ; `dx`, `dy` pick the tangents out of all of them."""
    left = x if call.active[-1] else None  # what no tangent will be multiplied with need not be kept

    def first(*d: Tangent) -> Tangent:
        u, v = dx(*d), dy(*d)
        return total(
            None if u is None else multiply(u, y), None if v is None else multiply(_required(left), v), additive(*d)
        )

    def quadratic(*d: Tangent) -> Tangent:
        u, v = dx(*d), dy(*d)
        return None if u is None or v is None else multiply(u, v).mul_(2)

    return Derivative(first, quadratic)


@rule("mul", "mm", "bmm", "mv", "dot")
def _mul(call: Call) -> Derivative:
    x, y = call.args[:2]
    if not isinstance(y, Tensor):
        return Derivative(lambda d: d * y)
    if not isinstance(x, Tensor):
        return Derivative(lambda d: x * d)
    multiply: Callable[[Tensor, Tensor], Tensor] = torch.mul if call.func._schema.is_mutable else call.func
    return _product(call, multiply, x, y, lambda u, v: u, lambda u, v: v)


@rule("addmm", "baddbmm", "addmv")
def _addmm(call: Call) -> Derivative:
    beta, alpha, shape = call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1), call.out.shape
    multiply: Any = {"addmm": torch.mm, "baddbmm": torch.bmm, "addmv": torch.mv}[call.name]

    def scaled(x: Tensor, y: Tensor) -> Tensor:
        return multiply(x, y) if alpha == 1 else multiply(x, y) * alpha

    def bias(b: Tangent, *_: Tangent) -> Tangent:
        return None if b is None else (b if beta == 1 else b * beta).expand(shape)

    return _product(call, scaled, call.args[1], call.args[2], lambda b, u, v: u, lambda b, u, v: v, bias)


@rule("convolution")
def _convolution(call: Call) -> Derivative:
    x, weight, bias, *settings = call.args
    has_bias = bias is not None

    def convolve(x: Tensor, weight: Tensor, bias: Tangent = None) -> Tensor:
        return aten.convolution.default(x, weight, bias, *settings)

    def first(dx: Tangent, dw: Tangent, db: Tangent = None) -> Tangent:
        if not has_bias:
            db = None
        by_weight = None if dw is None else convolve(x, dw, db)
        if dx is None:
            if by_weight is None and db is not None:
                return db.view(1, -1, *(1,) * (x.dim() - 2)).expand(shape)
            return by_weight
        by_input = convolve(dx, weight, db if by_weight is None else None)
        return by_input if by_weight is None else by_input.add_(by_weight)

    def quadratic(dx: Tangent, dw: Tangent, db: Tangent = None) -> Tangent:
        return None if dx is None or dw is None else convolve(dx, dw).mul_(2)

    shape = call.out.shape
    return Derivative(first, quadratic)


@rule("div")
def _div(call: Call) -> Derivative:
    if call.kwargs.get("rounding_mode") is not None:
        return _generic(call)
    x, y = call.args[:2]
    if not isinstance(y, Tensor) or not call.active[-1]:
        shape = call.out.shape
        return Derivative(lambda d, *_: (d / y).expand(shape))

    def first(dx: Tangent, dy: Tangent) -> Tensor:
        # x / y anew: the model may write over the quotient, which torch's backward does not read.
        return _required(total(dx, None if dy is None else dy * -(x / y))) / y

    def quadratic(dx: Tangent, dy: Tangent) -> Tangent:
        return None if dy is None else -2 * first(dx, dy) * dy / y

    return (
        Derivative(first, quadratic)
        if isinstance(x, Tensor)
        else Derivative(lambda dy: first(None, dy), lambda dy: quadratic(None, dy))
    )


# --- element-wise: φ′(x)·d and φ″(x)·d² ------------------------------------------------------------------------------

Phi = Callable[..., Tensor]


def _elementwise(slope: Phi, bend: Phi | None, fused: Phi | None = None, *, of: str) -> Rule:
    """A rule from φ′ and φ″ (None is zero), given the operator's input or its output and its further arguments.

    `fused(d, at, …)` computes d·φ′ in one kernel.
    """

    def make(call: Call) -> Derivative:
        if len(call.active) > 1:  # a bound of clamp may be a tensor, with a tangent of its own
            return _generic(call)
        at, more = (call.args[0] if of == "input" else call.out), call.args[1:]

        def first(d: Tensor, *_: Tangent) -> Tensor:
            if fused is not None:
                return fused(d, at, *more, **call_kwargs)
            return d * slope(at, *more, **call_kwargs)

        def quadratic(d: Tensor, *_: Tangent) -> Tensor:
            return d * d * bend(at, *more, **call_kwargs)  # type: ignore[misc]  # only used where bend is there

        call_kwargs = call.kwargs
        return Derivative(first, quadratic if bend is not None else None)

    return make


def _step(inside: Tensor, like: Tensor) -> Tensor:
    return inside.to(like.dtype)


def _sigmoid_bend(s: Tensor) -> Tensor:
    return s * (1 - s) * (1 - 2 * s)


def _elu_parts(x: Tensor, alpha: float, scale: float, input_scale: float) -> tuple[Tensor, Tensor]:
    return x > 0, alpha * scale * input_scale * torch.exp(input_scale * x.clamp(max=0))


def _elu_slope(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    positive, negative = _elu_parts(x, alpha, scale, input_scale)
    return torch.where(positive, scale, negative)


def _elu_bend(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    positive, negative = _elu_parts(x, alpha, scale, input_scale)
    return torch.where(positive, 0.0, negative * input_scale)


_NORMAL = 1 / math.sqrt(2 * math.pi)
_TANH_A, _TANH_B = math.sqrt(2 / math.pi), 0.044715


def _gelu_slope(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * _NORMAL * torch.exp(-0.5 * x * x)
    t = torch.tanh(_TANH_A * (x + _TANH_B * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * _TANH_A * (1 + 3 * _TANH_B * x * x)


def _gelu_bend(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return _NORMAL * torch.exp(-0.5 * x * x) * (2 - x * x)
    t = torch.tanh(_TANH_A * (x + _TANH_B * x**3))
    inner, bend = _TANH_A * (1 + 3 * _TANH_B * x * x), 6 * _TANH_A * _TANH_B * x
    return (1 - t * t) * (inner + 0.5 * x * (bend - 2 * t * inner * inner))


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _silu_bend(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _mish_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tanh(torch.nn.functional.softplus(x)), torch.sigmoid(x), x


def _mish_slope(x: Tensor) -> Tensor:
    t, s, _ = _mish_parts(x)
    return t + x * (1 - t * t) * s


def _mish_bend(x: Tensor) -> Tensor:
    t, s, _ = _mish_parts(x)
    sech = 1 - t * t
    return sech * s * (2 + x * (1 - s) - 2 * x * t * s)


def _softplus_slope(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return torch.where(x * beta > threshold, 1.0, torch.sigmoid(x * beta))


def _softplus_bend(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    s = torch.sigmoid(x * beta)
    return torch.where(x * beta > threshold, 0.0, beta * s * (1 - s))


def _pow_bend(x: Tensor, exponent: float) -> Tensor:
    # x**0 is 1 also at 0, where 0 · 0**(-1) would be NaN.
    return torch.zeros_like(x) if exponent in (0, 1) else exponent * (exponent - 1) * x ** (exponent - 2)


def _pow_slope(x: Tensor, exponent: float) -> Tensor:
    return torch.zeros_like(x) if exponent == 0 else exponent * x ** (exponent - 1)


def _clamp_slope(x: Tensor, low: float | None = None, high: float | None = None, **named: float | None) -> Tensor:
    low, high = named.get("min", low), named.get("max", high)
    above = x >= low if low is not None else torch.ones_like(x, dtype=torch.bool)
    return _step(above & (x <= high) if high is not None else above, x)


def _hardswish_slope(x: Tensor) -> Tensor:
    return torch.where(x <= -3, 0.0, torch.where(x < 3, x / 3 + 0.5, 1.0))


_BY_INPUT: dict[str, tuple[Phi, Phi | None]] = {
    "elu": (_elu_slope, _elu_bend),
    "gelu": (_gelu_slope, _gelu_bend),
    "silu": (_silu_slope, _silu_bend),
    "mish": (_mish_slope, _mish_bend),
    "softplus": (_softplus_slope, _softplus_bend),
    "leaky_relu": (lambda x, slope=0.01: _step(x > 0, x) * (1 - slope) + slope, None),
    "hardtanh": (lambda x, low=-1, high=1: _step((x > low) & (x < high), x), None),
    "hardsigmoid": (lambda x: _step((x > -3) & (x < 3), x) / 6, None),
    "hardswish": (_hardswish_slope, lambda x: _step((x > -3) & (x < 3), x) / 3),
    "threshold": (lambda x, at, value: _step(x > at, x), None),
    "clamp": (_clamp_slope, None),
    "clamp_min": (lambda x, low: _step(x >= low, x), None),
    "clamp_max": (lambda x, high: _step(x <= high, x), None),
    "abs": (lambda x: torch.sign(x), None),
    "log": (lambda x: 1 / x, lambda x: -1 / (x * x)),
    "log1p": (lambda x: 1 / (1 + x), lambda x: -1 / (1 + x) ** 2),
    "sin": (torch.cos, lambda x: -torch.sin(x)),
    "cos": (lambda x: -torch.sin(x), lambda x: -torch.cos(x)),
    "erf": (
        lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x * x),
        lambda x: -4 / math.sqrt(math.pi) * x * torch.exp(-x * x),
    ),
    "square": (lambda x: 2 * x, lambda x: torch.full_like(x, 2)),
}
_BY_OUTPUT: dict[str, tuple[Phi, Phi | None]] = {
    "relu": (lambda y: _step(y > 0, y), None),
    "tanh": (lambda y: 1 - y * y, lambda y: -2 * y * (1 - y * y)),
    "sigmoid": (lambda y: y * (1 - y), _sigmoid_bend),
    "exp": (lambda y: y, lambda y: y),
    "expm1": (lambda y: y + 1, lambda y: y + 1),
    "sqrt": (lambda y: 0.5 / y, lambda y: -0.25 / y**3),
    "rsqrt": (lambda y: -0.5 * y**3, lambda y: 0.75 * y**5),
    "reciprocal": (lambda y: -y * y, lambda y: 2 * y**3),
}
# One kernel for d·φ′ where torch has one for the backward pass.
_FUSED: dict[str, Callable[..., Tensor]] = {
    "relu": lambda d, y: aten.threshold_backward.default(d, y, 0),
    "threshold": lambda d, x, at, value: aten.threshold_backward.default(d, x, at),
    "tanh": lambda d, y: aten.tanh_backward.default(d, y),
    "sigmoid": lambda d, y: aten.sigmoid_backward.default(d, y),
    "gelu": lambda d, x, **kwargs: aten.gelu_backward.default(d, x, **kwargs),
    "silu": lambda d, x: aten.silu_backward.default(d, x),
    "mish": lambda d, x: aten.mish_backward.default(d, x),
    "softplus": lambda d, x, beta=1, threshold=20: aten.softplus_backward.default(d, x, beta, threshold),
    "elu": lambda d, x, alpha=1, scale=1, by=1: aten.elu_backward.default(d, alpha, scale, by, False, x),
    "leaky_relu": lambda d, x, slope=0.01: aten.leaky_relu_backward.default(d, x, slope, False),
    "hardswish": lambda d, x: aten.hardswish_backward.default(d, x),
    "hardtanh": lambda d, x, low=-1, high=1: aten.hardtanh_backward.default(d, x, low, high),
}
for _name, (_slope, _bend) in _BY_INPUT.items():
    rule(_name, keeps_input=True)(_elementwise(_slope, _bend, _FUSED.get(_name), of="input"))
for _name, (_slope, _bend) in _BY_OUTPUT.items():
    rule(_name)(_elementwise(_slope, _bend, _FUSED.get(_name), of="output"))


@rule("pow", keeps_input=True)
def _pow(call: Call) -> Derivative:
    if isinstance(call.args[0], Tensor) and not isinstance(call.args[1], Tensor):
        return _elementwise(_pow_slope, _pow_bend, of="input")(call)
    return _generic(call)


# --- softmax ---------------------------------------------------------------------------------------------------------


@rule("_softmax", "_safe_softmax", "softmax")
def _softmax(call: Call) -> Derivative:
    y, dim = call.out, call.args[1]

    def centred(d: Tensor) -> Tensor:
        return d - (y * d).sum(dim, keepdim=True)

    def quadratic(d: Tensor) -> Tensor:
        square = centred(d).square()
        return y * (square - (y * square).sum(dim, keepdim=True))

    return Derivative(lambda d: y * centred(d), quadratic)


@rule("_log_softmax", "log_softmax")
def _log_softmax(call: Call) -> Derivative:
    out, dim = call.out, call.args[1]

    def first(d: Tensor) -> Tensor:
        return d - (out.exp() * d).sum(dim, keepdim=True)

    def quadratic(d: Tensor) -> Tensor:
        return -(out.exp() * first(d).square()).sum(dim, keepdim=True).expand(out.shape)

    return Derivative(first, quadratic)


# --- everything else: torch's own derivatives ------------------------------------------------------------------------


@rule("_weight_norm_interface")
def _weight_norm(call: Call) -> Derivative:
    def written_out(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
        return v * (g / torch.norm_except_dim(v, 2, dim))

    return _generic(call, written_out)  # torch's own has no forward mode and a wrong second derivative


def _generic(call: Call, equal: Callable[..., Any] | None = None) -> Derivative:
    """Forward mode for the first derivative, reverse mode twice where torch has none.

    For the second derivative, reverse mode three times, which is slow and right. `equal` is a function that computes
    the same as the operator and is differentiated in its place.

    Raises:
        UnsupportedOperator: torch has neither rule, or the operator draws random numbers.
    """
    func = equal or _out_of_place(call)
    args, kwargs, active = call.args, call.kwargs, list(call.active)

    def evaluate(*tensors: Tensor) -> Any:
        given = iter(tensors)
        return func(*_refill(args, given), **kwargs)

    points = tensors_of(args)

    def forward(*d: Tangent) -> Any:
        _load_forward_mode()
        with forward_ad.dual_level():
            duals = [x if t is None else forward_ad.make_dual(x, t) for x, t in zip(points, d, strict=True)]
            out = evaluate(*duals)
            many = isinstance(out, (list, tuple))
            tangents = tuple(_tangent(o) for o in (out if many else (out,)))
            return tangents if many else tangents[0]

    def first(*d: Tangent) -> Any:
        if torch.Tag.nondeterministic_seeded in call.func.tags:
            raise UnsupportedOperator(
                f"{func} draws random numbers, has no rule in raycurv.curvature.rules, and would "
                "draw others if it were computed again"
            )
        try:
            return forward(*d)
        except torch.OutOfMemoryError:
            raise
        except (NotImplementedError, RuntimeError) as error:
            try:
                return by_reverse_mode(_first_derivative, *d)
            except RuntimeError:
                raise UnsupportedOperator(
                    f"{func} has no rule in raycurv.curvature.rules and torch's forward mode refuses it: {error}"
                ) from error

    def by_reverse_mode(differentiate: Callable[..., Tangent], *d: Tangent) -> Any:
        with torch.enable_grad():
            xs = [x.detach().requires_grad_(a and t is not None) for x, a, t in zip(points, active, d, strict=True)]
            moving = [x for x in xs if x.requires_grad]
            along = [t for x, t in zip(xs, d, strict=True) if x.requires_grad]
            out = evaluate(*xs)
            many = isinstance(out, (list, tuple))
            found = tuple(differentiate(o, moving, along) for o in (out if many else (out,)))
        return found if many else found[0]

    return Derivative(first, lambda *d: by_reverse_mode(_second_derivative, *d))


@functools.cache
def _load_forward_mode() -> None:
    """Torch compiles some of its forward-mode rules at the first use, by a function that it has itself deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def _tangent(out: Any) -> Tangent:
    return forward_ad.unpack_dual(out).tangent if isinstance(out, Tensor) and out.is_floating_point() else None


def _refill(args: Sequence[Any], tensors: Any) -> list[Any]:
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
    """J·d as a differentiable function of xs, by differentiating vᵀJ with respect to v."""
    v = torch.zeros_like(out, requires_grad=True)
    pulled = torch.autograd.grad(out, xs, v, create_graph=True, allow_unused=True, materialize_grads=True)
    if not any(p.requires_grad for p in pulled):
        return None
    return torch.autograd.grad(pulled, v, d, create_graph=True, allow_unused=True)[0]


def _first_derivative(out: Any, xs: list[Tensor], d: list[Any]) -> Tangent:
    if not isinstance(out, Tensor) or not out.is_floating_point() or not out.requires_grad:
        return None
    slope = _along(out, xs, d)
    return None if slope is None else slope.detach()


def _second_derivative(out: Any, xs: list[Tensor], d: list[Any]) -> Tangent:
    if not isinstance(out, Tensor) or not out.is_floating_point() or not out.requires_grad:
        return None
    slope = _along(out, xs, d)
    if slope is None or not slope.requires_grad:
        return None
    bend = _along(slope, xs, d)
    return None if bend is None else bend.detach()


def _required(tangent: Tangent) -> Tensor:
    if tangent is None:
        raise RuntimeError("an operator was asked for its derivative without any tangent")
    return tangent
