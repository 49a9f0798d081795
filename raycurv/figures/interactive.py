"""Interactive figures: inline SVG that shows values under the pointer and hides series; complete without JavaScript.

The ids of the SVG identify series: ``series-<number>-…line`` for lines, ``series-<number>-…`` for their other elements.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 150  # largest number of points of a line that show their values
_LINE = re.compile(r"series-(\d+)-.*line")
STYLE = """
figure{margin:1.5rem 0}figure svg{max-width:100%;height:auto}figcaption{font-size:.85rem;color:#555}
.keys label{margin-right:1rem;font-size:.85rem;white-space:nowrap}
.tip{position:absolute;background:#222;color:#fff;font-size:.8rem;padding:.2rem .5rem;border-radius:.2rem;
pointer-events:none;white-space:pre;z-index:1}
"""
# Without JavaScript the check boxes are absent and the page is complete.
SCRIPT = """
const tip=document.createElement('div');tip.className='tip';tip.hidden=true;document.body.append(tip);
const dot=document.createElementNS('http://www.w3.org/2000/svg','circle');
dot.setAttribute('r',4);dot.setAttribute('fill','none');dot.setAttribute('stroke','#222');
const short=x=>Number(x.toPrecision(4)).toString();
for(const figure of document.querySelectorAll('figure[data-series]')){
 const names=JSON.parse(figure.dataset.series),panels=JSON.parse(figure.dataset.points);
 const box=figure.querySelector('.keys'),svg=figure.querySelector('svg'),hidden=new Set();
 names.forEach((name,i)=>{
  const label=document.createElement('label'),input=document.createElement('input');
  input.type='checkbox';input.checked=true;label.append(input,' '+name);box.append(label);
  input.addEventListener('change',()=>{
   input.checked?hidden.delete(i):hidden.add(i);
   const parts=figure.querySelectorAll(`[id^="${figure.id}-series-${i}-"]`);
   for(const part of parts)part.style.display=input.checked?'':'none';
  });
 });
 const leave=()=>{tip.hidden=true;dot.remove();};
 svg.addEventListener('pointerleave',leave);
 svg.addEventListener('pointermove',event=>{
  const at=new DOMPoint(event.clientX,event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  let best=null,nearest=400;
  for(const panel of panels)for(const line of panel.lines)if(!hidden.has(line.series))
   line.at.forEach(([px,py],k)=>{
    const distance=(px-at.x)**2+(py-at.y)**2;
    if(distance<nearest){nearest=distance;best=[panel,line,k];}
   });
  if(!best)return leave();
  const [panel,line,k]=best,[px,py]=line.at[k],[x,y]=line.values[k];
  tip.textContent=`${names[line.series]}\\n${panel.x} ${short(x)}\\n${panel.y} ${short(y)}`;
  tip.hidden=false;tip.style.left=event.pageX+14+'px';tip.style.top=event.pageY+14+'px';
  dot.setAttribute('cx',px);dot.setAttribute('cy',py);svg.append(dot);
 });
}
"""


def embed(key: str, figure: Figure, names: Sequence[str], caption: str = "", data: str = "") -> str:
    """Embed a figure in an HTML page that has :data:`STYLE` and, at its end, :data:`SCRIPT`.

    Args:
        key: id, unique on the page; the prefix of the SVG's ids.
        figure: figure whose lines have ids.
        names: names of the series, in the order of their numbers.
        caption: text below the figure.
        data: data of the figure as CSV, offered for download.
    """
    svg = _svg(figure, key)
    series, points = (html.escape(json.dumps(found)) for found in (list(names), _panels(figure)))
    numbers = base64.b64encode(data.encode()).decode()
    link = f' <a download="{key}.csv" href="data:text/csv;base64,{numbers}">The numbers (CSV)</a>' if data else ""
    return (
        f'<figure id="{key}" data-series="{series}" data-points="{points}">{svg}<div class="keys"></div>'
        f"<figcaption>{html.escape(caption)}{link}</figcaption></figure>"
    )


def _svg(figure: Figure, prefix: str) -> str:
    """The figure as inline SVG, its ids unique on the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r"(url\(#|xlink:href=\"#)", rf"\g<1>{prefix}-", text)


def _panels(figure: Figure) -> list[dict[str, Any]]:
    """Positions of the lines' points in the SVG, with their values; the figure must have been drawn."""
    panels = []
    scale, height = 72 / figure.dpi, 72 * figure.get_figheight()  # an SVG counts in points, from the top
    for axes in figure.axes:
        lines = []
        for line in axes.get_lines():
            found = _LINE.fullmatch(line.get_gid() or "")
            if found is None:
                continue
            values = np.asarray(line.get_xydata(), float)
            values = values[np.unique(np.linspace(0, len(values) - 1, min(POINTS, len(values))).round().astype(int))]
            at = scale * axes.transData.transform(values)
            known = np.isfinite(values).all(1) & np.isfinite(at).all(1)
            places = [[round(x, 1), round(height - y, 1)] for x, y in at[known].tolist()]
            shown = [[float(f"{x:.4g}"), float(f"{y:.4g}")] for x, y in values[known].tolist()]
            lines.append({"series": int(found[1]), "at": places, "values": shown})
        if lines:
            panels.append({"x": axes.get_xlabel(), "y": axes.get_ylabel(), "lines": lines})
    return panels
