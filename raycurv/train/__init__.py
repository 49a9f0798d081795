"""The training loop, evaluation and checkpoints: torch alone, on any number of workers."""

from raycurv.train.checkpoint import CheckpointError, CheckpointStore
from raycurv.train.configuration import Component, Precision, RunConfig
from raycurv.train.configuration_check import check
from raycurv.train.distributed import WorkersDisagree
from raycurv.train.evaluation import evaluate
from raycurv.train.export import TrainedModel, load_trained_model
from raycurv.train.loop import train
from raycurv.train.metrics import NonFiniteLoss
from raycurv.train.records import Record, Result
from raycurv.train.resume import Resume, ResumeError, require_startable

__all__ = [
    "CheckpointError",
    "CheckpointStore",
    "Component",
    "NonFiniteLoss",
    "Precision",
    "Record",
    "Result",
    "Resume",
    "ResumeError",
    "RunConfig",
    "TrainedModel",
    "WorkersDisagree",
    "check",
    "evaluate",
    "load_trained_model",
    "require_startable",
    "train",
]
