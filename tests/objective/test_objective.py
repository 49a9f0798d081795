import math
from types import SimpleNamespace

import pytest
import torch
import torchvision
from curvlinops import GGNLinearOperator
from torch import nn
from torch.func import functional_call

import raycurv
from raycurv import Objective
from raycurv.objective.direction import Direction
from tests.cases import BY_NAME, CASES, Case

LOSSES = {"cross_entropy": nn.CrossEntropyLoss(reduction="none"), "squared_error": lambda o, t: ((o - t) ** 2).sum(1)}


def batch_of(case: Case, rows=slice(None), **options) -> raycurv.Batch:
    model = case.model()
    return Objective(model, case.loss, case.l2, **options).batch(case.inputs[rows], case.targets[rows])


def random_direction(objective: Objective, seed: int = 5) -> Direction:
    generator = torch.Generator().manual_seed(seed)
    return objective.direction(torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in objective.parameters)


def naive_per_sample(case: Case, model: nn.Module, seed: int):
    """Θ ↦ every sample's loss with its L2 term, by functional_call; dropout from the seed."""
    loss = LOSSES.get(case.loss, case.loss)
    names = [n for n, _ in model.named_parameters()]
    buffers = {n: b.clone() for n, b in model.named_buffers()}

    def at(*parameters):
        torch.manual_seed(seed)
        fresh = {n: b.clone() for n, b in buffers.items()}
        outputs = functional_call(model, {**dict(zip(names, parameters, strict=True)), **fresh}, (case.inputs,))
        return loss(outputs, case.targets) + case.l2 / 2 * sum((p * p).sum() for p in parameters)

    return at


@pytest.mark.parametrize("case", CASES, ids=str)
def test_answers_equal_reverse_mode_on_the_whole_batch(case):
    """Value, gradient, and each sample's second derivative, the last sample by sample."""
    torch.manual_seed(7)
    batch = batch_of(case)
    d = random_direction(batch.objective)
    taylor = batch.taylor_along(d)
    per_sample = naive_per_sample(case, batch.objective.model, seed=7)
    points = [p.detach().clone().requires_grad_() for p in batch.objective.parameters]

    def along(value):
        options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        gradient = torch.autograd.grad(value, points, **options)
        return sum((g * x).sum() for g, x in zip(gradient, d, strict=True))

    values = per_sample(*points)
    slopes = torch.stack([along(value) for value in values])
    bends = torch.stack([along(slope) for slope in slopes])
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(taylor.value, values.mean(), **close)
    torch.testing.assert_close(taylor.slope, slopes.mean(), **close)
    torch.testing.assert_close(taylor.curvature, bends.mean(), **close)
    torch.testing.assert_close(taylor.absolute_curvature, bends.abs().mean(), **close)
    torch.testing.assert_close(batch.curvature_along(d), bends.abs().mean(), **close)
    torch.testing.assert_close(batch.value(), values.mean(), **close)
    gradient = torch.autograd.grad(per_sample(*points).mean(), points, allow_unused=True, materialize_grads=True)
    for found, expected in zip(batch.gradient(), gradient, strict=True):
        torch.testing.assert_close(found, expected, **close)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_taylor_elsewhere_equals_values_along(case):
    batch = batch_of(case)
    d = random_direction(batch.objective)
    h, at = 1e-4, 0.1
    low, mid, high = batch.values_along(d, [at - h, at, at + h])
    taylor = batch.taylor_along(d, at=at)
    torch.testing.assert_close(taylor.value, mid, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(taylor.slope, (high - low) / (2 * h), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(taylor.curvature, (high - 2 * mid + low) / h**2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "regression", "convolution"])
def test_gauss_newton_product_equals_curvlinops(name):
    case = BY_NAME[name]
    batch = batch_of(case)
    d = random_direction(batch.objective)
    linear = batch.linearise(d)
    product = linear.pull(linear.hessian(linear.tangent))
    loss = nn.CrossEntropyLoss() if case.loss == "cross_entropy" else nn.MSELoss()  # the mean over 4 outputs too
    model, parameters = batch.objective.model, batch.objective.parameters
    operator = GGNLinearOperator(model, loss, parameters, [(case.inputs, case.targets)], check_deterministic=False)
    expected = torch.cat([x.flatten() for x in operator @ list(d)])
    torch.testing.assert_close(product.flat, expected * (4 if name == "regression" else 1), rtol=1e-10, atol=1e-12)


def narrow_vgg() -> nn.Module:
    with torch.device("meta"):
        model = torchvision.models.vgg11(num_classes=4)
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 4))
    return model.to_empty(device="cpu").apply(
        lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None
    )


NETWORKS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=4),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=4),
    "vgg11": lambda: narrow_vgg(),
    "densenet121": lambda: torchvision.models.densenet121(num_classes=4),
    "vit": lambda: torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision_networks_are_exact_in_train_mode(name):
    """Unmodified networks: J·z against its adjoint, slope and curvature against reverse mode."""
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    objective = Objective(model, "cross_entropy")
    x, y = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.randint(4, (4,))
    # Relative steps, as weights of one network differ by orders of magnitude.
    d = objective.direction(
        [0.1 * torch.randn_like(p) * (p.detach().abs().mean() + 1e-3) for p in objective.parameters]
    )
    batch = objective.batch(x, y)
    state = torch.get_rng_state()
    taylor = batch.taylor_along(d)
    gradient = batch.gradient()
    assert gradient.dot(d).item() == pytest.approx(
        taylor.slope.item(), rel=1e-7
    )  # hardsigmoid's own backward is single
    linear = batch.linearise(d)
    u = torch.randn_like(linear.tangent)
    expected = (u * linear.tangent).sum().item() / 4
    assert linear.pull(u).dot(d).item() == pytest.approx(expected, rel=1e-7)
    if name == "mobilenet_v3_small":  # torch cannot differentiate hardsigmoid twice in reverse mode
        low, high = (batch.taylor_along(d, at=at).slope.item() for at in (-1e-5, 1e-5))
        assert taylor.curvature.item() == pytest.approx((high - low) / 2e-5, rel=1e-4)
        return
    torch.set_rng_state(state)
    with torch.nn.attention.sdpa_kernel(
        torch.nn.attention.SDPBackend.MATH
    ):  # the fused kernel has no second derivative
        loss = nn.functional.cross_entropy(model(x), y)
    first = torch.autograd.grad(loss, objective.parameters, create_graph=True)
    product = torch.autograd.grad(first, objective.parameters, list(d), allow_unused=True, materialize_grads=True)
    curvature = sum((a * b).sum() for a, b in zip(product, d, strict=True)).item()
    assert taylor.curvature.item() == pytest.approx(curvature, rel=1e-6)


def test_l2_covers_what_it_is_said_to_cover():
    case = BY_NAME["batch-norm"]
    model = case.model()
    plain = Objective(model, case.loss).batch(case.inputs, case.targets)
    for covers, expected in (
        ("all", list(model.parameters())),
        ("weights", [p for p in model.parameters() if p.dim() >= 2]),
        (lambda name, p: name.startswith("0."), [model[0].weight]),
    ):
        objective = Objective(model, case.loss, 0.3, l2_covers=covers)
        batch = objective.batch(case.inputs, case.targets)
        extra = 0.15 * sum((p.detach() ** 2).sum() for p in expected)
        torch.testing.assert_close(batch.value() - plain.value(), extra, rtol=1e-9, atol=1e-12)
        difference = [a - b for a, b in zip(batch.gradient(), plain.gradient(), strict=True)]
        for p, change in zip(objective.parameters, difference, strict=True):
            covered = any(p is q for q in expected)
            torch.testing.assert_close(change, 0.3 * p.detach() * covered, rtol=1e-7, atol=1e-9)


def test_weights_count_samples_differently():
    case = BY_NAME["mlp"]
    weighted = batch_of(case, weights=lambda t: (t < 2).double() * 3)
    kept = case.targets < 2
    only = batch_of(case, kept)
    d = random_direction(weighted.objective)
    torch.testing.assert_close(weighted.value(), only.value())
    torch.testing.assert_close(weighted.gradient().flat, only.gradient().flat)
    torch.testing.assert_close(weighted.curvature_along(d), only.curvature_along(d))


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_the_error_is_the_share_of_samples_that_are_told_wrong(micro_batch):
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(4, 3), torch.randn(8, 4), torch.randint(3, (8,))
    batch = Objective(model, "cross_entropy", micro_batch=micro_batch).batch(inputs, targets)
    assert float(batch.error()) == float((model(inputs).argmax(1) != targets).double().mean())
    assert math.isnan(Objective(model, "squared_error").batch(inputs, torch.randn(8, 3)).error())


def test_a_sample_of_weight_zero_may_be_nan():
    case = BY_NAME["mlp"]
    inputs = case.inputs.clone()
    inputs[3] = math.nan
    weights = torch.ones(24)
    weights[3] = 0
    batch = Objective(case.model(), case.loss, weights=lambda t: weights).batch(inputs, case.targets)
    assert math.isfinite(batch.value())


def test_every_question_sees_the_same_dropout_mask():
    case = BY_NAME["dropout"]
    batch = batch_of(case)
    values = [batch.value(), batch.value_and_gradient()[0], batch.taylor_along(random_direction(batch.objective)).value]
    torch.randn(3)  # what happens in between does not matter
    values.append(batch.values_along(random_direction(batch.objective), [0.0])[0])
    assert max(values) - min(values) < 1e-14
    other = batch.objective.batch(case.inputs, case.targets)
    assert abs(other.value() - values[0]) > 1e-6


def test_a_batch_leaves_the_random_state_of_one_forward_pass():
    case = BY_NAME["dropout"]
    torch.manual_seed(3)
    case.model()(case.inputs)
    expected = torch.rand(1)
    torch.manual_seed(3)
    batch = batch_of(case)
    for _ in range(3):
        batch.value_and_gradient()
    assert torch.equal(torch.rand(1), expected)


def test_running_statistics_move_once_per_batch():
    case = BY_NAME["batch-norm"]
    batch = batch_of(case)
    once = case.model()
    once(case.inputs)
    d = random_direction(batch.objective)
    batch.value()
    batch.gradient()
    batch.taylor_along(d, at=0.5)
    batch.values_along(d, [0.1, 0.2])
    batch.linearise(d)
    for found, expected in zip(batch.objective.model.buffers(), once.buffers(), strict=True):
        torch.testing.assert_close(found, expected)


class Counting(nn.Linear):
    """A buffer that every forward pass replaces by another tensor, and an exception on demand."""

    def __init__(self):
        super().__init__(6, 4)
        self.register_buffer("passes", torch.zeros(()))
        self.fails = False

    def forward(self, x):
        self.passes = self.passes + 1
        if self.fails:
            raise ArithmeticError("as asked")
        return super().forward(x)


def test_buffers_move_once_also_if_replaced_and_if_the_model_raises():
    case, model = BY_NAME["mlp"], Counting().double()
    batch = Objective(model, case.loss).batch(case.inputs, case.targets)
    batch.gradient()
    batch.value()
    assert model.passes == 1
    model.fails = True
    with pytest.raises(ArithmeticError):
        batch.gradient()
    assert model.passes == 1


def test_snapshot_brings_parameters_and_buffers_back():
    case = BY_NAME["batch-norm"]
    batch = batch_of(case)
    before = {k: v.clone() for k, v in batch.objective.model.state_dict().items()}
    kept = batch.snapshot()
    batch.value()
    with torch.no_grad():
        for p in batch.objective.parameters:
            p.add_(1)
    batch.restore(kept)
    assert all(torch.equal(v, before[k]) for k, v in batch.objective.model.state_dict().items())


def test_questions_leave_the_parameters_alone():
    case = BY_NAME["batch-norm"]
    batch = batch_of(case)
    before = [p.detach().clone() for p in batch.objective.parameters]
    d = random_direction(batch.objective)
    batch.values_along(d, [1.0])
    batch.taylor_along(d, at=1.0)
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(batch.objective.parameters, before, strict=True))


class Pair(nn.Module):
    """Inputs as a dictionary, a frozen parameter, one that is not used, and one used twice."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Parameter(torch.randn(4, 4))
        self.unused = nn.Parameter(torch.randn(3))
        self.frozen = nn.Parameter(torch.randn(4, 4), requires_grad=False)

    def forward(self, inputs):
        return torch.tanh(inputs["a"] @ self.shared) @ self.frozen + inputs["b"][0] @ self.shared


def test_pytrees_shared_frozen_and_unused_parameters():
    torch.manual_seed(0)
    model = Pair().double()
    objective = Objective(model, "squared_error")
    inputs = {"a": torch.randn(5, 4).double(), "b": [torch.randn(5, 4).double()]}
    batch = objective.batch(inputs, torch.randn(5, 4).double())
    d = random_direction(objective)
    gradient = batch.gradient()
    assert [tuple(g.shape) for g in gradient] == [(4, 4), (3,)]
    assert gradient[1].tolist() == [0, 0, 0]
    torch.testing.assert_close(gradient.dot(d), batch.taylor_along(d).slope)


def test_pull_is_refused_a_second_time_and_push_without_a_record():
    batch = batch_of(BY_NAME["mlp"])
    linear = batch.linearise()
    linear.pull(linear.gradient)
    with pytest.raises(RuntimeError, match="once per linearisation"):
        linear.pull(linear.gradient)
    with pytest.raises(RuntimeError, match="not recorded"):
        batch.linearise(record=False).push(random_direction(batch.objective))


def test_bfloat16_autocast_keeps_float32_answers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    objective = Objective(model, "cross_entropy")
    x, y = torch.randn(16, 3, 8, 8), torch.randint(4, (16,))
    d = objective.direction([torch.randn_like(p) for p in objective.parameters])
    exact = objective.batch(x, y).taylor_along(d)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = objective.batch(x, y).taylor_along(d)
        gradient = objective.batch(x, y).gradient()
    assert gradient.flat.dtype == torch.float32
    assert rough.slope.item() == pytest.approx(exact.slope.item(), rel=0.1)
    assert rough.curvature.item() == pytest.approx(exact.curvature.item(), rel=0.1)


def linear(**options):
    return nn.Linear(2, 2, **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Objective(lambda x: x, "cross_entropy"), TypeError, "must be a torch.nn.Module"),
        (lambda: Objective(nn.ReLU(), "cross_entropy"), ValueError, "no trainable parameter"),
        (lambda: Objective(linear(dtype=torch.complex64), "squared_error"), TypeError, "must be real and floating"),
        (lambda: Objective(nn.Sequential(linear(), linear().double()), "cross_entropy"), ValueError, "share one dtype"),
        (lambda: Objective(nn.Sequential(linear(), linear(device="meta")), "cross_entropy"), ValueError, "one device"),
        (lambda: Objective(linear(), "hinge"), ValueError, "loss 'hinge' is unknown"),
        (lambda: Objective(linear(), 3), TypeError, "loss must be a name, a loss module"),
        (lambda: Objective(linear(), "cross_entropy", l2=-1), ValueError, "l2 is -1"),
        (lambda: Objective(linear(), "cross_entropy", l2_covers="biases"), ValueError, "l2_covers is 'biases'"),
    ],
)
def test_bad_objectives_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("inputs", "targets", "error", "message"),
    [
        (torch.ones(3, 6), [0, 1, 2], TypeError, "targets must be a tensor"),
        ([1.0], torch.zeros(1), TypeError, "one leaf is float"),
        (torch.ones(3, 6), torch.zeros(2), ValueError, "differ in the number"),
        (torch.ones(3, 6), torch.tensor(1), ValueError, "not be a single number"),
        (torch.ones(0, 6), torch.zeros(0), ValueError, "has no sample"),
    ],
)
def test_bad_batches_are_refused(inputs, targets, error, message):
    objective = Objective(BY_NAME["mlp"].model(), "cross_entropy")
    with pytest.raises(error, match=message):
        objective.batch(inputs, targets)


def test_a_loss_that_is_not_per_sample_is_refused():
    case = BY_NAME["mlp"]
    batch = Objective(case.model(), lambda o, t: nn.functional.cross_entropy(o, t)).batch(case.inputs, case.targets)
    with pytest.raises(ValueError, match=r"one value per sample, shape \(24,\), not \(\)"):
        batch.value()


def test_a_model_that_returns_no_tensor_is_refused():
    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(TypeError, match="must return one tensor"):
        Objective(Two(6, 4).double(), "cross_entropy").batch(BY_NAME["mlp"].inputs, BY_NAME["mlp"].targets).value()


def test_directions_of_the_wrong_shape_are_refused():
    batch = batch_of(BY_NAME["mlp"])
    with pytest.raises(ValueError, match="one tensor for each of the 4 parameters"):
        batch.taylor_along([torch.zeros(1)])
    with pytest.raises(ValueError, match="has shape"):
        batch.taylor_along([torch.zeros(1)] * 4)


class Keywords(nn.Module):
    """A model of keyword arguments whose outputs are an attribute, as in Hugging Face transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, *, left: torch.Tensor, right: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.linear(left + right))


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_model_of_keyword_arguments_is_called_as_asked(micro_batch: int | None) -> None:
    torch.manual_seed(0)
    model, inputs, targets = Keywords(), {"left": torch.randn(5, 3), "right": torch.randn(5, 3)}, torch.arange(5) % 2
    named = Objective(
        model, "cross_entropy", call=lambda model, inputs: model(**inputs).logits, micro_batch=micro_batch
    )
    plain = Objective(model.linear, "cross_entropy", micro_batch=micro_batch)
    found, wanted = named.batch(inputs, targets), plain.batch(inputs["left"] + inputs["right"], targets)
    direction = wanted.gradient()
    torch.testing.assert_close(list(found.gradient()), list(direction))
    torch.testing.assert_close(found.taylor_along(direction).curvature, wanted.taylor_along(direction).curvature)


def test_a_batch_in_float64_calls_the_model_as_asked() -> None:
    inputs, targets = {"left": torch.randn(5, 3), "right": torch.randn(5, 3)}, torch.arange(5) % 2
    objective = Objective(Keywords(), "cross_entropy", call=lambda model, inputs: model(**inputs).logits)
    batch = objective.batch(inputs, targets)
    torch.testing.assert_close(batch.in_double().value(), batch.value(), rtol=1e-5, atol=1e-6)


def test_outputs_that_are_no_tensor_are_refused_with_what_to_write() -> None:
    objective = Objective(Keywords(), "cross_entropy", call=lambda model, inputs: model(**inputs))
    batch = objective.batch({"left": torch.ones(2, 3), "right": torch.ones(2, 3)}, torch.zeros(2).long())
    with pytest.raises(TypeError, match=r"SimpleNamespace; pick the outputs .* call=lambda"):
        batch.value()


LARGE = 20_000_000  # a third of VGG-f


def exact_square(x: torch.Tensor) -> float:
    return sum(float(piece.double() @ piece.double()) for piece in x.flatten().split(1 << 20))


def test_inner_products_of_large_directions_are_exact():
    x = torch.rand(LARGE, generator=torch.Generator().manual_seed(0))
    direction = Direction(x, [x])
    assert float(direction.dot(direction)) == pytest.approx(exact_square(x), rel=1e-6)


def test_the_l2_term_of_a_large_layer_is_exact():
    model = nn.Linear(LARGE // 4, 4, bias=False)
    objective = raycurv.Objective(model, "squared_error", l2=0.5)
    value = float(objective.l2_value(objective.parameters))
    assert value == pytest.approx(0.25 * exact_square(model.weight.detach()), rel=1e-6)


@pytest.mark.parametrize("loss", [lambda o, t: (o * o).sum(1) / 2, lambda o, t: o.sum(1).square() / 2])
def test_weighted_products_leave_the_vector_as_it_was(loss):
    """Reverse mode returns the very vector for the first loss, and one number expanded for the second."""
    case = BY_NAME["mlp"]
    weights = torch.arange(len(case.targets), dtype=torch.float64)  # one of them 0
    linear = Objective(case.model(), loss, weights=lambda targets: weights).batch(case.inputs, case.targets).linearise()
    u = torch.randn(linear.outputs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given, gradient = u.clone(), linear.gradient.clone()
    expected = [
        torch.func.hessian(lambda o: loss(o[None], None)[0])(o) @ v for o, v in zip(linear.outputs, u, strict=True)
    ]
    torch.testing.assert_close(linear.hessian(u), weights[:, None] * torch.stack(expected))
    assert torch.equal(u, given)
    assert torch.equal(linear.gradient, gradient)
