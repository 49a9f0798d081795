"""Train any recipe, of this package or of your own, on any number of workers, and follow it in MLflow."""

from __future__ import annotations

from dataclasses import dataclass, field

from raycurv import recipes
from raycurv.recipes import Overrides, studies
from raycurv.recipes.overrides import parse_setting
from raycurv.service import Cluster, commandline, launch


@dataclass(frozen=True)
class Job:
    """Train any recipe, of this package or of your own, on any number of workers, and follow it in MLflow."""

    recipe: str | None = None
    """What to train: the name of a recipe, or package.module:function of your own that returns a RunConfig."""

    study: str | None = None
    """In place of a recipe: an ablation of a paper, all its runs one after the other."""

    list: bool = False
    """Show all recipes with paper, figure or table, data, network, epochs and floating-point operations with SGD;
    and all studies."""

    scale: tuple[float, ...] = ()
    """Fraction of data and epochs, and its root of the width, such as 0.01; or three numbers: data, epochs, width."""

    option: tuple[str, ...] = ()
    """Arguments of the recipe as NAME=VALUE, such as data=s3://bucket/cifar10 batch_norm=true."""

    compare: tuple[str, ...] = ()
    """More optimizers, trained afterwards at their default rates on the same batches."""

    run: Overrides = field(default_factory=Overrides)
    cluster: Cluster = field(default_factory=Cluster)


def main(job: Job) -> None:
    """Parse, recipe, service.

    Raises:
        ValueError: nothing to train was named, or two things.
    """
    if job.list:
        print(f"{recipes.listing()}\n\n{studies.listing()}")
        return
    options = {**dict(map(parse_setting, job.option)), **({"scale": job.scale} if job.scale else {})}
    if job.study is not None:
        if job.recipe is not None or job.compare or job.run.optimizer is not None:
            raise ValueError(
                "--study names its recipes and optimizers itself: leave --recipe, --compare, --optimizer out"
            )
        launch([job.run.apply(config) for config in studies.get(job.study).runs(**options)], job.cluster)
        return
    if job.recipe is None:
        raise ValueError("name what to train with --recipe or --study; --list shows all")
    config = job.run.apply(recipes.build(job.recipe, options))
    launch(commandline.variants(config, job.compare), job.cluster)


if __name__ == "__main__":
    commandline.run(Job, main)
