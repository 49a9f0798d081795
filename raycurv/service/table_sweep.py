"""Tables of papers from tracked runs; missing runs become a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raycurv.benchmarks.paper_tables import ComputedTable
from raycurv.recipes import table_files
from raycurv.recipes.scale import Scale
from raycurv.recipes.study import StudyRun
from raycurv.recipes.table import Table, train_and_fill
from raycurv.results.outcomes import Outcome
from raycurv.service.cluster import Cluster
from raycurv.service.limits import Limits
from raycurv.service.sweep import sweeping


def make(table: Table, cluster: Cluster, limits: Limits, options: Mapping[str, Any]) -> None:
    """Train the runs that the experiment lacks, and show the table, which becomes an artifact of the sweep's run.

    Args:
        table: table of a paper.
        cluster: resources of one trial, folders, MLflow.
        limits: limits of every trial.
        options: arguments for every recipe, such as ``data`` and ``scale``.

    Raises:
        ValueError: a recipe refuses an option, or a run is not allowed.
        TrackingError: MLflow cannot be used.
        CapacityError: the cluster can never give what a trial needs.
        Stopped: the user stopped the sweep; what is done is kept.
    """
    from raycurv.tracking.finished_runs import by_digest
    from raycurv.tracking.settings import resolve_uri

    first = table.first(**options)
    with sweeping(table.name, [member.trial for member in first], cluster, limits) as sweep:
        known = by_digest(resolve_uri(cluster.tracking_uri, cluster.runs), cluster.experiment)
        found = sum(member.config.digest in known for member in first)
        if found:
            sweep.notify(f"{found} of {len(first)} runs are in experiment {cluster.experiment!r} already")

        def train(members: Sequence[StudyRun]) -> list[Outcome]:
            return sweep.run([member.trial for member in members])

        entries, outcomes = train_and_fill(table, known, train, **options)
        sweep.terminal.notify_always(
            "\n" + table_files.write_table(table.name, title(table), entries, sweep.artifacts.write)
        )
        sweep.artifacts.write_report(outcomes)


def show(table: Table | ComputedTable, cluster: Cluster, options: Mapping[str, Any]) -> str:
    """The table as text from tracked runs, without training.

    Raises:
        ValueError: a recipe refuses an option.
        TrackingError: MLflow cannot be reached.
    """
    from raycurv.tracking.finished_runs import by_digest
    from raycurv.tracking.settings import resolve_uri

    if isinstance(table, ComputedTable):
        entries = table.measure(Scale.of(options.get("scale", 1.0)).data)
    else:
        entries = table.entries(
            by_digest(resolve_uri(cluster.tracking_uri, cluster.runs), cluster.experiment), **options
        )
    return table_files.write_table(table.name, title(table), entries, _discard)


def title(table: Table | ComputedTable) -> str:
    """Caption of a table."""
    return f"{table.paper}, {table.shows}. {table.note}".strip()


def _discard(name: str, text: str) -> None:
    """Keep no artifact."""
