"""``raycurv evaluate``."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import ClassVar

from raycurv.tracking.settings import default_runs, default_tracking_uri
from raycurv.train.configuration import Precision, metric_components
from raycurv.train.trust import default_trust


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a checkpoint, or a model logged in MLflow, on a data set, and print one line of JSON."""

    USAGE: ClassVar = "MODEL [options]"
    POSITIONAL: ClassVar = "model"
    EXAMPLE: ClassVar = "raycurv evaluate runs:/ID/model --data cifar10"
    LOADS: ClassVar = "torch and MLflow"

    model: str
    """Folder or address of a run's checkpoints, or runs:/ID/model, or models:/NAME/VERSION."""

    data: str | None = None
    """Folder, s3:// or gs:// address of the data, or a name in RAYCURV_DATA. By default those of the run."""

    averaged: bool = False
    """Average of the weights, of a checkpoint of a run that kept one."""

    best: bool = False
    """Best checkpoint in place of the newest, of a run with --best-metric."""

    metrics: tuple[str, ...] = field(default=(), metadata={"values": "NAME …"})
    """Metrics beside loss and accuracy, as those of raycurv train. By default those of the run."""

    trust: tuple[str, ...] = field(default_factory=default_trust, metadata={"values": "MODULE …"})
    """Modules of your own whose code the model may run. By default those in RAYCURV_TRUST."""

    batch_size: int = 256
    """Samples at a time."""

    precision: Precision | None = None
    """Precision of the numbers. By default the run's."""

    device: str = "cpu"
    """Device: cpu, cuda, cuda:1, …"""

    runs: str = field(default_factory=default_runs)
    """Folder of all runs, for the default tracking URI."""

    tracking_uri: str | None = field(default_factory=default_tracking_uri)
    """MLflow's server or data base. By default MLFLOW_TRACKING_URI, or the SQLite file in the folder of all runs."""

    def run(self) -> None:
        """Load, evaluate, print."""
        from raycurv.service.model_evaluation import load, measure

        trained = load(
            self.model,
            averaged=self.averaged,
            best=self.best,
            tracking_uri=self.tracking_uri,
            runs=self.runs,
            trust=self.trust,
        )
        if self.metrics:
            config = dataclasses.replace(trained.config, metrics=metric_components(self.metrics))
            trained = dataclasses.replace(trained, config=config)
        values = measure(trained, self.data, batch_size=self.batch_size, device=self.device, precision=self.precision)
        print(json.dumps({"model": self.model, "step": trained.step, **values}))
