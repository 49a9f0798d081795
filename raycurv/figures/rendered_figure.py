"""A figure with its title, legend, caption and data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raycurv.figures import style

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RenderedFigure:
    """A figure, ready to be saved or shown on a page.

    Attributes:
        name: stem of the file names.
        title: title of the figure.
        figure: matplotlib figure with the panels.
        height: height of the panels, in inches.
        handles: handles of the legend.
        caption: meaning of lines and bands, with counts of runs and failures.
        names: names of the lines, in the order of the ids ``series-<number>-…`` in an SVG.
        data: data of the figure as CSV.
    """

    name: str
    title: str
    figure: Figure
    height: float
    handles: Sequence[Artist]
    caption: str
    names: Sequence[str]
    data: str

    def save(self, folder: Path) -> list[Path]:
        """Save the figure as PNG, SVG and CSV, with the caption below the panels."""
        style.finish(self.figure, self.height, self.title, self.handles, self.caption)
        about = {"Title": self.title, "Description": self.caption}
        return style.save(self.figure, folder, self.name, self.data, about)

    def for_page(self) -> Figure:
        """The figure with its legend, for a page that shows title and caption itself."""
        style.finish(self.figure, self.height, "", self.handles)
        return self.figure
