"""Artifacts of a launch or a sweep, in a folder and in MLflow: texts, and a report with figures."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raycurv.results import comparison, findings, gathering
from raycurv.results.outcomes import Outcome
from raycurv.tracking import provenance

if TYPE_CHECKING:
    from raycurv.figures.report import ReportContext
    from raycurv.tracking.tracked_run import TrackedRun


@dataclass(frozen=True)
class ArtifactWriter:
    """Writes artifacts of the run that gathers the runs of a launch or sweep.

    Attributes:
        name: name of the launch or sweep.
        folder: local folder of the artifacts.
        run: the gathering run in MLflow.
        notify: shows a line to the user.
    """

    name: str
    folder: Path
    run: TrackedRun
    notify: Callable[[str], None]

    def write(self, name: str, text: str) -> None:
        """Write a text to the folder and to MLflow."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.run.text(name, text)

    def write_report(self, outcomes: Sequence[Outcome], context: ReportContext | None = None) -> None:
        """Write metrics and description of the gathering run, the report as one page, and curves.

        Without matplotlib there are neither report nor curves, and the user is notified.

        Args:
            outcomes: the runs.
            context: further contents of the report.
        """
        self._describe(outcomes)
        if importlib.util.find_spec("matplotlib") is None:
            self.notify("no curves are drawn, because matplotlib is not installed: pip install 'raycurv[figures]'")
            return
        from raycurv.figures import report

        versions, command = provenance.versions(), provenance.command()
        page = report.page(self.name, outcomes, versions=versions, command=command, about=context)
        self.write("report.html", page)
        for recipe in dict.fromkeys(outcome.recipe for outcome in outcomes):
            self._write_curves(recipe, [outcome for outcome in outcomes if outcome.recipe == recipe])

    def _describe(self, outcomes: Sequence[Outcome]) -> None:
        best = gathering.best_run(outcomes)
        step = max(1, 0 if best is None else best.steps)
        self.run.metrics(gathering.gathered_metrics(outcomes), step, time.time())
        rows = comparison.compare_methods(outcomes)
        first = "" if best is None else f"Best run: `{best.name}`. Its last values are the metrics of this run.\n\n"
        text = "\n\n".join([*findings.headlines(rows), comparison.markdown(rows)])
        where = "\n\nTable, `report.html` and figures are among the artifacts.\n"
        self.run.describe(first + text + where)

    def _write_curves(self, recipe: str, outcomes: Sequence[Outcome]) -> None:
        from raycurv.figures import curves, report

        for metric, axis in report.METRICS:
            lines = curves.method_curves(outcomes, metric, axis)
            if not any(line.x for line in lines):
                continue
            for path in curves.save(lines, metric, self.folder / "figures" / recipe, axis):
                if path.suffix != ".png":  # MLflow gets the same figure as SVG
                    self.write(str(path.relative_to(self.folder)), path.read_text())
