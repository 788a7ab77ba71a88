"use strict";
// Curves of runs: one inline SVG per chart, drawn again when its width, the axis or the runs change.
const {runs, axes, start, colors} = JSON.parse(document.getElementById("data").textContent);
const state = {axis: start, hidden: new Set(), at: null};
const charts = [];
const HEIGHT = 240, LEFT = 46, TOP = 10, BOTTOM = 34, GAP = 14;

const style = document.createElement("style");
const variables = theme => colors[theme].map((color, i) => `--run-${i}: ${color};`).join(" ");
style.textContent = `:root { ${variables("light")} }
@media (prefers-color-scheme: dark) { :root { ${variables("dark")} } }`;
document.head.append(style);

function element(name, attributes = {}, text = "") {
  const isSvg = /^(svg|path|line|circle|text|g|rect|clipPath)$/.test(name);
  const made = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", name)
                     : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== "") made.textContent = text;
  return made;
}

function swatch(color, dash) {
  return element("span", {
    class: "swatch", style: `border-top: 3px ${dash ? "dashed" : "solid"} ${color}`});
}

// ---- numbers ----

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(4)));
}

function clock(seconds) {
  const minutes = Math.round(seconds / 60);
  if (minutes < 1) return `${Math.round(seconds)} s`;
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find(s => s * power >= raw) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const digit of high / low > 30 ? [1] : [1, 2, 5]) {
      const value = digit * 10 ** power;
      if (value >= low && value <= high) found.push(Number(value.toPrecision(3)));
    }
  }
  return found;
}

// Index of the value of sorted xs that is nearest to x.
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}

// Move sorted places as little as it takes for neighbours to be `gap` apart.
function spread(places, gap) {
  const clusters = [];
  for (const place of places) {
    let first = place, n = 1;
    while (clusters.length && clusters.at(-1).first + gap * clusters.at(-1).n > first) {
      const before = clusters.pop();
      first = (before.first * before.n + (first - gap * before.n) * n) / (before.n + n);
      n += before.n;
    }
    clusters.push({first, n});
  }
  return clusters.flatMap(({first, n}) => Array.from({length: n}, (_, i) => first + gap * i));
}

// ---- charts ----

// A chart: title, series() -> [{name, color, dash, x, y, raw, dots, ceiling}], and
// isLog, fromZero, labels (at the ends of lines), range() for fixed limits, suffix of values.
function chart(parent, spec) {
  const figure = element("figure"), svg = element("svg", {height: HEIGHT});
  const tip = element("div", {class: "tip", hidden: ""});
  figure.append(element("figcaption", {}, spec.title), svg, tip);
  parent.append(figure);
  const made = {spec, figure, svg, tip};
  charts.push(made);
  new ResizeObserver(() => draw(made)).observe(svg);
  svg.addEventListener("pointermove", event => {
    if (!made.place) return;
    const {left} = svg.getBoundingClientRect();
    state.at = made.place.valueAt(event.clientX - left);
    charts.forEach(other => point(other, other === made));
  });
  svg.addEventListener("pointerleave", () => {
    state.at = null;
    charts.forEach(other => point(other, false));
  });
}

function limits(spec, series) {
  if (spec.range) return spec.range();
  const ys = series.flatMap(s => s.y).filter(y => y !== null && (!spec.isLog || y > 0));
  const tops = series.map(s => s.ceiling ?? Math.max(...s.y));
  let low = Math.min(...ys), high = Math.max(...tops);
  if (!ys.length || !(high >= low)) return null;
  if (spec.isLog) return [low / 1.15, high * 1.15];
  const margin = 0.05 * (high - low || Math.abs(high) || 1);
  return [spec.fromZero ? 0 : low - margin, high + margin];
}

function draw(made) {
  const {spec, svg} = made;
  const series = spec.series().filter(s => s.x.length), width = svg.clientWidth;
  svg.replaceChildren();
  made.place = null;
  const range = series.length ? limits(spec, series) : null;
  if (!range || !width) return;
  const ends = spec.labels ? series.map(s => s.label ?? s.name) : [];
  const right = Math.min(width * 0.4, 10 + Math.max(0, ...ends.map(e => e.length * 6.3)));
  const inner = {width: width - LEFT - right, height: HEIGHT - TOP - BOTTOM};
  const first = Math.min(...series.map(s => s.x[0]));
  const x1 = Math.max(...series.map(s => s.x.at(-1))), x0 = first < 0.1 * x1 ? 0 : first;
  const scale = spec.isLog ? Math.log : value => value;
  const [low, high] = range.map(scale);
  const toX = x => LEFT + (x1 > x0 ? (x - x0) / (x1 - x0) : 0.5) * inner.width;
  const toY = y => TOP + (1 - (scale(y) - low) / (high - low)) * inner.height;
  made.place = {series, toX, toY, valueAt: px => x0 + (px - LEFT) / inner.width * (x1 - x0)};

  for (const y of spec.isLog ? logTicks(...range) : ticks(...range, 5)) {
    svg.append(element("line", {class: "grid", x1: LEFT, x2: LEFT + inner.width,
                                y1: toY(y), y2: toY(y)}));
    svg.append(element("text", {x: LEFT - 7, y: toY(y) + 4, "text-anchor": "end"}, short(y)));
  }
  const floor = TOP + inner.height;
  svg.append(element("line", {class: "edge", x1: LEFT, x2: LEFT + inner.width,
                              y1: floor, y2: floor}));
  for (const x of ticks(x0, x1 > x0 ? x1 : x0 + 1, Math.max(2, inner.width / 90))) {
    svg.append(element("text", {x: toX(x), y: floor + 15, "text-anchor": "middle"}, short(x)));
  }
  svg.append(element("text", {x: LEFT + inner.width, y: floor + 30, "text-anchor": "end"},
                     axes[state.axis].label));

  const clip = `clip-${charts.indexOf(made)}`;
  const clipPath = element("clipPath", {id: clip});
  clipPath.append(element("rect", {x: LEFT, y: TOP - 4, width: inner.width + 4,
                                   height: inner.height + 8}));
  const lines = element("g", {"clip-path": `url(#${clip})`});
  svg.append(clipPath, lines);
  for (const s of series) {
    if (s.raw) lines.append(line(s.x, s.raw, s, made.place, 0.3, 0.8));
  }
  for (const s of series) {
    lines.append(line(s.x, s.y, s, made.place, 1, 1.9));
    if (!s.dots && s.x.length > 1) continue;
    s.x.forEach((x, i) => lines.append(element("circle", {
      cx: toX(x), cy: toY(s.y[i]), r: 2.3, style: `fill: ${s.color}`})));
  }
  if (spec.labels) labelEnds(made.place, svg, LEFT + inner.width + 8);
  made.hover = element("g");
  svg.append(made.hover);
}

function line(xs, ys, {color, dash}, {toX, toY}, opacity, width) {
  let path = "", isDown = false;
  xs.forEach((x, i) => {
    if (ys[i] === null || !Number.isFinite(toY(ys[i]))) { isDown = false; return; }
    path += `${isDown ? "L" : "M"}${toX(x).toFixed(1)},${toY(ys[i]).toFixed(1)}`;
    isDown = true;
  });
  return element("path", {d: path, "stroke-width": width, opacity, style: `stroke: ${color}`,
                          ...(dash && opacity === 1 ? {"stroke-dasharray": dash} : {})});
}

function labelEnds({series, toY}, svg, x) {
  const ends = series.filter(s => s.y.at(-1) !== null)
    .map(s => ({s, y: Math.max(TOP, Math.min(HEIGHT - BOTTOM, toY(s.y.at(-1))))}))
    .sort((a, b) => a.y - b.y);
  spread(ends.map(end => end.y), GAP).forEach((y, i) => {
    const {s} = ends[i];
    svg.append(element("text", {class: "label", x, y: y + 4, style: `fill: ${s.color}`},
                       s.label ?? s.name));
  });
}

// Show the values nearest to state.at; with their numbers in the chart under the pointer.
function point(made, isUnderPointer) {
  const {place, hover, tip, spec, svg} = made;
  if (!place) return;
  hover.replaceChildren();
  tip.hidden = state.at === null || !isUnderPointer;
  if (state.at === null) return;
  const rows = [];
  let px = null;
  for (const s of place.series) {
    const i = nearest(s.x, state.at);
    if (s.y[i] === null || state.at > s.x.at(-1) + (s.x.at(-1) - s.x[0]) * 0.02) continue;
    rows.push({s, x: s.x[i], y: s.y[i]});
    const cy = place.toY(s.y[i]);
    if (cy >= TOP - 4) {
      hover.append(element("circle", {cx: place.toX(s.x[i]), cy, r: 3.6,
                                      style: `fill: ${s.color}; stroke: var(--page)`}));
    }
    px = place.toX(s.x[i]);
  }
  if (px === null) return;
  hover.prepend(element("line", {class: "cross", x1: px, x2: px, y1: TOP, y2: HEIGHT - BOTTOM,
                                 "stroke-dasharray": "2 3"}));
  if (!isUnderPointer) return;
  rows.sort((a, b) => b.y - a.y);
  const {label, divisor} = axes[state.axis];
  const at = state.axis === "step" ? Math.round(rows[0].x) : short(rows[0].x);
  tip.replaceChildren(element("div", {class: "at"}, divisor === 1 && state.axis === "step"
    ? `step ${at}` : `${at} ${label}`));
  for (const {s, y} of rows) {
    const row = element("div"), name = element("span");
    name.append(swatch(s.color, s.dash), s.name);
    row.append(name, element("b", {}, short(y) + (spec.suffix ?? "")));
    tip.append(row);
  }
  const left = px > svg.clientWidth / 2 ? px - 14 - tip.offsetWidth : px + 14;
  tip.style.left = `${Math.max(0, Math.min(left, svg.clientWidth - tip.offsetWidth))}px`;
}

// ---- what is drawn ----

const color = i => `var(--run-${i % colors.light.length})`;
const dash = i => ["", "7 4", "2 3"][Math.floor(i / colors.light.length) % 3];
const scaled = xs => xs.map(x => x / axes[state.axis].divisor);
const visible = () => runs.map((run, i) => [run, i]).filter(([, i]) => !state.hidden.has(i));

function steps(line, raw, ceiling) {
  return () => visible().map(([run, i]) => ({
    name: run.name, color: color(i), dash: dash(i), x: scaled(run.steps[state.axis]),
    y: run.steps[line], raw: raw && run.steps[raw], ceiling: ceiling && run[ceiling]}));
}

function evaluations() {
  return visible().map(([run, i]) => ({
    name: run.name, color: color(i), dash: dash(i), dots: run.evaluations.bits.length < 80,
    x: scaled(run.evaluations[state.axis]), y: run.evaluations.bits, ceiling: run.bits_ceiling,
    label: run.bits === null ? run.name : `${run.name} ${run.bits.toFixed(3)}`}));
}

function shareCharts(main, run, i) {
  const section = element("section"), grid = element("div", {class: "charts shares"});
  section.append(element("h2", {style: `color: ${color(i)}`}, run.name), grid);
  main.append(section);
  const all = run.layers.flatMap(layer => layer.shares.flat()).map(share => 100 * share);
  const margin = 0.06 * (Math.max(...all) - Math.min(...all)) || 1;
  const range = [Math.min(...all) - margin, Math.max(...all) + margin];
  ["\u22121", "0", "+1"].forEach((value, v) => chart(grid, {
    title: `% of weights at ${value}`, labels: v === 2, suffix: " %", range: () => range,
    series: () => run.layers.map(layer => ({
      name: layer.name, color: layer.color, x: scaled(run.counted[state.axis]),
      y: layer.shares.map(shares => 100 * shares[v])}))}));
  return section;
}

function table() {
  const head = element("tr"), body = document.querySelector("tbody");
  for (const name of ["run", "steps", "tokens", "time", "loss", "bits a byte"]) {
    head.append(element("th", {}, name));
  }
  document.querySelector("thead").append(head);
  runs.forEach((run, i) => {
    const row = element("tr"), cell = element("td");
    const button = element("button", {"aria-pressed": "true", title: "show or hide"});
    button.append(swatch(color(i), dash(i)), run.name);
    button.addEventListener("click", () => toggle(i, row, button));
    cell.append(button);
    row.append(cell, ...[
      run.last.step.toLocaleString("en"), Math.round(run.last.tokens).toLocaleString("en"),
      clock(run.last.seconds), run.loss === null ? "" : run.loss.toFixed(3),
      run.bits === null ? "" : run.bits.toFixed(4)].map(text => element("td", {}, text)));
    body.append(row);
  });
}

function toggle(i, row, button) {
  if (!state.hidden.delete(i)) state.hidden.add(i);
  const isHidden = state.hidden.has(i);
  row.classList.toggle("off", isHidden);
  button.setAttribute("aria-pressed", String(!isHidden));
  if (sections[i]) sections[i].hidden = isHidden;
  charts.forEach(draw);
}

function axisButtons() {
  const group = document.querySelector("[role=radiogroup]");
  for (const axis of Object.keys(axes)) {
    const button = element("button", {role: "radio", "aria-checked": String(axis === start)},
                           axis === "step" ? "steps" : axis === "seconds" ? "time" : axis);
    button.addEventListener("click", () => {
      state.axis = axis;
      for (const other of group.children) {
        other.setAttribute("aria-checked", String(other === button));
      }
      charts.forEach(draw);
    });
    group.append(button);
  }
}

table();
axisButtons();
const main = document.querySelector("main"), grid = element("div", {class: "charts"});
main.append(grid);
chart(grid, {title: "Training loss, nats a token",
             series: steps("smoothed_loss", "loss", "loss_ceiling")});
chart(grid, {title: "Validation text, bits a byte", series: evaluations, labels: true});
chart(grid, {title: "Learning rate", series: steps("lr"), fromZero: true});
chart(grid, {title: "Gradient norm", series: steps("smoothed_norm", "grad_norm"), isLog: true});
const sections = runs.map((run, i) => run.layers.length ? shareCharts(main, run, i) : null);
