"""Reduction of the steps of many runs to the points of a line: bins of one run first, then across runs.

A point is five numbers, from the lowest to the highest: outer low, low, middle, high, outer high. A number that a
reduction does not use repeats its neighbour towards the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from raycurv.results.histories import Array, MetricTrace

Reduction = Literal["values", "moving average", "epoch mean", "epoch end", "epoch quantiles"]
BandKind = Literal["range", "quartiles"]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # RED, appendix D
MOST = 400  # largest number of points of a line: more cannot be seen
_DIGITS = 9  # decimals of an epoch: runs round the same moment differently


def bin_ends(traces: Sequence[MetricTrace], reduction: Reduction) -> Array:
    """Ends of the bins, in epochs: whole epochs, every moment measured by a run, or :data:`MOST` even ones."""
    epochs = np.unique(np.concatenate([np.empty(0), *(trace.finite.epochs for trace in traces)]).round(_DIGITS))
    if reduction.startswith("epoch") and len(epochs):
        return np.arange(1.0, np.ceil(epochs[-1]) + 1)
    return epochs if len(epochs) <= MOST else np.linspace(epochs[-1] / MOST, epochs[-1], MOST)


def bin_run(trace: MetricTrace, ends: Array, reduction: Reduction, decay: float) -> tuple[Array, Array]:
    """Reduce one run to the points of the bins.

    Args:
        trace: metric of the run.
        ends: ends of the bins in epochs, from :func:`bin_ends`.
        reduction: ``values`` keeps the values; several in one bin become their mean, smallest and largest.
            ``moving average`` smooths them first. ``epoch mean``, ``epoch end`` and ``epoch quantiles`` summarize an
            epoch.
        decay: decay of the moving average.

    Returns:
        Seconds at the end of each bin (bins,), and its five numbers (5, bins); NaN where the run has no value.
    """
    known = trace.smoothed(decay) if reduction == "moving average" else trace.finite
    seconds, levels = np.full(len(ends), np.nan), np.full((5, len(ends)), np.nan)
    if not len(known):
        return seconds, levels
    place = np.searchsorted(ends, known.epochs.round(_DIGITS)).clip(max=len(ends) - 1)
    first = np.flatnonzero(np.diff(place, prepend=-1))
    last = np.append(first[1:], len(place)) - 1
    bin_of = place[first]
    seconds[bin_of] = known.seconds[last]
    if reduction in ("moving average", "epoch end"):
        levels[:, bin_of] = known.values[last]
        return seconds, levels
    if reduction == "epoch quantiles":
        parts = np.split(known.values, first[1:])
        levels[:, bin_of] = np.transpose([np.quantile(part, QUANTILES) for part in parts])
        return seconds, levels
    levels[:, bin_of] = np.add.reduceat(known.values, first) / (last - first + 1)
    if reduction == "values":
        levels[:2, bin_of] = np.minimum.reduceat(known.values, first)
        levels[3:, bin_of] = np.maximum.reduceat(known.values, first)
    return seconds, levels


def combine_runs(levels: Array, spread: BandKind) -> Array:
    """Combine many runs (runs, 5, bins) into one line (5, bins).

    ``range`` is the mean of the middles, with the smallest low and the largest high. ``quartiles`` is the median of the
    middles, with their quartiles; infinite values are larger than all others. A single run is returned unchanged.
    """
    if len(levels) == 1:
        return levels[0]
    found = np.full(levels.shape[1:], np.nan)
    known = ~np.isnan(levels[:, 2]).all(0)
    some = levels[:, :, known]
    if spread == "range":
        found[2, known] = np.nanmean(some[:, 2], 0)
        found[:2, known] = np.nanmin(some[:, 1], 0)
        found[3:, known] = np.nanmax(some[:, 3], 0)
        return found
    with np.errstate(invalid="ignore"):  # ∞ − ∞, next to an infinite neighbour
        quarters = np.nanquantile(some[:, 2], (0.25, 0.5, 0.75), axis=0)
    above = np.nanquantile(some[:, 2], (0.25, 0.5, 0.75), axis=0, method="higher")
    found[1:4, known] = np.where(np.isnan(quarters), above, quarters)
    found[0], found[4] = found[1], found[3]
    return found
