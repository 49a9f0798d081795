"""Plan of a launch: names and folders of its runs, checked before Ray starts."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raycurv.data import storage
from raycurv.service.cluster import Cluster
from raycurv.service.journal import JournaledCheckpoints
from raycurv.train.build import check
from raycurv.train.checkpoint import CheckpointStore
from raycurv.train.configuration import RunConfig
from raycurv.train.pretrained_start import check_start
from raycurv.train.records import Record, Result
from raycurv.train.resume import Resume, finished_result, require_startable


@dataclass(frozen=True)
class PlannedRun:
    """One run of a launch.

    Attributes:
        config: the run, under the name that MLflow and the checkpoints use.
        recipe: name of the recipe.
        label: shortest name that is unique within the launch, for the terminal.
        checkpoints: folder or address of its checkpoints.
    """

    config: RunConfig
    recipe: str
    label: str
    checkpoints: str


@dataclass(frozen=True)
class LaunchPlan:
    """The runs of a launch.

    Attributes:
        name: name of the launch.
        runs: runs in the order of training.
    """

    name: str
    runs: tuple[PlannedRun, ...]

    def folders(self, cluster: Cluster) -> list[str]:
        """Folders of the launch and its runs, whose only driver it must be."""
        return [*{storage.join(cluster.checkpoints, self.name): None, **{run.checkpoints: None for run in self.runs}}]


def plan(runs: Sequence[RunConfig], cluster: Cluster) -> LaunchPlan:
    """Name the runs, and check their configurations and folders.

    A launch of one run has the name of that run. In a larger launch, its name is the prefix of the runs' names.

    Raises:
        ValueError: there are no runs, or something about one of them is not allowed.
        ResumeError: a run of that name exists without `resume`, or none exists with it.
        CheckpointError: existing checkpoints cannot be read.
    """
    if not runs:
        raise ValueError("launch was given no runs; give it at least one RunConfig")
    for config in runs:
        check(config)
        if config.batch_norm == "local" and cluster.min_workers < cluster.max_workers:
            raise ValueError(
                f"--workers {cluster.workers} changes the number of workers, and --batch-norm local depends on it: "
                "give one number of workers, or leave the statistics synchronised"
            )
    name = cluster.run_name or unique_name(runs)
    planned = []
    for config, own in zip(runs, _own_names(runs), strict=True):
        full = name if len(runs) == 1 else f"{name}-{own}"
        named = dataclasses.replace(config, name=full)
        planned.append(
            PlannedRun(
                named, config.name, own if len(runs) > 1 else config.optimizer, storage.join(cluster.checkpoints, full)
            )
        )
    launch = LaunchPlan(name, tuple(planned))
    require_stores(launch, cluster)
    return launch


def require_stores(launch: LaunchPlan, cluster: Cluster) -> None:
    """Check that the runs of a launch may start in their folders, as they are now.

    Raises:
        ValueError: the weights to start from cannot be used.
        ResumeError: a run of that name exists without `resume`, or none exists with it.
        CheckpointError: existing checkpoints cannot be read.
    """
    stores = [(run, CheckpointStore(run.checkpoints)) for run in launch.runs]
    # A launch of an earlier version that was stopped early has folders of its first runs only.
    begun = any(store.exists() for _, store in stores)
    resume: Resume = "never" if not cluster.resume else "auto" if begun or cluster.resume == "auto" else "must"
    for run, store in stores:
        require_startable(run.config, store, resume)
        if not store.begun():
            check_start(run.config)


def begin_stores(launch: LaunchPlan, cluster: Cluster, notify: Callable[[str], None]) -> None:
    """Store the configurations of runs that are new, before MLflow has them: from here on, each can be resumed.

    Args:
        launch: the runs.
        cluster: whether they resume.
        notify: shows a line to the user.

    Raises:
        CheckpointError: a folder cannot be read or written.
    """
    for run in launch.runs:
        store = CheckpointStore(run.checkpoints)
        if cluster.resume and not store.begun():
            notify(f"{run.config.name} has no checkpoint yet: it begins at step 0")
        if not store.exists():
            store.begin(run.config)


def finished_runs(launch: LaunchPlan) -> dict[str, tuple[Result, list[Record]]] | None:
    """Result of every run, and the records in its last checkpoint; None unless all have finished.

    Raises:
        CheckpointError: a folder cannot be read.
    """
    found = {}
    for run in launch.runs:
        records = _Records()
        result = finished_result(
            run.config, JournaledCheckpoints(run.checkpoints, run.config.keep_checkpoints, records)
        )
        if result is None:
            return None
        found[run.config.name] = result, records.sent
    return found


class _Records:
    """Takes the records of a journal.

    Attributes:
        accepted: number of messages that are safe; none, since nothing is removed.
        sent: the records.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self.sent: list[Record] = []

    def send(self, records: Sequence[Record]) -> int:
        """Keep records."""
        self.sent.extend(records)
        return 0

    def flush(self) -> None:
        """Do nothing."""


def unique_name(runs: Sequence[RunConfig]) -> str:
    """A unique name: recipe, optimizer, date, time, random digits."""
    first = runs[0]
    what = f"{first.name}-{first.optimizer}" if len(runs) == 1 else first.name
    return f"{what}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _own_names(runs: Sequence[RunConfig]) -> list[str]:
    """Shortest names that are all different."""
    for parts in (("optimizer",), ("optimizer", "seed"), ("name", "optimizer"), ("name", "optimizer", "seed")):
        names = ["-".join(str(getattr(run, part)) for part in parts) for run in runs]
        if len(set(names)) == len(names):
            return names
    count: Counter[str] = Counter()
    for index, name in enumerate(names):
        count[name] += 1
        names[index] = f"{name}-{count[name]}"
    return names
