"""Every rule against float64 differences, first and second order: a case for each name in the table of rules."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raycurv.curvature import ForwardTape, Tape, rules

aten = torch.ops.aten

# Kernels of other devices, and names that only old versions of torch dispatch to.
ELSEWHERE = {
    "cudnn_batch_norm": "CUDA; the rule is that of native_batch_norm",
    "miopen_batch_norm": "ROCm; the rule is that of native_batch_norm",
    "avg_pool1d": "torch before 2.14; it is avg_pool2d now",
    "_scaled_dot_product_flash_attention": "CUDA; the rule is that of the CPU's kernel",
    "_scaled_dot_product_efficient_attention": "CUDA; the rule is that of the CPU's kernel",
    "_scaled_dot_product_cudnn_attention": "CUDA; the rule is that of the CPU's kernel",
}
# Random operators: the derivative is 0, whatever was drawn.
RANDOM = ["bernoulli", "cauchy", "exponential", "geometric", "log_normal", "normal", "poisson", "random", "uniform"]

INDEX = torch.tensor([[0, 2, 1], [3, 0, 2]])
MASK = torch.arange(24).view(4, 6) % 3 == 0
BOXES = torch.tensor([[0, 0.5, 0.5, 4.0, 4.5], [1, 1.0, 0.0, 5.0, 3.0]]).double()
TARGETS = torch.tensor([0, 3, 2, 1])
LABELS = torch.tensor([[0, 3, -1, 1, 2, 4], [2, -1, 0, 0, 0, 0], [1, 2, 3, -1, 0, 0], [5, -1, 0, 0, 0, 0]])

M, V, IMAGE, VOLUME = (4, 6), (6,), (2, 4, 6, 6), (2, 2, 4, 4, 4)


def complexed(*shapes):
    return [(*shape, 2) for shape in shapes]


def c(x: Tensor) -> Tensor:
    return torch.view_as_complex(x)


def r(z: Tensor) -> Tensor:
    return torch.view_as_real(z.resolve_conj())


def positive(x: Tensor) -> Tensor:
    return x * x + 0.5


def factor(x: Tensor) -> Tensor:
    return x.tril() + 2 * torch.eye(4, dtype=x.dtype)


def written(x: Tensor, write) -> Tensor:
    y = x * 1
    write(y)
    return y * x


def batch_norm(operator, *more):
    def function(x, w, b):
        return operator(x, w, b, torch.zeros(4).double(), torch.ones(4).double(), *more)[0]

    return function, [IMAGE, (4,), (4,)]


# Name of the rule → function of tensors, and their shapes.
CASES = {
    **{name: (getattr(aten, name), [M]) for name in ("abs", "neg", "sin", "cos", "erf", "exp", "expm1", "tanh")},
    **{name: (getattr(aten, name), [M]) for name in ("sigmoid", "relu", "silu", "mish", "hardswish", "hardsigmoid")},
    **{name: (lambda x, f=name: getattr(torch, f)(positive(x)), [M]) for name in ("log", "log1p", "sqrt", "rsqrt")},
    **{name: (lambda x, f=name: getattr(torch, f)(x) + x, [M]) for name in ("floor", "ceil", "round", "trunc")},
    **{name: (lambda x, f=name: getattr(torch, f)(x) + x, [M]) for name in ("sign", "sgn")},
    "reciprocal": (lambda x: torch.reciprocal(positive(x)), [M]),
    "pow": (lambda x: positive(x) ** 2.5, [M]),
    "elu": (lambda x: F.elu(x, 0.7), [M]),
    "gelu": (F.gelu, [M]),
    "softplus": (lambda x: F.softplus(x, beta=3), [M]),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), [M]),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.5), [M]),
    "threshold": (lambda x: F.threshold(x, 0.1, 3.0), [M]),
    "clamp": (lambda x: x.clamp(-0.5, 0.5), [M]),
    "clamp_min": (lambda x: x.clamp_min(0.1), [M]),
    "clamp_max": (lambda x: x.clamp_max(0.1), [M]),
    "copysign": (torch.copysign, [M, M]),
    "rrelu_with_noise": (lambda x: F.rrelu(x, training=False), [M]),
    # Softmax and its like.
    "_softmax": (lambda x: torch.softmax(x, 1), [M]),
    "_safe_softmax": (lambda x: aten._safe_softmax(x, 1), [M]),
    "_log_softmax": (lambda x: torch.log_softmax(x, 0), [M]),
    "logcumsumexp": (lambda x: torch.logcumsumexp(20 * x, 1), [M]),
    "_logcumsumexp": (lambda x: aten._logcumsumexp(x, 0), [M]),
    # Products.
    "mul": (torch.mul, [M, M]),
    "mm": (torch.mm, [M, (6, 3)]),
    "bmm": (torch.bmm, [(2, 3, 4), (2, 4, 5)]),
    "mv": (torch.mv, [M, V]),
    "dot": (lambda x, y: torch.dot(x, y).view(1), [V, V]),
    "addmm": (lambda b, x, y: torch.addmm(b, x, y, beta=0.5, alpha=2), [(3,), M, (6, 3)]),
    "baddbmm": (lambda b, x, y: torch.baddbmm(b, x, y, beta=0.5, alpha=2), [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
    "addmv": (lambda b, x, y: torch.addmv(b, x, y, beta=0.5, alpha=2), [(4,), M, V]),
    "convolution": (lambda x, w, b: F.conv2d(x, w, b, 2, 1), [IMAGE, (3, 4, 3, 3), (3,)]),
    "div": (lambda x, y: x / positive(y), [M, M]),
    "_scaled_dot_product_flash_attention_for_cpu": (lambda q, k, v: flash(q, k, v), [(2, 2, 3, 4)] * 3),
    # Sums and views.
    "add": (lambda x, y: torch.add(x, y, alpha=3), [M, V]),
    "sub": (lambda x, y: torch.sub(x, y, alpha=3), [M, V]),
    "rsub": (lambda x, y: torch.rsub(x, y, alpha=3), [M, V]),
    "sum": (lambda x: x.sum(1, keepdim=True), [M]),
    "mean": (lambda x: x.mean(0), [M]),
    "cumsum": (lambda x: x.cumsum(1), [M]),
    "trace": (lambda x: x.trace().view(1), [(4, 4)]),
    "t": (lambda x: x.t(), [M]),
    "transpose": (lambda x: x.transpose(0, 1), [M]),
    "permute": (lambda x: x.permute(2, 0, 1), [(2, 3, 4)]),
    "unsqueeze": (lambda x: x.unsqueeze(1), [M]),
    "squeeze": (lambda x: x.squeeze(1), [(4, 1, 6)]),
    "squeeze_copy": (lambda x: aten.squeeze_copy(x), [(4, 1, 6)]),
    "select": (lambda x: x.select(1, 2), [M]),
    "slice": (lambda x: x[:, 1:5:2], [M]),
    "alias": (lambda x: aten.alias(x), [M]),
    "expand": (lambda x: x.expand(3, 4, 6), [M]),
    "clone": (lambda x: x.clone(), [M]),
    "_to_copy": (lambda x: r(x.to(torch.complex128)), [M]),
    "lift_fresh": (lambda x: aten.lift_fresh(x), [M]),
    "flip": (lambda x: x.flip(1), [M]),
    "roll": (lambda x: x.roll(2, 1), [M]),
    "rot90": (lambda x: x.rot90(), [M]),
    "repeat": (lambda x: x.repeat(2, 3), [M]),
    "diagonal": (lambda x: x.diagonal(1), [M]),
    "tril": (lambda x: x.tril(), [M]),
    "triu": (lambda x: x.triu(1), [M]),
    "unfold": (lambda x: x.unfold(1, 3, 2), [M]),
    "view": (lambda x: x.view(2, 12), [M]),
    "_unsafe_view": (lambda x: aten._unsafe_view(x, [2, 12]), [M]),
    "_reshape_alias": (lambda x: aten._reshape_alias(x, [24], [1]), [M]),
    "as_strided": (lambda x: x.as_strided((2, 3), (6, 2)), [M]),
    "split": (lambda x: torch.cat(x.split(4, 1)[::-1], 1), [M]),
    "split_with_sizes": (lambda x: torch.cat(x.split([1, 5], 1)[::-1], 1), [M]),
    "unsafe_split": (lambda x: torch.cat(aten.unsafe_split(x, 4, 1)[::-1], 1), [M]),
    "unbind": (lambda x: x.unbind(0)[1], [M]),
    "cat": (lambda x, y: torch.cat([x, y], 1), [M, (4, 2)]),
    "stack": (lambda x, y: torch.stack([x, y], 1), [M, M]),
    "where": (lambda x, y: torch.where(MASK, x, y), [M, M]),
    "masked_fill": (lambda x: x.masked_fill(MASK, 2.0), [M]),
    "copy": (lambda x, y: written(x, lambda z: z.copy_(y)), [M, V]),
    "zero": (lambda x: written(x, lambda z: z[1].zero_()), [M]),
    "fill": (lambda x, y: written(x, lambda z: z[1].fill_(y.sum())), [M, V]),
    # Indices.
    "index": (lambda x: x[torch.tensor([0, 2, 2])], [M]),
    "index_select": (lambda x: x.index_select(1, torch.tensor([0, 2, 2])), [M]),
    "gather": (lambda x: x.gather(1, INDEX), [M]),
    "index_put": (lambda x, y: written(x, lambda z: z.index_put_((torch.tensor([0, 2]),), y, accumulate=True)), [M, V]),
    "_unsafe_index_put": (lambda x, y: aten._unsafe_index_put(x, [torch.tensor([0, 2])], y), [M, (2, 6)]),
    "_index_put_impl": (lambda x, y: written(x, lambda z: aten._index_put_impl_(z, [torch.tensor([0, 2])], y)),
    [M, (2, 6)]),
    "index_add": (lambda x, y: x.index_add(0, torch.tensor([0, 2]), y, alpha=2), [M, (2, 6)]),
    "index_copy": (lambda x, y: x.index_copy(0, torch.tensor([0, 2]), y), [M, (2, 6)]),
    "scatter": (lambda x, y: x.scatter(1, INDEX, y), [M, (2, 3)]),
    "scatter_add": (lambda x, y: x.scatter_add(1, INDEX, y), [M, (2, 3)]),
    "slice_scatter": (lambda x, y: torch.slice_scatter(x, y, 1, 2, 6, 2), [M, (4, 2)]),
    "select_scatter": (lambda x, y: torch.select_scatter(x, y, 0, 1), [M, V]),
    "diagonal_scatter": (lambda x, y: torch.diagonal_scatter(x, y), [M, (4,)]),
    "masked_scatter": (lambda x, y: x.masked_scatter(MASK, y), [M, (8,)]),
    "embedding": (lambda w: F.embedding(INDEX, w, padding_idx=4), [(5, 3)]),
    "_embedding_bag": (lambda w, s: F.embedding_bag(INDEX, w, mode="sum", per_sample_weights=s), [(5, 3), (2, 3)]),
    "max": (lambda x: x.max(1).values, [M]),
    "min": (lambda x: x.min(0, keepdim=True).values, [M]),
    "segment_reduce": (lambda x: torch.segment_reduce(x, "max", lengths=torch.tensor([1, 3])), [M]),
    # Images.
    "constant_pad_nd": (lambda x: F.pad(x, (1, 2), value=3.0), [M]),
    "reflection_pad1d": (lambda x: F.pad(x, (1, 2), "reflect"), [(2, 3, 6)]),
    "reflection_pad2d": (lambda x: F.pad(x, (1, 2, 1, 0), "reflect"), [IMAGE]),
    "replication_pad1d": (lambda x: F.pad(x, (1, 2), "replicate"), [(2, 3, 6)]),
    "replication_pad2d": (lambda x: F.pad(x, (1, 2, 1, 0), "replicate"), [IMAGE]),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2), [(2, 3, 6)]),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), [IMAGE]),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), [VOLUME]),
    "_adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 4), [IMAGE]),
    "_adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 3), [VOLUME]),
    "max_pool2d_with_indices": (lambda x: F.max_pool2d(x, 3, 2, 1), [IMAGE]),
    "max_pool3d_with_indices": (lambda x: F.max_pool3d(x, 2), [VOLUME]),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, 2), [IMAGE]),
    "adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(x, 2), [VOLUME]),
    "upsample_nearest2d": (lambda x: F.interpolate(x, scale_factor=2), [IMAGE]),
    "upsample_bilinear2d": (lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"), [IMAGE]),
    "im2col": (lambda x: F.unfold(x, 3), [IMAGE]),
    "col2im": (lambda x: F.fold(x, (6, 6), 2), [(2, 8, 25)]),
    "pixel_shuffle": (lambda x: aten.pixel_shuffle(x, 2), [IMAGE]),
    "pixel_unshuffle": (lambda x: aten.pixel_unshuffle(x, 2), [IMAGE]),
    "native_channel_shuffle": (lambda x: aten.native_channel_shuffle(x, 2), [IMAGE]),
    "torchvision::roi_align": (lambda x: torchvision.ops.roi_align(x, BOXES, 2), [IMAGE]),
    "torchvision::roi_pool": (lambda x: torchvision.ops.roi_pool(x, BOXES, 2), [IMAGE]),
    "torchvision::ps_roi_align": (lambda x: torchvision.ops.ps_roi_align(x, BOXES, 2), [IMAGE]),
    "torchvision::ps_roi_pool": (lambda x: torchvision.ops.ps_roi_pool(x, BOXES, 2), [IMAGE]),
    "torchvision::deform_conv2d": (
        lambda x, o, w, b, m: torchvision.ops.deform_conv2d(x, o, w, b, stride=2, padding=1, mask=m),
        [IMAGE, (2, 36, 3, 3), (4, 2, 3, 3), (4,), (2, 18, 3, 3)],
    ),
    # Normalisation.
    "native_batch_norm": batch_norm(aten.native_batch_norm, True, 0.1, 1e-5),
    "_native_batch_norm_legit": batch_norm(aten._native_batch_norm_legit, True, 0.1, 1e-5),
    "_batch_norm_with_update": batch_norm(aten._batch_norm_with_update, 0.1, 1e-5),
    "native_layer_norm": (lambda x, w, b: F.layer_norm(x, (6,), w, b), [(2, 4, 6), V, V]),
    "native_group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), [IMAGE, (4,), (4,)]),
    "_weight_norm_interface": (lambda v, g: torch._weight_norm(v, g, 0), [M, (4, 1)]),
    "native_dropout": (lambda x: aten.native_dropout(x, 0.5, False)[0], [M]),
    # Complex numbers.
    "view_as_complex": (lambda x: (c(x) * c(x)).abs(), complexed(M)),
    "view_as_real": (lambda x: r(c(x) * c(x)), complexed(M)),
    "complex": (lambda x, y: r(torch.complex(x, y) ** 2), [M, M]),
    "_conj": (lambda x, y: r(c(x).conj() * c(y)), complexed(M, M)),
    "_conj_physical": (lambda x: r(torch.conj_physical(c(x)) * c(x)), complexed(M)),
    "conj_physical": (lambda x: r(aten.conj_physical_(c(x) * 1) * c(x)), complexed(M)),
    "_neg_view": (lambda x: c(x).conj().imag * c(x).real, complexed(M)),
    "_fft_r2c": (lambda x: r(torch.fft.rfft(x) ** 2), [M]),
    "_fft_c2r": (lambda x: torch.fft.irfft(c(x)) ** 2, complexed(M)),
    "_fft_c2c": (lambda x: r(torch.fft.fft2(c(x)) ** 2), complexed(M)),
    # Linear algebra.
    "cholesky_inverse": (lambda x: torch.cholesky_inverse(factor(x)), [(4, 4)]),
    "cholesky_solve": (lambda b, x: torch.cholesky_solve(b, factor(x)), [(4, 2), (4, 4)]),
    "_cholesky_solve_helper": (lambda b, x: aten._cholesky_solve_helper(b, factor(x).mT, True), [(4, 2), (4, 4)]),
    # Losses.
    "multi_margin_loss": (lambda x: F.multi_margin_loss(x, TARGETS, p=2).view(1), [M]),
    "multilabel_margin_loss_forward": (lambda x: F.multilabel_margin_loss(x, LABELS, reduction="none"), [M]),
    "_ctc_loss": (lambda x: ctc(x), [(6, 2, 4)]),
}  # fmt: skip
# Further forms of the same operators.
MORE = {
    "exp of complex numbers": (lambda x: r(c(x).exp() + c(x).tanh() + c(x).sigmoid()), complexed(M)),
    "abs of complex numbers": (lambda x: c(x).abs() + c(x).angle(), complexed(M)),
    "rotary embedding": (lambda x: r(c(x) * torch.polar(torch.ones(6), torch.arange(6.0)).cdouble()), complexed(M)),
    "polar": (lambda x, y: r(torch.polar(positive(x), y) ** 2), [M, M]),
    "product of matrices with a conjugate": (lambda x, y: r(c(x).mH @ c(y)), complexed(M, M)),
    "in place on a conjugate": (lambda x: r(written(c(x), lambda z: z.conj().mul_(2j))), complexed(M)),
    "real part": (lambda x: written(c(x), lambda z: z.real.mul_(2)).abs(), complexed(M)),
    "spectrogram": (lambda x: torch.stft(x, 8, 4, window=torch.ones(8).double(), return_complex=True).abs(), [(2, 32)]),
    "negated view in place": (lambda x: r(written(c(x), lambda z: z.conj().imag.mul_(2))), complexed(M)),
    **{
        f"embedding bag, {mode}": (lambda w, m=mode: F.embedding_bag(
            torch.tensor([0, 2, 1, 4, 4]), w, torch.tensor([0, 2, 2]), mode=m, padding_idx=1), [(5, 3)])
        for mode in ("sum", "mean", "max")
    },
    "embedding scaled by frequency": (lambda w: F.embedding(INDEX, w, scale_grad_by_freq=True), [(5, 3)]),
    **{
        f"segments, {reduce}": (lambda x, by=reduce: torch.segment_reduce(
            x, by, offsets=torch.tensor([0, 2, 2, 4]), initial=0.5), [M])
        for reduce in ("sum", "mean", "max", "min", "prod")
    },
    "clamp by a tensor": (lambda x, y: torch.clamp(x, min=y), [M, M]),
    "product by scatter": (lambda x, y: x.scatter_reduce(1, INDEX, y, "prod"), [M, (2, 3)]),
    "roi align with a box": (lambda x: torchvision.ops.RoIAlign(3, 0.5, 2)(x, [BOXES[:1, 1:], BOXES[:1, 1:]]), [IMAGE]),
    "convolution that deforms": (lambda x, o, w: torchvision.ops.deform_conv2d(x, o, w), [IMAGE, (2, 18, 4, 4),
    (4, 4, 3, 3)]),
    "ctc, sum": (lambda x: ctc(x, "sum").view(1), [(6, 2, 4)]),
    "multi margin with weights": (lambda x: F.multi_margin_loss(x, TARGETS, 2, 9.0, torch.arange(6.0).double(),
    reduction="none"), [M]),
    "causal flash attention": (lambda q, k, v: flash(q, k, v, is_causal=True), [(2, 2, 3, 4)] * 3),
    "masked flash attention": (lambda q, k, v: flash(q, k, v, attn_mask=torch.eye(3).double()), [(2, 2, 3, 4)] * 3),
    "cross-map normalisation": (torch.nn.CrossMapLRN2d(3, 0.5), [IMAGE]),
    "cholesky inverse, upper": (lambda x: torch.cholesky_inverse(factor(x).mT, upper=True), [(4, 4)]),
}  # fmt: skip


def flash(q, k, v, **named):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, **named)


def ctc(x: Tensor, reduction: str = "none") -> Tensor:
    targets, lengths = torch.tensor([[1, 1, 3], [2, 3, 0]]), torch.tensor([3, 2])
    return F.ctc_loss(x.log_softmax(2), targets, torch.tensor([6, 5]), lengths, reduction=reduction)


def differences(along) -> tuple[Tensor, Tensor, Tensor]:
    """First and second derivative of a function of t at 0, and the elements where it has one."""
    h1, h2 = 1e-6, 1e-3
    first = (along(h1) - along(-h1)) / (2 * h1)
    far, near, mid = (along(-2 * h2), along(2 * h2)), (along(-h2), along(h2)), along(0.0)
    second = (-far[0] + 16 * near[0] - 30 * mid + 16 * near[1] - far[1]) / (12 * h2**2)
    coarse = (near[0] - 2 * mid + near[1]) / h2**2
    return first, second, (second - coarse).abs() < 1e-2 * (1 + second.abs())  # a kink within ±2h has none


def check(function, shapes, name=None) -> None:
    torch.manual_seed(sum(map(ord, name or "")))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    direction = [torch.randn_like(x) for x in inputs]

    def at(points):
        return function(*(x * 1 for x in points)) * 1  # neither starts nor ends with the operator itself

    tape, forward = Tape(inputs), ForwardTape(inputs, direction)
    for recording in (tape, forward):
        with recording:
            outputs = at(inputs)
        recording.finish(outputs)
    names = [step.name.rstrip("_") for step in tape.steps]
    assert name is None or name in names or name in ELSEWHERE, f"{name} was not executed, but {names}"
    with torch.no_grad():
        first, second, smooth = differences(lambda t: at([x + t * d for x, d in zip(inputs, direction, strict=True)]))
    assert smooth.double().mean() > 0.8
    for slope, curvature in (tape.second_order(direction), (forward.first, forward.second)):
        curvature = torch.zeros_like(first) if curvature is None else curvature
        torch.testing.assert_close(slope, first, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(curvature[smooth], second[smooth], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tape.push(direction), first, rtol=1e-6, atol=1e-6)


def test_no_rule_is_without_a_case():
    assert not rules.RULES.keys() - CASES.keys() - ELSEWHERE.keys() - set(RANDOM)


@pytest.mark.parametrize("name", CASES)
def test_the_rule_of_an_operator_is_its_derivative(name):
    check(*CASES[name], name)


@pytest.mark.parametrize("name", MORE)
def test_other_forms_of_an_operator(name):
    check(*MORE[name])


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_have_no_derivative(name):
    x = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
    tape, arguments = Tape([x]), {"random": (), "geometric": (0.5,)}.get(name, ())
    with tape:
        y = x * 1
        drawn = torch.poisson(y) if name == "poisson" else getattr(y, f"{name}_")(*arguments)
        tape_out = drawn + 2 * x
    tape.finish(tape_out)
    torch.testing.assert_close(tape.push([torch.ones_like(x)]), 2 * torch.ones_like(x))


def test_logcumsumexp_does_not_overflow():
    x = torch.tensor([-800.0, 700.0, -900.0, 710.0], dtype=torch.float64, requires_grad=True)
    tape = Tape([x])
    with tape:
        out = torch.logcumsumexp(x, 0)
    tape.finish(out)
    first, second = tape.second_order([torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=torch.float64)])
    share = 1 / (1 + math.exp(10))
    expected = torch.tensor([1.0, -2.0, -2.0, 4 - 6 * share], dtype=torch.float64)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second[:3], torch.zeros(3, dtype=torch.float64))
