"""Trajectories on the Rosenbrock function (CurveBall, Fig. 1): paths over its contours, and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raycurv.benchmarks.rosenbrock_trajectories import Trajectory
from raycurv.figures import style
from raycurv.figures.rendered_figure import RenderedFigure
from raycurv.results import table_formats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REACH = 2.2  # half the side of the plot: starts are in [−2, 2]²
_FLOOR = 1e-6  # smallest loss shown


def draw(found: Sequence[Trajectory]) -> RenderedFigure:
    """Draw a column for each function: contours with the paths above, losses below.

    Raises:
        ValueError: there is nothing to draw.
        ImportError: matplotlib is not installed.
    """
    if not found:
        raise ValueError("there is no trajectory to draw")
    problems = list(dict.fromkeys(t.problem for t in found))
    looks = style.lines(t.subject for t in found)
    height = 6.6
    figure = style.figure_of(max(6.4, 4.2 * len(problems)), height)
    panels = figure.subplots(2, len(problems), squeeze=False, height_ratios=(1.35, 1))
    for (ways, losses), problem in zip(panels.T, problems, strict=True):
        mine = [t for t in found if t.problem == problem]
        _contours(ways)
        ways.set_title(problem, fontsize="medium")
        style.scale(losses, "x", True)
        style.scale(losses, "y", True, (_FLOOR, 30 * max(t.losses[0] for t in mine)))
        for trajectory in mine:
            _way(ways, losses, trajectory, looks[trajectory.subject])
        losses.set(xlabel="1 + steps", ylabel="loss without noise")
        losses.grid(alpha=0.3)
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, markersize=3.5, linewidth=1.2, **look) for name, look in looks.items()]
    if any(not t.solved for t in found):
        handles.append(Line2D([], [], color=style.INK, marker="x", linestyle="", label="not solved"))
    handles.append(Line2D([], [], color="black", marker="*", markersize=9, linestyle="", label="minimum"))
    failed = sum(not t.solved for t in found)
    ends = "; ".join(f"{t.subject} on {t.problem}: {t.ended}" for t in found if not t.solved)
    text = (
        f"After CurveBall, Fig. 1. One run of each optimizer from the same start with the same noise; contours are of "
        f"the function without noise, darker where it is higher. {len(found)} runs, "
        + (f"{failed} of them not solved ({ends})." if failed else "all solved.")
    )
    title = "Trajectories on the stochastic Rosenbrock function"
    return RenderedFigure("trajectories", title, figure, height, handles, text, tuple(looks), _data(found))


def _contours(axes: Axes) -> None:
    side = np.linspace(-_REACH, _REACH, 201)
    u, v = np.meshgrid(side, side)
    height = np.log10((1 - u) ** 2 + 100 * (v - u**2) ** 2 + 1e-3)
    levels = np.linspace(-3, 4, 15)
    axes.contourf(u, v, height, levels, cmap="Greys", vmin=levels[0], vmax=3 * levels[-1])  # the bright half alone
    axes.plot([1], [1], "*", color="black", markersize=9, zorder=5)
    axes.set(xlim=(-_REACH, _REACH), ylim=(-_REACH, _REACH), xlabel="u", ylabel="v", aspect="equal")


def _way(ways: Axes, losses: Axes, trajectory: Trajectory, look: dict[str, Any]) -> None:
    u, v = np.clip(np.transpose(trajectory.points), -4 * _REACH, 4 * _REACH)
    every = max(1, len(u) // 8)
    ways.plot(u, v, linewidth=1.2, markersize=3.5, markevery=every, zorder=3, **look)
    loss = np.clip(trajectory.losses, 2 * _FLOOR, 1e9)
    losses.plot(np.arange(len(loss)) + 1, loss, linewidth=1.2, markersize=3.5, markevery=every, **look)
    if not trajectory.solved:
        end = min(float(loss[-1]), losses.get_ylim()[1])
        losses.plot([len(loss)], [end], "x", color=look["color"], markersize=7, clip_on=False)


def _data(found: Sequence[Trajectory]) -> str:
    rows = (
        (t.problem, t.subject, step, u, v, loss)
        for t in found
        for step, ((u, v), loss) in enumerate(zip(t.points, t.losses, strict=True))
    )
    return table_formats.comma_separated(("problem", "series", "step", "u", "v", "loss"), rows)
