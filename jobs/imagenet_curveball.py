"""Train VGG-f on images with CurveBall, on any number of workers of a Ray cluster, and follow it in MLflow."""

from __future__ import annotations

from dataclasses import dataclass, field

from raycurv import recipes
from raycurv.recipes import Overrides
from raycurv.service import Cluster, commandline, launch


@dataclass(frozen=True)
class Job:
    """Train VGG-f on images with CurveBall, on any number of workers of a Ray cluster, and follow it in MLflow.

    The data are Parquet shards in the Hugging Face image layout. Everything else has a default that needs no tuning.
    """

    data: str | None = None
    """Folder, s3:// or gs:// address of the shards, or a name in the folder RAYCURV_DATA. By default the recipe's."""

    classes: int | None = None
    """Draw so many classes from a seed, 100 for ImageNet-100. By default all."""

    skip_corrupt: bool = False
    """Count and leave out images that cannot be read, instead of stopping with their file and row."""

    recipe: str = "imagenet_curveball"
    """What to train: the name of a recipe, or package.module:function of your own that returns a RunConfig."""

    compare: tuple[str, ...] = ()
    """More optimizers, trained afterwards at their default rates on the same batches."""

    run: Overrides = field(default_factory=Overrides)
    cluster: Cluster = field(default_factory=Cluster)


def main(job: Job) -> None:
    """Parse, recipe, service."""
    options = {"data": job.data, "classes": job.classes, "skip_corrupt": job.skip_corrupt or None}
    config = job.run.apply(recipes.build(job.recipe, options))
    launch(commandline.variants(config, job.compare), job.cluster)


if __name__ == "__main__":
    commandline.run(Job, main)
