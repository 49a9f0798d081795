"""Make the papers' own tables and figures. The same as `raycurv papers`."""

from raycurv.cli.main import job

if __name__ == "__main__":
    job("papers")
