"""Histories of runs: one trace for each metric, from MLflow, from a sweep or from a run in this process.

Figures are drawn from histories alone, whatever the source of the runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raycurv.results.conditions import differing_conditions
from raycurv.results.outcomes import Outcome
from raycurv.train.records import Record

Array = NDArray[np.float64]
_LONGEST_BLOCK = 1e12  # growth of the weights within one block of a moving average: far from overflow


@dataclass(frozen=True)
class MetricTrace:
    """One metric of one run, oldest first; all arrays have one length.

    Attributes:
        steps: number of updates so far.
        epochs: number of passes so far, with the fraction of the current one.
        seconds: seconds since the start of the run.
        values: values of the metric, finite or not.
    """

    steps: Array
    epochs: Array
    seconds: Array
    values: Array

    def __post_init__(self) -> None:
        shapes = {np.shape(getattr(self, name)) for name in ("steps", "epochs", "seconds", "values")}
        if len(shapes) > 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"a MetricTrace takes four arrays of one length, not of the shapes {sorted(shapes)}")

    @classmethod
    def of(cls, rows: Iterable[tuple[float, float, float, float]]) -> MetricTrace:
        """Build a trace from rows (step, epoch, seconds, value) in any order; the last row of a step counts."""
        table = np.asarray(list({row[0]: row for row in rows}.values()), dtype=np.float64).reshape(-1, 4)
        return cls(*table[np.argsort(table[:, 0], kind="stable")].T)

    def __len__(self) -> int:
        return len(self.steps)

    def at(self, index: ArrayLike) -> MetricTrace:
        """Select moments by a mask or by positions."""
        chosen = np.asarray(index)
        return MetricTrace(self.steps[chosen], self.epochs[chosen], self.seconds[chosen], self.values[chosen])

    @property
    def finite(self) -> MetricTrace:
        """The trace without NaN and infinite values."""
        return self.at(np.isfinite(self.values))

    def with_values(self, values: Array) -> MetricTrace:
        """Replace the values, at the same moments."""
        return MetricTrace(self.steps, self.epochs, self.seconds, values)

    def smoothed(self, decay: float) -> MetricTrace:
        """Exponential moving average of the finite values, without the bias of its start.

        A value n steps back has the weight decayⁿ. Runs that log only every tenth step are thus smoothed as much as
        others.

        Raises:
            ValueError: `decay` is not in (0, 1).
        """
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay!r}; it must be between 0 and 1 (0.99 is usual)")
        known = self.finite
        found = np.empty(len(known))
        longest = np.log(_LONGEST_BLOCK) / -np.log(decay)  # steps
        total = weight = 0.0  # Σ decayⁿ·value and Σ decayⁿ up to the step `last`
        begin, last = 0, known.steps[0] if len(known) else 0.0
        while begin < len(known):
            end = max(begin + 1, int(np.searchsorted(known.steps, known.steps[begin] + longest)))
            ago = decay ** (known.steps[begin:end] - known.steps[begin])
            fade = decay ** (known.steps[begin] - last)
            totals = ago * (total * fade + np.cumsum(known.values[begin:end] / ago))
            weights = ago * (weight * fade + np.cumsum(1 / ago))
            found[begin:end] = totals / weights
            total, weight, last, begin = totals[-1], weights[-1], known.steps[end - 1], end
        return known.with_values(found)

    def rises(self) -> Array:
        """Epochs at which the value is larger than the one before."""
        known = self.finite
        return known.epochs[1:][np.diff(known.values) > 0]


@dataclass(frozen=True)
class RunHistory:
    """One run with its metrics over time.

    Attributes:
        outcome: identity and end of the run.
        traces: traces by metric: ``train/loss``, ``test/accuracy``, ``optimizer/learning_rate``, ….
        differing: conditions in which it differs from other runs of its recipe, as text.
    """

    outcome: Outcome
    traces: Mapping[str, MetricTrace] = field(default_factory=dict)
    differing: str = ""

    @property
    def method(self) -> str:
        """The optimizer with its setting and differing conditions; a figure draws one line for each method."""
        return " ".join(filter(None, (self.outcome.optimizer, self.outcome.setting, self.differing)))

    def matching(self, metric: str) -> list[str]:
        """Metrics of this name with a finite value; after ``/*``, those with this prefix if there are any."""
        bare = metric.removesuffix("/*")
        names = [name for name in self.traces if bare != metric and name.startswith(metric[:-1])]
        names = names or [name for name in (bare,) if name in self.traces]
        return [name for name in names if np.isfinite(self.traces[name].values).any()]


def separate_conditions(runs: Sequence[RunHistory]) -> list[RunHistory]:
    """The runs with the conditions in which they differ; random networks stay together, as figures sum over them."""
    found = []
    for run in runs:
        drop = ("model.",) if "network" in run.outcome.labels else ()
        same = {name: value for name, value in run.outcome.conditions.items() if not name.startswith(drop)}
        found.append((run.outcome.recipe, same))
    return [
        dataclasses.replace(run, differing=text) for run, text in zip(runs, differing_conditions(found), strict=True)
    ]


def history_of_outcome(outcome: Outcome) -> RunHistory:
    """Build the history of a run from its evaluations alone."""
    return RunHistory(outcome, _traces((p.step, p.epoch, p.seconds, p.values) for p in outcome.points))


def history_of_records(outcome: Outcome, records: Iterable[Record]) -> RunHistory:
    """Build the history of a run trained in this process from its records."""
    all_records = list(records)
    began = all_records[0].time if all_records else 0.0
    return RunHistory(outcome, _traces((r.step, r.epoch, r.time - began, r.values) for r in all_records))


def _traces(moments: Iterable[tuple[int, float, float, Mapping[str, float]]]) -> dict[str, MetricTrace]:
    rows: dict[str, list[tuple[float, float, float, float]]] = {}
    for step, epoch, seconds, values in moments:
        for name, value in values.items():
            rows.setdefault(name, []).append((step, epoch, seconds, value))
    return {name: MetricTrace.of(found) for name, found in rows.items()}
