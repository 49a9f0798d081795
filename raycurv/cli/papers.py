"""``raycurv papers``: the papers' own tables and figures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from raycurv.cli.run_options import parse_settings, recipe_options
from raycurv.cli.train import OPTIMIZERS, OPTION
from raycurv.service.cluster import Cluster
from raycurv.service.limits import Limits

if TYPE_CHECKING:
    from raycurv.figures.rendered_figure import RenderedFigure


ComputedFigure = Literal["convergence", "trajectories", "memory", "alarm_factor"]


@dataclass(frozen=True)
class PaperTable:
    """Make a table or figure of a paper: train what is missing, and print ours beside the paper's numbers."""

    USAGE: ClassVar = "TABLE [options]"
    POSITIONAL: ClassVar = "table"
    SHOWN: ClassVar = (
        *("table", "scale", "option", "recipes", "optimizers", "axis", "seeds", "tracked"),
        *("time_limit", "workers", "use_gpu", "resume"),
    )
    EXAMPLE: ClassVar = "raycurv papers table salera_table2_printed --scale 0.1 --seeds 2"

    table: str | None = None
    """Name of the table, such as ntlr_table1; `papers list` shows all."""

    list: bool = False
    """Show all tables, as `papers list` does."""

    scale: tuple[float, ...] = ()
    """Fraction of data and epochs, such as 0.01. Its root is the fraction of the width; three numbers are the fractions
    of data, epochs and width."""

    option: tuple[str, ...] = field(default=(), metadata=OPTION)
    """Arguments of the recipes."""

    recipes: tuple[str, ...] = ()
    """Only the part of the table about these recipes. By default all."""

    optimizers: tuple[str, ...] = field(default=(), metadata=OPTIMIZERS)
    """Only the part about these optimizers. By default all."""

    axis: tuple[str, ...] = field(default=(), metadata=OPTION)
    """Other values of what the paper varies, as NAME=VALUE or NAME=[VALUE,…]."""

    seeds: int | None = None
    """Runs of every point, in place of the paper's number."""

    tracked: bool = False
    """Train nothing: fill the table from the runs in MLflow."""

    limits: Limits = field(default_factory=Limits)
    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> None:
        """Make the table, or show it from the runs so far."""
        from raycurv.benchmarks import paper_tables
        from raycurv.service.table_sweep import make, show

        if self.list or self.table is None:
            PaperList().run()
            return
        options = recipe_options(self.option, self.scale)
        given = parse_settings("--axis", self.axis)
        axes = {name: value if isinstance(value, tuple) else (value,) for name, value in given.items()}
        table = paper_tables.get(self.table).restrict(self.recipes, self.optimizers, axes, self.seeds)
        cluster = dataclasses.replace(self.cluster, log_model=False)
        if self.tracked or isinstance(table, paper_tables.ComputedTable):
            print(show(table, cluster, options))
        else:
            make(table, cluster, self.limits, options)


@dataclass(frozen=True)
class PaperList:
    """Show all tables of the papers, with paper, number, runs, printed entries and recipes."""

    LOADS: ClassVar = "torch"

    def run(self) -> None:
        """Print them."""
        from raycurv.benchmarks import paper_tables

        print(paper_tables.listing())


@dataclass(frozen=True)
class Figures:
    """Draw the papers' figures that need no tracked run; `compare --figures` draws those of tracked runs."""

    EXAMPLE: ClassVar = "raycurv papers figures --figures convergence --output figures"
    LOADS: ClassVar = "torch and matplotlib"

    figures: tuple[ComputedFigure, ...] = ("convergence", "trajectories", "memory", "alarm_factor")
    """Figures to draw: CurveBall's Fig. 4, its Fig. 1, RED's Fig. 5, and SALERA's Fig. 3."""

    output: Path = Path("figures")
    """Folder that gets each of them as PNG, SVG and CSV."""

    optimizers: tuple[str, ...] = field(default=(), metadata=OPTIMIZERS)
    """Optimizers of the trajectories, as NAME or NAME:SETTING=VALUE,…; by default those of CurveBall's Table 1."""

    seed: int = 3
    """Seed of the trajectories' start and noise; 3 starts to the left of the valley."""

    steps: int = 2000
    """Steps after which a trajectory ends."""

    networks: tuple[str, ...] = ("basic CNN", "ResNet-18")
    """Networks whose step's memory is recorded, as in `benchmark step`."""

    measured: tuple[str, ...] = field(default=("red_sgd", "red_sgd:lean=True", "curveball"), metadata=OPTIMIZERS)
    """Optimizers whose step's memory is recorded, beside the plain gradient's."""

    def run(self) -> None:
        """Compute, draw, write."""
        from raycurv.figures import alarm_factor, convergence

        draw = {
            "convergence": convergence.draw,
            "trajectories": self._trajectories,
            "memory": self._memory,
            "alarm_factor": alarm_factor.draw,
        }
        for name in self.figures:
            drawn = draw[name]()
            print(f"{', '.join(str(path) for path in drawn.save(self.output))}\n  {drawn.caption}", flush=True)

    def _trajectories(self) -> RenderedFigure:
        from raycurv.benchmarks import rosenbrock_trajectories
        from raycurv.benchmarks.step_cost import MeasuredOptimizer
        from raycurv.figures import trajectories
        from raycurv.models.small_problems import RosenbrockProblem

        subjects = tuple(map(MeasuredOptimizer.parse, self.optimizers)) or rosenbrock_trajectories.SUBJECTS
        problems = [RosenbrockProblem(low, high) for low, high in rosenbrock_trajectories.NOISE]
        return trajectories.draw(
            [rosenbrock_trajectories.follow(p, s, seed=self.seed, limit=self.steps) for p in problems for s in subjects]
        )

    def _memory(self) -> RenderedFigure:
        from raycurv.benchmarks import step_memory
        from raycurv.benchmarks.step_cost import MeasuredOptimizer
        from raycurv.figures import memory

        subjects = tuple(map(MeasuredOptimizer.parse, self.measured))
        return memory.draw([one for network in self.networks for one in step_memory.record_memories(network, subjects)])
