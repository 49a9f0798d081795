"""What a launch or a sweep shows beside its table: the report as one page, and curves, among its artifacts."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raycurv.results.outcomes import Outcome
from raycurv.service.artifact_writer import ArtifactWriter
from raycurv.tracking import provenance

if TYPE_CHECKING:
    from raycurv.figures.report import ReportContext


def keep(shelf: ArtifactWriter, outcomes: Sequence[Outcome], about: ReportContext | None = None) -> None:
    """Draw runs, and hand report and curves over; without matplotlib say so and go on.

    Args:
        shelf: takes them.
        outcomes: what is drawn.
        about: what else is known of the runs.
    """
    if importlib.util.find_spec("matplotlib") is None:
        shelf.say("no curves are drawn, because matplotlib is not installed: pip install 'raycurv[figures]'")
        return
    from raycurv.figures import curves, report

    versions, command = provenance.versions(), provenance.command()
    shelf.artifact("report.html", report.page(shelf.name, outcomes, versions=versions, command=command, about=about))
    for recipe in dict.fromkeys(outcome.recipe for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.recipe == recipe]
        for metric, axis in report.METRICS:
            lines = curves.series(mine, metric, axis)
            if not any(line.x for line in lines):
                continue
            for path in curves.save(lines, metric, shelf.folder / "figures" / recipe, axis):
                if path.suffix != ".png":  # MLflow gets the same picture as SVG
                    shelf.artifact(str(path.relative_to(shelf.folder)), path.read_text())
