"""Small problems that a worker can import: networks and data sets as components."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raycurv.data import Data, TensorSource
from raycurv.data.translation import Sentences
from raycurv.train import Component, Record, RunConfig


def blobs(samples: int = 40, held_out: int = 13, features: int = 4, classes: int = 3, broken_row: int = -1) -> Data:
    generator = torch.Generator().manual_seed(0)
    names = tuple(f"class {i}" for i in range(classes))
    total = samples + held_out
    targets = torch.arange(total) % classes
    centres = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    inputs = centres[targets] + 0.5 * torch.randn(total, features, generator=generator, dtype=torch.float64)
    if broken_row >= 0:
        inputs[broken_row] = float("nan")
    evaluation = TensorSource(inputs[samples:], targets[samples:], names) if held_out else None
    return Data(TensorSource(inputs[:samples], targets[:samples], names), evaluation)


def class_numbers() -> Data:
    """Classes by number, whose names are not given."""
    return Data(TensorSource(torch.eye(6), torch.arange(6)))


def sentences(pairs: int = 9) -> Data:
    """Pairs of 1 to 6 words: each share of a batch has its own longest sentence."""
    generator = torch.Generator().manual_seed(0)
    lengths = (1 + torch.randint(6, (2, 2 * pairs), generator=generator)).tolist()
    said, translated = ([torch.randint(4, 9, (n,), generator=generator).tolist() for n in side] for side in lengths)
    words = [f"word {i}" for i in range(9)]
    halves = (slice(0, pairs), slice(pairs, None))
    return Data(*(Sentences(said[half], translated[half], words, 7) for half in halves))


def network(input_shape: tuple[int, ...], num_classes: int, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    middle = nn.BatchNorm1d(8) if norm else nn.Identity()
    drop = nn.Dropout(dropout) if dropout else nn.Identity()
    return nn.Sequential(nn.Linear(input_shape[0], 8), middle, nn.Tanh(), drop, nn.Linear(8, num_classes))


class Drifting(nn.Linear):
    """Changes its weights where it should not, on one worker alone."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and torch.distributed.get_rank() == 1:
            self.weight.data[0, 0] += 1e-6
        return super().forward(inputs)


def drifting(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Drifting(input_shape[0], num_classes)


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - nn.functional.one_hot(targets, outputs.shape[1])).abs().sum(1)


def negative_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1.0 - outputs.square().sum(1)


def steep(outputs: Tensor, targets: Tensor) -> Tensor:
    """So large that its gradient overflows in float16 at first."""
    return 4e3 * nn.functional.cross_entropy(outputs, targets, reduction="none")


def by_class(targets: Tensor) -> Tensor:
    """What samples count for: those of the later classes more."""
    return 1.0 + 3.0 * targets


def config(**changes: object) -> RunConfig:
    model = {"dropout": changes.pop("dropout", 0.0), "norm": changes.pop("norm", False)}
    data = {name: changes.pop(name) for name in ("samples", "held_out", "broken_row") if name in changes}
    settings = {
        "name": "test",
        "batch_size": 8,
        "epochs": 2,
        "log_every": 3,
        "precision": "fp64",
        "optimizer": "curveball",
    }
    settings |= changes
    return RunConfig(model=Component.of(network, **model), data=Component.of(blobs, **data), **settings)


class Kept(list[Record]):
    """Records as they were emitted."""

    def __call__(self, records: list[Record]) -> None:
        self.extend(records)

    def of(self, kind: str) -> list[Record]:
        return [record for record in self if record.kind == kind]
