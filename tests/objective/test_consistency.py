"""Models that carry state from one forward pass to the next: made consistent, or found at the first batch."""

import random
import warnings

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycurv import Objective, optim
from raycurv.objective import InconsistentModel
from raycurv.objective.operations import OperationCounter

INPUTS, TARGETS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double(), torch.arange(6) % 3


class Hidden(nn.Module):
    """A linear layer whose outputs are scaled by what a forward pass moves."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("average", torch.ones(3))
        self.register_buffer("calls", torch.zeros(()))
        self.torch_generator = torch.Generator().manual_seed(3)
        self.own_random = random.Random(3)
        self.own_numpy = numpy.random.default_rng(3)
        self.old_numpy = numpy.random.RandomState(3)
        self.counter = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y * self.scale(y)


class MovingAverage(Hidden):
    def scale(self, y):
        self.average.mul_(0.9).add_(y.detach().abs().mean(0), alpha=0.1)
        return self.average


class Replaced(Hidden):
    def scale(self, y):
        self.average = 0.9 * self.average + 0.1 * y.detach().abs().mean(0)
        return self.average


class CountedInABuffer(Hidden):
    def scale(self, y):
        self.calls += 1
        return self.calls


class LayerDrop(Hidden):
    def scale(self, y):
        return random.random()


class NumpyNoise(Hidden):
    def scale(self, y):
        return numpy.random.rand()


class OwnTorchGenerator(Hidden):
    def scale(self, y):
        return torch.rand((), generator=self.torch_generator)


class OwnPythonGenerator(Hidden):
    def scale(self, y):
        return self.own_random.random()


class OwnNumpyGenerator(Hidden):
    def scale(self, y):
        return self.own_numpy.random()


class OldNumpyGenerator(Hidden):
    def scale(self, y):
        return self.old_numpy.rand()


class Counter(Hidden):
    def scale(self, y):
        self.counter += 1
        return self.counter


def old_spectral_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.spectral_norm(nn.Linear(4, 3))


KEPT = {
    "moving-average": MovingAverage,
    "replaced-buffer": Replaced,
    "counter-in-a-buffer": CountedInABuffer,
    "layer-drop": LayerDrop,
    "numpy": NumpyNoise,
    "own-torch-generator": OwnTorchGenerator,
    "own-python-generator": OwnPythonGenerator,
    "own-numpy-generator": OwnNumpyGenerator,
    "old-numpy-generator": OldNumpyGenerator,
    "old-spectral-norm": old_spectral_norm,
    "spectral-norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),
}


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("name", KEPT)
def test_all_questions_about_a_batch_see_the_same_function(name, micro_batch):
    torch.manual_seed(0)
    objective = Objective(KEPT[name]().double(), "cross_entropy", micro_batch=micro_batch)
    for _ in range(3):
        batch = objective.batch(INPUTS, TARGETS)
        value, gradient = batch.value_and_gradient()
        assert batch.value() == value
        taylor = batch.taylor_along(gradient)
        assert torch.allclose(taylor.value, value, rtol=1e-12)
        assert torch.allclose(taylor.slope, gradient.dot(gradient), rtol=1e-10)
        assert torch.allclose(batch.in_double().value(), value, rtol=1e-12)
        assert torch.equal(batch.values_along(gradient, [0.0]), value.view(1))


@pytest.mark.parametrize("name", ["moving-average", "layer-drop", "own-torch-generator", "old-spectral-norm"])
def test_hidden_state_moves_once_per_batch(name):
    def run(questions: int) -> Tensor:
        torch.manual_seed(0)
        random.seed(0)
        objective = Objective(KEPT[name]().double(), "cross_entropy")
        values = []
        for _ in range(3):
            batch = objective.batch(INPUTS, TARGETS)
            values += [batch.value() for _ in range(questions)][:1]
        return torch.stack(values)

    moved = run(1)
    assert torch.equal(moved, run(4))
    assert moved[0] != moved[1]


@pytest.mark.parametrize("question", ["value", "gradient", "linearise"])
def test_a_counter_in_an_attribute_is_found_and_named(question):
    objective = Objective(nn.Sequential(nn.Tanh(), Counter()).double(), "cross_entropy")
    for _ in range(2):  # the next batch is refused too
        with pytest.raises(
            InconsistentModel, match=r"first in module '1' \(Counter\) \(attributes that change: 1.counter\)"
        ):
            getattr(objective.batch(INPUTS, TARGETS), question)()


def test_a_generator_outside_the_model_is_found():
    noise = numpy.random.default_rng(0)
    objective = Objective(nn.Linear(4, 3).double(), "cross_entropy", call=lambda model, x: model(x) * noise.random())
    with pytest.raises(InconsistentModel, match="check_consistency=False"):
        objective.batch(INPUTS, TARGETS).gradient()


def test_weights_that_the_forward_pass_changes_are_found_and_named():
    model = nn.Sequential(nn.Embedding(6, 4, max_norm=0.1), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(InconsistentModel, match=r"changes parameters in its forward pass \(0.weight\)"):
        Objective(model, "cross_entropy").batch(torch.arange(6).view(3, 2), torch.arange(3)).value()


def test_the_check_can_be_switched_off():
    objective = Objective(Counter().double(), "cross_entropy", check_consistency=False)
    batch = objective.batch(INPUTS, TARGETS)
    assert batch.value() != batch.value()


class Passes(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.passes = model, [0]

    def forward(self, x):
        self.passes[0] += 1
        return self.model(x)


@pytest.mark.parametrize("make", [lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(3), lambda: nn.RReLU()])
def test_the_check_takes_one_forward_pass_once(make):
    torch.manual_seed(0)
    model = Passes(nn.Sequential(nn.Linear(4, 3), make()))
    objective = Objective(model.double(), "cross_entropy")
    for expected in (2, 3, 4):
        objective.batch(INPUTS, TARGETS).gradient()
        assert model.passes[0] == expected
    model.eval()
    for expected in (6, 7):  # evaluation may read other state
        objective.batch(INPUTS, TARGETS).gradient()
        assert model.passes[0] == expected


def test_the_check_does_not_count_as_an_operation_of_the_optimizer():
    def operations(check: bool) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        objective = Objective(model, "cross_entropy", check_consistency=check)
        objective.operations = OperationCounter()
        optimizer, counted = optim.create("curveball", model), []
        for _ in range(30):
            batch = objective.batch(INPUTS, TARGETS)
            with objective.operations.step():
                optimizer.step(batch)
            counted.append(objective.operations.take())
        return counted

    assert operations(True) == operations(False)


class DropoutAfterAttention(nn.Module):
    """Elements of a dropout mask are drawn in the order of memory, which kernels of attention choose."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.layer(x).view(3, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        return F.dropout(attended, 0.5).flatten(1)


def test_dropout_after_attention_is_the_same_with_and_without_curvature():
    torch.manual_seed(0)
    objective = Objective(DropoutAfterAttention().double(), "squared_error")
    batch = objective.batch(torch.randn(3, 5, 8).double(), torch.zeros(3, 40).double())
    value, gradient = batch.value_and_gradient()
    taylor = batch.taylor_along(gradient)
    assert torch.allclose(taylor.value, value, rtol=1e-12)
    assert torch.allclose(taylor.slope, gradient.dot(gradient), rtol=1e-12)
