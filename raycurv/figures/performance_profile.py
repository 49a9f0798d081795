"""Performance profiles (Dolan and Moré 2002): share of the problems solved over the factor of the best cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from raycurv.figures import style
from raycurv.results.performance_profile import PerformanceProfile

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(
    found: Sequence[PerformanceProfile],
    cost: str = "seconds",
    largest: float | None = None,
    optimizers: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the share of problems solved over the factor.

    Args:
        found: profiles, one line each.
        cost: what the factor compares, for the label of its axis.
        largest: end of the axis of factors, which is then linear; by default the largest finite ratio, logarithmic.
        optimizers: name of a profile → its optimizer, whose colour it has; by default the first word of the name.

    Raises:
        ValueError: there is no profile.
        ImportError: matplotlib is not installed.
    """
    if not found:
        raise ValueError("no run to draw a performance profile of")
    figure = style.figure_of(7, 4.5)
    axes = figure.subplots()
    end = 1.1 * max([ratio for p in found for ratio in p.ratios if math.isfinite(ratio)] + [2.0])
    end = end if largest is None else largest
    methods = [f"{(optimizers or {}).get(p.name, '')} {p.name}".lstrip() for p in found]
    looks = style.lines(methods)
    for index, (profile, method) in enumerate(zip(found, methods, strict=True)):
        factors = [1.0, *(ratio for ratio in profile.ratios if ratio < end), end]
        shares = [profile.solved(factor) for factor in factors]
        options = {**looks[method], "markersize": 4, "linewidth": 1.4}
        (curve,) = axes.step(factors, shares, where="post", label=profile.name, **options)
        curve.set_gid(f"series-{index}-line")
    style.scale(axes, "x", largest is None, None if largest is None else (1.0, largest))
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(f"{cost} to the target / those of the best")
    axes.set_ylabel("share of problems solved")
    axes.grid(alpha=0.3)
    style.legend_below(figure, axes)
    return figure
