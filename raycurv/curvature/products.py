"""Rules of products and quotients: (x·y)' = x'·y + x·y'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from raycurv.curvature.rules import (
    Call,
    Derivative,
    Tangent,
    aten,
    generic,
    moves,
    required,
    rule,
    total,
)


def _product(
    call: Call, multiply: Callable[[Tensor, Tensor], Tensor], add_product: Callable[..., Tensor] | None = None
) -> Derivative:
    """x·y: first = ẋ·y + x·ẏ, quadratic = 2 ẋ·ẏ.

    Args:
        call: execution of the operator.
        multiply: the product, linear in both arguments.
        add_product: ``add_product(sum, x, y, beta=β)`` returns β·sum + x·y in one kernel, in the memory of `sum`.
    """
    x, y = call.args[:2]
    if not call.active[1]:
        return Derivative(lambda u, _: multiply(u, y))
    if not call.active[0]:
        return Derivative(lambda _, v: multiply(x, v))

    def first(u: Tangent, v: Tangent) -> Tangent:
        if u is None or v is None:
            return multiply(u, y) if u is not None else multiply(x, required(v))
        if add_product is None:
            return multiply(u, y) + multiply(x, v)
        return add_product(multiply(u, y), x, v)

    def quadratic(u: Tangent, v: Tangent) -> Tangent:
        return None if u is None or v is None else multiply(u, v).mul_(2)

    def both(d: Sequence[Tangent], dd: Sequence[Tangent], reusable: Sequence[Tangent]) -> tuple[Tangent, Tangent]:
        assert add_product is not None
        (u, v), factor = d, 2
        second = None if u is None or v is None else multiply(u, v)
        for left, right in ((dd[0], y), (x, dd[1])):
            if left is None or right is None:
                continue
            second = multiply(left, right) if second is None else add_product(second, left, right, beta=factor)
            factor = 1
        return first(u, v), second if second is None or factor == 1 else second.mul_(2)

    return Derivative(first, quadratic, None if add_product is None else both)


def _in_place(add: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``add_(sum, x, y, …)`` in the memory of `sum`, in the form that counters of operations know."""
    return lambda total, x, y, **factors: add(total, x, y, **factors, out=total)


_SUMS: dict[str, Callable[..., Tensor]] = {"mm": torch.addmm, "bmm": torch.baddbmm, "mv": torch.addmv}


@rule("mul", "mm", "bmm", "mv", "dot")
def _mul(call: Call) -> Derivative:
    x, y = call.args[:2]
    if not isinstance(y, Tensor):
        return Derivative(lambda d: d * y)
    if not isinstance(x, Tensor):
        return Derivative(lambda d: x * d)
    multiply: Callable[[Tensor, Tensor], Tensor] = torch.mul if call.func._schema.is_mutable else call.func
    add = _SUMS.get(call.name)
    return _product(call, multiply, None if add is None else _in_place(add))


@rule("addmm", "baddbmm", "addmv")
def _addmm(call: Call) -> Derivative:
    beta, alpha, shape = call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1), call.out.shape
    multiply: Any = {"addmm": torch.mm, "baddbmm": torch.bmm, "addmv": torch.mv}[call.name]
    add: Any = {"addmm": torch.addmm, "baddbmm": torch.baddbmm, "addmv": torch.addmv}[call.name]
    add_ = _in_place(add)
    x = call.args[1] if call.active[2] else None  # without ẏ, x is not needed and can be freed
    y = call.args[2] if call.active[1] else None

    def first(b: Tangent, u: Tangent, v: Tangent) -> Tangent:
        result = None
        for left, right in ((x, v), (u, y)):
            if left is None or right is None:
                continue
            if result is not None:
                result = add_(result, left, right, alpha=alpha)
            elif b is not None:
                result = add(b, left, right, beta=beta, alpha=alpha)
            else:
                result = multiply(left, right) if alpha == 1 else multiply(left, right).mul_(alpha)
        if result is None and b is not None:
            return (b if beta == 1 else b * beta).expand(shape)
        return result

    def quadratic(b: Tangent, u: Tangent, v: Tangent) -> Tangent:
        return None if u is None or v is None else multiply(u, v).mul_(2 * alpha)

    def both(d: Sequence[Tangent], dd: Sequence[Tangent], reusable: Sequence[Tangent]) -> tuple[Tangent, Tangent]:
        (b, u, v), (bb, uu, vv) = d, dd
        if u is None or v is None or uu is None or y is None or bb is not None or vv is not None:
            return first(b, u, v), total(first(bb, uu, vv) if moves(dd) else None, quadratic(b, u, v))
        # The usual case: the second derivative of the parameters is 0.
        return first(b, u, v), add_(multiply(u, v), uu, y, beta=2 * alpha, alpha=alpha)

    return Derivative(first, quadratic, both)


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
