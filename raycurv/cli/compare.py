"""``raycurv compare``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from raycurv.service.cluster import Cluster


@dataclass(frozen=True)
class Compare:
    """Compare tracked runs, made at any time: tuned baselines, search included, and optimizers that need no tuning."""

    SHOWN: ClassVar = ("recipe", "output", "report", "figures", "server", "experiment", "runs", "tracking_uri")
    EXAMPLE: ClassVar = "raycurv compare --recipe digits --report comparison.html"
    LOADS: ClassVar = "MLflow"

    recipe: tuple[str, ...] = ()
    """Only runs of these recipes. By default of all."""

    output: str | None = None
    """Folder that gets the table as decision.md, decision.csv and decision.tex."""

    report: str | None = None
    """File that gets everything as one page of HTML, which needs no network."""

    figures: str | None = None
    """Folder that gets every figure of the papers that the runs have the data for, as PNG, SVG and CSV. The report
    shows them too."""

    server: str | None = None
    """Address of the MLflow server to which the report links. By default --tracking-uri, if that is a server."""

    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> None:
        """Read, decide, print.

        Raises:
            ValueError: no run of the recipes is there.
        """
        from raycurv.figures import paper_figures, report
        from raycurv.results import comparison
        from raycurv.results.comparison_text import comparison_text, write_comparison
        from raycurv.tracking import provenance
        from raycurv.tracking.run_histories import histories
        from raycurv.tracking.settings import resolve_uri
        from raycurv.tracking.stored_runs import ExperimentRuns

        tracked = ExperimentRuns(resolve_uri(self.cluster.tracking_uri, self.cluster.runs), self.cluster.experiment)
        found = tracked.outcomes
        mine = [o for o in found if not self.recipe or o.recipe in self.recipe]
        if not mine:
            there = ", ".join(sorted({o.recipe for o in found}))
            raise ValueError(f"--recipe {' '.join(self.recipe)} is the recipe of no run; there are runs of {there}")
        rows = comparison.compare_methods(mine)
        write_comparison(rows, self._write)
        print(comparison_text(rows))
        drawn = []
        if self.figures is not None:
            drawn = paper_figures.draw(histories(tracked, paper_figures.metrics(), {o.recipe for o in mine}))
            print(f"wrote {paper_figures.write(drawn, Path(self.figures))[-1]} and the figures that it shows")
        if self.report is not None:
            text = report.page(
                f"Experiment {self.cluster.experiment}",
                mine,
                versions=provenance.versions(),
                command=provenance.command(),
                about=tracked.about(self.server),
                drawn=drawn,
            )
            Path(self.report).write_text(text)
            print(f"wrote {self.report}")

    def _write(self, name: str, text: str) -> None:
        if self.output is not None:
            Path(self.output).mkdir(parents=True, exist_ok=True)
            (Path(self.output) / name).write_text(text)
