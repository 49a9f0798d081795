"""Small runs for the tests, importable by workers."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import torch
from torch import nn

from raycurv.data import Data, tensors
from raycurv.train import Component, RunConfig


def points(samples: int = 256, seed: int = 0, modules: str = "") -> Data:
    """Points of the plane in three classes; the names of the imported modules are written to `modules`."""
    if modules:
        Path(modules).write_text("\n".join(sorted(sys.modules)))
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 2, generator=generator)
    targets = ((inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long()).long()
    half = samples // 2
    held_out = (inputs[half:], targets[half:])
    return tensors(inputs[:half], targets[:half], evaluation=held_out, classes=("a", "b", "c"))


class Slow(nn.Module):
    """The identity, after a pause in training: a run that can be caught in the middle."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(self.seconds)
        return inputs


def mislabelled() -> RunConfig:
    """A function that says that it is a recipe, and returns a network."""
    return perceptron(3)  # type: ignore[return-value]


def perceptron(num_classes: int, hidden: int = 8, pause: float = 0.0) -> nn.Module:
    """A small smooth network."""
    return nn.Sequential(Slow(pause), nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, num_classes))


def mine(epochs: int = 2, pause: float = 0.0, modules: str = "", samples: int = 256, **fields: object) -> RunConfig:
    """A user's recipe."""
    values = {"batch_size": 16, "log_every": 2, "checkpoint_every": 3, "optimizer": "curveball"} | fields
    return RunConfig(
        name="points",
        model=Component.of(perceptron, pause=pause),
        data=Component.of(points, samples=samples, modules=modules),
        epochs=epochs,
        **values,  # type: ignore[arg-type]
    )


def broken(epochs: int = 2) -> RunConfig:
    """A run whose loss is infinite from the first step on."""
    return dataclasses.replace(mine(epochs), loss="tests.service.problems:infinite", optimizer="sgd")


def infinite(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A loss that no optimizer can do anything with."""
    return outputs.sum(1) * float("inf")
