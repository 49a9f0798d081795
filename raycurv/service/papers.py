"""Make a paper's table: what is tracked already stays, what is missing becomes a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raycurv.figures import paper_table
from raycurv.recipes.papers import Measured
from raycurv.recipes.scale import Scale
from raycurv.recipes.study import Member
from raycurv.recipes.tables import Table, complete
from raycurv.service import pictures
from raycurv.service.cluster import Cluster
from raycurv.service.sweep import Limits, sweeping
from raycurv.train.outcomes import Outcome


def make(table: Table, cluster: Cluster, limits: Limits, options: Mapping[str, Any]) -> None:
    """Train what the experiment lacks, and show the table; the sweep's run has it among its artifacts.

    Args:
        table: which.
        cluster: of the sweep.
        limits: of its trials.
        options: for every recipe, such as ``data`` and ``scale``.

    Raises:
        ValueError: a recipe refuses an option, or a run is not allowed.
        TrackingError: MLflow cannot be used.
        CapacityError: the cluster can never give what a trial needs.
        Stopped: the user asked for it; what is done is done.
    """
    from raycurv.service.tracking import tracking_uri
    from raycurv.service.tracking.known import by_digest

    first = table.first(**options)
    with sweeping(table.name, [member.trial for member in first], cluster, limits) as sweep:
        known = by_digest(tracking_uri(cluster), cluster.experiment)
        found = sum(member.config.digest in known for member in first)
        if found:
            sweep.say(f"{found} of {len(first)} runs are in experiment {cluster.experiment!r} already")

        def train(members: Sequence[Member]) -> list[Outcome]:
            return sweep.run([member.trial for member in members])

        entries, outcomes = complete(table, known, train, **options)
        sweep.say("\n" + paper_table.keep(table.name, title(table), entries, sweep.artifact))
        pictures.keep(sweep.shelf, outcomes)


def show(table: Table | Measured, cluster: Cluster, options: Mapping[str, Any]) -> str:
    """The table as text, out of what there is: nothing is trained.

    Raises:
        ValueError: a recipe refuses an option.
        TrackingError: MLflow cannot be reached.
    """
    from raycurv.service.tracking import tracking_uri
    from raycurv.service.tracking.known import by_digest

    if isinstance(table, Measured):
        entries = table.measure(Scale.of(options.get("scale", 1.0)).data)
    else:
        entries = table.entries(by_digest(tracking_uri(cluster), cluster.experiment), **options)
    return paper_table.keep(table.name, title(table), entries, _nowhere)


def title(table: Table | Measured) -> str:
    """What stands above it."""
    return f"{table.paper}, {table.shows}. {table.note}".strip()


def _nowhere(name: str, text: str) -> None:
    """A table that is only shown."""
