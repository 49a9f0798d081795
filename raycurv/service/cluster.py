"""Where and how runs are carried out: the part of a job that changes no number of its result."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from raycurv.arguments import require_run_name
from raycurv.tracking.settings import default_runs, default_tracking_uri
from raycurv.train.trust import default_trust

REMOTE = ("s3://", "gs://", "gcs://", "file://")


ELASTIC_CHECKPOINT_SECONDS = 10.0


def default_storage() -> str | None:
    """``RAYCURV_STORAGE`` of the environment."""
    return os.environ.get("RAYCURV_STORAGE") or None


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"Cluster.{name} is {value!r}; it must be {allowed}")


def worker_range(workers: int | str) -> tuple[int, int]:
    """Smallest and largest number of workers, of a number or a range such as ``2-8``; (0, 0) for anything else."""
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", str(workers))
    return (int(found[1]), int(found[2] or found[1])) if found and not isinstance(workers, bool) else (0, 0)


@dataclass(frozen=True)
class Cluster:
    """The workers of a launch, and where its traces go."""

    workers: int | str = field(default=1, metadata={"values": "N|N-M"})
    """Processes that share every batch; the result does not depend on their number. `2-8` is elastic: training starts
    with two, grows to eight as nodes come, and goes on with those that are left when nodes go."""

    use_gpu: bool = False
    """Give every worker one GPU and talk over NCCL; otherwise the CPU and gloo."""

    cpus_per_worker: float = 1.0
    """CPUs that Ray reserves for every worker."""

    threads: int | None = None
    """Threads of torch in every worker; by default as many as CPUs are reserved for it."""

    pin_workers: bool = False
    """Keep every worker to cores of its own, one for each of its threads. Faster with synchronised batch normalisation
    on a machine where nothing else runs, and much slower beside other work."""

    worker_timeout: float = 600.0
    """Seconds to wait for the workers to be placed and started, an autoscaler's new nodes included."""

    max_failures: int = 3
    """How often workers that died (out of memory, lost node, kill -9) are started again, from the newest checkpoint."""

    checkpoint_seconds: float | None = None
    """Seconds after which a checkpoint is written at the next log interval, beside those of the recipe, so that no more
    is done again when a node goes. By default 10 where the number of workers is a range, and none otherwise."""

    run_name: str | None = None
    """Name of the run; a prefix of the names when there are several, needed to resume. By default a new, unique one."""

    resume: bool | Literal["auto"] = field(default=False, metadata={"values": "[auto]", "alone": "True"})
    """Resume the run of this name at its newest checkpoint. With auto, start it where there is none, so that one
    command serves the first start and every restart. Without it, a name that exists is refused."""

    runs: str = field(default_factory=default_runs)
    """Folder of all runs: MLflow's data base, artifacts, checkpoints, failures. RAYCURV_RUNS sets the default."""

    storage: str | None = field(default_factory=default_storage)
    """Folder of the checkpoints, local, s3:// or gs://; workers on several machines need one that all can reach. By
    default RAYCURV_STORAGE, or `checkpoints` in the folder of all runs."""

    tracking_uri: str | None = field(default_factory=default_tracking_uri)
    """MLflow's server or data base. By default MLFLOW_TRACKING_URI, or a SQLite file in the folder of all runs."""

    experiment: str = "raycurv"
    """MLflow's experiment."""

    tracking_patience: float = 60.0
    """Seconds that the end of a launch waits for an MLflow server that went away, before the rest goes to a file."""

    system_metrics_every: float = 10.0
    """Seconds between two samples of the machine's CPU and memory, in MLflow as system metrics; 0 switches them off."""

    log_model: bool = True
    """Log the trained network in MLflow at the end of every run."""

    quiet: bool = False
    """Print results, warnings and errors alone."""

    verbose: bool = False
    """Print every scalar of the optimizer, every checkpoint, and the messages of Ray and MLflow."""

    log_file: str | None = None
    """File that gets every printed line with its time, and the messages of Ray and MLflow. By default, those are in the
    folder logs of the folder of all runs."""

    register: str | None = None
    """Name in MLflow's model registry for the network of the best run: largest test accuracy, else smallest loss."""

    trust: tuple[str, ...] = field(default_factory=default_trust, metadata={"values": "MODULE …"})
    """Modules of your own that checkpoints may name, beside those of this command. Their code runs, where a run starts
    from a checkpoint or its network is logged. By default those in RAYCURV_TRUST."""

    def __post_init__(self) -> None:
        smallest, largest = worker_range(self.workers)
        _require(1 <= smallest <= largest, "workers", self.workers, "a whole number of at least 1, or a range as '2-8'")
        _require(self.threads is None or self.threads >= 1, "threads", self.threads, "None or at least 1")
        positive = {"cpus_per_worker": self.cpus_per_worker, "worker_timeout": self.worker_timeout}
        for name, value in positive.items():
            _require(math.isfinite(value) and value > 0, name, value, "a positive number")
        seconds = self.checkpoint_seconds
        _require(seconds is None or seconds > 0, "checkpoint_seconds", seconds, "None or a positive number")
        zero_or_more = {"tracking_patience": self.tracking_patience, "system_metrics_every": self.system_metrics_every}
        for name, value in zero_or_more.items():
            _require(math.isfinite(value) and value >= 0, name, value, "a number of at least 0")
        _require(self.max_failures >= 0, "max_failures", self.max_failures, "a whole number of at least 0")
        _require(bool(self.runs) and "://" not in self.runs, "runs", self.runs, "a local folder; use storage for s3://")
        _require(bool(self.experiment), "experiment", self.experiment, "a name")
        _require(self.resume in (True, False, "auto"), "resume", self.resume, "True, False or 'auto'")
        if self.quiet and self.verbose:
            raise ValueError("--quiet and --verbose were given together: leave one of them out")
        if self.run_name is not None:
            require_run_name("Cluster.run_name (--run-name)", self.run_name)
        if self.resume and not self.run_name:
            raise ValueError(
                "Cluster.resume needs Cluster.run_name (--run-name NAME --resume): which run should go on?"
            )
        object.__setattr__(self, "runs", str(Path(self.runs).expanduser().absolute()))

    @property
    def min_workers(self) -> int:
        """The smallest number of workers."""
        return worker_range(self.workers)[0]

    @property
    def max_workers(self) -> int:
        """The largest number of workers."""
        return worker_range(self.workers)[1]

    @property
    def seconds_between_checkpoints(self) -> float | None:
        """Seconds between checkpoints that the clock asks for; None for none."""
        elastic = self.min_workers < self.max_workers
        return ELASTIC_CHECKPOINT_SECONDS if self.checkpoint_seconds is None and elastic else self.checkpoint_seconds

    @property
    def threads_per_worker(self) -> int:
        """Threads of torch in every worker."""
        return self.threads or max(1, int(self.cpus_per_worker))

    @property
    def checkpoints(self) -> str:
        """The folder, or address, under which every run has its checkpoints."""
        if self.storage is None:
            return str(Path(self.runs) / "checkpoints")
        remote = self.storage.startswith(REMOTE)
        return self.storage if remote else str(Path(self.storage).expanduser().absolute())

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves for every worker."""
        return {"CPU": self.cpus_per_worker} | ({"GPU": 1.0} if self.use_gpu else {})
