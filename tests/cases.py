"""The problems that optimizers and curvature are tested on, as data: float64, seeded, small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model, its loss and data for a few batches.

    Attributes:
        name: shown by pytest.
        build: makes the model; call it after seeding.
        loss: as :class:`raycurv.Objective` takes it.
        inputs: (N, …).
        targets: (N, …).
        l2: factor of the L2 term.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: str | Callable[[Tensor, Tensor], Tensor]
    inputs: Tensor
    targets: Tensor
    l2: float = 0.0

    def __str__(self) -> str:
        return self.name

    def model(self, seed: int = 0) -> nn.Module:
        """The model in float64 with weights from the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.build().double()


def _images(samples: int = 24, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(samples, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _features(samples: int = 24, width: int = 6) -> Tensor:
    return torch.randn(samples, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def _labels(samples: int = 24, classes: int = 4) -> Tensor:
    return torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(3))


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """A convex loss without a closed form of its own, smooth everywhere."""
    return ((1 + (outputs - targets).square()).sqrt() - 1).sum(1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 4))


def batch_normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5),
        nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    )  # fmt: skip


def dropped_out() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 4))


CASES = (
    Case("mlp", mlp, "cross_entropy", _features(), _labels()),
    Case("mlp-l2", mlp, "cross_entropy", _features(), _labels(), l2=0.05),
    Case("regression", mlp, "squared_error", _features(), _features(width=4)),
    Case("generic-loss", mlp, huber, _features(), _features(width=4)),
    Case("convolution", convolutional, "cross_entropy", _images(), _labels()),
    Case("batch-norm", batch_normalised, "cross_entropy", _images(), _labels()),
    Case("batch-norm-l2", batch_normalised, "cross_entropy", _images(), _labels(), l2=0.05),
    Case("dropout", dropped_out, "cross_entropy", _features(), _labels()),
)
BY_NAME = {case.name: case for case in CASES}
