"""Rules of linear operators: the operator itself is applied to the tangents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raycurv.curvature.rules import (
    Call,
    Derivative,
    Tangent,
    UnsupportedOperator,
    generic,
    out_of_place,
    refill,
    required,
    rule,
    tensors_of,
    total,
)


@rule(
    "t", "transpose", "permute", "unsqueeze", "squeeze", "select", "slice", "alias", "expand", "clone", "_to_copy",
    "mean", "sum", "neg", "flip", "roll", "repeat", "diagonal", "reflection_pad1d",
    "reflection_pad2d", "replication_pad1d", "replication_pad2d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "upsample_nearest2d",
    "upsample_bilinear2d", "im2col", "col2im", "cumsum", "tril", "triu", "unfold", "pixel_shuffle",
    "pixel_unshuffle", "lift_fresh", "index_select", "gather", "index", "split", "split_with_sizes",
    "unbind", "unsafe_split", "trace", "native_channel_shuffle",
    "squeeze_copy", "rot90", "_fft_r2c", "_fft_c2r", "_fft_c2c",
)  # fmt: skip
def _linear(call: Call) -> Derivative:
    # Out of place in any case: tangents share memory with each other and with the direction.
    func, rest, kwargs, many = out_of_place(call), call.args[1:], call.kwargs, isinstance(call.out, (list, tuple))

    def first(d: Tensor, *_: Tangent) -> Any:
        out = func(d, *rest, **kwargs)
        return tuple(out) if many else out

    return Derivative(first)


# --- complex numbers: real and imaginary parts, linear over the real numbers -----------------------------------------


@rule("_conj", "_conj_physical", "conj_physical")
def _conjugate(call: Call) -> Derivative:
    return Derivative(lambda d: torch.conj_physical(d))


@rule("_neg_view")
def _negative(call: Call) -> Derivative:
    return Derivative(torch.neg)


@rule("view_as_real")
def _view_as_real(call: Call) -> Derivative:
    return Derivative(lambda d: torch.view_as_real(d.resolve_conj()))


@rule("view_as_complex")
def _view_as_complex(call: Call) -> Derivative:
    return Derivative(lambda d: torch.view_as_complex(d.contiguous()))


@rule("complex")
def _complex(call: Call) -> Derivative:
    shape = call.out.shape

    def first(re: Tangent, im: Tangent) -> Tensor:
        zero = torch.zeros_like(required(total(re, im)))
        return torch.complex(zero if re is None else re, zero if im is None else im).expand(shape)

    return Derivative(first)


# --- operators that are linear in several tensors --------------------------------------------------------------------


@rule(
    *("index_put", "_unsafe_index_put", "_index_put_impl", "index_add", "index_copy", "scatter_add", "slice_scatter"),
    *("select_scatter", "diagonal_scatter", "masked_scatter"),
)
def _linear_in_all(call: Call) -> Derivative:
    func, args, kwargs = out_of_place(call), call.args, call.kwargs
    like = [(x.shape, x.dtype, x.device) for x in tensors_of(args)]

    def first(*d: Tangent) -> Tensor:
        given = iter(
            x
            if not dtype.is_floating_point and not dtype.is_complex
            else torch.zeros(shape, dtype=dtype, device=device)
            if t is None
            else t.to(dtype)
            for t, x, (shape, dtype, device) in zip(d, tensors_of(args), like, strict=True)
        )
        return func(*refill(args, given), **kwargs)

    return Derivative(first)


@rule("scatter")
def _scatter(call: Call) -> Derivative:
    if not isinstance(call.args[3], Tensor) or len(call.args) > 4 or call.kwargs:
        return generic(call)
    return _linear_in_all(call)


@rule("zero", "fill", "floor", "ceil", "round", "trunc", "sign", "sgn")
def _constant(call: Call) -> Derivative:
    if call.name == "fill" and len(call.active) > 1 and call.active[1]:
        shape = call.out.shape
        return Derivative(lambda _, value: None if value is None else value.expand(shape))
    if call.args[0].is_complex() and call.name == "sgn":
        return generic(call)
    return Derivative(lambda *_: None)


@rule("copysign")
def _copysign(call: Call) -> Derivative:
    x, shape = call.args[0], call.out.shape
    # The sign of the second argument is constant.
    flips = torch.where(torch.signbit(x) == torch.signbit(call.out), 1.0, -1.0).to(x.dtype) * (x != 0)
    return Derivative(lambda d, *_: None if d is None else (d * flips).expand(shape))


@rule("constant_pad_nd")
def _pad(call: Call) -> Derivative:
    func, padding = call.func, call.args[1]
    return Derivative(lambda d: func(d, padding))  # the constant around it has the tangent 0


@rule("embedding")
def _embedding(call: Call) -> Derivative:
    func, indices, rest = call.func, call.args[1], call.args[2:]
    padding = rest[0] if rest else -1

    def first(d: Tensor, *_: Tangent) -> Tensor:
        tangent = func(d, indices, *rest)
        # With scale_grad_by_freq too, this is the derivative; the backward pass is not its transpose.
        # The row of the padding is a constant, as it is for the backward pass.
        return tangent if padding < 0 else tangent.masked_fill((indices == padding)[..., None], 0)

    return Derivative(first)


# --- random operators: derivatives for the numbers of the forward pass -----------------------------------------------


@rule("native_dropout")
def _dropout(call: Call) -> Derivative:
    p, train, mask = call.args[1], call.args[2], call.out[1]
    scale = 1 if train is False else 0 if p == 1 else 1 / (1 - p)
    return Derivative(lambda d: d * mask * scale)


@rule("rrelu_with_noise", keeps_input=True)
def _rrelu(call: Call) -> Derivative:
    x, noise, lower, upper, training = (*call.args, 1 / 8, 1 / 3, False)[:5] if len(call.args) < 3 else call.args[:5]
    slope = noise if training else torch.where(x > 0, 1.0, (lower + upper) / 2)
    return Derivative(lambda d, *_: d * slope)


@rule("bernoulli", "normal", "uniform", "exponential", "cauchy", "geometric", "log_normal", "random", "poisson")
def _random(call: Call) -> Derivative:
    return Derivative(lambda *_: None)  # random numbers have the derivative 0, as in torch


@rule("view", "_unsafe_view", "_reshape_alias")
def _view(call: Call) -> Derivative:
    if call.out.dtype != call.args[0].dtype:
        raise UnsupportedOperator("a view in another dtype has no derivative rule")
    shape = call.out.shape  # a tangent may have another layout in memory than its tensor
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
        return required(total(x, y)).expand(shape)

    # Only tensors have tangents: if the first argument is a number, the only tangent is that of the second.
    return Derivative(first if isinstance(call.args[0], Tensor) else lambda dy: dy if right == 1 else dy * right)


@rule("copy")
def _copy(call: Call) -> Derivative:
    shape, dtype = call.out.shape, call.out.dtype
    return Derivative(lambda _, source: None if source is None else source.to(dtype).expand(shape))


@rule("cat", "stack")
def _cat(call: Call) -> Derivative:
    func, rest, kwargs = call.func, call.args[1:], call.kwargs
    like = [(tensor.shape, tensor.dtype, tensor.device) for tensor in call.args[0]]

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
        zero = required(total(x, y)).new_zeros(())
        return torch.where(condition, zero if x is None else x, zero if y is None else y).expand(shape)

    return Derivative(first)


@rule("masked_fill")
def _masked_fill(call: Call) -> Derivative:
    mask, shape, by_tensor = call.args[1], call.out.shape, isinstance(call.args[2], Tensor)

    def first(d: Tangent, _: Tangent, *value: Tangent) -> Tensor:
        inside = value[0] if by_tensor and value[0] is not None else None
        if d is None:
            return torch.where(mask, required(inside), 0.0).expand(shape)
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
        return generic(call)
    indices, dim = call.out[1], call.args[1]
    keep = len(call.args) > 2 and bool(call.args[2])

    def first(d: Tensor) -> Tensor:
        at = indices if keep or d.dim() == 0 else indices.unsqueeze(dim)
        selected = d.gather(dim, at) if d.dim() else d
        return selected if keep or d.dim() == 0 else selected.squeeze(dim)

    return Derivative(first)
