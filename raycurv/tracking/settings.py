"""Settings of tracking: destination and names of runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class TrackingSettings(Protocol):
    """Settings of a connection to MLflow; :class:`raycurv.service.Cluster` has them."""

    @property
    def runs(self) -> str:
        """Local folder of all runs."""

    @property
    def tracking_uri(self) -> str | None:
        """Address of MLflow's server or data base; None is a SQLite file in `runs`."""

    @property
    def experiment(self) -> str:
        """Name of the experiment."""

    @property
    def run_name(self) -> str | None:
        """Name that the user gave to the runs, shown in MLflow's list; None if there is none."""

    @property
    def trust(self) -> tuple[str, ...]:
        """Modules whose functions a checkpoint may name when its network is logged."""

    @property
    def tracking_patience(self) -> float:
        """Seconds that the end of a launch waits for an unreachable server."""

    @property
    def system_metrics_every(self) -> float:
        """Seconds between two samples of system metrics; 0 switches them off."""


def default_runs() -> str:
    """Folder of all runs: ``RAYCURV_RUNS``, or ``~/raycurv-runs``, since the working directory may belong to Ray."""
    return os.environ.get("RAYCURV_RUNS") or str(Path.home() / "raycurv-runs")


def default_tracking_uri() -> str | None:
    """``MLFLOW_TRACKING_URI`` of the environment; None if it is not set."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def resolve_uri(tracking_uri: str | None, runs: str) -> str:
    """Tracking URI: the given one, or a SQLite file in the folder of all runs. SQLite files get absolute paths."""
    uri = tracking_uri or f"sqlite:///{Path(runs).expanduser() / 'mlflow.db'}"
    return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}" if uri.startswith("sqlite:///") else uri
