"""SALERA's appendix C: by which factor ζ an alarm should divide the learning rate, on a parabola.

Symbols: ζ ``factor``, C ``cost`` of a division (a forward pass against a step, times ε·log of the rate's excess).
"""

from __future__ import annotations

import math

from raycurv.recipes.table import TableEntry

COSTS = (0.001, 0.01, 0.1)
PRINTED = "between 3 and 5"


def total_cost(factor: float, cost: float) -> float:
    """J(ζ) of eq. 12, the expected cost from an alarm to the best rate, up to a factor; for ζ ≥ 2.

    Raises:
        ValueError: ζ is below 2, where the formula does not hold.
    """
    if factor < 2:
        raise ValueError(f"factor is {factor}; eq. 12 holds from 2 on")
    below = 0.5 - math.log(factor) / factor - (1 - math.log(2)) / factor  # ε·U
    above = math.log(2) - 0.5  # ε·T
    likely = 0.5 * (factor - 2) / (factor - 1), 0.5 * factor / (factor - 1)
    return cost / math.log(factor) + likely[0] * below + likely[1] * above


def best_factor(cost: float, step: float = 0.001, largest: float = 20.0) -> float:
    """The ζ of 2, 2 + step, … with the smallest cost."""
    candidates = [2 + step * i for i in range(round((largest - 2) / step) + 1)]
    return min(candidates, key=lambda factor: total_cost(factor, cost))


def entries(share: float) -> list[TableEntry]:
    """The best factor, and the cost of halving over its cost, for several C; `share` has no meaning here."""
    found = []
    for cost in COSTS:
        best = best_factor(cost)
        row = f"C = {cost:g}"
        found.append(TableEntry(row, "best ζ", best, printed=PRINTED))
        found.append(TableEntry(row, "J(2) / J(best ζ)", total_cost(2, cost) / total_cost(best, cost)))
    return found
