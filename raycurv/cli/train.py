"""``raycurv train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from raycurv.cli.run_options import RunOptions, recipe_options, trusting, variants
from raycurv.service.cluster import Cluster
from raycurv.train.configuration import RunConfig

OPTION = {"values": "NAME=VALUE …"}
OPTIMIZERS = {"values": "NAME …"}


@dataclass(frozen=True)
class Train:
    """Train a recipe, of this package or of your own, on any number of workers, and follow it in MLflow."""

    USAGE: ClassVar = "[RECIPE | --study STUDY | --list] [options]"
    POSITIONAL: ClassVar = "recipe"
    SHOWN: ClassVar = (
        *("recipe", "study", "list", "scale", "option", "compare"),
        *("optimizer", "setting", "epochs", "batch_size", "workers", "use_gpu", "run_name", "resume", "quiet"),
    )
    EXAMPLE: ClassVar = "raycurv train digits --workers 2 --compare sgd adam"

    recipe: str | None = None
    """Name of a recipe, or package.module:function of your own. The function returns a RunConfig."""

    study: str | None = None
    """Ablation of a paper in place of a recipe. Its runs are trained one after the other."""

    list: bool = False
    """Show all recipes and studies. Recipes come with paper, figure or table, data, network, epochs and floating-point
    operations with SGD."""

    scale: tuple[float, ...] = ()
    """Fraction of data and epochs, such as 0.01. Its root is the fraction of the width; three numbers are the fractions
    of data, epochs and width."""

    option: tuple[str, ...] = field(default=(), metadata=OPTION)
    """Arguments of the recipe, such as data=s3://bucket/cifar10 batch_norm=true."""

    compare: tuple[str, ...] = field(default=(), metadata=OPTIMIZERS)
    """More optimizers, trained afterwards at their defaults on the same batches."""

    run_options: RunOptions = field(default_factory=RunOptions)
    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> None:
        """Build the recipe and hand it to the service.

        Raises:
            ValueError: nothing to train was named, or two things.
        """
        from raycurv.service import launch
        from raycurv.service.standby import workers_on_standby

        if self.list:
            self._show_list()
            return
        self._require_one()
        cluster = self.cluster if self.recipe is None else trusting(self.cluster, self.recipe)
        with workers_on_standby(cluster) as workers:  # they import while this process does
            launch(self._configurations(), cluster, workers)

    def _show_list(self) -> None:
        from raycurv import recipes
        from raycurv.recipes import studies

        print(f"{recipes.listing()}\n\n{studies.listing()}")

    def _require_one(self) -> None:
        if self.study is None and self.recipe is None:
            raise ValueError("name what to train with --recipe or --study; --list shows all")
        if self.study is not None and (self.recipe or self.compare or "optimizer" in self.run_options.changes):
            raise ValueError(
                "--study names its recipes and optimizers itself: leave --recipe, --compare, --optimizer out"
            )

    def _configurations(self) -> Sequence[RunConfig]:
        from raycurv import recipes
        from raycurv.recipes import studies

        options = recipe_options(self.option, self.scale)
        if self.recipe is None:
            return [self.run_options.apply(config) for config in studies.get(self.study or "").runs(**options)]
        return variants(self.run_options.apply(recipes.build(self.recipe, options)), self.compare)
