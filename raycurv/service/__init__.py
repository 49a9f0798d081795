"""Runs on a Ray cluster, followed in MLflow: the only room that knows either.

``launch(runs, Cluster(...))`` is the whole interface; importing this package imports neither ray nor mlflow nor torch.
"""

from __future__ import annotations

from raycurv.service.cluster import Cluster
from raycurv.service.launch import LaunchError, launch

__all__ = ["Cluster", "LaunchError", "launch"]
