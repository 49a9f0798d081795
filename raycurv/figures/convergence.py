"""Region of convergence of CurveBall with fixed ρ and β on a quadratic (Theorem A.1, Fig. 4)."""

from __future__ import annotations

import numpy as np

from raycurv.benchmarks.quadratic_convergence import rate
from raycurv.figures import style
from raycurv.figures.rendered_figure import RenderedFigure
from raycurv.results import table_formats

_STEPS, _MOMENTA = 1.6, 1.6  # the largest βh and ρ of the figure


def draw(points: int = 257) -> RenderedFigure:
    """Draw the region: bright for fast convergence, white for none.

    Args:
        points: number of grid points along each axis.

    Raises:
        ValueError: fewer than 2 points.
        ImportError: matplotlib is not installed.
    """
    if points < 2:
        raise ValueError(f"points is {points!r}; it must be at least 2")
    step, momentum = np.meshgrid(np.linspace(0, _STEPS, points), np.linspace(0, _MOMENTA, points))
    found = rate(momentum, step)
    figure = style.figure_of(6.4, 4.6)
    axes = figure.subplots()
    levels = np.linspace(0, 1, 11)  # larger rates are left white
    filled = axes.contourf(step, momentum, found, levels, cmap="cividis_r")
    lines = axes.contour(step, momentum, found, levels[1:-1], colors="white", linewidths=0.6)
    axes.clabel(lines, fontsize=7, fmt="%.1f")
    h = np.linspace(0, _STEPS, points)
    (lower,) = axes.plot(h, 1.5 * h - 1, color="black", linewidth=1.4, label="ρ = 3/2·βh − 1")
    (upper,) = axes.plot(h, 1 + h, color="black", linewidth=1.4, linestyle="--", label="ρ = 1 + βh")
    (widest,) = axes.plot([4 / 3], [1], "o", color="black", markersize=5, label="βh = 4/3 at ρ = 1")
    axes.set(xlim=(0, _STEPS), ylim=(0, _MOMENTA))
    axes.set(xlabel="βh (learning rate × eigenvalue of the Hessian)", ylabel="momentum ρ")
    figure.colorbar(filled, ax=axes, label="factor of the error at each step, max |eig R|")
    text = (
        "After CurveBall, Fig. 4 and Theorem A.1. Computed from eq. 38 for one eigenvalue h of a convex quadratic; no "
        "runs. White: no convergence. With several eigenvalues, each must lie inside at its own βh."
    )
    rows = zip(step.ravel().tolist(), momentum.ravel().tolist(), found.ravel().tolist(), strict=True)
    numbers = ([f"{value:.6g}" for value in row] for row in rows)
    data = table_formats.comma_separated(("beta_h", "rho", "rate"), numbers)
    title, handles = "Region of convergence for fixed ρ and β", (lower, upper, widest)
    return RenderedFigure("convergence", title, figure, 4.6, handles, text, (), data)
