"""Make a table or figure of a paper: train what is missing, and print ours beside the paper's numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from raycurv.benchmarks import paper_tables as papers
from raycurv.recipes.overrides import parse_setting
from raycurv.service import Cluster, commandline
from raycurv.service.sweep import Limits
from raycurv.service.table_sweep import make, show


@dataclass(frozen=True)
class Job:
    """Make a table or figure of a paper: train what is missing, and print ours beside the paper's numbers."""

    table: str | None = None
    """Which one, such as ntlr_table1."""

    list: bool = False
    """Show all tables with paper, number, runs, printed entries and recipes."""

    scale: tuple[float, ...] = ()
    """Fraction of data and epochs, and its root of the width, such as 0.01; or three numbers: data, epochs, width."""

    option: tuple[str, ...] = ()
    """Arguments of the recipes as NAME=VALUE."""

    recipes: tuple[str, ...] = ()
    """Only the part of the table about these recipes; by default all."""

    optimizers: tuple[str, ...] = ()
    """Only the part about these optimizers; by default all."""

    axis: tuple[str, ...] = ()
    """Other values for what the paper varies as NAME=VALUE or NAME=[VALUE,…], such as learning_rate=[0.1,0.01]."""

    seeds: int | None = None
    """Runs of every point, in place of the paper's number."""

    tracked: bool = False
    """Train nothing: fill the table from the runs that MLflow has."""

    limits: Limits = field(default_factory=Limits)
    cluster: Cluster = field(default_factory=Cluster)


def main(job: Job) -> None:
    """Parse, table, service."""
    if job.list or job.table is None:
        print(papers.listing())
        return
    options = {**dict(map(parse_setting, job.option)), **({"scale": job.scale} if job.scale else {})}
    axes = {name: value if isinstance(value, tuple) else (value,) for name, value in map(parse_setting, job.axis)}
    table = papers.get(job.table).only(job.recipes, job.optimizers, axes, job.seeds)
    cluster = dataclasses.replace(job.cluster, log_model=False)
    if job.tracked or isinstance(table, papers.Measured):
        print(show(table, cluster, options))
    else:
        make(table, cluster, job.limits, options)


if __name__ == "__main__":
    commandline.run(Job, main)
