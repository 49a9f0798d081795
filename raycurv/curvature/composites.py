"""Rules of operators whose derivatives torch does not have or gets wrong, by operators that compute the same."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from raycurv.curvature.rules import WITHIN_FUNCTIONS, Call, Derivative, Tangent, generic, required, rule, total


@rule("_weight_norm_interface", outputs=1)
def _weight_norm(call: Call) -> Derivative:
    def composite(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
        return v * (g / torch.norm_except_dim(v, 2, dim))

    return generic(call, composite)  # the fused operator has no forward mode and a wrong second derivative


# --- linear algebra --------------------------------------------------------------------------------------------------


@rule("cholesky_inverse")
def _cholesky_inverse(call: Call) -> Derivative:
    def composite(factor: Tensor, upper: bool = False) -> Tensor:
        triangle, identity = _triangle(factor, upper), torch.eye(factor.shape[-1], dtype=factor.dtype).to(factor.device)
        inverse = torch.linalg.solve_triangular(triangle, identity, upper=upper)
        return inverse @ inverse.mH if upper else inverse.mH @ inverse

    return generic(call, composite)  # torch's derivative counts the diagonal twice


@rule("cholesky_solve", "_cholesky_solve_helper")
def _cholesky_solve(call: Call) -> Derivative:
    def composite(right: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
        lower = _triangle(factor, upper).mH if upper else _triangle(factor, upper)
        half = torch.linalg.solve_triangular(lower, right, upper=False)
        return torch.linalg.solve_triangular(lower.mH, half, upper=True)

    return generic(call, composite)


def _triangle(factor: Tensor, upper: bool) -> Tensor:
    return factor.triu() if upper else factor.tril()


@rule("logcumsumexp", "_logcumsumexp")
def _logcumsumexp(call: Call) -> Derivative:
    x, out, dim = call.args[0], call.out, call.args[1]

    def mean(t: Tensor) -> Tensor:
        """Σ exp(x_j − out_i)·t_j over j ≤ i, without overflow: for positive and negative t apart."""
        parts = [torch.logcumsumexp(x + part.log(), dim) for part in (t.clamp(min=0), (-t).clamp(min=0))]
        positive, negative = (torch.exp(part - out) for part in parts)
        return positive - negative

    return Derivative(mean, lambda d: mean(d * d) - mean(d).square())


# --- sums over segments ----------------------------------------------------------------------------------------------


@rule("_embedding_bag", outputs=1)
def _embedding_bag(call: Call) -> Derivative:
    func, (weight, indices, offsets) = call.func, call.args[:3]
    named = ("scale_grad_by_freq", "mode", "sparse", "per_sample_weights", "include_last_offset", "padding_idx")
    given = dict(zip(named, call.args[3:], strict=False)) | call.kwargs
    mode, scales = given.get("mode", 0), given.get("per_sample_weights")

    def bags(weight: Tensor, scales: Tensor | None) -> Tensor:
        rest = [
            given.get(name, default) for name, default in zip(named, (False, 0, False, None, False, -1), strict=True)
        ]
        rest[0], rest[2], rest[3] = False, False, scales
        return func(weight, indices, offsets, *rest)[0]

    if mode == 2:
        chosen, empty = call.out[3], call.out[2] == 0

        def largest(d: Tensor, *_: Tangent) -> Tensor:
            return d.gather(0, chosen.clamp(min=0)).masked_fill(empty[: len(chosen), None], 0)

        return Derivative(largest)

    def first(d: Tangent, *rest: Tangent) -> Tensor:
        scaled = rest[-1] if scales is not None else None
        by_weight = None if d is None else bags(d, scales)
        return required(total(by_weight, None if scaled is None else bags(weight, scaled)))

    def quadratic(d: Tangent, *rest: Tangent) -> Tangent:
        scaled = rest[-1] if scales is not None else None
        return None if d is None or scaled is None else 2 * bags(d, scaled)

    return Derivative(first, quadratic)


@rule("segment_reduce")
def _segment_reduce(call: Call) -> Derivative:
    kwargs = call.kwargs
    lengths, axis = kwargs.get("lengths"), kwargs.get("axis", 0)
    if lengths is None:
        lengths = kwargs["offsets"].diff(dim=-1)

    def composite(data: Tensor, reduce: str, **_: Any) -> Tensor:
        initial = kwargs.get("initial")
        empty = {"sum": 0.0, "mean": math.nan, "max": -math.inf, "min": math.inf, "prod": 1.0}[reduce]
        if reduce == "mean" and initial is not None:
            empty = initial
        rows = lengths.reshape(-1, lengths.shape[-1]).tolist()
        groups = data.reshape(len(rows), *data.shape[axis:])
        out = []
        for group, sizes in zip(groups, rows, strict=True):
            start, values = 0, []
            for size in sizes:
                part, start = group[start : start + size], start + size
                values.append(_reduced(part, reduce, empty if initial is None or reduce == "mean" else initial))
            out.append(torch.stack(values))
        return torch.stack(out).reshape(*lengths.shape, *data.shape[axis + 1 :])

    return generic(call, composite)


def _reduced(part: Tensor, reduce: str, initial: float) -> Tensor:
    if reduce == "mean":
        return part.mean(0) if len(part) else part.sum(0) + initial
    row = torch.full_like(part.sum(0, keepdim=True), initial)
    part = torch.cat([row, part]) if math.isfinite(initial) else part
    if not len(part):
        return row[0]
    if reduce == "sum":
        return part.sum(0)
    return part.prod(0) if reduce == "prod" else part.amax(0) if reduce == "max" else part.amin(0)


# --- losses inside a model -------------------------------------------------------------------------------------------

_REDUCTIONS = (lambda x: x, torch.mean, torch.sum)


@rule("multi_margin_loss")
def _multi_margin_loss(call: Call) -> Derivative:
    def composite(
        x: Tensor, target: Tensor, p: float = 1, margin: float = 1, weight: Tensor | None = None, reduction: int = 1
    ) -> Tensor:
        single, x = x.dim() < 2, x.reshape(-1, x.shape[-1] if x.dim() else 1)
        column = target.reshape(-1, 1)
        excess = (margin - x.gather(1, column) + x).clamp(min=0) ** p
        if weight is not None:
            excess = excess * weight[column]
        losses = excess.scatter(1, column, 0.0).sum(1) / x.shape[1]
        return _REDUCTIONS[reduction](losses[0] if single else losses)

    return generic(call, composite)


@rule("multilabel_margin_loss_forward", outputs=1)
def _multilabel_margin_loss(call: Call) -> Derivative:
    def composite(x: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
        single, last = x.dim() < 2, x.shape[-1] if x.dim() else 1
        rows, targets = x.reshape(-1, last), target.reshape(-1, last)
        losses = []
        for row, labels in zip(rows, targets, strict=True):
            stop = (labels < 0).nonzero()
            wanted = labels[: int(stop[0])] if len(stop) else labels
            others = torch.ones_like(row, dtype=torch.bool)
            others[wanted] = False
            losses.append((1 - row[wanted][:, None] + row[others][None]).clamp(min=0).sum() / len(row))
        return _REDUCTIONS[reduction](losses[0] if single else torch.stack(losses))

    return generic(call, composite)


@rule("_ctc_loss", outputs=1)
def _ctc_loss(call: Call) -> Derivative:
    def composite(
        log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any, blank: int = 0, zero: bool = False
    ) -> Tensor:
        """−log of the sum over alignments, by the forward recursion of Graves et al. 2006, equations 6 to 8."""
        inputs, lengths = (x.tolist() if isinstance(x, Tensor) else list(x) for x in (input_lengths, target_lengths))
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        losses = []
        for i, (steps, length) in enumerate(zip(inputs, lengths, strict=True)):
            labels = targets[i, :length] if targets.dim() == 2 else targets[starts[i] : starts[i] + length]
            losses.append(_alignments(log_probs[:steps, i], labels, blank))
        loss = torch.stack(losses)
        return torch.where(torch.isinf(loss), 0.0, loss) if zero else loss

    return generic(call, composite)


def _alignments(log_probs: Tensor, labels: Tensor, blank: int) -> Tensor:
    extended = labels.new_full((2 * len(labels) + 1,), blank)
    extended[1::2] = labels
    skips = torch.zeros(len(extended), dtype=torch.bool, device=labels.device)
    skips[3::2] = labels[1:] != labels[:-1]
    lowest = -1e30  # finite: the derivative of −∞ is not a number
    alpha = log_probs.new_full((len(extended),), lowest)
    alpha = torch.cat([log_probs[0, extended[:2]], alpha[2:]])
    for row in log_probs[1:]:
        before = torch.stack(
            [alpha, _shifted(alpha, 1, lowest), torch.where(skips, _shifted(alpha, 2, lowest), lowest)]
        )
        alpha = torch.logsumexp(before, 0) + row[extended]
    total_probability = torch.logsumexp(alpha[-2:], 0)
    return torch.where(total_probability < 0.5 * lowest, math.inf, -total_probability)


def _shifted(alpha: Tensor, by: int, lowest: float) -> Tensor:
    return torch.cat([alpha.new_full((by,), lowest), alpha])[: len(alpha)]


# --- torchvision: operators within autograd.Function classes of its own -----------------------------------------------

_TORCHVISION = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
WITHIN_FUNCTIONS.update(f"torchvision::{name}" for name in _TORCHVISION)


@rule("torchvision::roi_align", "torchvision::ps_roi_align", "torchvision::ps_roi_pool", outputs=1)
def _roi_mean(call: Call) -> Derivative:
    func, (_, *rest), kwargs = call.func, call.args, call.kwargs

    def first(d: Tangent, *_: Tangent) -> Tensor:
        out = func(required(d), *rest, **kwargs)  # a mean of elements of the input; boxes are constants, as in backward
        return out if isinstance(out, Tensor) else out[0]

    return Derivative(lambda d, *_: None if d is None else first(d))


@rule("torchvision::roi_pool", outputs=1)
def _roi_max(call: Call) -> Derivative:
    boxes, chosen = call.args[1], call.out[1].long()

    def first(d: Tangent, *_: Tangent) -> Tangent:
        if d is None:
            return None
        planes = d.flatten(2)[boxes[:, 0].long()]
        found = planes.gather(2, chosen.flatten(2).clamp(min=0)).view(chosen.shape)
        return found.masked_fill(chosen < 0, 0)

    return Derivative(first)


@rule("torchvision::deform_conv2d")
def _deformable_convolution(call: Call) -> Derivative:
    return generic(call, _deform_conv2d)


def _deform_conv2d(x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *settings: Any) -> Tensor:
    """The convolution of values that are sampled between pixels (Dai et al. 2017; with mask, Zhu et al. 2019)."""
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, offset_groups, use_mask = settings
    samples, channels, _, _ = x.shape
    out_channels, _, k_h, k_w = weight.shape
    out_h, out_w = offset.shape[2:]

    def positions(out: int, kernel: int, stride: int, pad: int, dilation: int) -> Tensor:
        start = torch.arange(out, device=x.device) * stride - pad
        return (start + torch.arange(kernel, device=x.device)[:, None] * dilation).to(x.dtype)  # (kernel, out)

    offsets = offset.view(samples, offset_groups, k_h, k_w, 2, out_h, out_w)
    rows = offsets[..., 0, :, :] + positions(out_h, k_h, stride_h, pad_h, dilation_h)[:, None, :, None]
    columns = offsets[..., 1, :, :] + positions(out_w, k_w, stride_w, pad_w, dilation_w)[None, :, None, :]
    grouped = x.view(samples, offset_groups, channels // offset_groups, *x.shape[2:])
    sampled = _between_pixels(grouped, rows, columns)  # (samples, offset groups, channels of a group, kh, kw, oh, ow)
    if use_mask:
        sampled = sampled * mask.view(samples, offset_groups, 1, k_h, k_w, out_h, out_w)
    inputs = sampled.reshape(samples, groups, channels // groups * k_h * k_w, out_h * out_w)
    kernels = weight.reshape(groups, out_channels // groups, -1)
    out = torch.einsum("gok,ngkp->ngop", kernels, inputs).reshape(samples, out_channels, out_h, out_w)
    return out + bias.view(1, -1, 1, 1)


def _between_pixels(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear interpolation with zeros around: x (n, g, c, h, w), positions (n, g, …)."""
    height, width = x.shape[-2:]
    top, left = rows.detach().floor(), columns.detach().floor()
    total_value: Tangent = None
    for row, by_row in ((top, top + 1 - rows), (top + 1, rows - top)):
        for column, by_column in ((left, left + 1 - columns), (left + 1, columns - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            flat = index.flatten(2)[:, :, None].expand(-1, -1, x.shape[2], -1)
            value = x.flatten(3).gather(3, flat).view(*x.shape[:3], *index.shape[2:])
            total_value = total(total_value, value * (by_row * by_column * inside)[:, :, None])
    return required(total_value)
