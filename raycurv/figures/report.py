"""Self-contained report page, readable offline: conclusions, tables, figures, failures, versions, commands."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raycurv.figures import curves, interactive, performance_profile
from raycurv.figures.rendered_figure import RenderedFigure
from raycurv.results import comparison
from raycurv.results.caveats import configuration_differences, list_caveats
from raycurv.results.outcomes import Outcome
from raycurv.results.performance_profile import performance_profiles

METRICS: tuple[tuple[str, curves.Axis], ...] = (
    ("train/epoch_loss", "epoch"),
    ("train/epoch_loss", "seconds"),
    ("test/loss", "epoch"),
    ("test/accuracy", "epoch"),
)
_LONG = 60  # longer cells, in characters, are broken into lines
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;font-size:.85rem;margin:1rem 0;display:block;overflow-x:auto}
td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(30rem,100%),1fr));gap:0 2rem}
td.long{white-space:normal;min-width:24rem}pre{overflow-x:auto}
"""


@dataclass(frozen=True)
class ReportContext:
    """Context of the runs of a report, beside their measurements.

    Attributes:
        notes: notes on the source of the runs.
        links: name of a run → address of its page in MLflow.
        places: title of a page in MLflow about all runs → its address.
        settings: name of a run → its flat configuration.
        versions: package → version in the environment of the runs.
        commands: command that started runs → number of these runs.
    """

    notes: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    commands: Mapping[str, int] = field(default_factory=dict)


def page(
    title: str,
    outcomes: Sequence[Outcome],
    *,
    versions: Mapping[str, str],
    command: str,
    about: ReportContext | None = None,
    drawn: Sequence[RenderedFigure] = (),
) -> str:
    """The report as one HTML document.

    Args:
        title: title of the page, such as the experiment's name.
        outcomes: outcomes to compare.
        versions: package → version in the environment of the report.
        command: command that reproduces the report.
        about: context of the runs.
        drawn: additional figures.

    Raises:
        ValueError: there are no outcomes.
        ImportError: matplotlib is not installed.
    """
    if not outcomes:
        raise ValueError("there is no run to report on")
    about = about or ReportContext()
    rows = comparison.compare_methods(outcomes)
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(_summary(outcomes))}{_places(about.places)}</p>"]
    parts += [f"<p><strong>{html.escape(line)}</strong></p>" for line in comparison.conclusions(rows)]
    parts += _notes([*about.notes, *list_caveats(outcomes)])
    parts += ["<h2>The table that decides</h2>", _table(comparison.header(rows), comparison.cells(rows))]
    for number, recipe in enumerate(dict.fromkeys(o.recipe for o in outcomes)):
        parts.append(f"<h2>{html.escape(recipe)}</h2>")
        figures = _figures(f"recipe{number}", [o for o in outcomes if o.recipe == recipe])
        parts += ['<div class="figures">', *figures, "</div>"]
    for number, one in enumerate(drawn):
        parts.append(f"<h2>{html.escape(one.title)}</h2>")
        parts.append(interactive.embed(f"more{number}", one.for_page(), one.names, one.caption, one.data))
    found = performance_profiles(outcomes)
    if len(found) > 1:
        text = "Share of problems solved within a factor of the fastest: within a tenth of the lowest training loss."
        parts += ["<h2>Performance profile</h2>"]
        parts += [interactive.embed("profile", performance_profile.draw(found), [p.name for p in found], text)]
    parts += _failures(outcomes, about.links)
    parts += _differences(outcomes, about.settings)
    parts += _runs(outcomes, about.links)
    parts += _versions(about.versions, versions)
    parts += _commands(about.commands, command)
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{_STYLE}{interactive.STYLE}</style></head><body>\n{body}\n'
        f"<script>{interactive.SCRIPT}</script></body></html>\n"
    )


def _summary(outcomes: Sequence[Outcome]) -> str:
    recipes, optimizers = ({getattr(o, name) for o in outcomes} for name in ("recipe", "optimizer"))
    counts = [f"{len(outcomes)} runs", f"{len(recipes)} recipe{'s' * (len(recipes) != 1)}"]
    counts.append(f"{len(optimizers)} optimizer{'s' * (len(optimizers) != 1)}")
    hours = sum(o.seconds for o in outcomes if math.isfinite(o.seconds)) / 3600
    return f"{', '.join(counts)}, {hours:{'.2g' if hours < 10 else ',.0f'}} hours of training. "


def _places(places: Mapping[str, str]) -> str:
    found = (f'<a href="{html.escape(link, quote=True)}">{html.escape(name)}</a>' for name, link in places.items())
    return " · ".join(found)


def _notes(notes: Sequence[str]) -> list[str]:
    if not notes:
        return []
    return ["<h2>Before you compare</h2>", "<ul>", *(f"<li>{html.escape(note)}</li>" for note in notes), "</ul>"]


def _figures(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    parts = []
    further = comparison.further_metrics(outcomes)
    for number, (metric, axis) in enumerate((*METRICS, *((name, "epoch") for name in further))):
        lines = curves.method_curves(outcomes, metric, axis)
        drawn = [line for line in lines if line.x]
        if drawn:
            names, data = [line.name for line in drawn], curves.comma_separated(lines, axis)
            figure = curves.draw(lines, metric, axis)
            parts.append(interactive.embed(f"{name}-{number}", figure, names, curves.caption(lines), data))
    if not parts:
        parts.append("<p>Nothing that was measured can be drawn.</p>")
    return parts


def _failures(outcomes: Sequence[Outcome], links: Mapping[str, str]) -> list[str]:
    failed = [o for o in outcomes if o.status != "finished"]
    if not failed:
        return ["<h2>Failures</h2>", "<p>None.</p>"]
    rows = [(o.name, o.status, o.reason or "no reason was recorded") for o in failed]
    return ["<h2>Failures</h2>", _table(("run", "how it ended", "why"), rows, links)]


def _differences(outcomes: Sequence[Outcome], settings: Mapping[str, Mapping[str, str]]) -> list[str]:
    if not settings:
        return []
    rows = configuration_differences(outcomes, settings)
    text = "Beside optimizer and seed, all runs of a recipe have the same configuration."
    found = _table(("recipe", "setting", "values"), rows) if rows else f"<p>{text}</p>"
    return ["<h2>Differences in configuration</h2>", found]


def _versions(made: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    names = list(dict.fromkeys([*made, *here]))
    if not made:
        return ["<h2>Versions</h2>", _table(("package", "version"), sorted(here.items()))]
    rows = [(name, made.get(name, "–"), here.get(name, "–")) for name in sorted(names)]
    return ["<h2>Versions</h2>", _table(("package", "of the runs", "of this report"), rows)]


def _commands(made: Mapping[str, int], again: str) -> list[str]:
    lines = [f"{command}  ({count} run{'s' * (count != 1)})" for command, count in made.items()]
    head = ["<h2>Again</h2>"]
    if lines:
        head += ["<p>The runs:</p>", f"<pre>{html.escape(chr(10).join(lines))}</pre>", "<p>This report:</p>"]
    return [*head, f"<pre>{html.escape(again)}</pre>"]


def _runs(outcomes: Sequence[Outcome], links: Mapping[str, str]) -> list[str]:
    rows = []
    for o in outcomes:
        loss = o.last(comparison.LOSS)
        shown = "–" if loss is None or not math.isfinite(loss) else f"{loss:.4g}"
        rows.append((o.name, o.optimizer, o.setting or "defaults", str(o.seed), o.stage, o.status, shown))
    head = ("run", "optimizer", "setting", "seed", "stage", "status", "training loss")
    return ["<h2>Runs</h2>", _table(head, rows, links)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], links: Mapping[str, str] | None = None) -> str:
    def cell(text: str) -> str:
        link = (links or {}).get(text)
        shown = f'<a href="{html.escape(link, quote=True)}">{html.escape(text)}</a>' if link else html.escape(text)
        return f'<td class="long">{shown}</td>' if len(text) > _LONG else f"<td>{shown}</td>"

    top = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(map(cell, row)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
