"""Tables of the report page: results with the best in bold, dots for values and failures marked; plain tables."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from raycurv.results.comparison import MethodRow, NetworkQuartiles
from raycurv.results.findings import RecipeGroup

SHOWN = 12  # rows that a table shows before it is unfolded
_LONG = 60  # longer cells, in characters, are broken into lines
_STRIP = 100.0  # width of a strip of dots
_PLAIN = 1e6  # smaller numbers are shown without a power of ten
_DECADE = 10.0  # values that span a larger factor are shown on a logarithmic scale


@dataclass(frozen=True)
class _Column:
    """A column of numbers.

    Attributes:
        title: head of the column.
        value: number of a row; NaN if unknown.
        form: format of the number.
        spread: standard deviation of a row's number.
        best: function that chooses the best number, if one is better than another.
        scale: factor of number and spread when shown.
        kind: class of the cells: ``wide`` and ``middle`` are left out on narrow screens.
        dots: whether a strip of dots stands beside the numbers.
    """

    title: str
    value: Callable[[MethodRow], float]
    form: str = "{:.4g}"
    spread: Callable[[MethodRow], float] | None = None
    best: Callable[[Iterable[float]], float] | None = None
    scale: float = 1.0
    kind: str = ""
    dots: bool = False


def results(rows: Sequence[MethodRow], group: RecipeGroup, names: Mapping[str, str], colours: Mapping[str, str]) -> str:
    """Table of the results of a group, best training loss first within each comparison.

    Args:
        rows: rows of the group.
        group: the group, whose setting becomes a column.
        names: short name by method.
        colours: colour by method.
    """
    averaged = {_key(row): row for row in rows if row.weights == "averaged"}
    rows = [row for row in rows if row.weights == "raw"]
    comparisons: dict[str, list[MethodRow]] = {}
    for row in sorted(rows, key=lambda row: row.loss if math.isfinite(row.loss) else math.inf):
        comparisons.setdefault(row.comparison, []).append(row)
    settings = list(dict.fromkeys(name for row in rows for name in row.differing))
    columns = _columns(rows, averaged)
    strips = {column.title: _strip_of([column.value(row) for row in rows]) for column in columns if column.dots}
    heads = [f"<th>{_breakable(title)}</th>" for title in _titles(group, settings)]
    heads += [f'<th class="number {column.kind}">{html.escape(column.title)}</th>' for column in columns]
    bodies: list[str] = []
    shown = 0
    for name in dict.fromkeys(row.comparison for row in rows):
        best = {column.title: _best(column, comparisons[name]) for column in columns}
        lines = []
        for row in comparisons[name]:
            cells = [_name(row, names, colours), *_settings_cells(row, group, settings)]
            cells += [_number_cell(column, row, best[column.title], strips, colours) for column in columns]
            first = row is comparisons[name][0] and len(comparisons[name]) > 1
            kinds = " ".join(filter(None, ("best" if first else "", _more(shown))))
            lines.append(_line(kinds, [*cells, _runs_cell(row)]))
            shown += 1
        bodies.append(("<tbody class='next'>" if bodies else "<tbody>") + "".join(lines) + "</tbody>")
    head = f'<thead><tr>{"".join(heads)}<th class="number">runs</th></tr></thead>'
    return _framed(head + "".join(bodies), shown, _about(rows, strips))


def _key(row: MethodRow) -> tuple[str, str]:
    return row.comparison, row.method


def _titles(group: RecipeGroup, settings: Sequence[str]) -> list[str]:
    return ["method", *([group.setting.replace(".settings.", ".")] if group.setting else []), *settings]


def _settings_cells(row: MethodRow, group: RecipeGroup, settings: Sequence[str]) -> list[str]:
    texts = [(group.values or {}).get(row.recipe, "")] if group.setting else []
    texts += [row.differing.get(name, "") for name in settings]
    return [f"<td>{html.escape(text)}</td>" for text in texts]


def _line(kinds: str, cells: Sequence[str]) -> str:
    return f'<tr class="{kinds}">{"".join(cells)}</tr>' if kinds else f"<tr>{''.join(cells)}</tr>"


def _more(shown: int) -> str:
    return "more" if shown >= SHOWN else ""


def _columns(rows: Sequence[MethodRow], averaged: Mapping[tuple[str, str], MethodRow]) -> list[_Column]:
    def of_averaged(row: MethodRow) -> float:
        return averaged[_key(row)].accuracy if _key(row) in averaged else math.nan

    def spread_of_averaged(row: MethodRow) -> float:
        return averaged[_key(row)].accuracy_spread if _key(row) in averaged else math.nan

    further = list(dict.fromkeys(name for row in rows for name in row.metrics))
    columns = [
        _Column("training loss", lambda r: r.loss, spread=lambda r: r.spread, best=min, dots=True),
        _Column("test accuracy (%)", lambda r: r.accuracy, "{:.2f}", lambda r: r.accuracy_spread, max, 100.0),
        _Column("with averaged weights (%)", of_averaged, "{:.2f}", spread_of_averaged, max, 100.0, "middle"),
        *(_Column(name.removeprefix("test/"), partial(_metric, name)) for name in further),
        _Column("epochs to target", lambda r: r.epochs_to_target, "{:.3g}", kind="wide"),
        _Column("step time to target (s)", lambda r: r.step_time_to_target, "{:.3g}", best=min, kind="middle"),
        _Column("search and run (s)", lambda r: r.step_time if r.searched else math.nan, "{:.3g}", kind="middle"),
        _Column("ms a step", lambda r: 1000 * r.step_seconds or math.nan, "{:.3g}", kind="wide"),
    ]
    return [column for column in columns if any(math.isfinite(column.value(row)) for row in rows)]


def _breakable(text: str) -> str:
    """Text in HTML that may be broken after ``_`` and ``=``."""
    return re.sub(r"([_=])", r"\1<wbr>", html.escape(text))


def _metric(name: str, row: MethodRow) -> float:
    return row.metrics.get(name, math.nan)


def _name(row: MethodRow, names: Mapping[str, str], colours: Mapping[str, str]) -> str:
    setting = names.get(row.method, row.method).removeprefix(row.optimizer).strip()
    notes = [setting, f"best of {row.searched} searched" if row.searched else ""]
    small = " · ".join(filter(None, notes))
    text = f"<small>{_breakable(small)}</small>" if small else ""
    swatch = f'<span class="swatch" style="background:{colours[row.method]}"></span>'
    value = html.escape(row.method, quote=True)
    return f'<td class="name" data-v="{value}">{swatch}{_breakable(row.optimizer)}{text}</td>'


def _number_cell(
    column: _Column,
    row: MethodRow,
    best: float,
    strips: Mapping[str, Callable[[float], float] | None],
    colours: Mapping[str, str],
) -> str:
    value = column.value(row)
    kind = f"number {column.kind}".strip()
    if not math.isfinite(value):
        return f'<td class="{kind}">–</td>'
    shown = _text(column.scale * value, column.form)
    spread = column.spread(row) if column.spread is not None else math.nan
    text = f"<b>{shown}</b>" if value == best else shown
    if math.isfinite(spread):
        text += f" <small>± {column.scale * spread:.2g}</small>"
    place = strips.get(column.title)
    if place is not None:
        text += " " + _strip(place, value, spread, colours[row.method])
    return f'<td class="{kind}" data-v="{value:.6g}">{text}</td>'


def _strip_of(values: Sequence[float]) -> Callable[[float], float] | None:
    """Place of a value in a strip, logarithmic where values span a decade; None without two different values."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    if low == high:
        return None
    if low > 0 and high / low > _DECADE:
        low, high = math.log(low), math.log(high)
        return lambda value: _STRIP * (math.log(max(value, 1e-300)) - low) / (high - low)
    return lambda value: _STRIP * (value - low) / (high - low)


def _strip(place: Callable[[float], float], value: float, spread: float, colour: str) -> str:
    def within(x: float) -> float:
        return min(max(place(x), 0.0), _STRIP)

    band = ""
    if math.isfinite(spread):
        band = f'<path d="M{within(value - spread):.1f} 6H{within(value + spread):.1f}"/>'
    return (
        f'<svg class="strip" viewBox="-5 0 110 12" style="color:{colour}" aria-hidden="true">'
        f'<path class="base" d="M0 6H{_STRIP:.0f}"/>{band}<circle cx="{within(value):.1f}" cy="6" r="4"/></svg>'
    )


def _best(column: _Column, rows: Sequence[MethodRow]) -> float:
    known = [value for row in rows if math.isfinite(value := column.value(row))]
    return column.best(known) if column.best is not None and len(known) > 1 else math.nan


def _runs_cell(row: MethodRow) -> str:
    count = len(row.outcomes)
    gone = [o.status for o in row.outcomes if o.status != "finished"]
    if not gone:
        return f'<td class="number" data-v="{count}">{count or "–"}</td>'
    how = ", ".join(f"{gone.count(status)} {status}" for status in dict.fromkeys(gone))
    number, _, status = how.partition(" ")
    bad = f'<span class="bad">✕ {number}<span class="how"> {html.escape(status)}</span></span>'
    return f'<td class="number" data-v="{count}">{count} {bad}</td>'


def _about(rows: Sequence[MethodRow], strips: Mapping[str, object]) -> str:
    texts = ["Means over the seeds ± their standard deviation; the best of each comparison is bold."]
    if any(strips.values()):
        texts.append("Dots show the training loss, from the lowest of the table on the left to the highest.")
    if any(math.isfinite(row.epochs_to_target) for row in rows):
        searched = any(row.searched for row in rows)
        texts.append(f"The target is the training loss of the best {'tuned baseline' if searched else 'method'}.")
    return " ".join(texts)


def networks(rows: Sequence[NetworkQuartiles], names: Mapping[str, str], colours: Mapping[str, str]) -> str:
    """Table of medians and quartiles over random networks."""
    heads = (
        ("training loss, median", ""), ("quartiles", " middle"), ("test accuracy, median (%)", ""),
        ("best on", ""), ("seconds", " wide"), ("networks", " middle"),
    )  # fmt: skip
    top = "<th>method</th>" + "".join(f'<th class="number{kind}">{title}</th>' for title, kind in heads)
    least, most = (
        choose((v for row in rows if math.isfinite(v := getattr(row, name))), default=math.nan)
        for choose, name in ((min, "median"), (max, "accuracy"))
    )
    lines = []
    for place, row in enumerate(rows):
        name = row.optimizer.partition(" ")[0]
        setting = _breakable(names.get(row.optimizer, row.optimizer).removeprefix(name).strip())
        swatch = f'<span class="swatch" style="background:{colours[row.optimizer]}"></span>'
        failed = f' <span class="bad">✕ {row.failed} failed</span>' if row.failed else ""
        quartiles = f"{_text(row.lower)} – {_text(row.upper)}" if math.isfinite(row.lower) else "–"
        cells = [_bold(row.median, least), quartiles, _bold(100 * row.accuracy, 100 * most, "{:.2f}"), str(row.best_on)]
        cells += [_text(row.seconds, "{:.3g}"), f"{row.networks}{failed}"]
        title = f'<td class="name">{swatch}{_breakable(name)}{f"<small>{setting}</small>" if setting else ""}</td>'
        numbers = [f'<td class="number{kind}">{cell}</td>' for cell, (_, kind) in zip(cells, heads, strict=True)]
        lines.append(_line(_more(place), [title, *numbers]))
    about = "Median and quartiles over the networks where a run finished; the best is bold."
    return _framed(f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>", len(rows), about)


def _bold(value: float, best: float, form: str = "{:.4g}") -> str:
    text = _text(value, form)
    return f"<b>{text}</b>" if value == best else text


def _text(value: float, form: str = "{:.4g}") -> str:
    if not math.isfinite(value):
        return "–"
    text = form.format(value)
    return f"{value:,.0f}" if "e+" in text and abs(value) < _PLAIN else text


def plain(
    head: Sequence[str], rows: Sequence[Sequence[str]], links: Mapping[str, str] | None = None, numbers: bool = True
) -> str:
    """Table of texts; columns of numbers are aligned to the right.

    Args:
        head: titles of the columns.
        rows: cells of each row.
        links: address by the text of a cell.
        numbers: whether there may be columns of numbers.
    """
    right = [numbers and bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(head))]

    def cell(text: str, number: bool) -> str:
        link = (links or {}).get(text)
        shown = _breakable(text)
        if link:
            shown = f'<a href="{html.escape(link, quote=True)}">{shown}</a>'
        kind = "number" if number else "long" if len(text) > _LONG else ""
        return f'<td class="{kind}">{shown}</td>' if kind else f"<td>{shown}</td>"

    top = "".join(
        f'<th class="number">{html.escape(title)}</th>' if number else f"<th>{html.escape(title)}</th>"
        for title, number in zip(head, right, strict=True)
    )
    lines = [_line(_more(place), list(map(cell, row, right))) for place, row in enumerate(rows)]
    return _framed(f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>", len(rows))


def _is_number(text: str) -> bool:
    first = text.split(" ")[0].rstrip("%×")
    try:
        float(first)
    except ValueError:
        return text in ("", "–")
    return True


def _framed(content: str, count: int, caption: str = "") -> str:
    about = f'<p class="note">{html.escape(caption)}</p>' if caption else ""
    hidden = count - SHOWN
    more = ""
    if hidden > 0:
        more = f'<label class="show"><input type="checkbox" class="all">Show {hidden} more rows</label>'
    return f'<div class="fold"><div class="scroll"><table>{content}</table></div>{about}{more}</div>'
