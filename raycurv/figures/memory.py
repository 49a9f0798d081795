"""Measured memory during a step (RED, Fig. 5), in units of the plain gradient: its work C, its peak memory M."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raycurv.benchmarks.step_memory import StepMemory
from raycurv.figures import style
from raycurv.figures.rendered_figure import RenderedFigure
from raycurv.results import table_formats

_HEIGHT = 3.0  # height of a panel in inches


def draw(found: Sequence[StepMemory]) -> RenderedFigure:
    """Draw a column for each network: memory over the work done, and over milliseconds.

    Args:
        found: recordings; the first of each network gives its units.

    Raises:
        ValueError: there is nothing to draw.
        ImportError: matplotlib is not installed.
    """
    if not found:
        raise ValueError("there is no recording of a step to draw")
    networks = list(dict.fromkeys(r.workload for r in found))
    looks = style.lines(r.subject for r in found)
    figure = style.figure_of(max(6.8, 5.2 * len(networks)), 2 * _HEIGHT)
    panels = figure.subplots(2, len(networks), squeeze=False)
    texts = []
    for (work, clock), network in zip(panels.T, networks, strict=True):
        mine = [r for r in found if r.workload == network]
        cost, peak = mine[0].operations[-1], max(mine[0].bytes)
        for r in mine:
            memory, markers = np.asarray(r.bytes) / peak, max(1, len(r.bytes) // 10)
            for axes, x in ((work, np.asarray(r.operations) / cost), (clock, 1000 * np.asarray(r.seconds))):
                axes.step(x, memory, where="post", linewidth=1.2, markersize=3.5, markevery=markers, **looks[r.subject])
        work.set_title(network, fontsize="medium")
        work.set_xlabel("work done, in gradients C (floating-point operations)")
        clock.set_xlabel("milliseconds, recording included")
        for axes in (work, clock):
            axes.axhline(1, color=style.INK, linewidth=0.8, linestyle=(0, (1, 2)))
            axes.set(ylabel="memory alive, in peaks M", ylim=(0, None), xlim=(0, None))
            axes.grid(alpha=0.3)
        ratios = ", ".join(f"{r.subject} ({r.operations[-1] / cost:.2f} C, {max(r.bytes) / peak:.2f} M)" for r in mine)
        texts.append(f"{network}: M = {peak / 1e6:.1f} MB, C = {cost / 1e9:.2f} GFLOP; work and peak of {ratios}.")
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, markersize=3.5, linewidth=1.2, **look) for name, look in looks.items()]
    text = (
        f"After RED, Fig. 5: measured. One step of {found[0].subject} is the unit. Memory is that of all tensors that "
        f"the step has made and that are alive, after every operator. {' '.join(texts)} "
        f"{len(found)} recorded steps, none failed."
    )
    return RenderedFigure(
        "memory", "Memory in the course of a step", figure, 2 * _HEIGHT, handles, text, tuple(looks), _data(found)
    )


def _data(found: Sequence[StepMemory]) -> str:
    rows = ((r.workload, r.subject, *row) for r in found for row in zip(r.operations, r.seconds, r.bytes, strict=True))
    return table_formats.comma_separated(("network", "series", "operations", "seconds", "bytes"), rows)
