"""Inline SVG figures for HTML pages: complete without a script, with values under the pointer where ``page.js`` runs.

The ids of the SVG identify series: ``series-<number>-…line`` for lines, ``series-<number>-…`` for their other elements.
The script reads the points from the paths of the lines, so that a page holds every number once.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raycurv.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LARGEST = 100_000  # largest size in bytes of the numbers that a figure offers for download
_PIXELS = 116  # largest number of pixels for an inch of a figure
_FRAME = "#8B949E"  # colour of axes, visible on white and on black


def embed(key: str, figure: Figure, names: Sequence[str], caption: str = "", data: str = "") -> str:
    """Embed a figure in an HTML page.

    Args:
        key: id, unique on the page; the prefix of the SVG's ids.
        figure: figure whose lines have ids.
        names: names of the series, in the order of their numbers.
        caption: HTML below the figure.
        data: data of the figure as CSV, offered for download unless they are large.
    """
    svg = _svg(figure, key)
    series, panels = (html.escape(json.dumps(found, separators=(",", ":"))) for found in (list(names), _panels(figure)))
    numbers = base64.b64encode(data.encode()).decode() if len(data) <= _LARGEST else ""
    link = f' <a download="{key}.csv" href="data:text/csv;base64,{numbers}">Numbers (CSV)</a>' if numbers else ""
    return (
        f'<figure id="{key}" data-series="{series}" data-panels="{panels}">{svg}'
        f"<figcaption>{caption}{link}</figcaption></figure>"
    )


def _svg(figure: Figure, prefix: str) -> str:
    """The figure as small inline SVG, its ids unique on the page, for a page of any background."""
    import matplotlib

    figure.patch.set_alpha(0.0)
    for axes in figure.axes:
        axes.patch.set_alpha(0.0)
        for spine in axes.spines.values():
            spine.set_edgecolor(_FRAME)
        axes.tick_params(color=_FRAME, which="both")
        for line in (*axes.get_xgridlines(), *axes.get_ygridlines()):
            line.set(color=_FRAME, alpha=0.25)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "path.simplify": False}):
        style.write_svg(figure, buffer)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d{2})\d+", r"\1", tag[0]), text)  # hundredths of a point
    text = re.sub(r"\s*\n\s*", " ", text).replace("> <", "><")
    wide = round(_PIXELS * figure.get_figwidth())
    text = re.sub(
        r'<svg [^>]*?width="[^"]*" height="[^"]*"', f'<svg role="img" style="max-width:{wide}px"', text, count=1
    )
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r"(url\(#|xlink:href=\"#)", rf"\g<1>{prefix}-", text)


def _panels(figure: Figure) -> list[dict[str, Any]]:
    """Labels and axes of each panel of a drawn figure: ends in the SVG, their values, whether logarithmic."""
    scale, height = 72 / figure.dpi, 72 * figure.get_figheight()  # an SVG counts in points, from the top
    panels = []
    for axes in figure.axes:
        (left, low), (right, high) = scale * axes.transAxes.transform([(0, 0), (1, 1)])
        x = [left, right, *axes.get_xlim(), int(axes.get_xscale() == "log")]
        y = [height - low, height - high, *axes.get_ylim(), int(axes.get_yscale() == "log")]
        numbers = [[float(f"{value:.6g}") for value in axis] for axis in (x, y)]
        labels = {"xlabel": axes.get_xlabel(), "ylabel": axes.get_ylabel()}
        panels.append({"x": numbers[0], "y": numbers[1], **labels})
    return panels
