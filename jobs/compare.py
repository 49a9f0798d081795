"""Compare tracked runs, made at any time. The same as `raycurv compare`."""

from raycurv.cli.main import job

if __name__ == "__main__":
    job("compare")
