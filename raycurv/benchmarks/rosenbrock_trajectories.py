"""Trajectories of optimizers on the stochastic Rosenbrock function (CurveBall, Fig. 1), step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raycurv import optim
from raycurv.benchmarks.curveball_table1 import TOLERANCE
from raycurv.benchmarks.step_cost import MeasuredOptimizer
from raycurv.models.small_problems import RosenbrockProblem

# The optimizers of Table 1. First-order methods take the point of the paper's grid that is best without noise.
SUBJECTS = (
    MeasuredOptimizer("momentum", {"learning_rate": 0.0005, "momentum": 0.95}),
    MeasuredOptimizer("adam", {"learning_rate": 0.05, "beta2": 0.99}),
    MeasuredOptimizer("levenberg_marquardt"),
    MeasuredOptimizer("bfgs"),
    MeasuredOptimizer("newton"),
    MeasuredOptimizer("curveball", {"damping": 1.0}),
)
NOISE = ((1.0, 1.0), (0.0, 1.0), (0.0, 3.0))  # noise of Table 1's columns


@dataclass(frozen=True)
class Trajectory:
    """Trajectory of one optimizer.

    Attributes:
        problem: name of the function.
        subject: label of the optimizer.
        points: (u, v) at every step, the start first.
        losses: loss without noise at the same points.
    """

    problem: str
    subject: str
    points: tuple[tuple[float, float], ...]
    losses: tuple[float, ...]

    @property
    def solved(self) -> bool:
        """Whether the last loss is below Table 1's tolerance."""
        return self.losses[-1] < TOLERANCE

    @property
    def ended(self) -> str:
        """Description of the end of the trajectory."""
        if self.solved:
            return f"solved after {len(self.losses) - 1} steps"
        return f"not solved after {len(self.losses) - 1} steps" if math.isfinite(self.losses[-1]) else "diverged"


def follow(problem: RosenbrockProblem, subject: MeasuredOptimizer, *, seed: int = 0, limit: int = 1000) -> Trajectory:
    """Step until the loss without noise is below the tolerance, is not finite, or the limit is reached.

    Args:
        problem: Rosenbrock problem to minimise.
        subject: the optimizer with its settings.
        seed: seed of the start and the noise.
        limit: largest number of steps.

    Raises:
        ValueError: a setting is not allowed, or `limit` is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit!r}; it must be at least 1")
    instance = problem.instance(seed)
    parameter = instance.objective.parameters[0]
    stepper = optim.create(subject.optimizer, instance.objective.model, **subject.settings)
    points, losses = [], []
    for step in range(limit + 1):
        u, v = parameter.detach().tolist()
        points.append((u, v))
        losses.append(instance.error())
        if step == limit or losses[-1] < TOLERANCE or not math.isfinite(losses[-1]):
            break
        stepper.step(next(instance.batches))
    return Trajectory(problem.name, subject.label, tuple(points), tuple(losses))
