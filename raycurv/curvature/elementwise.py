"""Rules of element-wise functions, φ′(x)·d and φ″(x)·d², and of softmax.

Functions named ``_…_first`` and ``_…_second`` are φ′ and φ″ at the operator's input x or its output y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from raycurv.curvature import rules
from raycurv.curvature.rules import (
    Call,
    Derivative,
    Rule,
    Tangent,
    aten,
    generic,
    required,
    rule,
)

Phi = Callable[..., Tensor]


def _elementwise(phi1: Phi, phi2: Phi | None, fused: Phi | None = None, *, of: str) -> Rule:
    """A rule from φ′ and φ″.

    Args:
        phi1: φ′, a function of the operator's input or output and its further arguments.
        phi2: φ″, a function of the same arguments; None is zero.
        fused: ``fused(d, at, …)`` computes d·φ′ in one kernel.
        of: ``"input"`` or ``"output"``: the tensor that the functions take.
    """

    def make(call: Call) -> Derivative:
        if len(call.active) > 1:  # a bound of clamp may be a tensor, with a tangent of its own
            return generic(call)
        if call.args[0].is_complex():  # the kernels of backward passes conjugate, and not every function is holomorphic
            return generic(call)
        at, more = (call.args[0] if of == "input" else call.out), call.args[1:]

        def first(d: Tensor, *_: Tangent) -> Tensor:
            if fused is not None:
                return fused(d, at, *more, **call_kwargs)
            return d * phi1(at, *more, **call_kwargs)

        def quadratic(d: Tensor, *_: Tangent) -> Tensor:
            return d * d * phi2(at, *more, **call_kwargs)  # type: ignore[misc]  # only called if phi2 is not None

        call_kwargs = call.kwargs
        if phi2 is None:
            return Derivative(first)

        def both(d: Sequence[Tangent], dd: Sequence[Tangent], reusable: Sequence[Tangent]) -> tuple[Tensor, Tensor]:
            return _in_chunks(at, more, call_kwargs, (phi1, phi2, fused), (required(d[0]), dd[0]), reusable)

        return Derivative(first, quadratic, both)

    return make


def _in_chunks(
    at: Tensor,
    more: Sequence[Any],
    named: dict[str, Any],
    functions: tuple[Phi, Phi, Phi | None],
    tangents: tuple[Tensor, Tangent],
    reusable: Sequence[Tangent],
) -> tuple[Tensor, Tensor]:
    """φ′·d and φ′·dd + φ″·d², chunk by chunk, so that temporaries have the size of a chunk."""
    phi1, phi2, fused = functions
    d, dd = tangents

    def like_point(t: Tangent) -> bool:
        return t is None or (t.is_contiguous() and t.shape == at.shape and t.dtype == at.dtype)

    size = max(1, at.numel())
    if like_point(d) and like_point(dd) and like_point(at):
        size = min(size, rules.chunk_size(at))
    else:  # different layouts in memory: one chunk
        at, d = (t.contiguous() for t in torch.broadcast_tensors(at, d))
        dd = None if dd is None else dd.expand(at.shape).contiguous()
        reusable = (None, None)
    outs = [torch.empty_like(d) if memory is None else memory for memory in reusable]
    ats, ds, firsts, seconds = (t.view(-1).split(size) for t in (at, d, *outs))
    dds = [None] * len(ds) if dd is None else dd.view(-1).split(size)
    for x, u, v, first, second in zip(ats, ds, dds, firsts, seconds, strict=True):
        quadratic = (u * u).mul_(phi2(x, *more, **named))
        if fused is None:
            factor = phi1(x, *more, **named)
            second.copy_(quadratic if v is None else quadratic.addcmul_(v, factor))
            torch.mul(u, factor, out=first)
        else:
            second.copy_(quadratic if v is None else quadratic.add_(fused(v, x, *more, **named)))
            first.copy_(fused(u, x, *more, **named))
    return outs[0], outs[1]


def _indicator(inside: Tensor, like: Tensor) -> Tensor:
    return inside.to(like.dtype)


def _sigmoid_second(s: Tensor) -> Tensor:
    return s * (1 - s) * (1 - 2 * s)


def _elu_branches(x: Tensor, alpha: float, scale: float, input_scale: float) -> tuple[Tensor, Tensor]:
    return x > 0, alpha * scale * input_scale * torch.exp(input_scale * x.clamp(max=0))


def _elu_first(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    positive, negative = _elu_branches(x, alpha, scale, input_scale)
    return torch.where(positive, scale, negative)


def _elu_second(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    positive, negative = _elu_branches(x, alpha, scale, input_scale)
    return torch.where(positive, 0.0, negative * input_scale)


_NORMAL = 1 / math.sqrt(2 * math.pi)
_TANH_A, _TANH_B = math.sqrt(2 / math.pi), 0.044715


def _gelu_first(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * _NORMAL * torch.exp(-0.5 * x * x)
    t = torch.tanh(_TANH_A * (x + _TANH_B * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * _TANH_A * (1 + 3 * _TANH_B * x * x)


def _gelu_second(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return _NORMAL * torch.exp(-0.5 * x * x) * (2 - x * x)
    t = torch.tanh(_TANH_A * (x + _TANH_B * x**3))
    inner, inner_slope = _TANH_A * (1 + 3 * _TANH_B * x * x), 6 * _TANH_A * _TANH_B * x
    return (1 - t * t) * (inner + 0.5 * x * (inner_slope - 2 * t * inner * inner))


def _silu_first(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _silu_second(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _mish_factors(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tanh(torch.nn.functional.softplus(x)), torch.sigmoid(x)


def _mish_first(x: Tensor) -> Tensor:
    t, s = _mish_factors(x)
    return t + x * (1 - t * t) * s


def _mish_second(x: Tensor) -> Tensor:
    t, s = _mish_factors(x)
    sech = 1 - t * t
    return sech * s * (2 + x * (1 - s) - 2 * x * t * s)


def _softplus_first(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return torch.where(x * beta > threshold, 1.0, torch.sigmoid(x * beta))


def _softplus_second(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    s = torch.sigmoid(x * beta)
    return torch.where(x * beta > threshold, 0.0, beta * s * (1 - s))


def _pow_second(x: Tensor, exponent: float) -> Tensor:
    # x**0 is 1 also at 0, where 0 · 0**(-1) would be NaN.
    return torch.zeros_like(x) if exponent in (0, 1) else exponent * (exponent - 1) * x ** (exponent - 2)


def _pow_first(x: Tensor, exponent: float) -> Tensor:
    return torch.zeros_like(x) if exponent == 0 else exponent * x ** (exponent - 1)


def _clamp_first(x: Tensor, low: float | None = None, high: float | None = None, **named: float | None) -> Tensor:
    low, high = named.get("min", low), named.get("max", high)
    above = x >= low if low is not None else torch.ones_like(x, dtype=torch.bool)
    return _indicator(above & (x <= high) if high is not None else above, x)


def _hardswish_first(x: Tensor) -> Tensor:
    return torch.where(x <= -3, 0.0, torch.where(x < 3, x / 3 + 0.5, 1.0))


_BY_INPUT: dict[str, tuple[Phi, Phi | None]] = {
    "elu": (_elu_first, _elu_second),
    "gelu": (_gelu_first, _gelu_second),
    "silu": (_silu_first, _silu_second),
    "mish": (_mish_first, _mish_second),
    "softplus": (_softplus_first, _softplus_second),
    "leaky_relu": (lambda x, slope=0.01: _indicator(x > 0, x) * (1 - slope) + slope, None),
    "hardtanh": (lambda x, low=-1, high=1: _indicator((x > low) & (x < high), x), None),
    "hardsigmoid": (lambda x: _indicator((x > -3) & (x < 3), x) / 6, None),
    "hardswish": (_hardswish_first, lambda x: _indicator((x > -3) & (x < 3), x) / 3),
    "threshold": (lambda x, at, value: _indicator(x > at, x), None),
    "clamp": (_clamp_first, None),
    "clamp_min": (lambda x, low: _indicator(x >= low, x), None),
    "clamp_max": (lambda x, high: _indicator(x <= high, x), None),
    "abs": (lambda x: torch.sign(x), None),
    "log": (lambda x: 1 / x, lambda x: -1 / (x * x)),
    "log1p": (lambda x: 1 / (1 + x), lambda x: -1 / (1 + x) ** 2),
    "sin": (torch.cos, lambda x: -torch.sin(x)),
    "cos": (lambda x: -torch.sin(x), lambda x: -torch.cos(x)),
    "erf": (
        lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x * x),
        lambda x: -4 / math.sqrt(math.pi) * x * torch.exp(-x * x),
    ),
}
_BY_OUTPUT: dict[str, tuple[Phi, Phi | None]] = {
    "relu": (lambda y: _indicator(y > 0, y), None),
    "tanh": (lambda y: 1 - y * y, lambda y: -2 * y * (1 - y * y)),
    "sigmoid": (lambda y: y * (1 - y), _sigmoid_second),
    "exp": (lambda y: y, lambda y: y),
    "expm1": (lambda y: y + 1, lambda y: y + 1),
    "sqrt": (lambda y: 0.5 / y, lambda y: -0.25 / y**3),
    "rsqrt": (lambda y: -0.5 * y**3, lambda y: 0.75 * y**5),
    "reciprocal": (lambda y: -y * y, lambda y: 2 * y**3),
}
# d·φ′ in one kernel: torch's kernel of the backward pass.
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
for _name, (_phi1, _phi2) in _BY_INPUT.items():
    rule(_name, keeps_input=True)(_elementwise(_phi1, _phi2, _FUSED.get(_name), of="input"))
for _name, (_phi1, _phi2) in _BY_OUTPUT.items():
    rule(_name)(_elementwise(_phi1, _phi2, _FUSED.get(_name), of="output"))


@rule("pow", keeps_input=True)
def _pow(call: Call) -> Derivative:
    if isinstance(call.args[0], Tensor) and not isinstance(call.args[1], Tensor):
        return _elementwise(_pow_first, _pow_second, of="input")(call)
    return generic(call)


# --- softmax ---------------------------------------------------------------------------------------------------------


@rule("_softmax", "_safe_softmax")
def _softmax(call: Call) -> Derivative:
    y, dim = call.out, call.args[1]

    def first(d: Tensor) -> Tensor:
        # The Jacobian diag(y) − yyᵀ is symmetric: the kernel of the backward pass computes J·d.
        return aten._softmax_backward_data.default(d.to(y.dtype), y, dim, y.dtype)

    def squared(d: Tensor) -> Tensor:
        return (d - (y * d).sum(dim, keepdim=True)).square_()

    def both(d: Sequence[Tangent], dd: Sequence[Tangent], reusable: Sequence[Tangent]) -> tuple[Tensor, Tensor]:
        (u,), (uu,) = d, dd
        u = required(u)
        square = squared(u)
        return first(u), first(square if uu is None else square.add_(uu))

    return Derivative(first, lambda d: first(squared(d)), both)


@rule("_log_softmax")
def _log_softmax(call: Call) -> Derivative:
    out, dim = call.out, call.args[1]

    def first(d: Tensor) -> Tensor:
        return d - (out.exp() * d).sum(dim, keepdim=True)

    def quadratic(d: Tensor) -> Tensor:
        return -(out.exp() * first(d).square()).sum(dim, keepdim=True).expand(out.shape)

    return Derivative(first, quadratic)
