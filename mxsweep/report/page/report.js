// What the page can do beyond being read: figures, tables to sort, filter and group, a theme, copying. Nothing is
// fetched: the data are in the page. Runs in a function of its own.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

// ------------------------------------------------------------------------------------------- theme

const THEMES = ["", "light", "dark"];
const THEME_NAMES = { "": "as the system", light: "light", dark: "dark" };
const themeButton = document.getElementById("theme");

function remembered() {
  try { // a page from disk may have no storage
    return localStorage.getItem("mxsweep-theme") || "";
  } catch {
    return "";
  }
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  themeButton.textContent = `Theme: ${THEME_NAMES[theme]}`;
  try {
    localStorage.setItem("mxsweep-theme", theme);
  } catch {
    // then it holds for as long as the page is open
  }
}

setTheme(THEMES.includes(remembered()) ? remembered() : "");
themeButton.addEventListener("click", () => {
  const now = document.documentElement.dataset.theme || "";
  setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
});

// ------------------------------------------------------------------------------------------- tables

// What a cell sorts by: its number, or its text with digits counted as numbers. Cells without a value come last.
const collator = new Intl.Collator("en", { numeric: true });

function sortKey(cell) {
  const key = cell.dataset.sort;
  const text = cell.textContent.trim();
  if (key !== undefined) return { number: Number(key), text };
  return { number: null, text: text === "–" || text === "" ? null : text };
}

function compare(a, b, sign) {
  if (a.number !== null && b.number !== null) return sign * ((a.number > b.number) - (a.number < b.number));
  if ((a.number === null) !== (b.number === null)) return a.number === null ? 1 : -1;
  if ((a.text === null) !== (b.text === null)) return a.text === null ? 1 : -1;
  return a.text === null ? 0 : sign * collator.compare(a.text, b.text);
}

function makeSortable(table, rows, put) {
  const heads = all("thead th", table);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const keyed = rows().map((row) => ({ row, key: sortKey(row.cells ? row.cells[column] : row.rows[0].cells[column]) }));
      keyed.sort((a, b) => compare(a.key, b.key, sign));
      put(keyed.map((entry) => entry.row));
    });
  });
}

all("table.sortable").forEach((table) => {
  const body = table.tBodies[0];
  makeSortable(table, () => [...body.rows], (rows) => body.append(...rows));
});

// The table of all runs has a body for each run, so that what a run opens to goes with it.
all("table.runs").forEach((table) => {
  const controls = document.querySelector(`[data-table="${CSS.escape(table.id)}"]`);
  const find = controls.querySelector(".find");
  const filters = all("select.filter", controls);
  const groupBy = controls.querySelector("select.group-by");
  const count = controls.querySelector(".count");
  const first = all("tbody.run", table);
  let order = first;

  // The opener stands before the columns.
  const cell = (run, column) => run.rows[0].cells[Number(column) + 1].textContent.trim();

  function show() {
    const text = find.value.trim().toLowerCase();
    let shown = 0;
    for (const run of order) {
      const fits = filters.every((filter) => !filter.value || cell(run, filter.dataset.column) === filter.value);
      run.hidden = !(fits && (!text || run.rows[0].textContent.toLowerCase().includes(text)));
      shown += run.hidden ? 0 : 1;
    }
    all("tbody.group-row", table).forEach((row) => row.remove());
    const column = groupBy ? groupBy.value : "";
    if (column === "") {
      table.append(...order);
    } else {
      const groups = new Map();
      for (const run of order) {
        const value = cell(run, column);
        if (!groups.has(value)) groups.set(value, []);
        groups.get(value).push(run);
      }
      const name = groupBy.selectedOptions[0].textContent;
      for (const value of [...groups.keys()].sort(collator.compare)) {
        const runs = groups.get(value);
        const visible = runs.filter((run) => !run.hidden).length;
        if (visible) table.append(groupRow(`${name} ${value}: ${visible} run${visible === 1 ? "" : "s"}`));
        table.append(...runs);
      }
    }
    count.textContent = shown === first.length ? `${shown} runs` : `${shown} of ${first.length} runs`;
  }

  function groupRow(text) {
    const body = document.createElement("tbody");
    body.className = "group-row";
    const head = document.createElement("th");
    head.colSpan = table.tHead.rows[0].cells.length;
    head.scope = "rowgroup";
    const span = document.createElement("span");
    span.textContent = text;
    head.append(span);
    body.insertRow().append(head);
    return body;
  }

  makeSortable(table, () => order, (runs) => {
    order = runs;
    show();
  });
  find.addEventListener("input", show);
  [...filters, ...(groupBy ? [groupBy] : [])].forEach((select) => select.addEventListener("change", show));
  controls.querySelector(".reset").addEventListener("click", () => {
    find.value = "";
    filters.forEach((filter) => { filter.value = ""; });
    if (groupBy) groupBy.value = "";
    all("thead th", table).forEach((head) => head.setAttribute("aria-sort", "none"));
    order = first;
    show();
  });
  show();
});

function open(run, wanted) {
  const button = run.querySelector("button.open");
  button.setAttribute("aria-expanded", String(wanted));
  run.rows[1].hidden = !wanted;
}

document.addEventListener("click", (event) => {
  const opener = event.target.closest("button.open");
  if (opener) open(opener.closest("tbody"), opener.getAttribute("aria-expanded") !== "true");
  const copier = event.target.closest("button.copy");
  if (copier) copy(copier.parentElement.querySelector(".command").textContent, copier);
});

function openTarget() {
  const run = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (run && run.matches("tbody.run")) {
    open(run, true);
    run.scrollIntoView({ block: "center" });
  }
}

addEventListener("hashchange", openTarget);
openTarget();

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not allowed in a page from disk everywhere
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// ------------------------------------------------------------------------------------------- figures

const OPTIONS = {
  mode: "vega-lite",
  renderer: "svg",
  actions: false,
  ast: true, // expressions are interpreted, since the page's policy forbids making functions of texts
  defaultStyle: false,
  tooltip: { theme: "custom", disableDefaultStyle: true },
};
const views = new Map(); // by the figure's name: its Vega view, or a promise of it
const hidden = new Map(); // by the figure's name: the set of its lines that are hidden

function draw(plot) {
  const name = plot.dataset.figure;
  if (!views.has(name)) views.set(name, embed(plot, data.figures[name]));
  return views.get(name);
}

async function embed(plot, spec) {
  plot.replaceChildren();
  if (!window.vegaEmbed) {
    plot.textContent = "This figure could not be made when the page was written; its numbers are in the table below it.";
    return { signal() { return this; }, async runAsync() {} };
  }
  const { view } = await window.vegaEmbed(plot, spec, OPTIONS);
  // Said in the page's own words, by the element around it.
  all("svg", plot).forEach((svg) => svg.setAttribute("aria-hidden", "true"));
  plot.style.minHeight = "";
  return view;
}

async function toggle(button) {
  const name = button.dataset.for;
  if (!hidden.has(name)) hidden.set(name, new Set());
  const lines = hidden.get(name);
  const pressed = button.getAttribute("aria-pressed") === "true";
  button.setAttribute("aria-pressed", String(!pressed));
  if (pressed) lines.add(button.dataset.series);
  else lines.delete(button.dataset.series);
  const view = await draw(document.querySelector(`.plot[data-figure="${CSS.escape(name)}"]`));
  await view.signal("hidden", [...lines]).runAsync();
}

document.addEventListener("click", (event) => {
  const key = event.target.closest("button.key");
  if (key) toggle(key);
});

// ------------------------------------------------------------------------------------------- heat maps

// The cells of a run, of one kind of tensor or (kind -1) of all, that have the measure.
function cellsOf(heat, { run, kind, at }) {
  const parts = heat.parts[run].filter((part, index) => part >= 0 && (kind < 0 || kind === index));
  return parts.flatMap((part) => heat.pieces[part]).filter((cell) => cell[at] !== null);
}

function heatSpec(name, chosen) {
  const heat = data.heat[name];
  const spec = structuredClone(data.figures[name]);
  const { at, measure } = chosen;
  const widthOf = (cell) => cell[cell.length - 1];
  // One scale for all runs, so that what changes with the run is the error and not the scale; each width of elements has
  // its own, since four bits lose so much more than eight that tensors of either would all look alike.
  const ranges = new Map();
  const columns = new Set();
  heat.parts.forEach((_, run) => {
    for (const cell of cellsOf(heat, { ...chosen, run })) {
      const [low, high] = ranges.get(widthOf(cell)) || [Infinity, -Infinity];
      ranges.set(widthOf(cell), [Math.min(low, cell[at]), Math.max(high, cell[at])]);
      columns.add(cell[0]);
    }
  });
  const shown = cellsOf(heat, chosen);
  spec.datasets.cells = shown.map((cell) => {
    const [low, high] = ranges.get(widthOf(cell));
    return {
      tensor: heat.columns[cell[0]], layer: heat.layers[cell[1]], value: cell[at], width: widthOf(cell),
      dark: cell[at] < (low + high) / 2,
    };
  });
  spec.encoding.x.scale.domain = heat.columns.filter((_, column) => columns.has(column));
  const numbers = spec.layer.pop();
  const coloured = spec.layer.map((layer, index) => ({ layer, width: heat.widths[index] }))
    .filter(({ width }) => shown.some((cell) => widthOf(cell) === width));
  for (const { layer, width } of coloured) {
    const [low, high] = ranges.get(width);
    if (low < high) layer.encoding.color.scale.domain = [low, high];
    layer.encoding.color.legend.title = `${measure === 0 ? "dB" : "share"}${width === null ? "" : `, ${width}-bit elements`}`;
    layer.encoding.tooltip[2].title = heat.measures[measure].title;
  }
  numbers.encoding.text.format = measure === 0 ? ".1f" : ".1%";
  numbers.encoding.opacity.condition.test = `width < ${(measure === 0 ? 27 : 36) * columns.size}`;
  spec.layer = [...coloured.map(({ layer }) => layer), numbers];
  return spec;
}

function heatTable(name, chosen) {
  const heat = data.heat[name];
  const { at, measure } = chosen;
  const grid = heat.layers.map(() => heat.columns.map(() => "–"));
  for (const cell of cellsOf(heat, chosen)) {
    grid[cell[1]][cell[0]] = measure === 0 ? cell[at].toFixed(1) : `${(100 * cell[at]).toFixed(3)} %`;
  }
  const body = document.querySelector(`table.heat-data[data-for="${CSS.escape(name)}"]`).tBodies[0];
  body.replaceChildren();
  grid.forEach((texts, layer) => {
    const row = body.insertRow();
    [heat.layers[layer], ...texts].forEach((text) => {
      const cell = row.insertCell();
      cell.className = "num";
      cell.textContent = text;
    });
  });
}

async function drawHeat(name) {
  const plot = document.querySelector(`.plot[data-figure="${CSS.escape(name)}"]`);
  const select = (what) => Number(document.querySelector(`.heat-${what}[data-for="${CSS.escape(name)}"]`).value);
  const chosen = { run: select("run"), kind: select("kind"), measure: select("measure") };
  chosen.at = 2 + chosen.measure; // a cell is [column, layer, measure, measure, …]
  const before = await views.get(name);
  if (before) before.finalize();
  heatTable(name, chosen);
  const now = embed(plot, heatSpec(name, chosen));
  views.set(name, now);
  return now;
}

all(".heat-run, .heat-kind, .heat-measure").forEach((select) => {
  select.addEventListener("change", () => drawHeat(select.dataset.for));
});

// ------------------------------------------------------------------------------------------- drawing

// What folds for want of room on a screen is printed all the same.
addEventListener("beforeprint", () => all("details.print").forEach((details) => { details.open = true; }));

const drawAny = (plot) => (plot.classList.contains("heat") ? drawHeat(plot.dataset.figure) : draw(plot));

// Those that are seen first, then the others while there is nothing else to do: a page that is printed has them all.
async function drawAll() {
  const waiting = new Set(all(".plot"));
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting && waiting.delete(target)) drawAny(target);
    }
  }, { rootMargin: "600px" });
  waiting.forEach((plot) => seen.observe(plot));
  for (const plot of [...waiting]) {
    await new Promise((done) => setTimeout(done, 30));
    if (waiting.delete(plot)) await drawAny(plot);
  }
  await Promise.all(views.values());
  document.documentElement.dataset.drawn = "true";
}

drawAll();
