"""Evaluate a checkpoint, or a model logged in MLflow, on a data set. The same as `raycurv evaluate`."""

from raycurv.cli.main import job

if __name__ == "__main__":
    job("evaluate")
