"""What the optimizers ask of each of the papers' networks, against float64 differences of the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raycurv import Objective, models
from raycurv.objective import losses

CIFAR, SMALL = (3, 32, 32), (1, 12, 12)
STEP = 1e-7


@dataclass(frozen=True)
class Network:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = CIFAR
    loss: Any = "cross_entropy"

    def batch(self) -> Any:
        torch.manual_seed(1)
        model = self.build().double()
        inputs = torch.randn(4, *self.shape, dtype=torch.float64)
        classes = self.loss == "cross_entropy"
        targets = torch.arange(4) % 3 if classes else inputs.flatten(1)
        return Objective(model, self.loss, 1e-3).batch(inputs, targets)


NETWORKS = {
    "vgg11 softplus": Network(lambda: models.vgg(3, depth=11, width=0.06)),
    "vgg19 elu, no batch norm": Network(
        lambda: models.vgg(3, depth=19, width=0.06, activation="elu", batch_norm=False)
    ),
    "vgg11 relu": Network(lambda: models.vgg(3, depth=11, width=0.06, activation="relu")),
    "autoencoder elu": Network(lambda: models.autoencoder(SMALL, (20, 9, 4)), SMALL, "squared_error"),
    "autoencoder softplus": Network(
        lambda: models.autoencoder(SMALL, (20, 9, 4), "softplus"), SMALL, losses.mean_squared_error
    ),
    "wide_resnet": Network(lambda: models.wide_resnet(3, SMALL, depth=10, widen=2, width=0.2), SMALL),
    "resnet18 dropout": Network(lambda: models.resnet18(3, SMALL, dropout=0.3, width=0.07), SMALL),
    "resnet50": Network(lambda: models.resnet50(3, SMALL, stem="small", width=0.04), SMALL),
    "airbench": Network(lambda: models.airbench(3, width=0.06)),
    "vision transformer": Network(lambda: models.vision_transformer(3, SMALL, 4, size=8, heads=2, layers=2), SMALL),
    "m0": Network(lambda: models.m0(3, SMALL), SMALL),
    "m2": Network(lambda: models.m2(3, SMALL, width=0.05), SMALL),
    "m2b": Network(lambda: models.m2b(3, SMALL, width=0.05), SMALL),
    "m4b": Network(lambda: models.m4b(3, (1, 28, 28), width=0.1), (1, 28, 28)),
}


def sentences() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(1, 11, (5, 2, 6), generator=generator)
    targets = torch.randint(1, 11, (5, 6), generator=generator)
    inputs[1, :, 4:], targets[1, 4:] = 0, 0
    inputs[2, 1, 2:], targets[2, 2:] = 0, 0
    return inputs, targets


def translation(pair: bool = False) -> Any:
    torch.manual_seed(1)
    model = models.transformer(11, 13, size=16, heads=2, layers=2, hidden=8).double()
    inputs, targets = sentences()
    objective = Objective(model, losses.word_cross_entropy, 1e-3, weights=losses.word_counts)
    return objective.batch((inputs[:, 0], inputs[:, 1]) if pair else inputs, targets)


def language_model() -> Any:
    torch.manual_seed(1)
    model = models.gpt(13, (6,), size=8, heads=2, hidden=16, dropout=0.1).double()
    inputs, targets = sentences()
    return Objective(model, losses.word_cross_entropy, 1e-3, weights=losses.word_counts).batch(inputs[:, 1], targets)


def assert_derivatives(batch: Any) -> None:
    """Slope against differences of the loss, second derivative against those of the slope: no kink is met."""
    generator = torch.Generator().manual_seed(2)
    objective = batch.objective
    direction = objective.direction(
        p.detach().abs().mean() * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in objective.parameters
    )
    left, here, right = batch.values_along(direction, [-STEP, 0.0, STEP])
    value, gradient = batch.value_and_gradient()
    taylor = batch.taylor_along(direction)
    bend = (batch.taylor_along(direction, STEP).slope - batch.taylor_along(direction, -STEP).slope) / (2 * STEP)
    torch.testing.assert_close(value, here, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient.dot(direction), taylor.slope, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(taylor.slope, (right - left) / (2 * STEP), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(taylor.curvature, bend, rtol=1e-5, atol=1e-6)
    assert taylor.absolute_curvature >= taylor.curvature.abs() * (1 - 1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_and_second_derivative_equal_the_differences(name: str) -> None:
    assert_derivatives(NETWORKS[name].batch())


@pytest.mark.parametrize("pair", [False, True])
def test_a_transformer_with_padding_and_dropout_has_them_too(pair: bool) -> None:
    assert_derivatives(translation(pair))


def test_a_language_model_has_them_too() -> None:
    assert_derivatives(language_model())


def test_a_word_of_a_language_model_does_not_depend_on_later_ones() -> None:
    model = language_model().objective.model.eval()
    words = torch.randint(1, 13, (4, 6), generator=torch.Generator().manual_seed(1))
    changed = words.clone()
    changed[:, 3:] = 1
    torch.testing.assert_close(model(words)[:, :3], model(changed)[:, :3], rtol=1e-12, atol=0)


def test_the_objective_of_sentences_is_the_mean_over_their_words() -> None:
    batch = translation()
    batch.objective.model.eval()
    inputs, targets = sentences()
    expected = nn.functional.cross_entropy(
        batch.objective.model(inputs).flatten(0, 1), targets.flatten(), ignore_index=0
    )
    l2 = batch.objective.l2_value(batch.objective.parameters)
    torch.testing.assert_close(batch.value(), expected.detach() + l2, rtol=1e-12, atol=0)
