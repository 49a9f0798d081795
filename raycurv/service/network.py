"""Trained networks by their former name, for models that versions before 0.2 logged in MLflow."""

from raycurv.tracking.model_files import load, save

__all__ = ["load", "save"]
