"""Search the rates of baselines on a grid, then train the winners and the optimizers that need no search to the end."""

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
    """Search the rates of baselines on a grid, then train the winners and the optimizers that need no search."""

    recipe: str
    """What to train: the name of a recipe, or package.module:function."""

    option: tuple[str, ...] = ()
    """Arguments of the recipe as NAME=VALUE."""

    baselines: tuple[str, ...] = ("momentum", "adam")
    """Optimizers whose learning rate is searched."""

    free: tuple[str, ...] = ("curveball", "red_rmsprop")
    """Optimizers that are trained at their defaults."""

    grid: str = "short"
    """Grid of learning rates: red is {1, 5}·10ⁿ from 1e-5 to 10, curveball 10⁻ᵏ, short 1e-3 to 0.3 in steps of 3."""

    rates: tuple[float, ...] = ()
    """Learning rates to try in place of a named grid."""

    rule: str = "red"
    """How a search chooses: red (training loss after 20 % of the epochs), full (at the end), salera (test error)."""

    seeds: int = 1
    """Seeds of the final runs."""

    run: Overrides = field(default_factory=Overrides)
    limits: Limits = field(default_factory=Limits)
    cluster: Cluster = field(default_factory=Cluster)


def main(job: Job) -> None:
    """Search, choose, train, compare."""
    config = job.run.apply(recipes.build(job.recipe, dict(map(parse_setting, job.option))))
    rule, axes = search.rule(job.rule), search.axes(job.grid, job.rates)
    searched = search.grid(config, job.baselines, axes, rule)
    known = search.finals(config, {name: {} for name in job.free}, job.seeds)
    cluster = dataclasses.replace(job.cluster, log_model=False)
    with sweeping(f"{config.name}-grid", [*searched, *known], cluster, job.limits) as sweep:
        found = sweep.run(searched)
        winners, lost = search.winners(searched, found, rule)
        for optimizer in lost:
            sweep.say(f"{optimizer}: no point of its grid came to an end; it has no final run")
        last = sweep.run([*known, *search.finals(config, winners, job.seeds)])
        rows = comparison.decide([*found, *last])
        sweep.say("\n" + comparison.keep(rows, sweep.artifact))
        report_artifacts.keep(sweep.shelf, [*found, *last])


if __name__ == "__main__":
    commandline.run(Job, main)
