"""Train any recipe, of this package or of your own, on any number of workers, and follow it in MLflow."""

from __future__ import annotations

from dataclasses import dataclass, field

from raycurv import recipes
from raycurv.recipes import Overrides
from raycurv.recipes.overrides import parse_setting
from raycurv.service import Cluster, commandline, launch


@dataclass(frozen=True)
class Job:
    """Train any recipe, of this package or of your own, on any number of workers, and follow it in MLflow."""

    recipe: str
    """What to train: the name of a recipe, or package.module:function of your own that returns a RunConfig."""

    option: tuple[str, ...] = ()
    """Arguments of the recipe as NAME=VALUE, such as data=s3://bucket/cifar10 batch_norm=true."""

    compare: tuple[str, ...] = ()
    """More optimizers, trained afterwards at their default rates on the same batches."""

    run: Overrides = field(default_factory=Overrides)
    cluster: Cluster = field(default_factory=Cluster)


def main(job: Job) -> None:
    """Parse, recipe, service."""
    config = job.run.apply(recipes.build(job.recipe, dict(map(parse_setting, job.option))))
    launch(commandline.variants(config, job.compare), job.cluster)


if __name__ == "__main__":
    commandline.run(Job, main)
