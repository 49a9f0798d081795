"""Rules of element-wise functions, φ′(x)·d and φ″(x)·d², and of softmax."""

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


def _elementwise(slope: Phi, bend: Phi | None, fused: Phi | None = None, *, of: str) -> Rule:
    """A rule from φ′ and φ″ (None is zero), given the operator's input or its output and its further arguments.

    `fused(d, at, …)` computes d·φ′ in one kernel.
    """

    def make(call: Call) -> Derivative:
        if len(call.active) > 1:  # a bound of clamp may be a tensor, with a tangent of its own
            return generic(call)
        at, more = (call.args[0] if of == "input" else call.out), call.args[1:]

        def first(d: Tensor, *_: Tangent) -> Tensor:
            if fused is not None:
                return fused(d, at, *more, **call_kwargs)
            return d * slope(at, *more, **call_kwargs)

        def quadratic(d: Tensor, *_: Tangent) -> Tensor:
            return d * d * bend(at, *more, **call_kwargs)  # type: ignore[misc]  # only used where bend is there

        call_kwargs = call.kwargs
        if bend is None:
            return Derivative(first)

        def both(d: Sequence[Tangent], dd: Sequence[Tangent], spare: Sequence[Tangent]) -> tuple[Tensor, Tensor]:
            return _part_by_part(at, more, call_kwargs, (slope, bend, fused), (required(d[0]), dd[0]), spare)

        return Derivative(first, quadratic, both)

    return make


def _part_by_part(
    at: Tensor,
    more: Sequence[Any],
    named: dict[str, Any],
    functions: tuple[Phi, Phi, Phi | None],
    tangents: tuple[Tensor, Tangent],
    spare: Sequence[Tangent],
) -> tuple[Tensor, Tensor]:
    """φ′·d and φ′·dd + φ″·d², with temporaries of a part's size."""
    slope, bend, fused = functions
    d, dd = tangents

    def apart(t: Tangent) -> bool:
        return t is None or (t.is_contiguous() and t.shape == at.shape and t.dtype == at.dtype)

    size = max(1, at.numel())
    if apart(d) and apart(dd) and apart(at):
        size = min(size, rules.PART)
    else:  # laid out in different ways: all at once
        at, d = (t.contiguous() for t in torch.broadcast_tensors(at, d))
        dd = None if dd is None else dd.expand(at.shape).contiguous()
        spare = (None, None)
    outs = [torch.empty_like(x) if free is None else free for x, free in zip((d, d), spare, strict=True)]
    ats, ds, firsts, seconds = (t.view(-1).split(size) for t in (at, d, *outs))
    dds = [None] * len(ds) if dd is None else dd.view(-1).split(size)
    for x, u, v, first, second in zip(ats, ds, dds, firsts, seconds, strict=True):
        bent = (u * u).mul_(bend(x, *more, **named))
        if fused is None:
            factor = slope(x, *more, **named)
            second.copy_(bent if v is None else bent.addcmul_(v, factor))
            torch.mul(u, factor, out=first)
        else:
            second.copy_(bent if v is None else bent.add_(fused(v, x, *more, **named)))
            first.copy_(fused(u, x, *more, **named))
    return outs[0], outs[1]


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
    return generic(call)


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
