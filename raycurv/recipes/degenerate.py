"""CurveBall's small degenerate problems (section 4, Table 1) as runs like any other: a step is one evaluation.

``jobs/table1.py`` makes the table itself, a hundred runs each. Here a run's seed decides the start, and the end of the
run shows the loss without noise as ``test/loss``; the problem is solved where that is below 1e-4.
"""

from __future__ import annotations

import torch
from torch import nn

from raycurv.data import Data, tensors
from raycurv.models.small_problems import DTYPE, RahimiRechtProblem, Rosenbrock
from raycurv.recipes.registry import experiment
from raycurv.recipes.scale import Scale, Scaling
from raycurv.train.configuration import Component, RunConfig, Setting

STEPS = 500
DAMPING = 1.0  # λ₀ of the authors' code, which Table 1 needs


def rosenbrock() -> Rosenbrock:
    """The two parameters, from a start uniform in [−2, 2]²."""
    return Rosenbrock(4 * torch.rand(2, dtype=DTYPE) - 2)


def noise(low: float, high: float, steps: int, seed: int = 0) -> Data:
    """One noise sample ε a step; without noise, ε = 1, for evaluation."""
    drawn = low + (high - low) * torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
    zeros = torch.zeros(steps, 2, dtype=DTYPE)
    return tensors(drawn, zeros, evaluation=(torch.ones(1, dtype=DTYPE), zeros[:1]))


def two_linear_layers(widths: tuple[int, int, int]) -> nn.Sequential:
    """x ↦ W₂W₁x."""
    size, hidden, out = widths
    return nn.Sequential(nn.Linear(size, hidden, bias=False), nn.Linear(hidden, out, bias=False))


def ill_conditioned(widths: tuple[int, int, int], samples: int, condition: float, seed: int = 0) -> Data:
    """Inputs and y = Ax with an ill-conditioned A; evaluated on the same."""
    matrix, inputs, _ = RahimiRechtProblem(widths, samples, condition).draw(seed)
    return tensors(inputs, inputs @ matrix.T, evaluation=(inputs, inputs @ matrix.T))


@experiment("CurveBall", "Table 1, Fig. 1", "no noise", "Rosenbrock", epochs=1, samples=STEPS, gflop=1e-8)
def curveball_rosenbrock(scale: Scaling = 1.0, low: float = 1.0, high: float = 1.0) -> RunConfig:
    """The stochastic Rosenbrock function with noise U[low, high]; deterministic by default.

    Args:
        scale: fraction of the steps; the two others have no meaning here.
        low: λ₁.
        high: λ₂.
    """
    size = Scale.of(scale)
    steps = size.rows(STEPS, 1) or STEPS
    return RunConfig(
        name=size.named("rosenbrock", high != low and f"{low:g}-{high:g}"),
        model=Component.of(rosenbrock),
        data=Component.of(noise, low=low, high=high, steps=steps),
        optimizer="curveball",
        optimizer_settings={"damping": DAMPING},
        loss="squared_error",
        batch_size=1,
        epochs=1,
        precision="fp64",
    )


@experiment("CurveBall", "Table 1, Fig. 1", "noise U[0,1]", "Rosenbrock", epochs=1, samples=STEPS, gflop=1e-8)
def curveball_rosenbrock_noise1(scale: Scaling = 1.0) -> RunConfig:
    """As :func:`curveball_rosenbrock` with noise U[0, 1]."""
    return curveball_rosenbrock(scale, 0.0, 1.0)


@experiment("CurveBall", "Table 1, Fig. 1", "noise U[0,3]", "Rosenbrock", epochs=1, samples=STEPS, gflop=1e-8)
def curveball_rosenbrock_noise3(scale: Scaling = 1.0) -> RunConfig:
    """As :func:`curveball_rosenbrock` with noise U[0, 3]."""
    return curveball_rosenbrock(scale, 0.0, 3.0)


@experiment("CurveBall", "Table 1", "Rahimi-Recht", "linear 6-6-10", epochs=STEPS, samples=1000, gflop=1.92e-7)
def curveball_rahimi_recht(scale: Scaling = 1.0, condition: float = 1e5) -> RunConfig:
    """Two linear layers fitted to an ill-conditioned map, all samples in every step.

    Args:
        scale: fraction of samples, steps and hidden units.
        condition: condition number of the map; the paper does not give the shapes.
    """
    size = Scale.of(scale)
    samples = size.rows(1000, 1) or 1000
    shapes: dict[str, Setting] = {"widths": (6, size.sizes(6)[0], 10)}
    return RunConfig(
        name=size.named("rahimi-recht"),
        model=Component.of(two_linear_layers, **shapes),
        data=Component.of(ill_conditioned, samples=samples, condition=condition, **shapes),
        optimizer="curveball",
        optimizer_settings={"damping": DAMPING},
        loss="squared_error",
        batch_size=samples,
        epochs=size.passes(STEPS),
        precision="fp64",
        evaluate_every=10,
    )
