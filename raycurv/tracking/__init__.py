"""MLflow: the only package that imports it; :func:`runs` and :func:`metrics` are tables for a notebook."""

from raycurv.tracking.notebook import metrics, runs

__all__ = ["metrics", "runs"]
