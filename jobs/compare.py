"""Compare tracked runs, made at any time: tuned baselines, search included, against optimizers that need no tuning."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from raycurv.figures import paper_figures, report
from raycurv.results import comparison
from raycurv.service import commandline
from raycurv.service.cluster import Cluster
from raycurv.tracking import provenance


@dataclass(frozen=True)
class Job:
    """Compare tracked runs, made at any time."""

    recipe: tuple[str, ...] = ()
    """Only runs of these recipes; by default of all."""

    output: str | None = None
    """Folder that gets the table as decision.md, decision.csv and decision.tex."""

    report: str | None = None
    """File that gets everything as one page of HTML, which needs no network."""

    figures: str | None = None
    """Folder that gets every figure of the papers that the runs have the data for, as PNG, SVG and CSV; the report
    shows them too."""

    server: str | None = None
    """Address of the MLflow server to which the report links; by default --tracking-uri, if that is a server."""

    cluster: Cluster = field(default_factory=Cluster)


def main(job: Job) -> None:
    """Read, decide, print.

    Raises:
        ValueError: no run of the recipes is there.
    """
    from raycurv.tracking.run_histories import histories
    from raycurv.tracking.settings import resolve_uri
    from raycurv.tracking.stored_runs import ExperimentRuns

    tracked = ExperimentRuns(resolve_uri(job.cluster.tracking_uri, job.cluster.runs), job.cluster.experiment)
    found = tracked.outcomes
    mine = [o for o in found if not job.recipe or o.recipe in job.recipe]
    if not mine:
        there = ", ".join(sorted({o.recipe for o in found}))
        raise ValueError(f"--recipe {' '.join(job.recipe)} is the recipe of no run; there are runs of {there}")

    def keep(name: str, text: str) -> None:
        if job.output is not None:
            Path(job.output).mkdir(parents=True, exist_ok=True)
            (Path(job.output) / name).write_text(text)

    print(comparison.keep(comparison.decide(mine), keep))
    drawn = []
    if job.figures is not None:
        drawn = paper_figures.draw(histories(tracked, paper_figures.metrics(), {o.recipe for o in mine}))
        print(f"wrote {paper_figures.write(drawn, Path(job.figures))[-1]} and the figures that it shows")
    if job.report is not None:
        command = "python jobs/compare.py " + shlex.join(sys.argv[1:])
        title = f"Experiment {job.cluster.experiment}"
        about = tracked.about(job.server)
        text = report.page(title, mine, versions=provenance.versions(), command=command, about=about, drawn=drawn)
        Path(job.report).write_text(text)
        print(f"wrote {job.report}")


if __name__ == "__main__":
    commandline.run(Job, main)
