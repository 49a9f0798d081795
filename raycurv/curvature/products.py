"""Rules of products and quotients: (x·y)' = x'·y + x·y'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from raycurv.curvature.rules import (
    Call,
    Derivative,
    Tangent,
    aten,
    generic,
    required,
    rule,
    total,
)


def _product(
    call: Call,
    multiply: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    dx: Callable[..., Tangent],
    dy: Callable[..., Tangent],
    additive: Callable[..., Tangent] = lambda *_: None,
) -> Derivative:
    """x·y (+ a linear term): first = ẋ·y + x·ẏ, quadratic = 2 ẋ·ẏ.

    Args:
        call: execution of the operator.
        multiply: the product, linear in both arguments.
        x: left factor.
        y: right factor.
        dx: function that selects ẋ from all tangents.
        dy: function that selects ẏ from all tangents.
        additive: function that returns the tangent of the linear term from all tangents.
    """
    left = x if call.active[-1] else None  # without ẏ, x is not needed and can be freed

    def first(*d: Tangent) -> Tangent:
        u, v = dx(*d), dy(*d)
        return total(
            None if u is None else multiply(u, y), None if v is None else multiply(required(left), v), additive(*d)
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
        return generic(call)
    x, y = call.args[:2]
    if not isinstance(y, Tensor) or not call.active[-1]:
        shape = call.out.shape
        return Derivative(lambda d, *_: (d / y).expand(shape))

    def first(dx: Tangent, dy: Tangent) -> Tensor:
        # x / y again: the model may overwrite the quotient, which torch's backward pass does not read.
        return required(total(dx, None if dy is None else dy * -(x / y))) / y

    def quadratic(dx: Tangent, dy: Tangent) -> Tangent:
        return None if dy is None else -2 * first(dx, dy) * dy / y

    return (
        Derivative(first, quadratic)
        if isinstance(x, Tensor)
        else Derivative(lambda dy: first(None, dy), lambda dy: quadratic(None, dy))
    )
