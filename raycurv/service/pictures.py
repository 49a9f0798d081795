"""What a sweep shows beside its table: the report as one page, and curves, among the artifacts of its run."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raycurv.service import provenance
from raycurv.train.outcomes import Outcome

if TYPE_CHECKING:
    from raycurv.service.sweep import Sweep


def keep(sweep: Sweep, outcomes: Sequence[Outcome]) -> None:
    """Draw the sweep, and hand report and curves over; without matplotlib say so and go on.

    Args:
        sweep: whose artifacts they become, and in whose folder they lie.
        outcomes: what is drawn.
    """
    if importlib.util.find_spec("matplotlib") is None:
        sweep.say("no curves are drawn, because matplotlib is not installed: pip install 'raycurv[figures]'")
        return
    from raycurv.figures import curves, report

    command = "python " + shlex.join(sys.argv)
    title = f"Sweep {sweep.name}"
    sweep.artifact("report.html", report.page(title, outcomes, versions=provenance.versions(), command=command))
    for recipe in dict.fromkeys(outcome.recipe for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.recipe == recipe]
        for metric, axis in report.METRICS:
            lines = curves.series(mine, metric, axis)
            if not any(line.x for line in lines):
                continue
            for path in curves.save(lines, metric, sweep.folder / "figures" / recipe, axis):
                if path.suffix != ".png":  # MLflow gets the same picture as SVG
                    sweep.artifact(str(path.relative_to(sweep.folder)), path.read_text())
