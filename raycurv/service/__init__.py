"""Launches and sweeps on a Ray cluster, tracked in MLflow; the only package that imports ray.

``launch(runs, Cluster(...))`` trains runs. Importing this package loads neither ray nor mlflow nor torch.
"""

from __future__ import annotations

from raycurv.service.cluster import Cluster
from raycurv.service.launch import LaunchError, launch

__all__ = ["Cluster", "LaunchError", "launch"]
