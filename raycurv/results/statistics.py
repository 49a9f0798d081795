"""Statistics of a run that the papers report, and their summary over several runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raycurv.results.outcomes import Outcome

RunValue = Callable[[Outcome], float]


@dataclass(frozen=True)
class Statistic:
    """One statistic of runs.

    Attributes:
        title: title of the column, with its unit.
        of: function from a run to its number; NaN for a run without one.
        gather: ``mean`` with the standard deviation, or ``median`` with the quartiles.
        larger: whether a larger number is better.
        form: format string of the number.
        every: whether failed runs have a number too, as in a rate of failures; otherwise they are counted apart.
    """

    title: str
    of: RunValue
    gather: Literal["mean", "median"] = "mean"
    larger: bool = False
    form: str = "{:.3g}"
    every: bool = False

    def values(self, outcomes: Sequence[Outcome]) -> list[float]:
        """Finite numbers of the runs that have one."""
        found = [self.of(o) for o in outcomes if self.every or o.status == "finished"]
        return [value for value in found if math.isfinite(value)]

    def summary(self, outcomes: Sequence[Outcome]) -> tuple[float, float, float]:
        """Mean and mean ∓ deviation, or median and quartiles; NaN without any value."""
        values = self.values(outcomes)
        if not values:
            return math.nan, math.nan, math.nan
        if self.gather == "mean" or len(values) < 2:
            middle = statistics.fmean(values)
            spread = statistics.stdev(values) if len(values) > 1 and not self.every else math.nan
            return middle, middle - spread, middle + spread
        lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
        return middle, lower, upper


def lowest_rank_sum(problems: Sequence[Mapping[str, float]]) -> str:
    """The setting with the lowest sum of ranks over problems, as SALERA chooses its robust settings (section 3.2).

    Args:
        problems: for each problem, setting → value, the smaller the better. Equal values share the mean of their ranks;
            settings without a finite value share those behind all others.

    Returns:
        The setting, the first of equal ones; empty where no setting has a finite value.
    """
    if not any(math.isfinite(value) for problem in problems for value in problem.values()):
        return ""
    sums: dict[str, float] = dict.fromkeys((setting for problem in problems for setting in problem), 0.0)
    for problem in problems:
        values = [value if math.isfinite(value := problem.get(setting, math.nan)) else math.inf for setting in sums]
        for setting, value in zip(sums, values, strict=True):
            better, equal = sum(v < value for v in values), values.count(value)
            sums[setting] += better + (equal + 1) / 2
    return min(sums, key=sums.__getitem__)


def last(metric: str, share: float = 1.0) -> RunValue:
    """Value at the end, or after a share of the epochs run (5 of 20 are a quarter), also for shortened runs."""

    def of(outcome: Outcome) -> float:
        known = [(p.epoch, p.values[metric]) for p in outcome.points if metric in p.values]
        if not known:
            return math.nan
        until = share * known[-1][0]
        return [value for epoch, value in known if epoch <= until + 1e-9 or epoch == known[0][0]][-1]

    return of


def with_l2_term(loss: str) -> RunValue:
    """Last value of a loss plus that of the L2 term beside it: ``test/loss`` plus ``test/l2_term``.

    Runs of version 0.1 have no such term: their training loss contains it, their test loss does not.
    """
    of_loss, of_term = last(loss), last(loss.removesuffix("loss") + "l2_term")

    def of(outcome: Outcome) -> float:
        term = of_term(outcome)
        return of_loss(outcome) + (0.0 if math.isnan(term) else term)

    return of


def smallest(metric: str) -> RunValue:
    """Smallest measured value."""
    return _over_points(metric, min)


def largest(metric: str) -> RunValue:
    """Largest measured value."""
    return _over_points(metric, max)


def error(accuracy: RunValue) -> RunValue:
    """Error in per cent from an accuracy in [0, 1]."""
    return lambda outcome: 100 * (1 - accuracy(outcome))


def percent(share: RunValue) -> RunValue:
    """Per cent from a number in [0, 1]."""
    return lambda outcome: 100 * share(outcome)


def epochs_to(metric: str, target: float, *, above: bool = False) -> RunValue:
    """Epochs until a metric is at or below a target, or `above`; NaN if it never is."""

    def of(outcome: Outcome) -> float:
        for point in outcome.points:
            value = point.values.get(metric, math.nan)
            if value >= target if above else value <= target:
                return point.epoch
        return math.nan

    return of


def epochs_to_share(metric: str, share: float) -> RunValue:
    """Epochs until a rising metric reaches this share of its largest value in the same run."""
    best = largest(metric)
    return lambda outcome: epochs_to(metric, share * best(outcome), above=True)(outcome)


def seconds(outcome: Outcome) -> float:
    """Seconds of the whole run."""
    return outcome.seconds


def failed(worst: float = 0.2) -> RunValue:
    """Failure as 100 or 0, so that the mean is a rate: 100 if unfinished or with a final test accuracy below `worst`.

    SALERA, section 3.2: test error above 80 % after 20 epochs.
    """
    accuracy = last("test/accuracy")

    def of(outcome: Outcome) -> float:
        return 0.0 if outcome.status == "finished" and accuracy(outcome) >= worst else 100.0

    return of


def _over_points(metric: str, choose: Callable[[Sequence[float]], float]) -> RunValue:
    def of(outcome: Outcome) -> float:
        known = [v for p in outcome.points if math.isfinite(v := p.values.get(metric, math.nan))]
        return choose(known) if known else math.nan

    return of


TRAINING_LOSS = Statistic("training loss", last("train/epoch_loss"))
BEST_TRAINING_LOSS = Statistic("best training loss", smallest("train/epoch_loss"))
TEST_LOSS = Statistic("test loss", last("test/loss"))
TRAINING_LOSS_WITH_L2 = Statistic("training loss with L2 term", with_l2_term("train/epoch_loss"))
TEST_LOSS_WITH_L2 = Statistic("test loss with L2 term", with_l2_term("test/loss"))
BEST_TEST_LOSS = Statistic("best test loss", smallest("test/loss"))
TEST_ACCURACY = Statistic("test accuracy, %", percent(last("test/accuracy")), larger=True, form="{:.2f}")
BEST_TEST_ACCURACY = Statistic("best test accuracy, %", percent(largest("test/accuracy")), larger=True, form="{:.2f}")
TRAINING_ACCURACY = Statistic(
    "training accuracy, %", percent(last("training_set/accuracy")), larger=True, form="{:.2f}"
)
TRAINING_ERROR = Statistic("best training error, %", error(largest("training_set/accuracy")), form="{:.2f}")
VALIDATION_ERROR = Statistic("best validation error, %", error(largest("test/accuracy")), form="{:.2f}")
FAILED = Statistic("failed runs, %", failed(), form="{:.1f}", every=True)
SECONDS = Statistic("seconds", seconds)
EARLY_TEST_ERROR = Statistic("5 ep.", error(last("test/accuracy", 0.25)), form="{:.2f}")
TEST_ERROR = Statistic("20 ep.", error(last("test/accuracy")), form="{:.2f}")
LEARNING_RATE = Statistic("learning rate at the end", last("optimizer/learning_rate"))
