"""A paper's table or figure as data: which runs it needs, how they make its entries, and what the paper prints there.

A table turns the members of its studies as a pivot table does: some keys of a run (recipe, optimizer, settings, batch
size, …) name the row, some the column; over some the best is taken, as the paper took it; what is left (seeds, batch
sizes) is pooled. Any runs with the same configuration fill it, whoever trained them and when.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raycurv.arguments import format_setting
from raycurv.recipes.study import Axes, Study, StudyRun
from raycurv.results.outcomes import Outcome
from raycurv.results.statistics import Statistic, lowest_rank_sum
from raycurv.train.configuration import Setting

STATISTIC = "statistic"  # key of the statistic in rows or columns
Outcomes = Mapping[str, Outcome]  # digest of a configuration → outcome of its run
Groups = dict[tuple[str, str], tuple[Statistic, list[StudyRun]]]  # row and column → what fills the entry
Train = Callable[[Sequence[StudyRun]], Sequence[Outcome]]


@dataclass(frozen=True)
class TableEntry:
    """One entry of a table: the measured value and the paper's.

    Attributes:
        row: label of the row.
        column: label of the column.
        value: mean or median of the runs; NaN without a value.
        low: mean minus deviation, or the lower quartile; NaN where there is one run.
        high: mean plus deviation, or the upper quartile; NaN where there is one run.
        runs: number of runs that the value summarises.
        failed: number of the tried runs that did not finish.
        tried: number of all runs behind the entry, those of settings that were not the best included.
        missing: number of runs that have not been trained.
        chosen: best setting of this entry, where one was chosen; otherwise empty.
        robust: setting chosen for the whole column by the lowest sum of ranks, where one was; otherwise empty.
        printed: the paper's entry; empty if it prints none.
        form: format string of the numbers.
        quartiles: whether `low` and `high` are quartiles.
    """

    row: str
    column: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    runs: int = 0
    failed: int = 0
    tried: int = 0
    missing: int = 0
    chosen: str = ""
    printed: str = ""
    form: str = "{:.3g}"
    quartiles: bool = False
    robust: str = ""


@dataclass(frozen=True)
class Table:
    """A paper's table or figure.

    Attributes:
        name: name of the table.
        paper: short name of the paper.
        shows: table or figure of the paper.
        studies: studies whose runs fill the table.
        statistics: statistics of the runs that the table shows.
        rows: keys of a run that label its row; ``statistic`` for the statistic.
        columns: keys of a run that label its column; ``statistic`` for the statistic.
        best_of: keys over which the best mean is taken, for each entry by its own statistic.
        chosen_by: statistic by which the setting of `best_of` is chosen instead, once for all entries that have
            `chosen_for` in common.
        chosen_for: keys of a run whose values have one setting of `best_of`.
        robust: keys of which one setting is chosen for all rows of a column: the one with the lowest sum of ranks over
            the rows (SALERA, section 3.2).
        printed: row → column → the paper's entry.
        names: recipe, optimizer or ``setting=value`` → its name in the paper.
        note: note for the reader of the table.
    """

    name: str
    paper: str
    shows: str
    studies: tuple[Study, ...]
    statistics: tuple[Statistic, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...] = (STATISTIC,)
    best_of: tuple[str, ...] = ()
    chosen_by: Statistic | None = None
    chosen_for: tuple[str, ...] = ("recipe", "optimizer")
    robust: tuple[str, ...] = ()
    printed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if not self.studies or not self.statistics:
            raise ValueError(f"table {self.name!r} has no study or no statistic; it needs at least one of each")
        if len(self.statistics) > 1 and STATISTIC not in (*self.rows, *self.columns):
            raise ValueError(f"table {self.name!r} has several statistics: rows or columns must name {STATISTIC!r}")
        if self.chosen_by and (self.robust or not {*self.chosen_for} <= {*self.rows, *self.columns}):
            raise ValueError(
                f"table {self.name!r} chooses a setting for {', '.join(self.chosen_for)}: rows or columns must name "
                "each of them, and there can be no robust setting besides"
            )

    def __len__(self) -> int:
        """Number of runs, those of searches included."""
        return sum(map(len, self.studies))

    def restrict(
        self,
        recipes: Sequence[str] = (),
        optimizers: Sequence[str] = (),
        axes: Axes | None = None,
        seeds: int | None = None,
    ) -> Table:
        """A part of the table, for a smaller budget.

        Args:
            recipes: names of the recipes to keep; empty for all.
            optimizers: names of the optimizers to keep; empty for all.
            axes: new values for the axes that the paper varies, such as fewer learning rates.
            seeds: number of runs of every point, in place of the paper's.

        Raises:
            ValueError: one of them is not in the table.
        """
        varied = sorted(set().union(*(study.axes for study in self.studies)))
        asked = (("recipe", recipes, self.recipes), ("optimizer", optimizers, self.optimizers), ("axis", axes, varied))
        for kind, given, known in asked:
            if unknown := [name for name in given or () if name not in known]:
                raise ValueError(
                    f"table {self.name!r} has no {kind} {unknown[0]!r}; it has {', '.join(known) or 'none'}"
                )
        kept = [
            study.restrict(recipes, optimizers, axes, seeds)
            for study in self.studies
            if not recipes or set(recipes) & set(study.recipes)
            if not optimizers or set(optimizers) & {*study.optimizers, *study.tuned}
        ]
        if not kept:
            raise ValueError(f"table {self.name!r} has no run of {', '.join((*recipes, *optimizers))} together")
        return dataclasses.replace(self, studies=tuple(kept))

    @property
    def recipes(self) -> tuple[str, ...]:
        """Names of the recipes to train."""
        return tuple(dict.fromkeys(recipe for study in self.studies for recipe in study.recipes))

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Names of the optimizers, searched ones included."""
        return tuple(dict.fromkeys(name for study in self.studies for name in (*study.optimizers, *study.tuned)))

    def first(self, **options: Any) -> list[StudyRun]:
        """The runs that can be trained at once: all but the final ones of searched baselines.

        Args:
            **options: arguments of every recipe, such as ``data`` and ``scale``.

        Raises:
            ValueError: a recipe refuses an option.
        """
        return _once(m for study in self.studies for m in (*study.search(**options), *study.members(**options)))

    def entries(self, outcomes: Outcomes, **options: Any) -> list[TableEntry]:
        """Fill the table from runs that have ended; columns stand in the paper's order where it prints them.

        Raises:
            ValueError: a recipe refuses an option.
        """
        groups: Groups = {}
        for study in self.studies:
            for member in (*study.members(**options), *study.winners(outcomes, **options)):
                for statistic in self.statistics:
                    place = self.label(self.rows, member, statistic), self.label(self.columns, member, statistic)
                    groups.setdefault(place, (statistic, []))[1].append(member)
        rows = dict.fromkeys(row for row, _ in groups)
        known = dict.fromkeys(column for _, column in groups)
        ordered = dict.fromkeys(column for cells in self.printed.values() for column in cells if column in known)
        robust = {column: self._robust(column, groups, outcomes) for column in known}
        once = self._chosen_once(groups, outcomes)
        places = [(row, column) for row in rows for column in ordered | known if (row, column) in groups]
        return [self._entry(place, *groups[place], outcomes, robust[place[1]], once) for place in places]

    def label(self, keys: Sequence[str], member: StudyRun, statistic: Statistic) -> str:
        """The text that names a row or a column."""
        return ", ".join(
            statistic.title if key == STATISTIC else self._text(key, member.keys[key])
            for key in keys
            if key == STATISTIC or key in member.keys
        )

    def _text(self, key: str, value: Setting) -> str:
        shown = format_setting(value)
        text = shown if key in ("recipe", "optimizer") else f"{key}={shown}"
        return self.names.get(text, text)

    def _setting(self, keys: Sequence[str], member: StudyRun) -> str:
        return " ".join(self._text(key, member.keys[key]) for key in keys if key in member.keys)

    def _points(
        self, members: Sequence[StudyRun], outcomes: Outcomes
    ) -> tuple[dict[str, dict[str, list[Outcome]]], list[Outcome]]:
        """The runs that have ended, by their setting of `robust` and of `best_of`; and all of them."""
        points: dict[str, dict[str, list[Outcome]]] = {}
        known = []
        for member in members:
            ended = outcomes.get(member.config.digest)
            found = [] if ended is None else [ended]
            of_robust = points.setdefault(self._setting(self.robust, member), {})
            of_robust.setdefault(self._setting(self.best_of, member), []).extend(found)
            known += found
        return points, known

    def _robust(self, column: str, groups: Groups, outcomes: Outcomes) -> str:
        """The setting of `robust` for a column; empty where there is none to choose."""
        problems = []
        for (_, place), (statistic, members) in groups.items():
            if place == column and self.robust:
                points, _ = self._points(members, outcomes)
                best = {robust: statistic.summary(of.get(_best(of, statistic), []))[0] for robust, of in points.items()}
                problems.append({robust: -value if statistic.larger else value for robust, value in best.items()})
        return lowest_rank_sum(problems)

    def _chosen_once(self, groups: Groups, outcomes: Outcomes) -> dict[str, str]:
        """The setting that `chosen_by` chooses for each value of `chosen_for`; empty if every entry has its own."""
        if self.chosen_by is None:
            return {}
        members: dict[str, list[StudyRun]] = {}
        for member in _once(member for _, group in groups.values() for member in group):
            members.setdefault(self._setting(self.chosen_for, member), []).append(member)
        every = {label: self._points(group, outcomes)[0] for label, group in members.items()}
        return {label: _best(points.get("", {}), self.chosen_by) for label, points in every.items()}

    def _entry(
        self,
        place: tuple[str, str],
        statistic: Statistic,
        members: Sequence[StudyRun],
        outcomes: Outcomes,
        robust: str,
        once: Mapping[str, str],
    ) -> TableEntry:
        row, column = place
        every, known = self._points(members, outcomes)
        points = every.get(robust, {})
        label = self._setting(self.chosen_for, members[0])
        chosen = _best(points, statistic) if self.chosen_by is None else once[label]
        value, low, high = statistic.summary(points.get(chosen, []))
        return TableEntry(
            row,
            column,
            value,
            low,
            high,
            runs=len(statistic.values(points.get(chosen, []))),
            failed=sum(outcome.status != "finished" for outcome in known),
            tried=len(known),
            missing=len(members) - len(known),
            chosen=chosen if self.best_of else "",
            printed=self.printed.get(row, {}).get(column, ""),
            form=statistic.form,
            quartiles=statistic.gather == "median",
            robust=robust,
        )


def train_and_fill(
    table: Table, known: Outcomes, train: Train, **options: Any
) -> tuple[list[TableEntry], list[Outcome]]:
    """Train what is missing, searches first, and fill the table.

    Args:
        table: table to fill.
        known: outcomes of runs trained before.
        train: function that trains runs and returns their outcomes.
        **options: arguments of every recipe, such as ``data`` and ``scale``.

    Returns:
        The entries, and every outcome behind them.
    """
    found = dict(known)

    def ensure(members: Sequence[StudyRun]) -> None:
        left = [m for m in members if m.config.digest not in found]
        if left:
            found.update(zip((m.config.digest for m in left), train(left), strict=True))

    first = table.first(**options)
    ensure(first)
    last = _once(member for study in table.studies for member in study.winners(found, **options))
    ensure(last)
    digests = [member.config.digest for member in (*first, *last)]
    return table.entries(found, **options), [found[digest] for digest in dict.fromkeys(digests)]


def _best(points: Mapping[str, Sequence[Outcome]], statistic: Statistic) -> str:
    """The point with the best mean; one of which fewer runs failed goes before one of which more did."""
    known = {chosen: statistic.summary(found)[0] for chosen, found in points.items()}
    finite = {chosen: value for chosen, value in known.items() if math.isfinite(value)}

    def rank(chosen: str) -> tuple[int, float]:
        lost = 0 if statistic.every else sum(o.status != "finished" for o in points[chosen])
        return lost, -finite[chosen] if statistic.larger else finite[chosen]

    return min(finite, key=rank, default="")


def _once(items: Iterable[Any]) -> list[Any]:
    """The items without duplicates: runs with the same configuration count as one."""
    return list({(i.config.digest if isinstance(i, StudyRun) else i): i for i in items}.values())
