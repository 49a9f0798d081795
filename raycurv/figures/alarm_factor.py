"""Cost of SALERA's recovery from an alarm against the factor that divides the learning rate (appendix C, Fig. 3)."""

from __future__ import annotations

import numpy as np

from raycurv.benchmarks.alarm_factor import COSTS, best_factor, total_cost
from raycurv.figures import style
from raycurv.figures.rendered_figure import RenderedFigure
from raycurv.results import table_formats

_LARGEST = 20.0  # the largest ζ of the figure


def draw(points: int = 361) -> RenderedFigure:
    """Draw J(ζ) for the constants C of the table, from ζ = 2 on.

    Args:
        points: number of factors on each line.

    Raises:
        ValueError: fewer than 2 points.
        ImportError: matplotlib is not installed.
    """
    if points < 2:
        raise ValueError(f"points is {points!r}; it must be at least 2")
    factors = np.linspace(2, _LARGEST, points).tolist()
    figure = style.figure_of(6.4, 4.0)
    axes = figure.subplots()
    handles, rows = [], []
    for number, cost in enumerate(COSTS):
        values = [total_cost(factor, cost) for factor in factors]
        best = best_factor(cost)
        look = style.line(number) | {"marker": ""}
        (line,) = axes.plot(factors, values, **look, label=f"C = {cost:g}, smallest at ζ = {best:.2f}")
        axes.plot([best], [total_cost(best, cost)], "o", color=look["color"], markersize=5)
        handles.append(line)
        rows += [(f"{cost:g}", f"{factor:.6g}", f"{value:.6g}") for factor, value in zip(factors, values, strict=True)]
    axes.set(xlim=(2, _LARGEST), xlabel="factor ζ that divides the learning rates", ylabel="cost J(ζ)")
    text = (
        "After SALERA, Fig. 3. Computed from eq. 12 of appendix C, which holds from ζ = 2 on; no runs. Dots: the best "
        "factor; SALERA takes 2. C is the relative cost of a division; smaller ones give the line of C = 0.001."
    )
    data = table_formats.comma_separated(("C", "factor", "cost"), rows)
    return RenderedFigure("alarm_factor", "Cost of an alarm", figure, 4.0, tuple(handles), text, (), data)
