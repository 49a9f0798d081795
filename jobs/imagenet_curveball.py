"""Train VGG-f on images with CurveBall, on any number of workers of a Ray cluster, and follow it in MLflow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from raycurv.cli.main import script
from raycurv.cli.run_options import RunOptions, variants
from raycurv.service.cluster import Cluster


@dataclass(frozen=True)
class Job:
    """Train VGG-f on images with CurveBall, on any number of workers of a Ray cluster, and follow it in MLflow.

    The data are Parquet shards in the Hugging Face image layout. Everything else has a default that needs no tuning.
    """

    SHOWN: ClassVar = (
        *("data", "classes", "skip_corrupt", "recipe", "compare", "optimizer", "setting", "epochs", "batch_size"),
        *("workers", "use_gpu", "run_name", "resume", "storage"),
    )
    EXAMPLE: ClassVar = "python jobs/imagenet_curveball.py --data s3://bucket/imagenet --workers 8"

    data: str | None = None
    """Folder, s3:// or gs:// address of the shards, or a name in RAYCURV_DATA. By default the recipe's."""

    classes: int | None = None
    """Classes drawn from a seed, 100 for ImageNet-100. By default all."""

    skip_corrupt: bool = False
    """Count and leave out images that cannot be read; without it, the run stops with their file and row."""

    recipe: str = "imagenet_curveball"
    """Name of a recipe, or package.module:function of your own. The function returns a RunConfig."""

    compare: tuple[str, ...] = field(default=(), metadata={"values": "NAME …"})
    """More optimizers, trained afterwards at their defaults on the same batches."""

    run_options: RunOptions = field(default_factory=RunOptions)
    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> None:
        """Build the recipe and hand it to the service."""
        from raycurv import recipes, service

        options = {"data": self.data, "classes": self.classes, "skip_corrupt": self.skip_corrupt or None}
        config = self.run_options.apply(recipes.build(self.recipe, options))
        service.launch(variants(config, self.compare), self.cluster)


if __name__ == "__main__":
    script(Job)
