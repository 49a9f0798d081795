"""Profile and score of time to target, by counting and by a fine trapezoid rule, as AlgoPerf's own code has them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence


def naive_scores(costs: Mapping[str, Sequence[float]], largest: float, points: int) -> dict[str, float]:
    """Score of every method from its costs on the same tasks, infinite where it missed the target."""
    tasks = range(len(next(iter(costs.values()))))
    best = [min(found[task] for found in costs.values()) for task in tasks]
    taus = [1 + (largest - 1) * i / (points - 1) for i in range(points)]
    scores = {}
    for name, found in costs.items():
        curve = []
        for tau in taus:
            within = 0
            for task in tasks:
                if math.isfinite(found[task]) and found[task] <= tau * best[task]:
                    within += 1
            curve.append(within / len(best))
        area = sum((a + b) / 2 for a, b in itertools.pairwise(curve)) / (points - 1)
        scores[name] = area
    return scores
