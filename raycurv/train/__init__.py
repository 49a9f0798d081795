"""The training loop, evaluation and checkpoints: torch alone, on any number of workers."""

from typing import TYPE_CHECKING

from raycurv.deprecation import moved_names
from raycurv.lazy import lazy_names

if TYPE_CHECKING:
    from raycurv.train.build import check
    from raycurv.train.checkpoint import CheckpointStore
    from raycurv.train.checkpoint_file import CheckpointError
    from raycurv.train.configuration import Component, Precision, RunConfig
    from raycurv.train.distributed import WorkersDisagree
    from raycurv.train.evaluation import evaluate
    from raycurv.train.evaluation_metrics import Metric, SummedMetric
    from raycurv.train.export import TrainedModel, load_trained_model
    from raycurv.train.frozen_parameters import freeze
    from raycurv.train.loop import train
    from raycurv.train.metrics import NonFiniteLoss
    from raycurv.train.out_of_memory import StepOutOfMemory
    from raycurv.train.pretrained_start import load_start
    from raycurv.train.records import Record, Result
    from raycurv.train.resume import Resume, ResumeError, require_startable
    from raycurv.train.trust import UntrustedCodeError
else:
    __getattr__ = moved_names(
        __name__,
        lazy_names(
            __name__,
            {
                "checkpoint": ("CheckpointStore",),
                "checkpoint_file": ("CheckpointError",),
                "configuration": ("Component", "Precision", "RunConfig"),
                "build": ("check",),
                "distributed": ("WorkersDisagree",),
                "evaluation": ("evaluate",),
                "evaluation_metrics": ("Metric", "SummedMetric"),
                "export": ("TrainedModel", "load_trained_model"),
                "frozen_parameters": ("freeze",),
                "loop": ("train",),
                "metrics": ("NonFiniteLoss",),
                "out_of_memory": ("StepOutOfMemory",),
                "pretrained_start": ("load_start",),
                "records": ("Record", "Result"),
                "resume": ("Resume", "ResumeError", "require_startable"),
                "trust": ("UntrustedCodeError",),
            },
        ),
    )

__all__ = [
    "CheckpointError",
    "CheckpointStore",
    "Component",
    "Metric",
    "NonFiniteLoss",
    "Precision",
    "Record",
    "Result",
    "Resume",
    "ResumeError",
    "RunConfig",
    "StepOutOfMemory",
    "SummedMetric",
    "TrainedModel",
    "UntrustedCodeError",
    "WorkersDisagree",
    "check",
    "evaluate",
    "freeze",
    "load_start",
    "load_trained_model",
    "require_startable",
    "train",
]
