// The page is complete without this script. It sorts and filters tables, and shows values under the pointer.
'use strict';
const tip = document.createElement('div');
tip.className = 'tip';
tip.hidden = true;
document.body.append(tip);

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent.trim();
  heads.forEach((head, i) => {
    head.setAttribute('aria-sort', 'none');
    head.tabIndex = 0;
    const sort = () => {
      const up = head.getAttribute('aria-sort') !== 'ascending';
      heads.forEach(other => other.setAttribute('aria-sort', 'none'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      for (const body of table.tBodies) {
        const rows = [...body.rows], kept = rows.map(row => row.classList.contains('more'));
        rows.sort((a, b) => {
          const x = value(a, i), y = value(b, i), empty = (x === '–' || x === '') - (y === '–' || y === '');
          if (empty) return empty;
          const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, {numeric: true}) : x - y;
          return up ? order : -order;
        });
        rows.forEach((row, k) => row.classList.toggle('more', kept[k]));
        body.append(...rows);
      }
    };
    head.addEventListener('click', sort);
    head.addEventListener('keydown', event => event.key === 'Enter' && sort());
  });
}

function filterable(table) {
  const field = document.createElement('input'), frame = table.parentElement;
  field.type = 'search';
  field.className = 'filter';
  field.placeholder = 'Filter rows';
  field.setAttribute('aria-label', 'Filter rows');
  frame.before(field);
  field.addEventListener('input', () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    frame.parentElement.classList.toggle('found', words.length > 0);
    for (const body of table.tBodies)
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every(word => text.includes(word));
        row.style.display = row.hidden ? 'none' : '';
      }
  });
}

for (const table of document.querySelectorAll('table')) {
  sortable(table);
  if ([...table.tBodies].reduce((sum, body) => sum + body.rows.length, 0) > 8) filterable(table);
}

const short = x => Number(x.toPrecision(3)).toString();
const back = (at, [from, to, low, high, log]) => {
  const share = (at - from) / (to - from);
  return log ? low * (high / low) ** share : low + share * (high - low);
};

// The places of the points are those of the lines' paths, their values those of the axes.
function points(figure) {
  const found = [];
  JSON.parse(figure.dataset.panels).forEach((panel, number) => {
    for (const group of figure.querySelectorAll(`g[id*="-series-"][id$="line"]`)) {
      const [, series, key] = group.id.match(/-series-(\d+)-(?:p(\d+)-)?line$/) ?? [];
      if (series === undefined || Number(key ?? 0) !== number) continue;
      const numbers = group.querySelector('path').getAttribute('d').match(/-?\d+(?:\.\d+)?/g).map(Number);
      for (let i = 0; i < numbers.length; i += 2)
        found.push({panel, group, series: Number(series), x: numbers[i], y: numbers[i + 1]});
    }
  });
  return found;
}

for (const figure of document.querySelectorAll('figure[data-panels]')) {
  const names = JSON.parse(figure.dataset.series), svg = figure.querySelector('svg');
  let known = null, near = null;
  const leave = () => {
    tip.hidden = true;
    svg.classList.remove('dim');
    if (near !== null) svg.querySelectorAll('.near').forEach(part => part.classList.remove('near'));
    near = null;
  };
  svg.addEventListener('pointerleave', leave);
  svg.addEventListener('pointermove', event => {
    known ??= points(figure);
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let best = null, nearest = 300;
    for (const point of known) {
      const distance = (point.x - at.x) ** 2 + (point.y - at.y) ** 2;
      if (distance < nearest) [best, nearest] = [point, distance];
    }
    if (best === null) return leave();
    if (near !== best.series) {
      leave();
      near = best.series;
      svg.classList.add('dim');
      svg.querySelectorAll(`g[id*="-series-${near}-"]`).forEach(part => part.classList.add('near'));
    }
    const {x, y, xlabel, ylabel} = best.panel;
    tip.textContent =
      `${names[best.series]}\n${xlabel} ${short(back(best.x, x))}\n${ylabel} ${short(back(best.y, y))}`;
    tip.hidden = false;
    const room = document.documentElement.clientWidth - tip.offsetWidth - 4;
    tip.style.left = Math.max(0, Math.min(event.pageX + 14, room)) + 'px';
    tip.style.top = event.pageY + 14 + 'px';
  });
}
