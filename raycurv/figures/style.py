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
_CHARACTER, _LINE = 0.062, 0.165  # width of a character and height of a line of small text, in inches
_DPI = 150
_SMALL = 8.5  # size of labels in points
_LABEL = 26  # longest line of a name beside a line of a figure, in characters
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


def folded(name: str) -> str:
    """Name of a line in at most two lines, the optimizer in the first one."""
    if len(name) <= _LABEL:
        return name
    head, *rest = textwrap.wrap(name, _LABEL, break_on_hyphens=False, break_long_words=False)
    return f"{head}\n{textwrap.shorten(' '.join(rest), _LABEL, placeholder=' …')}" if rest else head


def place_panel(figure: Figure, axes: Axes, labels: Iterable[str]) -> None:
    """Place the only panel of a figure so that labels right of it fit; labels that need more height make it higher."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=_SMALL)
    lines = [line for label in labels for line in label.split("\n")]
    widest = max((text_to_path.get_text_width_height_descent(line, font, False)[0] for line in lines), default=0.0)
    figure.set_figheight(max(figure.get_figheight(), 0.7 + 0.15 * len(lines)))
    width, height = figure.get_size_inches()
    right = 0.05 * width + widest / 72 + 0.08
    axes.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("none")
    axes.set_position((0.68 / width, 0.5 / height, (width - 0.68 - right) / width, (height - 0.65) / height))


def label_beside(axes: Axes, ends: Sequence[tuple[int, str, str, float, float]], size: float = _SMALL) -> None:
    """Write the name of every line beside its end, right of the panel, in its colour and without overlaps.

    Layout and limits of the axes must be final.

    Args:
        axes: axes of the panel.
        ends: for each line its number, its name, its colour, and the place (x, y) of its end.
        size: font size in points.
    """
    room = size * 1.25 / 72 / (axes.bbox.height / axes.figure.dpi)
    to_axes = axes.transData + axes.transAxes.inverted()
    places = [to_axes.transform((x, y)).clip(0, 1).tolist() for *_, x, y in ends]
    heights = [room * (name.count("\n") + 1) for _, name, *_ in ends]
    middles = spread_out([y for _, y in places], heights)
    for (number, name, colour, *_), (x, y), middle in zip(ends, places, middles, strict=True):
        look: dict[str, Any] = {
            "color": colour,
            "linewidth": 0.7,
            "alpha": 0.7,
            "transform": axes.transAxes,
            "clip_on": False,
        }
        (leader,) = axes.plot([x, 1.0 + 0.012, 1.03], [y, middle, middle], **look)
        leader.set_gid(f"series-{number}-leader")
        at: dict[str, Any] = {
            "ha": "left",
            "va": "center",
            "fontsize": size,
            "linespacing": 1.1,
            "transform": axes.transAxes,
        }
        axes.text(1.04, middle, name, color=colour, **at).set_gid(f"series-{number}-label")


def spread_out(
    places: Sequence[float], heights: Sequence[float], low: float = -0.05, high: float = 1.05
) -> list[float]:
    """Middles of labels near the wanted places, without overlaps and within the limits where these have the room.

    This is the isotonic regression of the places (pool adjacent violators), so the labels move as little as possible.
    """
    order = sorted(range(len(places)), key=lambda i: -places[i])
    offsets, total = {}, 0.0  # of each label's middle below the top of the stack
    for i in order:
        offsets[i] = total + heights[i] / 2
        total += heights[i]
    blocks: list[list[float]] = []  # sum and number of the labels that touch
    for i in order:
        blocks.append([places[i] + offsets[i], 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] <= blocks[-1][0] / blocks[-1][1]:
            some, count = blocks.pop()
            blocks[-1][0] += some
            blocks[-1][1] += count
    tops = [some / count for some, count in blocks for _ in range(int(count))]
    tops = [max(min(top, high), min(low + total, high)) for top in tops]
    found = {i: top - offsets[i] for i, top in zip(order, tops, strict=True)}
    return [found[i] for i in range(len(places))]


def legend_below(figure: Figure, axes: Axes) -> None:
    """Add the legend of a single panel below it, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    across = _across(figure, labels)
    figure.set_figheight(figure.get_figheight() + 0.19 * (-(-len(labels) // across) - 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=across, fontsize=8.5, frameon=False)


def _across(figure: Figure, labels: Sequence[str]) -> int:
    """Number of legend entries that fit side by side."""
    longest = max(map(len, labels), default=1) * 1.12 * _CHARACTER + 0.55  # inches
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
    _without_mathematics(figure)
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

    _without_mathematics(figure)
    with matplotlib.rc_context({"svg.hashsalt": "raycurv"}):
        FigureCanvasSVG(figure).print_svg(file, metadata={**(about or {}), "Date": None})


def _without_mathematics(figure: Figure) -> None:
    """Show dollar signs of names as they are, which matplotlib would take for formulas."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(False)


def wrapped(text: str, width: float) -> str:
    """Wrap small print into lines of at most `width` inches."""
    return textwrap.fill(text, int(width / _CHARACTER))
