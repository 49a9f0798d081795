"""Bring a data set into the form that recipes read. The same as `raycurv prepare`."""

from raycurv.cli.main import job

if __name__ == "__main__":
    job("prepare")
