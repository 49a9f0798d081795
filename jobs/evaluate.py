"""Evaluate a checkpoint, or a model logged in MLflow, on a data set."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from raycurv.data import locate
from raycurv.service import commandline
from raycurv.service.cluster import default_runs, default_tracking_uri
from raycurv.train import Precision, Store, Trained, evaluate, load_trained
from raycurv.train.run import described, resolve_loss, resolve_weights


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


def load(job: Job) -> Trained:
    """The network that the job names.

    Raises:
        ValueError: an average was asked of a logged model.
    """
    if not job.model.startswith(("runs:/", "models:/")):
        return load_trained(Store(job.model), averaged=job.averaged)
    if job.averaged:
        raise ValueError("--averaged needs a folder of checkpoints: a logged model holds one set of weights")
    from raycurv.service.tracking import model

    return model.fetch(job.model, job.tracking_uri, job.runs)


def main(job: Job) -> None:
    """Load, evaluate, print one line of JSON.

    Raises:
        ValueError: the data have no evaluation set, or are not of the kind that the network was trained on.
    """
    trained = load(job)
    config = trained.config
    component = config.data
    if job.data is not None:
        component = dataclasses.replace(component, settings={**component.settings, "path": locate(job.data)})
    data = component.build()
    if data.evaluation is None:
        raise ValueError(f"{component.target!r} has no evaluation set")
    shape = described(data)
    if tuple(shape["input_shape"]) != trained.input_shape or shape["num_classes"] != trained.num_classes:
        raise ValueError(
            f"the network takes {trained.input_shape} and tells {trained.num_classes} classes apart; the data have "
            f"{tuple(shape['input_shape'])} and {shape['num_classes']}"
        )
    values = evaluate(
        trained.model.to(job.device),
        data.evaluation,
        loss=resolve_loss(config.loss),
        weights=resolve_weights(config.weights),
        batch_size=job.batch_size,
        device=job.device,
        precision=job.precision or config.precision,
    )
    print(json.dumps({"model": job.model, "step": trained.step, "samples": len(data.evaluation), **values}))


if __name__ == "__main__":
    commandline.run(Job, main)
