"""Curvature from the first samples in the forward pass of all equals that of a forward pass of their own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import raycurv
from raycurv import optim
from raycurv.models.transformer import transformer
from raycurv.objective.losses import word_counts, word_cross_entropy
from tests.cases import BY_NAME
from tests.objective.test_objective import random_direction

SAMPLES = 8


class Apply(nn.Module):
    """A function of (module, x) around layers."""

    def __init__(self, function, **layers):
        super().__init__()
        self.layers, self.function = nn.ModuleDict(layers), function

    def forward(self, x):
        return self.function(self.layers, x)


def embedded_positions(layers, x):
    """Positions as many as samples: their embedding has no rows."""
    return layers["words"](x).add(layers["places"](torch.arange(x.shape[1])))[:, 0]


def split_and_joined(layers, x):
    a, b = layers["in"](x).chunk(2, 1)
    y = torch.cat([a * torch.sigmoid(b), x[:, :2].relu() * layers["scale"].weight[0, :2]], 1)
    return layers["out"](y.unsqueeze(1).expand(-1, 3, -1).transpose(1, 2).flatten(1)).clamp(-2, 2)


def attention(layers, x):
    q, k, v = (layers[name](x).view(len(x), 3, 2, 2).transpose(1, 2) for name in "qkv")
    mask = torch.zeros(len(x), 1, 1, 3, dtype=x.dtype).index_fill(3, torch.tensor([2]), -1.0)
    return layers["out"](F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(1))


def overwritten(layers, x):
    return layers["out"](F.relu(layers["in"](x).mul_(2), inplace=True))


def linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs)


def features(width: int) -> Tensor:
    return torch.randn(SAMPLES, width, dtype=torch.float64)


MODELS = {
    "mlp": (lambda: nn.Sequential(linear(4, 6), nn.Tanh(), linear(6, 3)), lambda: features(4)),
    "images": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 2),
            nn.AvgPool2d(1), nn.Flatten(), nn.ELU(), linear(8, 3),
        ),
        lambda: torch.randn(SAMPLES, 1, 6, 6, dtype=torch.float64),
    ),
    "embedded": (
        lambda: Apply(embedded_positions, words=nn.Embedding(10, 3), places=nn.Embedding(SAMPLES, 3)),
        lambda: torch.randint(10, (SAMPLES, SAMPLES)),
    ),
    "normalised": (
        lambda: nn.Sequential(linear(4, 6), nn.LayerNorm(6), nn.Softmax(1), linear(6, 3)), lambda: features(4)
    ),
    "split and joined": (
        lambda: Apply(split_and_joined, **{"in": linear(4, 6), "scale": linear(2, 1), "out": linear(15, 3)}),
        lambda: features(4),
    ),
    "attention": (
        lambda: Apply(attention, q=linear(12, 12), k=linear(12, 12), v=linear(12, 12), out=linear(12, 3)),
        lambda: features(12),
    ),
    "overwritten": (lambda: Apply(overwritten, **{"in": linear(4, 6), "out": linear(6, 3)}), lambda: features(4)),
}  # fmt: skip
# What one sample gives depends on the others, or on an operator without a condition.
COUPLED = {
    "batch norm": lambda: nn.Sequential(linear(4, 6), nn.BatchNorm1d(6), linear(6, 3)),
    "centred": lambda: Apply(
        lambda layers, x: layers["out"](x - layers["in"](x).mean(0)), **{"in": linear(4, 4), "out": linear(4, 3)}
    ),
    "inputs centred": lambda: Apply(lambda layers, x: layers["out"](x - x.mean(0)), out=linear(4, 3)),
    "reversed": lambda: Apply(lambda layers, x: layers["out"](x).flip(0), out=linear(4, 3)),
    "over samples": lambda: Apply(lambda layers, x: layers["out"](x).softmax(0), out=linear(4, 3)),
    "weighted by others": lambda: Apply(lambda layers, x: (layers["out"](x) @ x.t())[:, :3], out=linear(4, 4)),
    "of each sample's own": lambda: Apply(
        lambda layers, x: layers["out"](x) + layers["own"].weight[: len(x)], out=linear(4, 3), own=nn.Linear(3, SAMPLES)
    ),
    "written through a view": lambda: Apply(written, out=linear(4, 3)),
    "double": lambda: Apply(lambda layers, x: layers["out"](x.repeat(2, 1))[: len(x)], out=linear(4, 3)),
}  # fmt: skip


def written(layers, x):
    y = layers["out"](x)
    y[:, 0] = 2 * y[:, 1]
    return y


def objective_of(make, *, one_pass=True, l2=0.02) -> raycurv.Objective:
    torch.manual_seed(1)
    objective = raycurv.Objective(make().double(), "cross_entropy", l2, weights=lambda targets: 1.0 + targets)
    if not one_pass:
        objective.works_by_rows = Never()
    return objective


class Never(dict):
    """Says of every kind of batch that the model does not work on each sample alone."""

    def __contains__(self, key):
        return True

    def __getitem__(self, key):
        return False


def answers(objective, inputs, targets):
    batch, d = objective.batch(inputs, targets), random_direction(objective)
    linear = batch.linearise(d, fraction=0.4)
    curved = linear.hessian(linear.tangent)
    taylor = linear.taylor(d)
    gradient = linear.pull(linear.gradient + curved)
    found = [linear.outputs, linear.tangent, curved, linear.inner(linear.gradient, linear.tangent), linear.loss()]
    found += [taylor.value, taylor.slope, taylor.curvature, taylor.absolute_curvature, gradient.flat, batch.value()]
    again = batch.linearise(fraction=0.4).taylor(d)
    return batch, [*found, again.absolute_curvature]


def assert_equal_to_two_passes(make, inputs):
    targets = torch.arange(SAMPLES) % 3
    batch, found = answers(objective_of(make), inputs, targets)
    other, expected = answers(objective_of(make, one_pass=False), inputs, targets)
    assert other.micro_batches
    for index, (one, two) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12, msg=str(index))
    return batch


@pytest.mark.parametrize("name", MODELS)
def test_one_pass_equals_two(name):
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    batch = assert_equal_to_two_passes(make, inputs())
    assert batch.in_one_pass
    assert not batch.micro_batches


@pytest.mark.parametrize("name", COUPLED)
def test_models_that_do_not_work_on_each_sample_alone_take_two_passes(name):
    torch.manual_seed(0)
    batch = assert_equal_to_two_passes(COUPLED[name], features(4))
    assert batch.micro_batches
    assert not batch.in_one_pass


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_transformer_takes_one_pass(dropout):
    torch.manual_seed(0)
    model = transformer(7, 7, size=8, heads=2, layers=1, hidden=8, dropout=dropout).double()
    words = torch.randint(1, 7, (SAMPLES, 2, 5))
    words[3, :, 3:] = 0
    targets = words[:, 1].roll(-1, 1)
    objective = raycurv.Objective(model, word_cross_entropy, weights=word_counts)
    batch, d = objective.batch(words, targets), random_direction(objective)
    linear = batch.linearise(d, fraction=0.25)
    assert batch.in_one_pass
    slope = (batch.values_along(d, [1e-6])[0] - batch.values_along(d, [-1e-6])[0]) / 2e-6
    torch.testing.assert_close(linear.pull(linear.gradient).dot(d), slope, rtol=1e-6, atol=1e-8)
    if not dropout:
        first = objective.batch(words[:2], targets[:2])
        torch.testing.assert_close(linear.tangent[:2], first.linearise(d).tangent, rtol=1e-10, atol=1e-12)
        curvature = linear.taylor(d).absolute_curvature
        torch.testing.assert_close(curvature, first.curvature_along(d), rtol=1e-10, atol=1e-12)


def test_the_tangents_see_the_dropout_mask_of_the_pass():
    case = BY_NAME["dropout"]
    objective = raycurv.Objective(case.model(), case.loss)
    batch, d = objective.batch(case.inputs, case.targets), random_direction(objective)
    linear, step = batch.linearise(d, fraction=0.5), 1e-6
    assert batch.in_one_pass
    points = [[p + t * x for p, x in zip(objective.parameters, d, strict=True)] for t in (step, -step)]
    with torch.no_grad():
        ahead, behind = (batch.outputs([p.detach() for p in point]) for point in points)
    half = len(case.targets) // 2
    torch.testing.assert_close(linear.tangent[:half], ((ahead - behind) / (2 * step))[:half], rtol=1e-6, atol=1e-8)
    assert bool((linear.tangent[half:] == 0).all())


def test_random_numbers_are_those_of_a_run_without_the_rehearsal():
    case, draws = BY_NAME["dropout"], []
    for known in (False, True):
        objective = raycurv.Objective(case.model(), case.loss)
        if known:
            objective.works_by_rows = {(True, (case.inputs.shape, case.inputs.dtype)): True}
        torch.manual_seed(3)
        objective.batch(case.inputs, case.targets).linearise(fraction=0.5)
        draws.append(torch.rand(3))
    torch.testing.assert_close(*draws, rtol=0, atol=0)


def test_a_pass_that_turns_out_to_couple_samples_still_answers():
    coupled = [False]

    def function(layers, x):
        y = layers["out"](x)
        return y - y.mean(0) if coupled[0] else y

    objective = objective_of(lambda: Apply(function, out=linear(4, 3)), l2=0.0)
    x, targets = features(4), torch.arange(SAMPLES) % 3
    objective.batch(x, targets).linearise(fraction=0.5)
    coupled[0] = True
    batch, d = objective.batch(x, targets), random_direction(objective)
    tangent = batch.linearise(d, fraction=0.5).tangent
    first = objective.batch(x[:4], targets[:4]).linearise(d).tangent
    torch.testing.assert_close(tangent[:4], first, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "settings"), [("curveball", {}), ("red_adam", {}), ("red_sgd", {})])
def test_optimizers_take_the_steps_of_two_passes(name, settings):
    ends = []
    for one_pass in (True, False):
        objective = objective_of(MODELS["mlp"][0], one_pass=one_pass)
        optimizer = optim.create(name, objective.model, curvature_fraction=0.25, **settings)
        generator = torch.Generator().manual_seed(2)
        for _ in range(12):
            inputs = torch.randn(SAMPLES, 4, dtype=torch.float64, generator=generator)
            optimizer.step(objective.batch(inputs, torch.arange(SAMPLES) % 3))
        ends.append(torch.cat([p.detach().flatten() for p in objective.parameters]))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)
