"""Search the rates of baselines on a grid, or train optimizers on many random networks. The same as `raycurv sweep`."""

from raycurv.cli.main import job

if __name__ == "__main__":
    job("sweep")
