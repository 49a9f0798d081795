"""First and second derivatives of single layers against reverse mode and float64 central differences."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycurv.curvature import Tape, UnsupportedOperator, rules

IMAGE = (3, 4, 6, 6)
SEQUENCE = (3, 5, 8)


class Function(nn.Module):
    """A scale for every element before a function, so that tangents reach its input through a product."""

    def __init__(self, function, shape):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(shape[1:]) + 0.5)
        self.function = function

    def forward(self, x):
        return self.function(x * self.scale)


class SelfAttention(nn.MultiheadAttention):
    def __init__(self):
        super().__init__(8, 2, batch_first=True)

    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


def attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x.flip(1), x.roll(1, 2))


def residual(x: Tensor) -> Tensor:
    y = F.relu(x, inplace=True)
    y = y * 2
    y += x
    return torch.cat([y, x], 1).chunk(2, 1)[0]


def strided(x: Tensor) -> Tensor:
    return x.as_strided((3, 4), (144, 36)) + x.mT.contiguous().mT.tanh().as_strided((3, 4), (1, 2))


def negated_copy(x: Tensor) -> Tensor:
    y = x + 1  # its tangent is the very tensor that is the tangent of x
    y.neg_().cumsum_(1)
    return y * x


def overwritten_quotient(x: Tensor) -> Tensor:
    y = x / (x * x + 1)
    y += 1
    return y * x


def read_by_the_host(x: Tensor) -> Tensor:
    return x * x if x.mean().item() > -100 and torch.equal(x, x) else x


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class ViewedInItsOwnShape(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / self.weight.view(self.weight.shape).norm())


def overwritten(x: Tensor) -> Tensor:
    y = x.view(x.shape[0], -1)
    y.mul_(3)
    return torch.tanh(y)


ELEMENTWISE = {
    "relu": F.relu, "elu": F.elu, "selu": F.selu, "celu": F.celu, "gelu": F.gelu, "gelu-tanh": lambda x: F.gelu(x,
    approximate="tanh"),
    "silu": F.silu, "mish": F.mish, "softplus": lambda x: F.softplus(x, beta=5), "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky": F.leaky_relu, "hardtanh": F.hardtanh, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "relu6": F.relu6,
    "logsigmoid": F.logsigmoid, "exp": torch.exp, "log": lambda x: (x * x + 1).log(),
    "sqrt": lambda x: (x * x + 1).sqrt(),
    "rsqrt": lambda x: (x * x + 1).rsqrt(), "pow": lambda x: x**3, "pow2.5": lambda x: (x * x + 1) ** 2.5,
    "abs": torch.abs,
    "reciprocal": lambda x: (x * x + 1).reciprocal(), "sin": torch.sin, "cos": torch.cos, "erf": torch.erf,
    "log1p": lambda x: torch.log1p(x * x),
    "expm1": torch.expm1, "clamp": lambda x: x.clamp(-0.5, 0.5), "div": lambda x: x / (x * x + 1),
    "scaled": lambda x: 3 * x / 2 - 1 + (1 - x),
    "square": torch.square, "logsumexp": lambda x: torch.logsumexp(x, -1), "std": lambda x: x.std(1),
    "norm": lambda x: x.norm(dim=1),
    "softsign": F.softsign, "prelu": lambda x: F.prelu(x, x.new_full((1,), 0.3)), "glu": lambda x: F.glu(x, 1),
    "normalize": F.normalize,
}  # fmt: skip
LAYERS = {
    "linear": (lambda: nn.Linear(8, 3), SEQUENCE),
    "linear-2d": (lambda: nn.Linear(8, 3), (5, 8)),
    "conv": (lambda: nn.Conv2d(4, 5, 3, stride=2, padding=1), IMAGE),
    "conv-groups": (lambda: nn.Conv2d(4, 8, 3, groups=2, dilation=2, bias=False), IMAGE),
    "conv1d": (lambda: nn.Conv1d(5, 4, 3), SEQUENCE),
    "conv-transposed": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2), IMAGE),
    "batch-norm": (lambda: nn.BatchNorm2d(4), IMAGE),
    "batch-norm-plain": (lambda: nn.BatchNorm2d(4, affine=False), IMAGE),
    "batch-norm-1d": (lambda: nn.BatchNorm1d(8), (5, 8)),
    "batch-norm-eval": (lambda: nn.BatchNorm2d(4).eval(), IMAGE),
    "instance-norm": (lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "group-norm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "layer-norm": (lambda: nn.LayerNorm(8), SEQUENCE),
    "layer-norm-plain": (lambda: nn.LayerNorm((6, 6), elementwise_affine=False), IMAGE),
    "rms-norm": (lambda: nn.RMSNorm(8), SEQUENCE),
    "local-response-norm": (lambda: nn.LocalResponseNorm(3), IMAGE),
    "max-pool": (lambda: nn.MaxPool2d(3, 2, 1), IMAGE),
    "avg-pool": (lambda: nn.AvgPool2d(2), IMAGE),
    "adaptive-pool": (lambda: nn.AdaptiveAvgPool2d(2), IMAGE),
    "adaptive-max-pool": (lambda: nn.AdaptiveMaxPool2d(2), IMAGE),
    "attention": (lambda: SelfAttention(), SEQUENCE),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True), SEQUENCE),
    "encoder-norm-first": (lambda: nn.TransformerEncoderLayer(8, 2, 8, 0.0, "gelu", batch_first=True,
    norm_first=True), SEQUENCE),
    "weight-norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)), SEQUENCE),
    "spectral-norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3)).eval(), SEQUENCE),
    "viewed-in-its-own-shape": (lambda: ViewedInItsOwnShape(8, 3, bias=False), SEQUENCE),
    "lstm": (lambda: Recurrent(nn.LSTM(8, 4, batch_first=True)), SEQUENCE),
    "gru": (lambda: Recurrent(nn.GRU(8, 4, bidirectional=True)), SEQUENCE),
    "pad-with-a-value": (lambda: nn.ConstantPad2d(1, 5.0), IMAGE),
    "in-place-on-a-sum": (lambda: Function(negated_copy, IMAGE), IMAGE),
    "overwritten-quotient": (lambda: Function(overwritten_quotient, IMAGE), IMAGE),
    "read-by-the-host": (lambda: Function(read_by_the_host, IMAGE), IMAGE),
    "clamp-by-a-tensor": (lambda: Function(lambda x: x.clamp(min=0.3 * x * x), IMAGE), IMAGE),
    "rsub": (lambda: Function(lambda x: torch.rsub(x * x, 3, alpha=2), IMAGE), IMAGE),
    "no-forward-mode": (lambda: Function(lambda x: torch.cdist(x[:, 0], x[:, 1]), IMAGE), IMAGE),
    "embedding": (lambda: nn.Sequential(nn.Embedding(7, 4), nn.Tanh()), None),
    "upsample": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    "pad": (lambda: nn.ZeroPad2d(1), IMAGE),
    "pixel-shuffle": (lambda: nn.PixelShuffle(2), IMAGE),
    "softmax": (lambda: nn.Softmax(1), IMAGE),
    "log-softmax": (lambda: nn.LogSoftmax(1), IMAGE),
    "sdpa": (lambda: Function(attention, SEQUENCE), SEQUENCE),
    "residual": (lambda: Function(residual, IMAGE), IMAGE),
    "in-place-on-a-view": (lambda: Function(overwritten, IMAGE), IMAGE),
    "max-along": (lambda: Function(lambda x: x.max(1).values, IMAGE), IMAGE),
    "amax": (lambda: Function(lambda x: x.amax(1), IMAGE), IMAGE),
    "where": (lambda: Function(lambda x: torch.where(x > 0, x * x, 0.1 * x), IMAGE), IMAGE),
    "masked": (lambda: Function(lambda x: x.masked_fill(x > 1, 2.0) ** 2, IMAGE), IMAGE),
    "einsum": (lambda: Function(lambda x: torch.einsum("bcij,bdij->bcd", x, x.tanh()), IMAGE), IMAGE),
    "indexing": (lambda: Function(lambda x: x[:, [0, 2]] * x[:, 1:3] + x[:, :, ::2].mean(2, keepdim=True)[:, :1],
    IMAGE), IMAGE),
    "stack": (lambda: Function(lambda x: torch.stack(x.unbind(1), -1).cumsum(1), IMAGE), IMAGE),
    "as-strided": (lambda: Function(strided, IMAGE), IMAGE),
    "in-place": (lambda: Function(lambda x: F.hardswish(x * 2, inplace=True) + F.silu(x * 1, inplace=True), IMAGE),
    IMAGE),
}  # fmt: skip
for _name, _function in ELEMENTWISE.items():
    LAYERS[_name] = (lambda f=_function: Function(f, IMAGE), IMAGE)


def problem(name):
    """A layer between two scalings, with all its parameters and an input that depends on one, in float64."""
    build, shape = LAYERS[name]
    torch.manual_seed(sum(map(ord, name)))
    layer = build().double()
    for p in layer.parameters():
        p.data += 0.3 * torch.randn_like(p)
    if shape is None:
        return layer, torch.randint(7, (3, 5)), list(layer.parameters())
    before = Function(nn.Identity(), shape).double()
    x = torch.randn(shape, dtype=torch.float64)
    model = nn.Sequential(before, layer)
    return model, x, list(model.parameters())


def outputs_at(model, parameters, direction, x, t):
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, k, d in zip(parameters, kept, direction, strict=True):
            p.data.copy_(k + t * d)  # .data: the graph that is differentiated afterwards has saved the parameters
        out = model(x)
        for p, k in zip(parameters, kept, strict=True):
            p.data.copy_(k)
    return out


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_of_a_layer(name):
    model, x, parameters = problem(name)
    direction = [torch.randn_like(p) for p in parameters]
    tape = Tape(parameters)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with tape:
            outputs = model(x)
        tape.finish(outputs)
        h1, h2 = 1e-6, 1e-3
        plus, minus = (outputs_at(model, parameters, direction, x, s * h1) for s in (1, -1))
        # Five points: the error is of fourth order, far below what a wrong rule gives.
        far2, far1, mid, near1, near2 = (outputs_at(model, parameters, direction, x, s * h2) for s in (-2, -1, 0, 1, 2))
    first, second = tape.second_order(direction)
    torch.testing.assert_close(first, (plus - minus) / (2 * h1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(tape.push(direction), first, rtol=1e-12, atol=1e-12)
    differences = (-far2 + 16 * far1 - 30 * mid + 16 * near1 - near2) / (12 * h2**2)
    smooth = (differences - (far1 - 2 * mid + near1) / h2**2).abs() < 1e-2  # a kink within ±2h has no second derivative
    assert smooth.double().mean() > 0.8
    second = torch.zeros_like(first) if second is None else second
    torch.testing.assert_close(second[smooth], differences[smooth], rtol=1e-4, atol=1e-4)
    # The adjoint identity ⟨u, J d⟩ = ⟨Jᵀu, d⟩ is exact.
    u = torch.randn_like(outputs)
    pulled = torch.autograd.grad(outputs, parameters, u, allow_unused=True)
    adjoint = sum((g * d).sum() for g, d in zip(pulled, direction, strict=True) if g is not None)
    rounded = 1e-7 if name == "hardsigmoid" else 1e-10  # torch's own backward multiplies by 1/6 in single precision
    torch.testing.assert_close((u * first).sum(), adjoint, rtol=rounded, atol=rounded)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_what_has_no_rule_is_named():
    model = Function(lambda x: Doubled.apply(x) + 1, IMAGE)
    tape = Tape(list(model.parameters()))
    with pytest.raises(UnsupportedOperator, match=r"DoubledBackward.*register_operator\(Doubled\).*jvp"), tape:
        tape.finish(model(torch.randn(IMAGE)))


def test_statistics_that_a_norm_returns_have_no_tangent():
    model = Function(lambda x: torch.native_group_norm(x, None, None, 3, 4, 36, 2, 1e-5)[1], IMAGE)
    tape = Tape(list(model.parameters()))
    with pytest.raises(UnsupportedOperator, match="NativeGroupNormBackward"), tape:
        tape.finish(model(torch.randn(IMAGE)))


def test_an_operator_whose_argument_is_overwritten_is_named():
    def overwriting(x):
        y = x * 1
        z = torch.exp2(y)  # its backward pass reads the result alone, the generic rule its argument
        y.add_(1)
        return z + y

    model = Function(overwriting, IMAGE)
    parameters = list(model.parameters())
    tape = Tape(parameters)
    with tape:
        outputs = model(torch.randn(IMAGE))
    tape.finish(outputs)
    with pytest.raises(UnsupportedOperator, match=r"exp2.* was overwritten"):
        tape.push([torch.ones_like(p) for p in parameters])


def test_operator_that_torch_cannot_differentiate_is_named(monkeypatch):
    monkeypatch.delitem(rules.RULES, "multi_margin_loss")
    model = Function(lambda x: F.multi_margin_loss(x[0, 0], torch.arange(6)).view(1), IMAGE)
    parameters = list(model.parameters())
    tape = Tape(parameters)
    with tape:
        outputs = model(torch.randn(IMAGE))
    tape.finish(outputs)
    with pytest.raises(UnsupportedOperator, match="multi_margin_loss"):
        tape.second_order([torch.ones_like(p) for p in parameters])


def test_detached_and_no_grad_parts_are_constants():
    def function(x):
        with torch.no_grad():
            frozen = x * 2
        return x * frozen + (x * 3).detach() * x

    model = Function(function, (2, 3))
    x = torch.ones(2, 3)
    tape = Tape([model.scale])
    with tape:
        outputs = model(x)
    tape.finish(outputs)
    torch.testing.assert_close(tape.push([torch.ones(3)]), 5 * model.scale.detach().expand(2, 3))


def adjoint_error(model, x) -> float:
    """⟨u, J d⟩ − ⟨Jᵀu, d⟩ for random u and d."""
    parameters = list(model.parameters())
    tape = Tape(parameters)
    with tape:
        outputs = model(x)
    tape.finish(outputs)
    u, direction = torch.randn_like(outputs), [torch.randn_like(p) for p in parameters]
    pulled = torch.autograd.grad(outputs, parameters, u)
    pushed = tape.push(direction)
    return ((u * pushed).sum() - sum((g * d).sum() for g, d in zip(pulled, direction, strict=True))).item()


def clamped(x: Tensor) -> Tensor:
    y = x * 1
    with torch.no_grad():
        y.clamp_(-0.5, 0.5)
    return y * 3


def by_another_leaf(x: Tensor) -> Tensor:
    return torch.tanh(x) * torch.ones(4, 6, 6, dtype=x.dtype, requires_grad=True).view(1, 4, 6, 6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.native_dropout(x, 0.5, True)[0],  # what dropout is on CUDA
        lambda x: F.rrelu(x, training=True),
        lambda x: x * torch.bernoulli(torch.sigmoid(x)),
        clamped,
        by_another_leaf,
    ],
    ids=["dropout", "rrelu", "bernoulli", "in-place-under-no-grad", "another-leaf"],
)
def test_pushes_through_what_backward_pulls_through(function):
    torch.manual_seed(0)
    assert abs(adjoint_error(Function(function, IMAGE).double(), torch.randn(IMAGE, dtype=torch.float64))) < 1e-12


def test_the_row_of_the_padding_is_constant():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Tanh()).double()
    assert abs(adjoint_error(model, torch.arange(7))) < 1e-12


def test_frees_tangents_on_the_way():
    layers = [m for _ in range(12) for m in (nn.Linear(64, 64), nn.Tanh())]
    model = nn.Sequential(*layers)
    tape = Tape(list(model.parameters()))
    with tape:
        outputs = model(torch.randn(5, 64))
    tape.finish(outputs)
    alive = []
    step = tape.steps[-1]
    original = step.derivative.first

    def counting(*d):
        tensors = [o for o in gc.get_objects() if type(o) is Tensor and not o.is_nested]
        held = [o for o in tensors if o.shape == (5, 64) and not o.requires_grad]
        alive.append(len(held))
        return original(*d)

    object.__setattr__(step.derivative, "first", counting)
    tape.push([torch.ones_like(p) for p in model.parameters()])
    assert alive[0] < 40
