"""Settings of tracking: where runs are written, under which name."""

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
    def tracking_patience(self) -> float:
        """Seconds that the end of a launch waits for a server that is away."""

    @property
    def system_metrics_every(self) -> float:
        """Seconds between two samples of system metrics; 0 switches them off."""


def default_runs() -> str:
    """The folder of all runs: ``RAYCURV_RUNS``, or ``~/raycurv-runs``; Ray may own the working directory."""
    return os.environ.get("RAYCURV_RUNS") or str(Path.home() / "raycurv-runs")


def default_tracking_uri() -> str | None:
    """``MLFLOW_TRACKING_URI`` of the environment."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def resolve_uri(tracking_uri: str | None, runs: str) -> str:
    """The tracking URI: as given, or a SQLite file in the folder of all runs; files get absolute paths."""
    uri = tracking_uri or f"sqlite:///{Path(runs).expanduser() / 'mlflow.db'}"
    return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}" if uri.startswith("sqlite:///") else uri
