"""A paper's experiment as data: recipes × optimizers × settings × fields of the run × seeds, and what each run is.

Baselines that the paper tunes first are part of it: :meth:`Study.search` has the points of their grids, and
:meth:`Study.winners` the final runs that the paper's rule chooses from their outcomes.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raycurv.recipes import registry, search
from raycurv.recipes.search import SweepTrial
from raycurv.results.outcomes import Outcome
from raycurv.train.configuration import RunConfig, Setting

Axes = Mapping[str, Sequence[Setting]]
NETWORK = "architecture"  # the recipe's option that draws a network
_RUN_FIELDS = ("batch_size", "l2", "validation", "evaluate_training", "average_weights")


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        config: configuration of the run, with the name that its recipe gives.
        keys: recipe, optimizer, seed, and the run's value on every axis of the study.
        setting: values of the run on the axes alone.
        stage: ``search`` for a point of a grid, ``final`` for a run that is compared.
    """

    config: RunConfig
    keys: Mapping[str, Setting]
    setting: Mapping[str, Setting]
    stage: str = "final"

    @property
    def trial(self) -> SweepTrial:
        """The run as a trial of a sweep. For random networks a label names the network, as in every such sweep."""
        setting = {name: value for name, value in self.setting.items() if name != NETWORK}
        labels = {"network": f"net{self.setting[NETWORK]}"} if NETWORK in self.setting else {}
        return SweepTrial(self.config, setting, self.stage, labels)


@dataclass(frozen=True)
class Study:
    """A paper's figure or table that compares settings.

    Attributes:
        name: name of the study.
        paper: short name of the paper.
        shows: figure or table of the paper.
        recipes: names of the recipes to train.
        optimizers: name → values of each of its settings, all combined; ``{}`` for its defaults.
        run: values of fields of the run (batch_size, l2, …), combined with all optimizers and their settings.
        options: values of arguments of the recipes, combined with all of the above.
        tuned: optimizers to search first, name → grid. Every winner has one final run for each seed.
        rule: name of the search's selection rule, a key of :data:`raycurv.recipes.search.RULES`.
        seeds: number of runs of every point, one for each seed.
    """

    name: str
    paper: str
    shows: str
    recipes: tuple[str, ...]
    optimizers: Mapping[str, Axes] = field(default_factory=dict)
    run: Axes = field(default_factory=dict)
    options: Axes = field(default_factory=dict)
    tuned: Mapping[str, Axes] = field(default_factory=dict)
    rule: str = "red"
    seeds: int = 1

    def __post_init__(self) -> None:
        if unknown := [name for name in self.run if name not in _RUN_FIELDS]:
            raise ValueError(f"Study.run varies {unknown[0]!r}; it may vary {', '.join(_RUN_FIELDS)}")
        every = (*self.optimizers.values(), *self.tuned.values(), self.run, self.options)
        empty = [name for axes in every for name, values in axes.items() if not values]
        if empty or not self.recipes or not (self.optimizers or self.tuned) or self.seeds < 1:
            raise ValueError(
                f"study {self.name!r} has no run: {', '.join(empty) or 'recipes, optimizers or seeds'} empty"
            )
        search.get_rule(self.rule)

    def __len__(self) -> int:
        """Number of runs, those of the search included."""
        direct, searched = (sum(len(_points(axes)) for axes in o.values()) for o in (self.optimizers, self.tuned))
        each = direct * self.seeds + searched + len(self.tuned) * self.seeds
        return len(self.recipes) * len(_points(self.options)) * len(_points(self.run)) * each

    @property
    def axes(self) -> set[str]:
        """Names of all settings, fields and options that vary."""
        return {
            name for axes in (*self.optimizers.values(), *self.tuned.values(), self.run, self.options) for name in axes
        }

    def restrict(
        self,
        recipes: Sequence[str] = (),
        optimizers: Sequence[str] = (),
        axes: Axes | None = None,
        seeds: int | None = None,
    ) -> Study:
        """The part of the study with these recipes and optimizers.

        Args:
            recipes: names of the recipes to keep; empty for all.
            optimizers: names of the optimizers to keep; empty for all.
            axes: new values for axes of the study.
            seeds: new number of seeds; None keeps the study's.

        Raises:
            ValueError: nothing is left.
        """
        new = axes or {}

        def part(of: Mapping[str, Axes]) -> dict[str, Axes]:
            return {o: _changed(old, new) for o, old in of.items() if not optimizers or o in optimizers}

        return dataclasses.replace(
            self,
            recipes=tuple(r for r in self.recipes if not recipes or r in recipes),
            optimizers=part(self.optimizers),
            tuned=part(self.tuned),
            run=_changed(self.run, new),
            options=_changed(self.options, new),
            seeds=self.seeds if seeds is None else seeds,
        )

    def members(self, **options: Any) -> list[StudyRun]:
        """The runs of the optimizers that are not searched.

        Args:
            **options: arguments of every recipe of the study, such as ``data`` and ``scale``; None selects the default.

        Raises:
            ValueError: a recipe refuses an option.
        """
        return [
            self._member(base, optimizer, point, changes, seed)
            for base in self._bases(options)
            for (optimizer, axes), seed in itertools.product(self.optimizers.items(), range(self.seeds))
            for point, changes in itertools.product(_points(axes), _points(self.run))
        ]

    def search(self, **options: Any) -> list[StudyRun]:
        """The points of the grids: one seed, for the rule's share of the epochs."""
        return [member for group in self._searches(options) for member in group]

    def winners(self, outcomes: Mapping[str, Outcome], **options: Any) -> list[StudyRun]:
        """The final runs of the tuned optimizers: for every grid the point that the rule chooses, over the seeds.

        Args:
            outcomes: digest of a configuration → outcome of its run; a grid without outcomes has no winner.
            **options: arguments of every recipe, as in :meth:`members`.
        """
        found = []
        for base, group in zip(self._search_bases(options), self._searches(options), strict=True):
            ended = [(m, outcomes[m.config.digest]) for m in group if m.config.digest in outcomes]
            best = search.get_rule(self.rule).best(outcome for _, outcome in ended)
            for member in [m for m, outcome in ended if outcome is best][:1]:
                optimizer, axes = member.config.optimizer, self.tuned[member.config.optimizer]
                point = {name: member.keys[name] for name in axes}
                changes = {name: member.keys[name] for name in self.run}
                found += [self._member(base, optimizer, point, changes, seed) for seed in range(self.seeds)]
        return found

    def runs(self, **options: Any) -> list[RunConfig]:
        """The configurations of :meth:`members`, each with a name that describes the run.

        Raises:
            ValueError: a recipe refuses an option, or every optimizer of the study must be searched first.
        """
        if not self.optimizers:
            raise ValueError(f"every optimizer of study {self.name!r} is searched first: use `raycurv papers table`")
        return [dataclasses.replace(m.config, name=self._name(m)) for m in self.members(**options)]

    def _name(self, member: StudyRun) -> str:
        name = _name(member.config.name, member.config.optimizer, member.setting)
        return f"{name[:120]}-s{member.keys['seed']}" if self.seeds > 1 else name

    def _bases(self, options: Mapping[str, Any]) -> Iterator[tuple[dict[str, Setting], RunConfig]]:
        for recipe, point in itertools.product(self.recipes, _points(self.options)):
            yield {"recipe": recipe, **point}, registry.build(recipe, {**options, **point})

    def _search_bases(self, options: Mapping[str, Any]) -> list[tuple[dict[str, Setting], RunConfig]]:
        grids = len(self.tuned) * len(_points(self.run))
        return [base for base in self._bases(options) for _ in range(grids)]

    def _searches(self, options: Mapping[str, Any]) -> Iterable[list[StudyRun]]:
        share = search.get_rule(self.rule).share
        for keys, config in self._bases(options):
            short = dataclasses.replace(config, epochs=max(1, round(share * config.epochs)))
            for (optimizer, axes), changes in itertools.product(self.tuned.items(), _points(self.run)):
                yield [
                    self._member((keys, short), optimizer, point, changes, 0, stage="search") for point in _points(axes)
                ]

    def _member(
        self,
        base: tuple[Mapping[str, Setting], RunConfig],
        optimizer: str,
        point: Mapping[str, Setting],
        changes: Mapping[str, Setting],
        seed: int,
        stage: str = "final",
    ) -> StudyRun:
        keys, config = base
        own = config.optimizer_settings if optimizer == config.optimizer else {}
        changed: dict[str, Any] = {
            "optimizer": optimizer,
            "optimizer_settings": {**own, **point},
            "seed": config.seed + seed,
            **changes,
        }
        axes = {name: keys[name] for name in self.options} | {**point, **changes}
        axes.pop("evaluate_training", None)  # what is measured, not what is trained
        known = {"recipe": keys["recipe"], "optimizer": optimizer, "seed": seed, **axes}
        return StudyRun(dataclasses.replace(config, **changed), known, axes, stage)


def _changed(axes: Axes, new: Axes) -> dict[str, Sequence[Setting]]:
    return {name: new.get(name, values) for name, values in axes.items()}


def _points(axes: Axes) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _name(run: str, optimizer: str, point: Mapping[str, Setting]) -> str:
    numbers = [f"{name}-{search.name_part(value)}" for name, value in point.items()]
    return re.sub(r"[^\w.-]+", "_", "-".join([run, optimizer, *numbers]), flags=re.ASCII)[:128]
