'use strict';
(() => {
  const root = document.documentElement;
  const all = (css, from = document) => [...from.querySelectorAll(css)];
  const make = (tag, props = {}, ...inside) => {
    const made = Object.assign(document.createElement(tag), props);
    made.append(...inside);
    return made;
  };

  // Theme: the system's until the reader chooses.
  const theme = document.getElementById('theme');
  const dark = () => root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  const named = () => { theme.textContent = dark() ? 'Light theme' : 'Dark theme'; };
  theme.hidden = false;
  theme.onclick = () => { root.dataset.theme = dark() ? 'light' : 'dark'; named(); };
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', named);
  named();

  // One picture of several.
  for (const select of all('select[data-views]')) {
    const views = all('.view', document.getElementById(select.dataset.views));
    select.onchange = () => views.forEach((view, place) => view.classList.toggle('on', place === select.selectedIndex));
    select.onchange();
  }

  // Tables: text_of() in table.py has the same rules.
  const text = (value, kind) => {
    if (value === null || value === '') return '–';
    if (typeof value !== 'number') return String(value);
    const digits = Number(kind);
    return value.toLocaleString('en-US', {minimumFractionDigits: digits, maximumFractionDigits: digits});
  };
  const SCREEN = 20, PAPER = 60; // rows at once; a longer table prints the page that is shown
  const enlarge = (details) => {
    const body = details.querySelector('tbody'), source = details.querySelector('script[type="application/json"]');
    const heads = all('th', details);
    let columns;
    if (source) {
      columns = JSON.parse(source.textContent).map((one) => ({kind: one.k, values: one.i ? one.i.map((at) => one.d[at]) : one.v}));
    } else {
      const rows = all('tr', body);
      columns = heads.map((head, place) => ({
        kind: head.classList.contains('n') ? 'n' : rows[0]?.cells[place].className || 'text',
        values: rows.map((row) => {
          const shown = row.cells[place].textContent, number = Number(shown.replaceAll(',', ''));
          return shown === '–' ? null : head.classList.contains('n') && !Number.isNaN(number) ? number : shown;
        }),
        shown: rows.map((row) => row.cells[place].textContent),
      }));
    }
    const total = columns[0]?.values.length ?? 0;
    const numeric = columns.map((column) => column.kind === 'n' || /^\d$/.test(column.kind));
    const show = (column, row) => column.shown ? column.shown[row] : text(column.values[row], column.kind);
    let order = [...Array(total).keys()], found = order, page = 0, sorted = null, size = SCREEN;
    const count = make('span'), back = make('button', {type: 'button', textContent: 'Previous'}),
      on = make('button', {type: 'button', textContent: 'Next'}),
      find = make('input', {type: 'search', placeholder: 'Filter rows'});
    find.setAttribute('aria-label', 'Filter rows');
    const rest = details.querySelector('.rest'), rows = Number(details.dataset.rows);
    const figure = (number) => number.toLocaleString('en-US');
    const draw = () => {
      const pages = Math.max(Math.ceil(found.length / size), 1);
      page = Math.min(Math.max(page, 0), pages - 1);
      const lines = found.slice(page * size, (page + 1) * size).map((row) => make('tr', {}, ...columns.map((column, place) =>
        make('td', {className: numeric[place] ? 'n' : column.kind === 'id' || column.kind === 'prose' ? column.kind : '', textContent: show(column, row)}))));
      body.replaceChildren(...lines);
      back.disabled = page === 0;
      on.disabled = page >= pages - 1;
      const first = found.length ? page * size + 1 : 0, last = Math.min((page + 1) * size, found.length);
      count.textContent = `${figure(first)}–${figure(last)} of ${figure(found.length)}`;
      if (!rest) return;
      const words = find.value.trim(), partial = found.length < total;
      rest.hidden = first <= 1 && last === rows;
      rest.textContent = `Rows ${figure(first)}–${figure(last)} of ${figure(partial ? found.length : rows)}` +
        `${partial ? ` that match “${words}”, of ${figure(rows)}` : ''}; all are in tables/${details.id.slice('table-'.length)}.csv beside the page.`;
    };
    const filter = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      found = words.length ? order.filter((row) => {
        const line = columns.map((column) => show(column, row)).join(' ').toLowerCase();
        return words.every((word) => line.includes(word));
      }) : order;
      draw();
    };
    back.onclick = () => { page -= 1; draw(); };
    on.onclick = () => { page += 1; draw(); };
    find.oninput = () => { page = 0; filter(); };
    heads.forEach((head, place) => {
      const button = make('button', {type: 'button', textContent: head.textContent});
      head.replaceChildren(button);
      button.onclick = () => {
        const down = sorted === place && head.getAttribute('aria-sort') === 'ascending';
        heads.forEach((other) => other.removeAttribute('aria-sort'));
        head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
        sorted = place;
        const values = columns[place].values, way = down ? -1 : 1;
        order = [...Array(total).keys()].sort((a, b) => {
          const x = values[a], y = values[b];
          if (x === null || y === null) return (x === null) - (y === null) || a - b;
          return (numeric[place] ? x - y : String(x).localeCompare(String(y), 'en', {numeric: true})) * way || a - b;
        });
        page = 0;
        filter();
      };
    });
    if (total > size) details.querySelector('.scroll').before(make('div', {className: 'tools'}, find, back, on, count));
    details.print = (paper) => {
      const at = page * size;
      size = paper && found.length <= PAPER ? PAPER : SCREEN;
      page = paper ? Math.floor(at / size) : page;
      draw();
    };
    details.lookFor = (words) => { find.value = words; page = 0; filter(); };
    draw();
  };
  const ready = (details) => { if (!details.lookFor) enlarge(details); };
  for (const details of all('details.table')) {
    if (details.open) (window.requestIdleCallback ?? setTimeout)(() => ready(details));
    details.addEventListener('toggle', () => { if (details.open) ready(details); });
  }

  // Paper: every table stands open, short ones with all their rows.
  let opened = null;
  addEventListener('beforeprint', () => {
    if (opened) return;
    opened = all('details.table:not([open])');
    all('details.table').forEach((details) => { ready(details); details.print(true); details.open = true; });
  });
  addEventListener('afterprint', () => {
    opened?.forEach((details) => { details.open = false; });
    if (opened) all('details.table').forEach((details) => details.print(false));
    opened = null;
  });

  // An empty form is no evidence: the calculator is printed once something was asked of it.
  const calculator = document.getElementById('calculator');
  const asked = () => calculator?.classList.add('asked');
  calculator?.addEventListener('input', asked);
  if (location.hash.startsWith('#calculator?')) asked();

  // A mark leads to its rows.
  addEventListener('click', (event) => {
    const link = event.target.closest?.('a[href^="#find:"]'), table = document.getElementById('table-starts');
    if (!link || !table) return;
    event.preventDefault();
    table.open = true;
    ready(table);
    table.lookFor(link.getAttribute('href').slice('#find:'.length));
    table.scrollIntoView();
  });

  // A mark says what it is.
  const tip = make('div', {id: 'tip'});
  tip.setAttribute('aria-hidden', 'true');
  document.body.append(tip);
  addEventListener('pointermove', (event) => {
    const mark = event.target.closest?.('figure.chart [aria-label]:not([role=img])');
    tip.classList.toggle('on', Boolean(mark));
    if (!mark) return;
    tip.textContent = mark.getAttribute('aria-label');
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - box.width - 4))}px`;
    tip.style.top = `${event.clientY + 16 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 16}px`;
  }, {passive: true});

  // Where the reader is.
  const links = new Map(all('nav.contents a').map((link) => [link.getAttribute('href').slice(1), link]));
  const watch = new IntersectionObserver((seen) => seen.forEach((one) => {
    if (one.isIntersecting) links.forEach((link, anchor) => link.classList.toggle('here', anchor === one.target.id));
  }), {rootMargin: '-10% 0px -80% 0px'});
  all('main>section').forEach((section) => watch.observe(section));
  const wanted = decodeURIComponent(location.hash.slice(1).split('?')[0]);
  if (location.hash.includes('?')) document.getElementById(wanted)?.scrollIntoView();

  // Any other run: Vega is read when it is first asked for.
  const store = document.getElementById('timeline-data'), select = document.getElementById('timeline-run');
  if (store && select) {
    const figure = document.querySelector('#timeline figure.chart'), data = JSON.parse(store.textContent);
    data.runs.forEach((run, place) => select.append(new Option(run.name + (run.status === 'ok' ? '' : ` (${run.status})`), place, false, place === data.chosen)));
    document.getElementById('timeline-choose').hidden = false;
    let shown, serial = 0;
    const told = document.getElementById('timeline-id');
    const tell = (run) => {
      const link = make('a', {textContent: run.run});
      link.setAttribute('href', `#find:${run.run}`);
      told.replaceChildren(link);
      document.getElementById('timeline-printed').textContent = `Run: ${run.name}, ${run.run}`;
    };
    tell(data.runs[data.chosen]);
    const draw = () => {
      const mine = serial += 1, run = data.runs[select.value];
      tell(run);
      if (!window.vegaEmbed) (0, eval)(document.getElementById('vega').textContent);
      const spec = structuredClone(data.spec), room = Math.max(figure.clientWidth - 62, 180);
      const lines = run.t.map((t, i) => ({t: t / 100, a: run.a[i], b: run.b.length ? run.b[i] : null, c: run.c[i] === null ? null : run.c[i] / 100}));
      const bands = run.phases.map(([from, to, phase]) => ({from: from / 100, to: to / 100, phase, kind: phase.split(':')[0]}));
      for (const one of spec.data) if (one.values) one.values = one.name.startsWith('bands') ? bands : lines;
      const filled = JSON.parse(JSON.stringify(spec), (key, value) => value === '@activity@' ? run.activity : value);
      filled.width = room;
      const box = make('div');
      vegaEmbed(box, filled, {mode: 'vega', renderer: 'svg', actions: false, hover: false, defaultStyle: false, tooltip: false}).then((made) => {
        if (mine !== serial) { made.finalize(); return; }
        shown?.finalize();
        shown = made;
        const legend = figure.querySelector('.legend');
        figure.replaceChildren(...(legend ? [legend] : []), box);
        if (legend) legend.children[0].lastChild.textContent = run.names[0];
        const drawn = box.querySelector('svg');
        drawn.setAttribute('role', 'img');
        drawn.setAttribute('aria-label', `Timeline of ${run.name}`);
      });
    };
    select.onchange = draw;
  }
})();
