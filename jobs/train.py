"""Train any recipe, of this package or of your own, on any number of workers. The same as `raycurv train`."""

from raycurv.cli.main import job

if __name__ == "__main__":
    job("train")
