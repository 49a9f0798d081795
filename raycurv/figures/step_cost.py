"""The cost of one step as a plot: a panel for each measure, a bar for each method and network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raycurv.recipes.step_cost import Cost

MEASURES = {"operations": "operations", "seconds": "wall time", "memory": "peak memory"}
# Okabe and Ito's colours, which people with any form of colour blindness can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def plot(costs: Sequence[Cost], paths: Sequence[Path]) -> None:
    """Draw the costs into files, whose suffixes choose the format (.png, .svg).

    Args:
        costs: measured; those without numbers are left out.
        paths: of the files.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure  # an extra; without pyplot, which would look for a display
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'raycurv[figures]'") from error
    shown = [cost for cost in costs if cost.operations is not None]
    if not shown:
        raise ValueError("no cost was measured: there is nothing to draw")
    subjects = list(dict.fromkeys(cost.subject for cost in shown))
    networks = list(dict.fromkeys(cost.workload for cost in shown))
    figure = Figure(figsize=(12, 1.5 + 0.16 * len(subjects) * (len(networks) + 1)), layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    height = 1 / (len(networks) + 1)
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for index, network in enumerate(networks):
            found = {cost.subject: getattr(cost, measure) for cost in shown if cost.workload == network}
            at = [subjects.index(subject) + height * (index - (len(networks) - 1) / 2) for subject in found]
            axes.barh(at, list(found.values()), height, label=network, color=COLOURS[index % len(COLOURS)])
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlabel(f"{label} / SGD's")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(subjects)), subjects)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(networks))
    for path in paths:
        figure.savefig(path, dpi=150)
