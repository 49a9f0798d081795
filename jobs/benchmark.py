"""Measure steps, data, workers and optimizers. The same as `raycurv benchmark`."""

from raycurv.cli.main import job

if __name__ == "__main__":
    job("benchmark")
