"""Results of a benchmark: into a folder, and into MLflow as one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from raycurv.arguments import mask_passwords
from raycurv.benchmarks import step_cost
from raycurv.benchmarks.step_cost import StepCost
from raycurv.figures import step_cost as figures
from raycurv.service.cluster import Cluster

MEASURES = ("operations", "seconds", "memory")


def write(costs: Sequence[StepCost], folder: Path) -> None:
    """Write step_cost.md, .csv, .png and .svg.

    Raises:
        ImportError: matplotlib is not installed; the tables are written all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step_cost.md").write_text(step_cost.to_markdown(costs) + "\n", encoding="utf-8")
    (folder / "step_cost.csv").write_text(step_cost.to_csv(costs), encoding="utf-8")
    figures.plot(costs, [folder / "step_cost.png", folder / "step_cost.svg"])


def track(costs: Sequence[StepCost], uri: str | None, experiment: str | None, notify: Callable[[str], None]) -> None:
    """Log the costs as one run in MLflow: a metric for each number, the tables as artifacts.

    Args:
        costs: measured.
        uri: address of MLflow; None is that of all runs.
        experiment: experiment of MLflow; None is that of all runs.
        notify: shows a line to the user.
    """
    from raycurv.tracking.client import Tracking  # MLflow is slow to import for those who do not track

    usual = Cluster()
    cluster = Cluster(tracking_uri=uri or usual.tracking_uri, experiment=experiment or usual.experiment)
    tracking = Tracking(cluster, notify)
    run = tracking.parent(f"step-cost-{time.strftime('%Y%m%d-%H%M%S')}", {"benchmark": "step_cost"}, resume=False)
    now = time.time()
    for cost in costs:
        numbers = {f"{_name(cost)}/{measure}": getattr(cost, measure) for measure in MEASURES}
        run.metrics({name: value for name, value in numbers.items() if value is not None}, 0, now)
    run.text("step_cost.md", step_cost.to_markdown(costs))
    run.text("step_cost.csv", step_cost.to_csv(costs))
    run.close("FINISHED")
    tracking.done_with(run)
    unsent = tracking.finish()
    notify(
        f"MLflow did not take everything; the rest is in {unsent}"
        if unsent
        else f"tracked at {mask_passwords(tracking.uri)}"
    )


def _name(cost: StepCost) -> str:
    """MLflow takes letters, digits and some signs in names."""
    text = f"{cost.workload}/{cost.subject}"
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-./ ") else "_" for c in text)
