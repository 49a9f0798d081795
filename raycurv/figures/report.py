"""One page that says it all, without a network: headline, table, figures, failures, versions."""

from __future__ import annotations

import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence

from raycurv.figures import comparison, curves, profile
from raycurv.train.outcomes import Outcome

METRICS: tuple[tuple[str, curves.Axis], ...] = (
    ("train/epoch_loss", "epoch"), ("train/epoch_loss", "seconds"), ("test/loss", "epoch"), ("test/accuracy", "epoch"),
)  # fmt: skip
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;font-size:.85rem;margin:1rem 0;display:block;overflow-x:auto}
td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}
figure{margin:1.5rem 0}figure svg{max-width:100%;height:auto}figcaption{font-size:.85rem;color:#555}
.keys label{margin-right:1rem;font-size:.85rem;white-space:nowrap}
"""
# Without JavaScript the boxes are not there and the page is whole.
_SCRIPT = """
for(const figure of document.querySelectorAll('figure')){
 const box=figure.querySelector('.keys');
 JSON.parse(figure.dataset.series).forEach((name,i)=>{
  const label=document.createElement('label'),input=document.createElement('input');
  input.type='checkbox';input.checked=true;label.append(input,' '+name);box.append(label);
  input.addEventListener('change',()=>{
   const parts=figure.querySelectorAll(`[id^="${figure.id}-series-${i}-"]`);
   for(const part of parts)part.style.display=input.checked?'':'none';
  });
 });
}
"""


def page(
    title: str,
    outcomes: Sequence[Outcome],
    *,
    versions: Mapping[str, str],
    command: str,
    links: Mapping[str, str] | None = None,
) -> str:
    """The report as one HTML document.

    Args:
        title: of the page, such as the experiment's name.
        outcomes: what is compared.
        versions: of packages, shown at the end.
        command: that makes the report again.
        links: name of a run → address in MLflow.

    Raises:
        ValueError: there are no outcomes.
        ImportError: matplotlib is not installed.
    """
    if not outcomes:
        raise ValueError("there is no run to report on")
    rows = comparison.decide(outcomes)
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f"<p><strong>{html.escape(line)}</strong></p>" for line in comparison.headline(rows)]
    parts += ["<h2>The table that decides</h2>", _table(comparison.header(), comparison.cells(rows))]
    for number, recipe in enumerate(dict.fromkeys(o.recipe for o in outcomes)):
        parts.append(f"<h2>{html.escape(recipe)}</h2>")
        parts += _figures(f"recipe{number}", [o for o in outcomes if o.recipe == recipe])
    found = profile.profiles(outcomes)
    if len(found) > 1:
        text = "Share of problems solved within a factor of the fastest: within a tenth of the lowest training loss."
        parts += ["<h2>Performance profile</h2>"]
        parts += [_figure("profile", _svg(profile.draw(found), "profile"), text, [p.name for p in found])]
    parts += _failures(outcomes)
    parts += _runs(outcomes, links or {})
    parts += ["<h2>Versions</h2>", _table(("package", "version"), sorted(versions.items()))]
    parts += ["<h2>Again</h2>", f"<pre>{html.escape(command)}</pre>"]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>\n{body}\n'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _figures(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    parts = []
    for number, (metric, axis) in enumerate(METRICS):
        lines = curves.series(outcomes, metric, axis)
        drawn = [line for line in lines if line.x]
        if drawn:
            key = f"{name}-{number}"
            svg = _svg(curves.draw(lines, metric, axis), key)
            parts.append(_figure(key, svg, curves.caption(lines), [line.name for line in drawn]))
    return parts


def _svg(figure: object, prefix: str) -> str:
    """The figure as inline SVG, its ids unique on the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")  # type: ignore[attr-defined]
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r"(url\(#|xlink:href=\"#)", rf"\g<1>{prefix}-", text)


def _figure(key: str, svg: str, caption: str, names: Sequence[str]) -> str:
    series = html.escape(json.dumps(list(names)), quote=True)
    return (
        f'<figure id="{key}" data-series="{series}">{svg}<div class="keys"></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _failures(outcomes: Sequence[Outcome]) -> list[str]:
    failed = [o for o in outcomes if o.status != "finished"]
    if not failed:
        return ["<h2>Failures</h2>", "<p>None.</p>"]
    rows = [(o.name, o.status, o.reason or "no reason was recorded") for o in failed]
    return ["<h2>Failures</h2>", _table(("run", "how it ended", "why"), rows)]


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
        return f'<a href="{html.escape(link, quote=True)}">{html.escape(text)}</a>' if link else html.escape(text)

    top = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{cell(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
