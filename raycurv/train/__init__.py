"""The training loop, evaluation and checkpoints: torch alone, on any number of workers."""

from raycurv.train.agreement import WorkersDisagree
from raycurv.train.check import check
from raycurv.train.checkpoint import CheckpointError, Store
from raycurv.train.config import Component, Precision, RunConfig
from raycurv.train.evaluation import evaluate
from raycurv.train.ledger import NonFiniteLoss
from raycurv.train.loop import train
from raycurv.train.records import Record, Result
from raycurv.train.session import Resume, ResumeError, require_startable
from raycurv.train.trained import Trained, load_trained

__all__ = [
    "CheckpointError",
    "Component",
    "NonFiniteLoss",
    "Precision",
    "Record",
    "Result",
    "Resume",
    "ResumeError",
    "RunConfig",
    "Store",
    "Trained",
    "WorkersDisagree",
    "check",
    "evaluate",
    "load_trained",
    "require_startable",
    "train",
]
