"""Self-contained report page, readable offline: the answers first, each with a figure and a table, the rest folded."""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources

from raycurv.figures import interactive, page_figures, page_tables, performance_profile, style
from raycurv.figures.page_figures import PageFigures
from raycurv.figures.panels import short_names
from raycurv.figures.rendered_figure import RenderedFigure
from raycurv.results import comparison, findings
from raycurv.results.caveats import configuration_differences, list_caveats
from raycurv.results.comparison import LOSS, MethodRow, NetworkQuartiles
from raycurv.results.findings import RecipeGroup
from raycurv.results.outcomes import Outcome
from raycurv.results.performance_profile import performance_profiles

METRICS = page_figures.METRICS
_ANSWERS = 3  # largest number of answers of a section that are not folded
_SECTIONS = 40  # largest number of groups of recipes with figures
_RUNS = 1000  # largest number of runs in a list
_PROFILES = 12  # largest number of lines of the performance profile
_CONSTANT = ("recipe", "weights")  # columns that are left out where all rows are alike
_NETWORKS = 3  # smallest number of random networks that are summed up


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
    sections = _sections(outcomes)
    figures = PageFigures(style.lines(method for section in sections for method in section.methods))
    parts = [f"<header><h1>{html.escape(title)}</h1>", *_head(outcomes, about.places, sections), "</header>"]
    for number, section in enumerate(sections):
        parts += section.html(number, figures)
    parts += ["<section>", "<h2>Behind the numbers</h2>", *_remarks(sections, about, outcomes)]
    parts += _failures(outcomes, about.links)
    parts += _profile(outcomes)
    parts += [_drawn(number, one) for number, one in enumerate(drawn)]
    parts += _differences(outcomes, about.settings)
    parts += _runs(outcomes, about.links)
    parts += _versions(about.versions, versions)
    parts += [*_commands(about.commands, command), "</section>"]
    return _document(title, "\n".join(parts))


def _document(title: str, body: str) -> str:
    files = resources.files("raycurv.figures")
    css = re.sub(r"\s*\n\s*", " ", (files / "page.css").read_text(encoding="utf-8"))
    script = (files / "page.js").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{css}</style></head>\n<body><main>\n{body}\n</main>'
        f"<script>{script}</script></body></html>\n"
    )


@dataclass(frozen=True)
class _Section:
    """A group of recipes with its rows.

    Attributes:
        group: recipes of the section.
        rows: rows of their comparisons, the best first in each.
        outcomes: their runs.
    """

    group: RecipeGroup
    rows: Sequence[MethodRow]
    outcomes: Sequence[Outcome]

    @cached_property
    def comparisons(self) -> dict[str, list[MethodRow]]:
        """Rows by comparison."""
        found: dict[str, list[MethodRow]] = {}
        for row in self.rows:
            found.setdefault(row.comparison, []).append(row)
        return found

    @property
    def methods(self) -> list[str]:
        """Names of methods in the tables and figures."""
        return list(dict.fromkeys([*(row.method for row in self.rows), *self.networks]))

    @cached_property
    def networks(self) -> dict[str, list[Outcome]]:
        """Final runs by method where they are of several random networks; empty otherwise."""
        final = [o for o in self.outcomes if o.stage == "final" and "network" in o.labels]
        if len({o.labels["network"] for o in final}) < _NETWORKS:
            return {}
        methods = comparison.runs_on_networks(final)
        return {method: [o for runs in found.values() for o in runs] for method, found in methods.items()}

    @cached_property
    def medians(self) -> list[NetworkQuartiles]:
        """Medians over the random networks, the best method first."""
        return comparison.compare_over_networks([o for runs in self.networks.values() for o in runs])

    @cached_property
    def answers(self) -> dict[str, str]:
        """Sentence of each comparison that has one."""
        if self.networks:
            found = {self.group.title: findings.network_answer(self.medians)}
        else:
            found = {name: findings.answer(rows) for name, rows in self.comparisons.items()}
        return {name: text for name, text in found.items() if text}

    def html(self, number: int, figures: PageFigures) -> Iterator[str]:
        """The section: answers beside a figure, the table, and the rest folded.

        Yields:
            Parts of the page.
        """
        names = short_names(self.methods)
        colours = {method: str(figures.looks[method]["color"]) for method in names}
        drawn = self._figures(number, figures, names) if number < _SECTIONS else []
        first = drawn[0] if drawn else "<p>Nothing that was measured can be drawn.</p>"
        yield f'<section id="r{number}">'
        yield f'<div class="finding"><div>{"".join(self._texts())}</div>{first}</div>'
        results = page_tables.results(self.rows, self.group, names, colours)
        if self.networks:
            yield page_tables.networks(self.medians, names, colours)
            yield _folded("Each network", results)
        else:
            yield results
        if drawn[1:]:
            yield _folded(_plural(len(drawn) - 1, "more figure"), f'<div class="figures">{"".join(drawn[1:])}</div>')
        yield _folded("All costs: operations, search, start-up", self._costs())
        yield "</section>"

    def _costs(self) -> str:
        """The whole table of the comparison, without columns that say one thing in all rows."""
        head, rows = comparison.header(self.rows), comparison.cells(self.rows)
        kept = [i for i, name in enumerate(head) if name not in _CONSTANT or len({row[i] for row in rows}) > 1]
        return page_tables.plain([head[i] for i in kept], [[row[i] for i in kept] for row in rows])

    def _texts(self) -> list[str]:
        """Title, counts and answers."""
        several = len(self.comparisons) > 1 and not self.networks
        answers = [_answer(name if several else "", text) for name, text in self.answers.items()]
        texts = [f"<h2>{html.escape(self.group.title)}</h2>", f'<p class="counts">{_counts(self.outcomes)}</p>']
        texts += answers[:_ANSWERS]
        if len(answers) > _ANSWERS:
            texts.append(_folded(f"{len(answers) - _ANSWERS} more answers", "".join(answers[_ANSWERS:])))
        return texts

    def _figures(self, number: int, figures: PageFigures, names: Mapping[str, str]) -> list[str]:
        """Figure beside the answers, then the others."""
        metrics = (*METRICS, *((name, "epoch") for name in comparison.further_metrics(self.outcomes)))
        found: list[str | None]
        if self.networks:
            groups = {row.optimizer: self.networks[row.optimizer] for row in self.medians}
            found = [
                figures.of_networks(f"r{number}-f{place}", groups, names, metric)
                for place, metric in enumerate(dict.fromkeys(metric for metric, _ in metrics))
            ]
        else:
            rows = _ranked(self.rows)
            labels = [self._label(row, names) for row in rows]
            found = [
                figures.of_rows(f"r{number}-f{place}", rows, metric, axis, labels)
                for place, (metric, axis) in enumerate(metrics)
            ]
        return [figure for figure in found if figure is not None]

    def _label(self, row: MethodRow, names: Mapping[str, str]) -> str:
        """Name of a row's line: method, setting of the group and conditions, as far as they differ."""
        of_group = (self.group.values or {}).get(row.recipe)
        setting = f"{self.group.setting.rpartition('.')[2]}={of_group}" if of_group is not None else ""
        return " ".join(filter(None, (names[row.method], setting, row.conditions)))


def _sections(outcomes: Sequence[Outcome]) -> list[_Section]:
    """Sections of the page, those with an answer first."""
    rows = comparison.compare_methods(outcomes)
    found = []
    for group in findings.group_recipes(outcomes):
        mine = [row for row in rows if row.recipe in group.recipes]
        found.append(_Section(group, mine, [o for o in outcomes if o.recipe in group.recipes]))
    return sorted(found, key=lambda section: not section.answers)


def _ranked(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """Rows with runs, the best loss first, and the best of the tuned ones among the named."""
    raw = [row for row in rows if row.weights == "raw" and row.outcomes]
    ranked = sorted(raw, key=lambda row: row.loss if math.isfinite(row.loss) else math.inf)
    tuned = next((row for row in ranked if row.searched), None)
    if tuned in ranked[page_figures.NAMED :]:
        ranked.remove(tuned)
        ranked.insert(page_figures.NAMED - 1, tuned)
    return ranked


def _head(outcomes: Sequence[Outcome], places: Mapping[str, str], sections: Sequence[_Section]) -> list[str]:
    recipes, optimizers = ({getattr(o, name) for o in outcomes} for name in ("recipe", "optimizer"))
    texts = [_plural(len(outcomes), "run"), _plural(len(recipes), "recipe"), _plural(len(optimizers), "optimizer")]
    texts.append(f"{_duration(sum(o.seconds for o in outcomes if math.isfinite(o.seconds)))} of training")
    links = [f'<a href="{html.escape(link, quote=True)}">{html.escape(name)}</a>' for name, link in places.items()]
    parts = [f'<p class="about">{" · ".join([*texts, *links])}</p>']
    if len(sections) > 1:
        titles = (f'<a href="#r{i}">{html.escape(section.group.title)}</a>' for i, section in enumerate(sections))
        parts.append(f"<nav>{''.join(titles)}</nav>")
    return parts


def _duration(seconds: float) -> str:
    size, unit = next(((s, u) for s, u in ((3600, "hours"), (60, "minutes")) if seconds >= 2 * s), (1, "seconds"))
    return f"{seconds / size:{'.2g' if seconds < 10 * size else ',.0f'}} {unit}"


def _counts(outcomes: Sequence[Outcome]) -> str:
    final = [o for o in outcomes if o.stage == "final"]
    methods, seeds = {(o.optimizer, o.setting) for o in final}, {o.seed for o in final}
    texts = [_plural(len(outcomes), "run"), _plural(len(methods), "method"), _plural(len(seeds), "seed")]
    failed = sum(o.status != "finished" for o in outcomes)
    if failed:
        texts.append(f'<span class="bad">✕ {failed} did not finish</span>')
    return " · ".join(texts)


def _answer(name: str, text: str) -> str:
    shown = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))
    small = f"<small>{html.escape(name)}</small>" if name else ""
    return f'<p class="answer">{small}{shown}</p>'


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _remarks(sections: Sequence[_Section], about: ReportContext, outcomes: Sequence[Outcome]) -> list[str]:
    """Comparisons without an answer and caveats, counted and folded."""
    without = [
        f"{name}: {_no_answer(rows)}"
        for section in sections
        if not section.networks
        for name, rows in section.comparisons.items()
        if name not in section.answers
    ]
    parts = []
    if without:
        parts.append(_folded(f"{_plural(len(without), 'comparison')} without an answer", _list(without)))
    caveats = [*about.notes, *list_caveats(outcomes)]
    if caveats:
        parts.append(_folded(f"{_plural(len(caveats), 'remark')} before you compare", _list(caveats)))
    return parts


def _no_answer(rows: Sequence[MethodRow]) -> str:
    finite = [row for row in rows if row.weights == "raw" and math.isfinite(row.loss)]
    searched = [row for row in rows if row.searched]
    if searched and not any(row.searched for row in finite):
        lost = ", ".join(f"{row.optimizer}, {row.failed} of {row.runs} runs failed" for row in searched)
        return f"no tuned baseline came to its end ({lost})."
    return "no method has a finite training loss." if not finite else f"{finite[0].optimizer} has nothing beside it."


def _list(texts: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>"


def _failures(outcomes: Sequence[Outcome], links: Mapping[str, str]) -> list[str]:
    failed = [o for o in outcomes if o.status != "finished"]
    if not failed:
        return ['<p class="counts">No run failed.</p>']
    rows = [(o.name, o.status, o.reason or "no reason was recorded") for o in failed[:_RUNS]]
    how = ", ".join(f"{count} {status}" for status, count in Counter(o.status for o in failed).items())
    text = f"{len(failed)} of {_plural(len(outcomes), 'run')} did not finish: {how}"
    return [_folded(text, page_tables.plain(("run", "how it ended", "why"), rows, links))]


def _profile(outcomes: Sequence[Outcome]) -> list[str]:
    found = performance_profiles(outcomes)
    if len(found) < 2:
        return []
    ranked = sorted(found, key=lambda profile: -sum(1 / ratio for ratio in profile.ratios))[:_PROFILES]
    text = (
        f"<b>{html.escape(ranked[0].name)} solves the most within small factors of the fastest.</b> Share of problems "
        "solved within a factor of the fastest; solved is within a tenth of the lowest training loss."
    )
    more = f" The {len(ranked)} best of {len(found)} methods." if len(ranked) < len(found) else ""
    figure = interactive.embed("profile", performance_profile.draw(ranked), [p.name for p in ranked], text + more)
    return [_folded("Performance profile over all problems", figure)]


def _drawn(number: int, one: RenderedFigure) -> str:
    figure = interactive.embed(f"more{number}", one.for_page(), one.names, html.escape(one.caption), one.data)
    return _folded(one.title, figure)


def _differences(outcomes: Sequence[Outcome], settings: Mapping[str, Mapping[str, str]]) -> list[str]:
    if not settings:
        return []
    rows = configuration_differences(outcomes, settings)
    if not rows:
        text = "Beside optimizer and seed, all runs of a recipe have the same configuration."
        return [f'<p class="counts">{text}</p>']
    table = page_tables.plain(("recipe", "setting", "values"), rows)
    return [_folded(f"{_plural(len(rows), 'setting')} that differ within a recipe", table)]


def _runs(outcomes: Sequence[Outcome], links: Mapping[str, str]) -> list[str]:
    rows = []
    for o in outcomes[:_RUNS]:
        loss = o.last(LOSS)
        shown = "–" if loss is None or not math.isfinite(loss) else f"{loss:.4g}"
        rows.append((o.name, o.optimizer, o.setting or "defaults", str(o.seed), o.stage, o.status, shown))
    head = ("run", "optimizer", "setting", "seed", "stage", "status", "training loss")
    text = _plural(len(outcomes), "run")
    if len(rows) < len(outcomes):
        text += f", the first {len(rows):,} listed"
    return [_folded(text, page_tables.plain(head, rows, links))]


def _versions(made: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    names = list(dict.fromkeys([*made, *here]))
    if not made:
        return [_folded("Versions", page_tables.plain(("package", "version"), sorted(here.items()), numbers=False))]
    rows = [(name, made.get(name, "–"), here.get(name, "–")) for name in sorted(names)]
    return [_folded("Versions", page_tables.plain(("package", "of the runs", "of this report"), rows, numbers=False))]


def _commands(made: Mapping[str, int], again: str) -> list[str]:
    lines = [f"{command}  ({_plural(count, 'run')})" for command, count in made.items()]
    runs = f"<h3>The runs</h3><pre>{html.escape(chr(10).join(lines))}</pre>" if lines else ""
    return [_folded("Commands", f"{runs}<h3>This report</h3><pre>{html.escape(again)}</pre>")]
