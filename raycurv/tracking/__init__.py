"""Tracking in MLflow; no other package imports mlflow. :func:`runs` and :func:`metrics` make tables for a notebook."""

from raycurv.tracking.notebook import metrics, runs

__all__ = ["metrics", "runs"]
