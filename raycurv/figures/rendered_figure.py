"""A figure with all that belongs to it: title, legend, caption and the data behind it."""

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
    """A figure, ready to be written or to be put on a page.

    Attributes:
        name: of its files.
        title: of the figure.
        figure: its panels.
        height: of the panels, in inches.
        handles: of the legend.
        caption: what lines and bands are, with counts of runs and failures.
        names: of the lines, in the order of the ids ``series-<number>-…`` in an SVG.
        data: behind it, comma-separated.
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
        """PNG, SVG and CSV, the caption under the pictures."""
        style.finish(self.figure, self.height, self.title, self.handles, self.caption)
        about = {"Title": self.title, "Description": self.caption}
        return style.save(self.figure, folder, self.name, self.data, about)

    def for_page(self) -> Figure:
        """The figure with its legend, for a page that shows title and caption itself."""
        style.finish(self.figure, self.height, "", self.handles)
        return self.figure
