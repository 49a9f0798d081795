"""CurveBall's small degenerate problems (section 4, Table 1): stochastic Rosenbrock and Rahimi-Recht.

Each problem has two forms, which use the same random numbers for the same seed:

- ``instance(seed)``: a model, its objective and an endless stream of batches, for any optimizer;
- ``stack(seeds)``: many runs side by side in single tensors, for the grid searches of first-order methods.

A seed determines one run: the starting point, the data and the noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from raycurv.objective import Batch, Objective

DTYPE = torch.float64
_NOISE_BLOCK = 512  # noise samples drawn at once


@dataclass(frozen=True)
class ProblemRun:
    """One run of a problem.

    Attributes:
        objective: the model and its loss.
        batches: endless stream; one batch evaluates the stochastic function for one iteration.
    """

    objective: Objective
    batches: Iterator[Batch]

    def error(self) -> float:
        """The loss without noise, at the current parameters."""
        model = self.objective.model
        assert isinstance(model, (Rosenbrock, TwoLayerLinear))
        return model.error()


class ParallelRuns(Protocol):
    """Many runs side by side.

    Attributes:
        start: starting parameters of all runs, (runs, …) each.
    """

    start: list[Tensor]

    def errors(self, points: Sequence[Tensor], runs: Tensor) -> Tensor:
        """The loss without noise of each row of `points`, (rows,).

        Args:
            points: parameters, (rows, …) each.
            runs: index of the run of each row, (rows,).
        """

    def gradients(self, points: Sequence[Tensor], runs: Tensor, iteration: int) -> list[Tensor]:
        """The gradient of each row's loss with the noise of an iteration, in the shapes of `points`."""


class SmallProblem(Protocol):
    """A problem, shown as a column of Table 1."""

    @property
    def name(self) -> str:
        """Title of the column."""

    def instance(self, seed: int) -> ProblemRun:
        """Build one run."""

    def stack(self, seeds: Sequence[int]) -> ParallelRuns:
        """Build many runs side by side."""


# --- Rosenbrock ------------------------------------------------------------------------------------------------------


class Rosenbrock(nn.Module):
    """R(u, v) = (1 − u)² + 100 ε (v − u²)² (eq. 19) as residuals φ = (1 − u, 10 √ε (v − u²)), so that H_L = 2I.

    Args:
        start: starting point (u, v).
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.point = nn.Parameter(start.clone())

    def forward(self, noise: Tensor) -> Tensor:
        """Residuals (B, 2) for noise samples ε (B,)."""
        u, v = self.point.unbind()
        return torch.stack([(1 - u).expand_as(noise), 10 * noise.sqrt() * (v - u * u)], 1)

    @torch.no_grad()
    def error(self) -> float:
        """R at ε = 1; infinite where the point has diverged."""
        u, v = self.point
        return float((1 - u).square() + 100 * (v - u * u).square())


@dataclass(frozen=True)
class RosenbrockProblem:
    """The stochastic Rosenbrock function from starts uniform in [−2, 2]².

    Attributes:
        low: λ₁, the lower bound of the noise.
        high: λ₂, the upper bound of the noise; equal to `low` for the deterministic function.
        name: title of the column.
    """

    low: float = 1.0
    high: float = 1.0
    name: str = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"RosenbrockProblem takes noise bounds 0 ≤ low ≤ high, not {self.low!r} and {self.high!r}")
        noise = "deterministic" if self.low == self.high == 1 else f"U[{self.low:g},{self.high:g}]"
        object.__setattr__(self, "name", f"Rosenbrock {noise}")

    def instance(self, seed: int) -> ProblemRun:
        """Build one run."""
        objective = Objective(Rosenbrock(self.begin(seed)), "squared_error")
        return ProblemRun(objective, self._batches(objective, seed))

    def stack(self, seeds: Sequence[int]) -> RosenbrockRuns:
        """Build many runs side by side."""
        return RosenbrockRuns(self, tuple(seeds))

    def begin(self, seed: int) -> Tensor:
        """The starting point of a run, (2,)."""
        return 4 * torch.rand(2, generator=_generator(seed), dtype=DTYPE) - 2

    def noise(self, seed: int, block: int) -> Tensor:
        """The noise of iterations ``block·512`` and following of a run, (512,)."""
        drawn = torch.rand(_NOISE_BLOCK, generator=_generator(seed, 1 + block), dtype=DTYPE)
        return self.low + (self.high - self.low) * drawn

    def _batches(self, objective: Objective, seed: int) -> Iterator[Batch]:
        targets = torch.zeros(1, 2, dtype=DTYPE)
        block = 0
        while True:
            for sample in self.noise(seed, block).split(1):
                yield objective.batch(sample, targets)
            block += 1


class RosenbrockRuns:
    """Rosenbrock runs side by side."""

    def __init__(self, problem: RosenbrockProblem, seeds: tuple[int, ...]) -> None:
        self.problem, self.seeds = problem, seeds
        self.start = [torch.stack([problem.begin(seed) for seed in seeds])]
        self._block, self._noise = -1, torch.empty(0)

    def errors(self, points: Sequence[Tensor], runs: Tensor) -> Tensor:
        """R at ε = 1 of each row, (rows,)."""
        u, v = points[0].unbind(-1)
        return (1 - u).square() + 100 * (v - u * u).square()

    def gradients(self, points: Sequence[Tensor], runs: Tensor, iteration: int) -> list[Tensor]:
        """∇R of each row, (rows, 2)."""
        u, v = points[0].unbind(-1)
        valley = 200 * self._at(iteration)[runs] * (v - u * u)
        return [torch.stack([2 * (u - 1) - 2 * u * valley, valley], -1)]

    def _at(self, iteration: int) -> Tensor:
        block, offset = divmod(iteration, _NOISE_BLOCK)
        if block != self._block:
            self._noise = torch.stack([self.problem.noise(seed, block) for seed in self.seeds], 1)
            self._block = block
        return self._noise[offset]


# --- Rahimi-Recht ----------------------------------------------------------------------------------------------------


class TwoLayerLinear(nn.Module):
    """x ↦ W₂ W₁ x, with the data to fit.

    Args:
        layers: starting values of W₁ (hidden, in) and W₂ (out, hidden).
        inputs: inputs of the data set, (samples, in).
        targets: targets of the data set, (samples, out).
    """

    def __init__(self, layers: Sequence[Tensor], inputs: Tensor, targets: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(layers[0].clone()), nn.Parameter(layers[1].clone())
        self.inputs, self.targets = inputs, targets

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (B, out)."""
        return inputs @ self.first.T @ self.second.T

    @torch.no_grad()
    def error(self) -> float:
        """Mean over the samples of ‖W₂W₁x − y‖²."""
        return float((self(self.inputs) - self.targets).square().sum(1).mean())


@dataclass(frozen=True)
class RahimiRechtProblem:
    """Two linear layers fitted to y = Ax with an ill-conditioned A (Rahimi and Recht 2017).

    The paper gives the condition number alone. Here A has random singular vectors and singular values equally spaced
    from 1 to 1 / condition. Inputs are normal, and every iteration uses all samples. The layers start as torch's linear
    layers do: uniform within ±1/√(inputs of the layer).

    Attributes:
        sizes: numbers of inputs, hidden units and outputs.
        samples: number of samples of the data set.
        condition: condition number of A.
        name: title of the column.
    """

    sizes: tuple[int, int, int] = (6, 6, 10)
    samples: int = 1000
    condition: float = 1e5
    name: str = "Rahimi-Recht"

    def instance(self, seed: int) -> ProblemRun:
        """Build one run."""
        matrix, inputs, layers = self.draw(seed)
        model = TwoLayerLinear(layers, inputs, inputs @ matrix.T)
        objective = Objective(model, "squared_error")
        return ProblemRun(objective, self._batches(objective, model))

    def stack(self, seeds: Sequence[int]) -> RahimiRechtRuns:
        """Build many runs side by side."""
        return RahimiRechtRuns(self, tuple(seeds))

    def draw(self, seed: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """A (out, in), the inputs (samples, in) and the layers' starts of a run."""
        generator = _generator(seed)
        size, hidden, out = self.sizes
        rank = min(size, out)
        left, right = (torch.linalg.qr(_normal(generator, rows, rank)).Q for rows in (out, size))
        matrix = left * torch.linspace(1, 1 / self.condition, rank, dtype=DTYPE) @ right.T
        inputs = _normal(generator, self.samples, size)
        layers = [
            (2 * torch.rand(rows, columns, generator=generator, dtype=DTYPE) - 1) / columns**0.5
            for rows, columns in ((hidden, size), (out, hidden))
        ]
        return matrix, inputs, layers

    def _batches(self, objective: Objective, model: TwoLayerLinear) -> Iterator[Batch]:
        while True:
            yield objective.batch(model.inputs, model.targets)


class RahimiRechtRuns:
    """Rahimi-Recht runs side by side; the data enters by its second moment, which gives the same loss."""

    def __init__(self, problem: RahimiRechtProblem, seeds: tuple[int, ...]) -> None:
        drawn = [problem.draw(seed) for seed in seeds]
        self.start = [torch.stack([layers[index] for _, _, layers in drawn]) for index in range(2)]
        self._matrices = torch.stack([matrix for matrix, _, _ in drawn])
        self._moments = torch.stack([inputs.T @ inputs / len(inputs) for _, inputs, _ in drawn])

    def errors(self, points: Sequence[Tensor], runs: Tensor) -> Tensor:
        """The loss of each row, (rows,): the trace of E S Eᵀ with E = W₂W₁ − A and S the mean of xxᵀ."""
        error, product = self._products(points, runs)
        return (error * product).sum((-1, -2))

    def gradients(self, points: Sequence[Tensor], runs: Tensor, iteration: int) -> list[Tensor]:
        """2 W₂ᵀ E S and 2 E S W₁ᵀ of each row."""
        _, product = self._products(points, runs)
        return [2 * points[1].mT @ product, 2 * product @ points[0].mT]

    def _products(self, points: Sequence[Tensor], runs: Tensor) -> tuple[Tensor, Tensor]:
        error = points[1] @ points[0] - self._matrices[runs]
        return error, error @ self._moments[runs]


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=DTYPE)


def _generator(seed: int, stream: int = 0) -> torch.Generator:
    """Generator of a stream of a seed.

    Streams of different seeds do not collide: a run has far fewer than a million noise blocks.
    """
    return torch.Generator().manual_seed(seed * 1_000_003 + stream)


# --- Networks of runs that a configuration describes ------------------------------------------------------------------


def rosenbrock() -> Rosenbrock:
    """Rosenbrock function from a start uniform in [−2, 2]², drawn from torch's global generator."""
    return Rosenbrock(4 * torch.rand(2, dtype=DTYPE) - 2)


def two_linear_layers(widths: tuple[int, int, int]) -> nn.Sequential:
    """x ↦ W₂W₁x.

    Args:
        widths: numbers of inputs, hidden units and outputs.
    """
    inputs, hidden, outputs = widths
    return nn.Sequential(nn.Linear(inputs, hidden, bias=False), nn.Linear(hidden, outputs, bias=False))


def problems() -> tuple[SmallProblem, ...]:
    """Problems of Table 1, in the order of its columns."""
    rosenbrock = RosenbrockProblem(), RosenbrockProblem(0.0, 1.0), RosenbrockProblem(0.0, 3.0)
    return *rosenbrock, RahimiRechtProblem()
