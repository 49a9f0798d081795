"""Style of figures: lines that everybody can distinguish, also in print without colours."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from raycurv.results import palette

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinguishable with any form of colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
INK = "#444444"
_LETTER, _LINE = 0.062, 0.165  # width of a letter and height of a line of small print, in inches
_DPI = 150
_WIDE = 1e3  # a logarithmic axis that spans more has enough powers of ten to need no minor ticks
_FEW = 100.0  # a logarithmic axis that spans less has few powers of ten


def line(index: int) -> dict[str, Any]:
    """Colour, dashes and marker of the line number `index`, where lines are no optimizers; all three change."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def lines(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, dashes and marker of methods by name (:func:`raycurv.results.palette.line_styles`).

    An optimizer has the same colour in every figure. Use :func:`line` for lines that are no methods.
    """
    return {
        name: {"color": look.colour, "linestyle": DASHES[look.dash], "marker": MARKERS[look.marker]}
        for name, look in palette.line_styles(names).items()
    }


def ordered(index: int, count: int) -> dict[str, Any]:
    """Style as of :func:`line`, but from dark to bright, for ordered lines such as growing learning rates.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure_of(1, 1)
    from matplotlib import colormaps, colors

    share = 0.9 * index / max(1, count - 1)  # the brightest colours are invisible on white
    return {**line(index), "color": colors.to_hex(colormaps["viridis"](share))}


def figure_of(width: float, height: float) -> Figure:
    """Empty figure of a size in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # an extra; without pyplot, which would look for a display
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'raycurv[figures]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def scale(axes: Axes, which: Literal["x", "y"], log: bool, limits: tuple[float, float] | None = None) -> None:
    """Set a linear or logarithmic axis with a few plain numbers, and its limits if given."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    (axes.set_xscale if which == "x" else axes.set_yscale)("log" if log else "linear")
    axis = axes.xaxis if which == "x" else axes.yaxis
    if log:
        axis.set_major_locator(LogLocator(numticks=7))
        axis.set_major_formatter(_plain)
        axis.set_minor_formatter(_sparse(axis))
        axes.tick_params(which, which="minor", pad=4.9)  # its labels in line with the others
        if limits is not None and limits[1] > _WIDE * limits[0]:
            axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if limits is not None:
        (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)


def _plain(value: float, _: float = 0.0) -> str:
    return f"{value:g}"


def _sparse(axis: Axis) -> Callable[[float, float], str]:
    """Formatter of labels between powers of ten, for axes with few of these."""

    def label(value: float, _: float = 0.0) -> str:
        low, high = sorted(axis.get_view_interval())
        if not (low > 0 and value > 0):
            return ""
        digit = round(value / 10.0 ** math.floor(math.log10(value)))
        wanted = (2, 3, 4, 5, 6, 7, 8, 9) if high / low < 3 else (2, 3, 5) if high / low < 10 else (2, 5)
        return f"{value:.2g}" if high / low < _FEW and digit in wanted else ""

    return label


def legend_below(figure: Figure, axes: Axes) -> None:
    """Add the legend of a single panel below it, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    across = _across(figure, labels)
    figure.set_figheight(figure.get_figheight() + 0.19 * (-(-len(labels) // across) - 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=across, fontsize=8.5, frameon=False)


def _across(figure: Figure, labels: Sequence[str]) -> int:
    """Number of legend entries that fit side by side."""
    longest = max(map(len, labels), default=1) * 1.12 * _LETTER + 0.55  # inches
    return max(1, min(int((figure.get_figwidth() - 0.2) // longest), len(labels)))


def finish(figure: Figure, panels: float, title: str, handles: Sequence[Artist] = (), caption: str = "") -> None:
    """Put title, legend and caption around the panels; may be called again with others.

    Args:
        figure: figure whose height grows to fit these.
        panels: height of the panels, in inches.
        title: title above the panels.
        handles: handles of the legend below the panels.
        caption: text at the bottom.
    """
    for artist in (*figure.legends, *figure.texts):
        artist.remove()
    wide = figure.get_figwidth()
    across = _across(figure, [str(handle.get_label()) for handle in handles])
    rows = -(-len(handles) // across)
    text, head = wrapped(caption, wide - 0.3), wrapped(title, 0.7 * wide)
    below = _LINE * text.count("\n") + (_LINE + 0.12 if text else 0.0)
    legend = 0.19 * rows + 0.12 if handles else 0.0
    above = 0.25 * (head.count("\n") + 1) + 0.05 if head else 0.0
    high = panels + below + legend + above
    figure.set_figheight(high)
    figure.set_layout_engine("constrained", rect=(0, (below + legend) / high, 1, panels / high))
    if handles:
        place = (0.5, (below + legend / 2) / high)
        figure.legend(
            handles=list(handles), loc="center", bbox_to_anchor=place, ncols=across, fontsize=8.5, frameon=False
        )
    if head:
        figure.text(0.5, 1 - 0.05 / high, head, ha="center", va="top", fontsize="large")
    if text:
        figure.text(0.15 / wide, 0.08 / high, text, ha="left", va="bottom", fontsize=8.5, color=INK, linespacing=1.25)


def save(figure: Figure, folder: Path, stem: str, data: str, about: Mapping[str, str] | None = None) -> list[Path]:
    """Save a figure as PNG and SVG, with its data (CSV).

    Args:
        figure: figure to save.
        folder: folder of the files, created if needed.
        stem: stem of the file names.
        data: data of the figure as CSV.
        about: Title and Description, stored in the PNG and SVG files.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.{kind}" for kind in ("png", "svg", "csv")]
    figure.set_dpi(_DPI)
    FigureCanvasAgg(figure).print_png(paths[0], metadata=dict(about or {}))  # draws once where savefig draws twice
    figure.set_layout_engine("none")  # the layout is already final
    with paths[1].open("w", encoding="utf-8") as file:
        write_svg(figure, file, about)
    paths[2].write_text(data, encoding="utf-8")
    return paths


def write_svg(figure: Figure, file: IO[str], about: Mapping[str, str] | None = None) -> None:
    """Write the figure as SVG, byte for byte reproducible: without random ids and without a date."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with matplotlib.rc_context({"svg.hashsalt": "raycurv"}):
        FigureCanvasSVG(figure).print_svg(file, metadata={**(about or {}), "Date": None})


def wrapped(text: str, width: float) -> str:
    """Wrap small print into lines of at most `width` inches."""
    return textwrap.fill(text, int(width / _LETTER))
