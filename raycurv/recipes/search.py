"""Sweeps as data: many runs that differ in a few settings. The service carries them out."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from raycurv.arguments import format_settings
from raycurv.models.random_cnn import random_cnn
from raycurv.results.outcomes import Outcome
from raycurv.results.statistics import RunValue, last, with_l2_term
from raycurv.train.configuration import Component, RunConfig, Setting


@dataclass(frozen=True)
class SweepTrial:
    """One run of a sweep.

    Attributes:
        config: configuration to train.
        setting: optimizer settings that the search varies; empty for an optimizer at its defaults.
        stage: ``search`` or ``final``.
        labels: further values that distinguish the trial from others.
    """

    config: RunConfig
    setting: Mapping[str, Setting] = field(default_factory=dict)
    stage: str = "final"
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the trial, unique in its sweep."""
        numbers = [key + name_part(value) for key, value in self.chosen]
        parts = [self.config.name, *self.labels.values(), self.config.optimizer, *numbers, f"s{self.config.seed}"]
        return "-".join(_plain(part) for part in (*parts, self.stage))

    @property
    def chosen(self) -> list[tuple[str, Setting]]:
        """The setting, sorted by name."""
        return sorted(self.setting.items())

    @property
    def setting_text(self) -> str:
        """The setting as text."""
        return format_settings(dict(self.chosen))


@dataclass(frozen=True)
class SelectionRule:
    """Rule by which a search chooses a trial.

    Attributes:
        value: function from a run to the number by which it is chosen.
        smallest: whether the smallest value wins; otherwise the largest.
        share: fraction of the epochs that a trial of the search trains.
        source: paper and section that state the rule.
    """

    value: RunValue
    smallest: bool
    share: float
    source: str

    def best(self, outcomes: Iterable[Outcome]) -> Outcome | None:
        """The winner; None if no trial came to an end with a number."""
        finished = [(self.value(o), o) for o in outcomes if o.status == "finished"]
        known = [(value, o) for value, o in finished if math.isfinite(value)]
        if not known:
            return None
        return (min if self.smallest else max)(known, key=lambda pair: pair[0])[1]


RULES: dict[str, SelectionRule] = {
    "red": SelectionRule(
        with_l2_term("train/epoch_loss"),
        True,
        0.2,
        "RED, appendix B: best training loss, L2 term included, after 20 % of the epochs",
    ),
    "full": SelectionRule(
        last("train/epoch_loss"), True, 1.0, "best training loss at the end, as in CurveBall's figures"
    ),
    "salera": SelectionRule(last("test/accuracy"), False, 1.0, "SALERA, section 3.2: best test error"),
}


def powers(lowest: int, highest: int, factors: Sequence[float] = (1.0,)) -> tuple[float, ...]:
    """factor·10ⁿ for every n from `lowest` to `highest`."""
    return tuple(factor * 10.0**n for n in range(lowest, highest + 1) for factor in factors)


GRIDS: dict[str, Mapping[str, Sequence[Setting]]] = {
    "red": {"learning_rate": powers(-5, 1, (1.0, 5.0))},  # τ₀ ∈ {1, 5}·10ⁿ
    "curveball": {"learning_rate": powers(-4, 0)},  # 10⁻ᵏ
    "short": {"learning_rate": powers(-3, 0, (1.0, 3.0))[:-1]},
}


def grid_trials(
    config: RunConfig, optimizers: Sequence[str], axes: Mapping[str, Sequence[Setting]], rule: SelectionRule
) -> list[SweepTrial]:
    """Every combination of `axes` for every optimizer, on one seed and for the rule's share of the epochs.

    Raises:
        ValueError: an axis has no point.
    """
    for name, values in axes.items():
        if not values:
            raise ValueError(f"the grid has no point: {name} is empty; give it at least one value")
    short = dataclasses.replace(config, epochs=max(1, round(rule.share * config.epochs)))
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [
        SweepTrial(with_optimizer(short, optimizer, point), point, "search")
        for optimizer, point in itertools.product(optimizers, points)
    ]


def final_trials(config: RunConfig, settings: Mapping[str, Mapping[str, Setting]], seeds: int) -> list[SweepTrial]:
    """Every optimizer with its setting (empty: at its defaults), at full length over the seeds."""
    return [
        SweepTrial(dataclasses.replace(with_optimizer(config, optimizer, setting), seed=config.seed + seed), setting)
        for (optimizer, setting), seed in itertools.product(settings.items(), range(seeds))
    ]


def with_optimizer(config: RunConfig, optimizer: str, settings: Mapping[str, Setting]) -> RunConfig:
    """The same run with another optimizer; settings of the old one are gone."""
    return dataclasses.replace(config, optimizer=optimizer, optimizer_settings=dict(settings), clip_gradient=None)


def random_architectures(
    config: RunConfig,
    count: int,
    optimizers: Mapping[str, Sequence[Mapping[str, Setting]]],
    *,
    seed: int = 0,
    width: float = 1.0,
) -> list[SweepTrial]:
    """CurveBall's Fig. 3 left: networks drawn from a seed and held fixed for all optimizers.

    Args:
        config: data, epochs and batch size; its network is replaced.
        count: number of networks.
        optimizers: name → settings to try; ``({},)`` for one at its defaults.
        seed: seed of the first network; the others follow.
        width: factor of the networks' channels.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count!r}; it must be a whole number of at least 1")
    trials = []
    for network in range(seed, seed + count):
        drawn = dataclasses.replace(config, model=Component.of(random_cnn, seed=network, width=width))
        for optimizer, settings in optimizers.items():
            for setting in settings:
                trial = SweepTrial(
                    with_optimizer(drawn, optimizer, setting), setting, "final", {"network": f"net{network}"}
                )
                trials.append(trial)
    return trials


def best_settings(
    trials: Sequence[SweepTrial], outcomes: Sequence[Outcome], rule: SelectionRule
) -> tuple[dict[str, Mapping[str, Setting]], list[str]]:
    """For every optimizer of a search the setting that the rule chooses, and those of which all trials failed."""
    found: dict[str, Mapping[str, Setting]] = {}
    lost = []
    pairs = list(zip(trials, outcomes, strict=True))
    for optimizer in dict.fromkeys(trial.config.optimizer for trial in trials):
        mine = [(t, o) for t, o in pairs if t.config.optimizer == optimizer]
        best = rule.best(o for _, o in mine)
        if best is None:
            lost.append(optimizer)
        else:
            found[optimizer] = next(trial.setting for trial, outcome in mine if outcome is best)
    return found, lost


def get_rule(name: str) -> SelectionRule:
    """A rule by name.

    Raises:
        ValueError: there is none.
    """
    if name not in RULES:
        raise ValueError(f"rule {name!r} is unknown; it is one of {', '.join(RULES)}")
    return RULES[name]


def get_grid(name: str, rates: Sequence[float] = ()) -> Mapping[str, Sequence[Setting]]:
    """A grid by name, or of these learning rates.

    Raises:
        ValueError: there is none of that name.
    """
    if rates:
        return {"learning_rate": tuple(rates)}
    if name not in GRIDS:
        raise ValueError(f"grid {name!r} is unknown; it is one of {', '.join(GRIDS)}, or give --rates")
    return GRIDS[name]


def name_part(value: Setting) -> str:
    """A setting in the name of a run. Stored runs are found by their names, so this text must never change."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in str(text).replace("+", "")).strip("-.")
