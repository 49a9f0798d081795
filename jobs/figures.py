"""The papers' figures that need no tracked run: region of convergence, trajectories on Rosenbrock, memory of a step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raycurv.benchmarks import memory as recordings
from raycurv.benchmarks import trajectories as ways
from raycurv.benchmarks.step_cost import MeasuredOptimizer
from raycurv.figures import convergence, memory, trajectories
from raycurv.figures.rendered import RenderedFigure
from raycurv.models.small_problems import RosenbrockProblem
from raycurv.service import commandline

Name = Literal["convergence", "trajectories", "memory"]


@dataclass(frozen=True)
class Job:
    """The papers' figures that need no tracked run; those of tracked runs come from jobs/compare.py --figures."""

    figures: tuple[Name, ...] = ("convergence", "trajectories", "memory")
    """convergence (CurveBall, Fig. 4), trajectories (CurveBall, Fig. 1), memory (RED, Fig. 5)."""

    output: Path = Path("figures")
    """Folder that gets each of them as PNG, SVG and CSV."""

    optimizers: tuple[str, ...] = ()
    """Of the trajectories, as NAME or NAME:SETTING=VALUE,…; by default those of CurveBall's Table 1."""

    seed: int = 3
    """Of the trajectories' start and noise; 3 starts to the left, with the bend of the valley before it."""

    steps: int = 2000
    """After which a trajectory ends."""

    networks: tuple[str, ...] = ("basic CNN", "ResNet-18")
    """Whose step's memory is recorded, as in jobs/benchmark_step.py."""

    measured: tuple[str, ...] = ("red_sgd", "red_sgd:lean=True", "curveball")
    """Optimizers whose step's memory is recorded, beside the plain gradient's."""


def _trajectories(job: Job) -> RenderedFigure:
    subjects = tuple(map(MeasuredOptimizer.of, job.optimizers)) or ways.SUBJECTS
    problems = [RosenbrockProblem(low, high) for low, high in ways.NOISE]
    return trajectories.draw([ways.follow(p, s, seed=job.seed, limit=job.steps) for p in problems for s in subjects])


def _memory(job: Job) -> RenderedFigure:
    subjects = tuple(map(MeasuredOptimizer.of, job.measured))
    return memory.draw([one for network in job.networks for one in recordings.recordings(network, subjects)])


def main(job: Job) -> None:
    """Compute, draw, write."""
    makers = {"convergence": lambda _: convergence.draw(), "trajectories": _trajectories, "memory": _memory}
    for name in job.figures:
        drawn = makers[name](job)
        print(f"{', '.join(str(path) for path in drawn.save(job.output))}\n  {drawn.caption}", flush=True)


if __name__ == "__main__":
    commandline.run(Job, main)
