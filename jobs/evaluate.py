"""Evaluate a checkpoint, or a model logged in MLflow, on a data set."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from raycurv.service import commandline
from raycurv.service.model_evaluation import load, measure
from raycurv.tracking.settings import default_runs, default_tracking_uri
from raycurv.train import Precision


@dataclass(frozen=True)
class Job:
    """Evaluate a checkpoint, or a model logged in MLflow, on a data set."""

    model: str
    """Folder or address of a run's checkpoints, or runs:/ID/model, or models:/NAME/VERSION."""

    data: str | None = None
    """Folder, s3:// or gs:// address of the data, or a name in RAYCURV_DATA. By default those of the run."""

    averaged: bool = False
    """The average of the weights, of a run that kept one; only of a checkpoint."""

    batch_size: int = 256
    """Samples at a time."""

    precision: Precision | None = None
    """Numbers: fp32, fp64 or bf16. By default the run's."""

    device: str = "cpu"
    """cpu, cuda, cuda:1, …"""

    runs: str = field(default_factory=default_runs)
    """Folder of all runs, for the default tracking URI."""

    tracking_uri: str | None = field(default_factory=default_tracking_uri)
    """MLflow's server or data base. By default MLFLOW_TRACKING_URI, or the SQLite file in the folder of all runs."""


def main(job: Job) -> None:
    """Load, evaluate, print one line of JSON."""
    trained = load(job.model, averaged=job.averaged, tracking_uri=job.tracking_uri, runs=job.runs)
    values = measure(trained, job.data, batch_size=job.batch_size, device=job.device, precision=job.precision)
    print(json.dumps({"model": job.model, "step": trained.step, **values}))


if __name__ == "__main__":
    commandline.run(Job, main)
