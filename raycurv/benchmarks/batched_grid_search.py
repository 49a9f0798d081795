"""Grid searches of first-order methods on the small problems (CurveBall, appendix B.1), all runs at once.

Every pair of a grid point and a run is one row of the same tensors, so that a step of the whole grid costs little more
than a step of one run. The rules are those of ``torch.optim``, row by row.

Appendix B.1 gives the grids of SGD with momentum and Adam. Footnote 3 names RMSProp, AdaGrad and AdaDelta, without
grids: here they take the same rates, and two values around torch's default for the decay. AdaDelta also gets the rate 1
that its paper has.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raycurv.models.small_problems import ParallelRuns, SmallProblem

FirstOrderMethod = Literal["momentum", "adam", "rmsprop", "adagrad", "adadelta"]
LEARNING_RATES = (0.1, 0.05, 0.01, 0.005, 0.001, 0.0005, 0.0001)  # Γ; the paper lists 0.05 twice
GRIDS: Mapping[FirstOrderMethod, Mapping[str, tuple[float, ...]]] = {
    "momentum": {"learning_rate": LEARNING_RATES, "momentum": (0.9, 0.95, 0.99)},
    "adam": {"learning_rate": LEARNING_RATES, "beta1": (0.9, 0.99), "beta2": (0.99, 0.999)},
    "rmsprop": {"learning_rate": LEARNING_RATES, "decay": (0.9, 0.99)},
    "adagrad": {"learning_rate": LEARNING_RATES},
    "adadelta": {"learning_rate": (1.0, *LEARNING_RATES), "decay": (0.9, 0.99)},
}
_LAST = 10  # iterations whose error is averaged for the selection
_SWEEP = 250  # iterations between two clean-ups of finished rows


@dataclass(frozen=True)
class GridResult:
    """Result of a grid search.

    Attributes:
        points: the settings of every grid point.
        iterations: (points, runs), iterations to the solution; −1 where the limit came first or numbers overflowed.
        errors: (points,), mean error of the last ten iterations of the trajectory; infinite if a run overflowed.
    """

    points: tuple[Mapping[str, float], ...]
    iterations: Tensor
    errors: Tensor

    def selected(self) -> int:
        """The grid point with the lowest error at the end of the trajectory, as the paper selects."""
        return int(self.errors.argmin())

    def fastest(self) -> int | None:
        """The grid point that solves all runs in the fewest iterations on average; None if none solves all."""
        solved = (self.iterations >= 0).all(1)
        mean = torch.where(solved, self.iterations.double().mean(1), torch.inf)
        return int(mean.argmin()) if solved.any() else None


def search(
    rule: FirstOrderMethod,
    problem: SmallProblem,
    seeds: Sequence[int],
    *,
    trajectory: int,
    limit: int,
    tolerance: float,
    grid: Mapping[str, tuple[float, ...]] | None = None,
) -> GridResult:
    """Run every grid point on every seed.

    Args:
        rule: name of the method, a key of :data:`GRIDS`.
        problem: problem to minimise.
        seeds: seeds of the runs, one for each.
        trajectory: iterations after which grid points are compared.
        limit: iterations after which a run counts as failed; at least `trajectory`.
        tolerance: error without noise below which a run is solved.
        grid: values of each setting; the paper's by default.

    Raises:
        ValueError: `limit` is below `trajectory`.
    """
    if limit < trajectory:
        raise ValueError(f"limit is {limit}; it must be at least the trajectory of {trajectory} iterations")
    values = GRIDS[rule] if grid is None else grid
    points = tuple(dict(zip(values, point, strict=True)) for point in itertools.product(*values.values()))
    rows = _Rows(rule, problem.stack(seeds), points, len(seeds))
    ends = torch.zeros(len(points) * len(seeds), dtype=torch.float64)
    for iteration in range(limit + 1):
        errors = rows.note(iteration, tolerance)
        if trajectory - _LAST < iteration <= trajectory:
            ends += errors / _LAST
        if iteration >= trajectory and iteration % _SWEEP == 0:
            rows.drop_finished(errors)
        if iteration == limit or not len(rows.row):
            break
        rows.step(iteration)
    means = torch.where(ends.isfinite(), ends, torch.inf).view(len(points), len(seeds)).mean(1)
    return GridResult(points, rows.iterations.view(len(points), len(seeds)), means)


class _Rows:
    """The state of all pairs of a grid point and a run that still go on."""

    def __init__(
        self, rule: FirstOrderMethod, stack: ParallelRuns, points: Sequence[Mapping[str, float]], runs: int
    ) -> None:
        self.stack, self.update = stack, _UPDATES[rule]
        self.row = torch.arange(len(points) * runs)
        self.run = self.row % runs
        self.points = [start.repeat(len(points), *(1,) * (start.dim() - 1)) for start in stack.start]
        self.first = [torch.zeros_like(point) for point in self.points]
        self.second = [torch.zeros_like(point) for point in self.points]
        columns = {name: torch.tensor([point[name] for point in points], dtype=torch.float64) for name in points[0]}
        self.settings = {name: column.repeat_interleave(runs) for name, column in columns.items()}
        self.iterations = torch.full((len(self.row),), -1)

    def note(self, iteration: int, tolerance: float) -> Tensor:
        """Errors without noise of the rows; those below the tolerance for the first time are solved now."""
        errors = self.stack.errors(self.points, self.run)
        fresh = self.row[(errors < tolerance) & (self.iterations[self.row] < 0)]
        self.iterations[fresh] = iteration
        return errors

    def drop_finished(self, errors: Tensor) -> None:
        """Leave out rows that are solved or have overflowed."""
        keep = (self.iterations[self.row] < 0) & errors.isfinite()
        self.row, self.run = self.row[keep], self.run[keep]
        for tensors in (self.points, self.first, self.second):
            tensors[:] = [tensor[keep] for tensor in tensors]
        self.settings = {name: column[keep] for name, column in self.settings.items()}

    def step(self, iteration: int) -> None:
        """One step of every row."""
        for index, gradient in enumerate(self.stack.gradients(self.points, self.run, iteration)):
            shape = (-1, *(1,) * (gradient.dim() - 1))
            settings = {name: column.view(shape) for name, column in self.settings.items()}
            change = self.update(settings, iteration, gradient, self.first[index], self.second[index])
            self.points[index] -= change


def _momentum(settings: Mapping[str, Tensor], iteration: int, g: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The change of torch.optim.SGD with momentum; `first` is its buffer."""
    first.mul_(settings["momentum"]).add_(g)
    return settings["learning_rate"] * first


def _adam(settings: Mapping[str, Tensor], iteration: int, g: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The change of torch.optim.Adam with ε = 1e-8; `first` and `second` are its moments."""
    beta1, beta2, steps = settings["beta1"], settings["beta2"], iteration + 1
    first.mul_(beta1).add_((1 - beta1) * g)
    second.mul_(beta2).add_((1 - beta2) * g * g)
    scale = (second / (1 - beta2**steps)).sqrt_().add_(1e-8)
    return settings["learning_rate"] / (1 - beta1**steps) * first / scale


def _rmsprop(settings: Mapping[str, Tensor], iteration: int, g: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The change of torch.optim.RMSprop with ε = 1e-8; `second` is its mean of squares."""
    second.mul_(settings["decay"]).add_((1 - settings["decay"]) * g * g)
    return settings["learning_rate"] * g / second.sqrt().add_(1e-8)


def _adagrad(settings: Mapping[str, Tensor], iteration: int, g: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The change of torch.optim.Adagrad with ε = 1e-10; `second` is its sum of squares."""
    second.add_(g * g)
    return settings["learning_rate"] * g / second.sqrt().add_(1e-10)


def _adadelta(settings: Mapping[str, Tensor], iteration: int, g: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The change of torch.optim.Adadelta with ε = 1e-6; `first` has the mean square of changes, `second` of g."""
    decay = settings["decay"]
    second.mul_(decay).add_((1 - decay) * g * g)
    change = ((first + 1e-6) / (second + 1e-6)).sqrt_() * g
    first.mul_(decay).add_((1 - decay) * change * change)
    return settings["learning_rate"] * change


_UPDATES = {"momentum": _momentum, "adam": _adam, "rmsprop": _rmsprop, "adagrad": _adagrad, "adadelta": _adadelta}
