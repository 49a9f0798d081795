"""Plot of the cost of one step: a panel for each measure, a bar for each method and network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raycurv.benchmarks.step_cost import StepCost
from raycurv.figures import style

MEASURES = {"operations": "operations", "seconds": "wall time", "memory": "peak memory"}
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")  # for print without colours


def plot(costs: Sequence[StepCost], paths: Sequence[Path]) -> None:
    """Draw the costs into files; their suffixes choose the format (.png, .svg).

    Args:
        costs: measured costs; those without numbers are left out.
        paths: paths of the files.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is nothing to draw.
    """
    shown = [cost for cost in costs if cost.operations is not None]
    if not shown:
        raise ValueError("no cost was measured: there is nothing to draw")
    subjects = list(dict.fromkeys(cost.subject for cost in shown))
    networks = list(dict.fromkeys(cost.workload for cost in shown))
    figure = style.figure_of(12, 1.5 + 0.16 * len(subjects) * (len(networks) + 1))
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    height = 1 / (len(networks) + 1)
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for index, network in enumerate(networks):
            found = {cost.subject: getattr(cost, measure) for cost in shown if cost.workload == network}
            at = [subjects.index(subject) + height * (index - (len(networks) - 1) / 2) for subject in found]
            look = {"color": style.COLOURS[index % len(style.COLOURS)], "hatch": HATCHES[index % len(HATCHES)]}
            axes.barh(at, list(found.values()), height, label=network, edgecolor="white", linewidth=0, **look)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlabel(f"{label} / SGD's")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(subjects)), subjects)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(networks))
    for path in paths:
        figure.savefig(path, dpi=150)
