"""``raycurv sweep``: a grid search of baselines, and random networks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from raycurv.cli.run_options import RunOptions, recipe_options, trusting
from raycurv.cli.train import OPTIMIZERS, OPTION
from raycurv.service.cluster import Cluster
from raycurv.service.limits import Limits


@dataclass(frozen=True)
class Grid:
    """Search the rates of baselines on a grid, then train the best and optimizers that need no search to the end."""

    USAGE: ClassVar = "RECIPE [options]"
    POSITIONAL: ClassVar = "recipe"
    SHOWN: ClassVar = (
        *("recipe", "option", "baselines", "free", "grid", "rates", "rule", "seeds"),
        *("epochs", "time_limit", "workers", "use_gpu", "resume", "quiet"),
    )
    EXAMPLE: ClassVar = "raycurv sweep grid digits --baselines sgd adam --free auto curveball"

    recipe: str
    """Name of a recipe, or module:function."""

    option: tuple[str, ...] = field(default=(), metadata=OPTION)
    """Arguments of the recipe."""

    baselines: tuple[str, ...] = field(default=("momentum", "adam"), metadata=OPTIMIZERS)
    """Optimizers whose learning rate is searched."""

    free: tuple[str, ...] = field(default=("curveball", "red_rmsprop"), metadata=OPTIMIZERS)
    """Optimizers that are trained at their defaults."""

    grid: str = "short"
    """Grid of rates: red, curveball or short. In this order: {1, 5}·10ⁿ from 1e-5 to 10, 10⁻ᵏ, and 1e-3 to 0.3
    in steps of 3."""

    rates: tuple[float, ...] = ()
    """Learning rates to try in place of a named grid."""

    rule: str = "red"
    """How a search chooses: red, full or salera. In this order by the training loss after 20 % of the epochs, by the
    training loss at the end, by the test error."""

    seeds: int = 1
    """Seeds of the final runs."""

    run_options: RunOptions = field(default_factory=RunOptions)
    limits: Limits = field(default_factory=Limits)
    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> None:
        """Search, choose, train, compare."""
        from raycurv import recipes
        from raycurv.recipes import search
        from raycurv.results import comparison
        from raycurv.results.comparison_text import comparison_text, write_comparison
        from raycurv.service.sweep import sweeping

        config = self.run_options.apply(recipes.build(self.recipe, recipe_options(self.option)))
        rule, axes = search.get_rule(self.rule), search.get_grid(self.grid, self.rates)
        searched = search.grid_trials(config, self.baselines, axes, rule)
        free = search.final_trials(config, {name: {} for name in self.free}, self.seeds)
        cluster = dataclasses.replace(trusting(self.cluster, self.recipe), log_model=False)
        with sweeping(f"{config.name}-grid", [*searched, *free], cluster, self.limits) as sweep:
            found = sweep.run(searched)
            winners, lost = search.best_settings(searched, found, rule)
            for optimizer in lost:
                sweep.terminal.notify_always(f"{optimizer}: no point of its grid came to an end; it has no final run")
            last = sweep.run([*free, *search.final_trials(config, winners, self.seeds)])
            rows = comparison.compare_methods([*found, *last])
            write_comparison(rows, sweep.artifacts.write)
            sweep.terminal.notify_always("\n" + comparison_text(rows))
            sweep.artifacts.write_report([*found, *last])


@dataclass(frozen=True)
class Networks:
    """Train optimizers on many random networks, the same for all: CurveBall's test of generality."""

    SHOWN: ClassVar = (
        *("recipe", "count", "width", "optimizers", "rates", "tuned"),
        *("epochs", "time_limit", "workers", "use_gpu", "resume", "quiet"),
    )
    EXAMPLE: ClassVar = "raycurv sweep networks --count 12 --width 0.125 --optimizers auto curveball"

    recipe: str = "cifar10_random_cnn"
    """Recipe of data, batches and epochs, by default the paper's with batches of 256. Its network is replaced."""

    option: tuple[str, ...] = field(default=(), metadata=OPTION)
    """Arguments of the recipe."""

    count: int = 50
    """Networks, drawn from seeds 0, 1, 2, …"""

    width: float = 1.0
    """Factor of their channels."""

    optimizers: tuple[str, ...] = field(
        default=("curveball", "red_rmsprop", "sgd", "momentum", "adam", "ntlr_sgd"), metadata=OPTIMIZERS
    )
    """Optimizers to train."""

    rates: tuple[float, ...] = ()
    """Learning rates to try of every optimizer in --tuned. Without any, their defaults."""

    tuned: tuple[str, ...] = field(default=("sgd", "momentum", "adam"), metadata=OPTIMIZERS)
    """Optimizers that the rates are for."""

    run_options: RunOptions = field(default_factory=RunOptions)
    limits: Limits = field(default_factory=Limits)
    cluster: Cluster = field(default_factory=Cluster)

    def run(self) -> None:
        """Draw, train, compare."""
        from raycurv import recipes
        from raycurv.recipes import search
        from raycurv.results import comparison
        from raycurv.results.comparison_text import networks_text
        from raycurv.service.sweep import sweeping

        config = self.run_options.apply(recipes.build(self.recipe, recipe_options(self.option)))
        rates = [{"learning_rate": rate} for rate in self.rates] or [{}]
        settings: dict[str, list[dict[str, Any]]] = {
            name: rates if name in self.tuned else [{}] for name in self.optimizers
        }
        trials = search.random_architectures(config, self.count, settings, width=self.width)
        cluster = dataclasses.replace(trusting(self.cluster, self.recipe), log_model=False)
        with sweeping("random-architectures", trials, cluster, self.limits) as sweep:
            found = sweep.run(trials)
            networks = comparison.compare_over_networks(found)
            comparison.write_network_comparison(networks, sweep.artifacts.write)
            sweep.terminal.notify_always("\n" + networks_text(networks))
            sweep.artifacts.write_report(found)
