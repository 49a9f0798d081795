"""CurveBall's test of generality: random networks, held fixed for all optimizers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from raycurv import recipes
from raycurv.recipes import Overrides, search
from raycurv.recipes.overrides import parse_setting
from raycurv.results import comparison
from raycurv.service import Cluster, commandline, report_artifacts
from raycurv.service.sweep import Limits, sweeping


@dataclass(frozen=True)
class Job:
    """CurveBall's test of generality: random networks, held fixed for all optimizers."""

    recipe: str = "cifar10_basic_cnn"
    """Whose data, batches and epochs; its network is replaced."""

    option: tuple[str, ...] = ()
    """Arguments of the recipe as NAME=VALUE."""

    count: int = 50
    """Networks, drawn from seeds 0, 1, 2, …"""

    width: float = 1.0
    """Factor of their channels."""

    optimizers: tuple[str, ...] = ("curveball", "red_rmsprop", "sgd", "momentum", "adam", "ntlr_sgd")
    """Optimizers."""

    rates: tuple[float, ...] = ()
    """Learning rates to try of every optimizer in `tuned`, each a trial; none: their defaults."""

    tuned: tuple[str, ...] = ("sgd", "momentum", "adam")
    """Optimizers that the rates are for."""

    run: Overrides = field(default_factory=Overrides)
    limits: Limits = field(default_factory=Limits)
    cluster: Cluster = field(default_factory=Cluster)


def main(job: Job) -> None:
    """Draw, train, compare."""
    config = job.run.apply(recipes.build(job.recipe, dict(map(parse_setting, job.option))))
    rates = [{"learning_rate": rate} for rate in job.rates] or [{}]
    settings = {name: rates if name in job.tuned else [{}] for name in job.optimizers}
    trials = search.random_architectures(config, job.count, settings, width=job.width)
    cluster = dataclasses.replace(job.cluster, log_model=False)
    with sweeping("random-architectures", trials, cluster, job.limits) as sweep:
        found = sweep.run(trials)
        sweep.say("\n" + comparison.keep_networks(comparison.over_networks(found), sweep.artifact))
        report_artifacts.keep(sweep.shelf, found)


if __name__ == "__main__":
    commandline.run(Job, main)
