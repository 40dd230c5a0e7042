"use strict";
// All text is set as text (`textContent`), never as HTML; what plotly shows goes through `safe`.
const data = JSON.parse(document.getElementById("data").textContent);
const main = document.querySelector("main");
const DASH = "–";
const COLOURS = ["#3b76b0", "#e08214", "#2f9a57", "#c8403a", "#9467bd", "#8c6d54", "#d6619f", "#2aa0a8", "#a3a21f", "#7f8790"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "star", "cross", "x", "pentagon"];
const SIGNS = ["●", "■", "◆", "▲", "▼", "★", "✚", "✖", "⬟"];
const hidden = new Set();
const redraws = [];

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function svg(tag, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
// A text with places where a line may end.
const breakable = (text) => text.split(/(?<=[=_:.])/).flatMap((part) => [part, el("wbr")]);
const many = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
const colour = (agent) => COLOURS[agent % COLOURS.length];
const metricOf = (name) => data.metrics.find((metric) => metric.name === name);
const headed = (metric, split) => (metric.of_split ? `${split} ${metric.heading}` : metric.heading);

function number(value, digits, unit = "") {
  if (value === null || value === undefined) return DASH;
  const text = (value || 0).toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return text.replace("-", "−") + unit;
}

function signed(value, digits) {
  return (value > 0 ? "+" : "") + number(value, digits);
}

function section(id, heading, ...children) {
  const made = el("section", { id }, el("h2", {}, heading), ...children);
  document.querySelector("nav").append(el("a", { href: "#" + id }, heading));
  main.append(made);
  return made;
}

function select(label, options, change, value = 0) {
  const made = el("select", { onchange: () => change(made.value) });
  options.forEach(([key, text]) => made.append(el("option", { value: key }, short(text, 80))));
  made.value = options[value][0];
  return [el("label", {}, label, made), made];
}

function row(cells, cell = "td") {
  return el("tr", {}, ...cells.map(([text, kind]) => el(cell, { class: kind }, text)));
}

// What hangs on an element by `data-tip` is shown beside the pointer, or where the keyboard is.
const tip = document.getElementById("tip");
function showTip(event) {
  const target = event.target.closest?.("[data-tip]");
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip;
  const box = target.getBoundingClientRect();
  const own = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(box.left + 8, innerWidth - own.width - 8)) + "px";
  tip.style.top = (box.bottom + own.height + 10 > innerHeight ? box.top - own.height - 6 : box.bottom + 6) + "px";
}
for (const kind of ["mouseover", "focusin", "focusout"]) document.addEventListener(kind, showTip);

// ------------------------------------------------------------------------------------------------------------- summary

function summary() {
  const columns = data.metrics.filter((metric) => metric.table);
  const order = data.agents.map((_, agent) => agent);
  const head = el("tr", {}, el("th", { class: "text" }, "agent"), el("th", {}, "seeds"));
  const body = el("tbody");
  let sorted = null;
  columns.forEach((metric) => {
    const sort = () => {
      const sign = sorted === metric ? -1 : 1;
      sorted = sign < 0 ? null : metric;
      const of = (agent) => data.agents[agent].values[metric.name][1];
      order.sort((a, b) => (of(a) === null) - (of(b) === null) || sign * (metric.better === "less" ? 1 : -1) * (of(a) - of(b)));
      fill();
    };
    head.append(el("th", {}, el("button", { onclick: sort, title: "sort" }, headed(metric, metric.split))));
  });
  function fill() {
    body.replaceChildren(...order.map((i) => {
      const agent = data.agents[i];
      const sign = { best: "●", alike: "○" }[agent.mark] || "";
      const name = el("th", { class: "text", scope: "row" }, el("span", { class: "mark" }, sign), agent.name);
      const cells = columns.map((metric) => el("td", {}, agent.values[metric.name][0]));
      return el("tr", { class: agent.mark }, name, el("td", {}, String(agent.seeds.length)), ...cells);
    }));
  }
  fill();
  section("summary", "Summary",
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), body)),
    el("p", { class: "note" }, "Means over seeds; ± is half of the 95 % interval of the mean over seeds (Student's t)."),
    el("p", { class: "note" }, data.mark));
}

// -------------------------------------------------------------------------------------------------------------- charts

function legend() {
  const made = el("div", { class: "legend" });
  const draw = () => made.replaceChildren(
    ...data.agents.map((agent, i) => {
      const swatch = el("span", { class: "swatch", style: `color: ${colour(i)}` }, SIGNS[i % SIGNS.length]);
      const toggle = () => { if (!hidden.delete(i)) hidden.add(i); redraw(); };
      return el("button", { "aria-pressed": String(!hidden.has(i)), onclick: toggle }, swatch, agent.name);
    }),
    ...(data.agents.length > 2 ? [
      el("button", { onclick: () => { hidden.clear(); redraw(); } }, "all"),
      el("button", { onclick: () => { data.agents.forEach((_, i) => hidden.add(i)); redraw(); } }, "none"),
    ] : []));
  redraws.push(draw);
  return made;
}

function redraw() {
  redraws.forEach((draw) => draw());
}

function layout(x, y) {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: of("--line"), linecolor: of("--soft"), zeroline: false, automargin: true, ticks: "outside" };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { color: of("--ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
    margin: { l: 60, r: 16, t: 30, b: 48 }, modebar: { bgcolor: "rgba(0,0,0,0)", color: of("--soft"), activecolor: of("--link") },
    hoverlabel: { bgcolor: of("--tint"), bordercolor: of("--line"), font: { color: of("--ink"), size: 12 }, align: "left" },
    xaxis: { ...axis, title: { text: safe(x) } }, yaxis: { ...axis, title: { text: safe(y) } },
  };
}

// Of plotly's buttons those that need no network.
const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };

// Curves that lie on each other for half of the epochs are drawn in turns, dash by dash.
function dashes(curves, shown) {
  const all = shown.flatMap((agent) => curves[agent][0]).filter((value) => value !== null);
  const near = 0.01 * (Math.max(...all) - Math.min(...all));
  const groups = [];
  for (const agent of shown) {
    const close = (other) => {
      const pairs = curves[agent][0].map((value, i) => [value, curves[other][0][i]]);
      return 2 * pairs.filter(([a, b]) => a !== null && Math.abs(a - b) <= near).length >= pairs.length;
    };
    const group = groups.find((members) => close(members[0]));
    if (group) group.push(agent);
    else groups.push([agent]);
  }
  const found = {};
  for (const group of groups) {
    group.forEach((agent, i) => {
      found[agent] = group.length === 1 ? "solid" : `0px,${10 * i}px,10px,${10 * (group.length - 1 - i)}px`;
    });
  }
  return found;
}

function curves() {
  const metrics = data.metrics.filter((metric) => metric.curve);
  let chosen = metrics[0].name;
  const plot = el("div", { class: "plot", id: "curves-plot" });
  const [label] = select("metric", metrics.map((metric) => [metric.name, headed(metric, metric.judged)]), (value) => {
    chosen = value;
    draw();
  });
  function draw() {
    const metric = metricOf(chosen);
    const of = data.agents.map((agent) => agent.curves[chosen]);
    const shown = data.agents.map((_, i) => i).filter((i) => !hidden.has(i) && of[i].length);
    const dash = dashes(of, shown);
    const longest = Math.max(1, ...shown.map((i) => of[i][0].length));
    const stride = Math.max(1, Math.ceil(longest / 8));
    const say = (value) => number(value, metric.digits, metric.unit);
    const bands = [], lines = [];
    for (const i of shown) {
      const [mean, low, high, seeds] = of[i];
      const epochs = mean.map((_, at) => at + 1);
      if (data.agents[i].seeds.length > 1) {
        const side = { mode: "lines", line: { width: 0 }, hoverinfo: "skip", x: epochs };
        bands.push({ ...side, y: low }, { ...side, y: high, fill: "tonexty", fillcolor: colour(i) + "22" });
      }
      const text = mean.map((value, at) => {
        const range = seeds[at] > 1 ? ` (${say(low[at])} to ${say(high[at])}, ${many(seeds[at], "seed")})` : "";
        return `${safe(short(data.agents[i].name, 36))}: <b>${say(value)}</b>${range}`;
      });
      // Markers stand at other epochs for every agent.
      const size = epochs.map((epoch) => ((epoch - 1) % stride === i % stride ? 7 : 0));
      lines.push({
        x: epochs, y: mean, name: safe(data.agents[i].name), customdata: text, hovertemplate: "%{customdata}<extra></extra>",
        mode: "lines+markers", line: { color: colour(i), width: 2, dash: dash[i] },
        marker: { color: colour(i), symbol: SYMBOLS[i % SYMBOLS.length], size, line: { width: 0 } },
      });
    }
    const made = layout("epoch", headed(metric, metric.judged));
    made.hovermode = "x unified";
    made.xaxis.unifiedhovertitle = { text: "epoch %{x}" };
    made.xaxis.range = [1 - 0.02 * longest, longest + 0.02 * longest];
    if (longest < 12) made.xaxis.dtick = 1;
    Plotly.react(plot, [...bands, ...lines], made, CONFIG);
  }
  redraws.push(draw);
  section("curves", "Learning curves",
    el("p", { class: "note" }, "After every epoch, without exploration: the mean over seeds, and from the lowest to the "
      + "highest of them as a band. Curves that coincide take turns, dash by dash. Click on agents to switch them off and on."),
    el("div", { class: "controls" }, label), legend(), plot);
}

function cost() {
  const macs = metricOf("macs"), accuracy = metricOf(data.accuracy);
  const plot = el("div", { class: "plot", id: "cost-plot" });
  function draw() {
    const points = data.agents.map((agent, i) => ({ agent, i, x: agent.values.macs, y: agent.values[data.accuracy] }))
      .filter(({ i, x, y }) => !hidden.has(i) && x[1] !== null && y[1] !== null);
    const spread = (axis) => Math.max(...points.map((point) => point[axis][1])) - Math.min(...points.map((point) => point[axis][1]));
    const [near, close] = [0.01 * spread("x"), 0.03 * spread("y")];
    const bar = (half, i) => ({ type: "data", array: [half || 0], visible: half !== null, thickness: 1.2, width: 4, color: colour(i) });
    const told = ({ agent, x, y }) => `<b>${safe(short(agent.name, 60))}</b><br>${safe(headed(accuracy, accuracy.split))}: ${safe(y[0])}<br>`
      + `MACs: ${number(x[1], 0)}${x[2] === null ? "" : " ± " + number(x[2], 0)}, ${many(agent.seeds.length, "seed")}`;
    // Agents at one place are rings around each other, and are told of together.
    const traces = points.map((point, at) => {
      const { agent, i, x, y } = point;
      const there = (other) => Math.abs(other.x[1] - x[1]) <= near && Math.abs(other.y[1] - y[1]) <= close;
      const inner = points.slice(0, at).filter(there).length;
      const symbol = SYMBOLS[i % SYMBOLS.length] + (inner ? "-open" : "");
      return {
        x: [x[1]], y: [y[1]], error_x: bar(x[2], i), error_y: bar(y[2], i), mode: "markers", name: safe(agent.name),
        customdata: [points.filter(there).map(told).join("<br>")], hovertemplate: "%{customdata}<extra></extra>",
        marker: { color: colour(i), symbol, size: 10 + 7 * inner, line: { width: inner ? 2 : 0, color: colour(i) } },
      };
    });
    const made = layout("MACs per instance", headed(accuracy, accuracy.split));
    const all = traces.map((trace) => trace.x[0]);
    const span = Math.max(...all) / Math.min(...all);
    if (span > 30 && Number.isFinite(span)) made.xaxis.type = "log";
    else if (span < 1.02) made.xaxis.range = [0.9 * Math.min(...all), 1.1 * Math.max(...all)];
    Plotly.react(plot, traces, made, CONFIG);
  }
  redraws.push(draw);
  section("cost", "Cost against accuracy",
    el("p", { class: "note" }, "Multiply-accumulates per instance, the router's own included. Bars are 95 % intervals of the mean over seeds."),
    legend(), plot);
}

// --------------------------------------------------------------------------------------------------------- differences

function pairOf(metric, a, b) {
  if (a < b) return data.pairs[metric][a][b - a - 1];
  const found = data.pairs[metric][b][a - b - 1];
  const turned = (value) => (value === null ? null : -value);
  if (!found || !found[0]) return found;
  const [seeds, mean, low, high, p, verdict] = found;
  return [seeds, turned(mean), turned(high), turned(low), p, -verdict];
}

const VERDICTS = { 1: "better", 0: "not enough to tell", "-1": "worse" };

function differences() {
  const metrics = Object.keys(data.pairs).map(metricOf);
  let chosen = metrics[0].name, reference = Math.max(0, data.agents.findIndex((agent) => agent.mark === "best"));
  const matrix = el("table", { class: "matrix" }), table = el("table", { id: "against" });
  const p = (value) => (value < 0.001 ? "< 0.001" : number(value, 3));
  const interval = ([, , low, high], digits) => (low === null ? "unbounded" : `${signed(low, digits)} to ${signed(high, digits)}`);
  function draw() {
    const metric = metricOf(chosen);
    const cell = (a, b) => {
      if (a === b) return el("td", {}, "");
      const pair = pairOf(chosen, a, b), names = `${data.agents[a].name} − ${data.agents[b].name}`;
      const tell = (text, shown, kind = "") => el("td", { class: kind, tabindex: 0, "data-tip": `${names}\n${text}` }, shown);
      if (!pair) return tell("not compared: other environments, data or splits", DASH);
      if (!pair[0]) return tell("0 common seeds: nothing to compare", DASH);
      const kind = { 1: "better", 0: "", "-1": "worse" }[pair[5]];
      const text = `${signed(pair[1], metric.digits)}, 95 % interval ${interval(pair, metric.digits)}\np ${p(pair[4])}, `
        + `${many(pair[0], "common seed")}: ${VERDICTS[pair[5]]}`;
      return tell(text, signed(pair[1], metric.digits), kind);
    };
    const all = data.agents.map((_, i) => i);
    const titles = data.agents.map(({ name }) => el("th", { scope: "col", "data-tip": name }, ...breakable(short(name, 40))));
    matrix.replaceChildren(
      el("thead", {}, el("tr", {}, el("th", { class: "text" }, "row − column"), ...titles)),
      el("tbody", {}, ...all.map((a) => el("tr", {}, el("th", { class: "text", scope: "row" }, data.agents[a].name), ...all.map((b) => cell(a, b))))));
    const heads = [["agent", "text"], ["difference"], ["95 % interval"], ["p"], ["common seeds"], ["verdict", "text"]];
    table.replaceChildren(
      el("thead", {}, row(heads, "th")),
      el("tbody", {}, ...all.filter((a) => a !== reference).map((a) => {
        const pair = pairOf(chosen, a, reference), name = [data.agents[a].name, "text"];
        if (!pair) return row([name, [DASH], [DASH], [DASH], [DASH], ["not compared: other environments, data or splits", "text"]]);
        if (!pair[0]) return row([name, [DASH], [DASH], [DASH], ["0"], ["0 common seeds: nothing to compare", "text"]]);
        const kind = { 1: "text better", 0: "text", "-1": "text worse" }[pair[5]];
        return row([name, [signed(pair[1], metric.digits)], [interval(pair, metric.digits)], [p(pair[4])], [String(pair[0])], [VERDICTS[pair[5]], kind]]);
      })));
  }
  const [label] = select("metric", metrics.map((metric) => [metric.name, headed(metric, metric.split)]), (value) => { chosen = value; draw(); });
  const [against] = select("reference", data.agents.map((agent, i) => [String(i), agent.name]), (value) => { reference = Number(value); draw(); }, reference);
  draw();
  section("differences", "Paired differences",
    el("p", { class: "note" }, "Differences between agents over the seeds both were trained with. An agent is called ",
      el("span", { class: "key better" }, "better"), " or ", el("span", { class: "key worse" }, "worse"),
      " from 3 common seeds on, where the 95 % interval (Student's t) does not hold 0. This is meant for one pair named "
      + "beforehand: of many pairs, one in twenty that are truly equal is called different."),
    el("div", { class: "controls" }, label), el("h3", {}, "All pairs"),
    el("p", { class: "note" }, "Row minus column; point at a cell for its interval."), el("div", { class: "scroll" }, matrix),
    el("h3", {}, "Against one agent"), el("div", { class: "controls" }, against), el("div", { class: "scroll" }, table));
}

// -------------------------------------------------------------------------------------------------------- routing maps

const shade = (block, choices) => `hsl(${Math.round((360 * block) / choices)} 65% ${block % 2 ? 56 : 74}%)`;

function mapOf(rows, run, what) {
  const columns = rows.length, decisions = run.decisions.length;
  const wide = Math.max(12, Math.min(27, Math.floor(330 / columns))), high = decisions > 12 ? 14 : Math.min(24, Math.max(wide, 16));
  const names = run.decisions.map((name, i) => short(name || `decision ${i + 1}`, 14));
  const left = 10 + 6.2 * Math.max(...names.map((name) => name.length)), width = left + columns * wide + 2;
  const every = Math.ceil(20 / wide);
  const made = svg("svg", { class: "map", width, height: decisions * high + 34, role: "img", "aria-label": `routes by ${what}` });
  for (let n = 0; n < decisions; n++) {
    made.append(svg("text", { x: left - 6, y: (n + 0.5) * high + 4, "text-anchor": "end" }, names[n]));
    for (let t = 0; t < columns; t++) {
      const code = rows[t][n];
      const shares = code === null ? [] : typeof code === "number" ? [[code, 100]] : code.flatMap((v, i) => (i % 2 ? [] : [[v, code[i + 1]]]));
      const said = shares.length ? shares.slice().sort((a, b) => b[1] - a[1]).map(([block, share]) => `block ${block}: ${share} %`).join("\n") : "nobody came here";
      const cell = svg("g", { "data-tip": `${what} ${t}${what === "task" && run.tasks[t] ? ` (${run.tasks[t]})` : ""}, ${run.decisions[n] || "decision " + (n + 1)}\n${said}` });
      const total = shares.reduce((sum, [, share]) => sum + share, 0);
      cell.append(svg("rect", { x: left + t * wide + 0.5, y: n * high + 0.5, width: wide - 1, height: high - 1, fill: "transparent" }));
      let x = left + t * wide + 0.5;
      for (const [block, share] of shares) {
        const part = ((wide - 1) * (share || 1)) / (total || shares.length);
        cell.append(svg("rect", { x, y: n * high + 0.5, width: part, height: high - 1, fill: shade(block, run.choices) }));
        x += part;
      }
      const most = shares.find(([, share]) => share > 50);
      if (most && wide >= 14) cell.append(svg("text", { class: "block", x: left + (t + 0.5) * wide, y: (n + 0.5) * high + 4, "text-anchor": "middle" }, most[0]));
      made.append(cell);
    }
  }
  for (let t = 0; t < columns; t += every) {
    made.append(svg("text", { x: left + (t + 0.5) * wide, y: decisions * high + 14, "text-anchor": "middle" }, t));
  }
  made.append(svg("text", { x: left + (columns * wide) / 2, y: decisions * high + 29, "text-anchor": "middle" }, what));
  return made;
}

function maps() {
  const seeds = [...new Set(data.runs.map((run) => run.seed))].sort((a, b) => a - b);
  const judged = metricOf(data.accuracy).judged, split = metricOf(data.accuracy).split;
  let seed = data.runs[0].seed, by = "task", position = Infinity;
  const figures = el("div", { class: "maps" }), said = el("output", {});
  const slider = el("input", { type: "range", id: "epoch", min: 0, step: 1, "aria-label": "epoch", oninput: () => { position = Number(slider.value); draw(); } });
  const shownRuns = () => data.agents.map((_, i) => {
    const own = data.runs.filter((run) => run.agent === i);
    return own.find((run) => run.seed === seed) || own[0];
  });
  function draw() {
    const runs = shownRuns();
    const epochs = [...new Set(runs.flatMap((run) => run.epochs_kept || []))].sort((a, b) => a - b);
    slider.max = epochs.length;
    position = Math.min(position, epochs.length);
    slider.value = position;
    slider.disabled = by === "label" || !epochs.length;
    const epoch = by === "label" || position >= epochs.length ? null : epochs[position];
    said.textContent = !epochs.length ? "final routes only" : epoch === null ? `in the end (${split} split)` : `after epoch ${epoch} (${judged} split)`;
    figures.replaceChildren(...runs.map((run) => {
      let rows = by === "label" ? run.labels : run.final, when = "";
      if (epoch !== null) {
        const at = (run.epochs_kept || []).filter((kept) => kept <= epoch).length - 1;
        if (at >= 0) { rows = run.routes[at]; when = `, epoch ${run.epochs_kept[at]}`; } else when = ", in the end";
      }
      const caption = el("figcaption", {}, el("strong", {}, data.agents[run.agent].name), ` seed ${run.seed}${when}`);
      return el("figure", {}, caption, rows ? mapOf(rows, run, by) : el("p", { class: "note" }, "not kept by label for this seed"));
    }));
  }
  const [label] = select("seed", seeds.map((value) => [String(value), String(value)]), (value) => { seed = Number(value); draw(); }, seeds.indexOf(seed));
  const [ways, way] = select("columns", [["task", "tasks"], ["label", "labels (classes)"]], (value) => { by = value; draw(); });
  way.id = "by";
  draw();
  section("maps", "Routing maps",
    el("p", { class: "note" }, "Which block instances take at every decision: a cell is split in proportion to how many take each, "
      + "and numbered where more than half take one. Point at a cell for the shares."),
    el("div", { class: "controls" }, ways, label, el("label", {}, "epoch", slider), said), figures);
}

// ---------------------------------------------------------------------------------------------------------------- runs

function list(pairs) {
  return el("ul", { class: "options" }, ...pairs.map(([name, value]) => el("li", {}, el("b", {}, name), ` ${value}`)));
}

function runs() {
  const differing = new Set(data.differing);
  const options = data.agents.map((agent) => {
    const pairs = Object.entries(agent.options);
    const own = pairs.filter(([name]) => differing.has(name));
    return el("div", {},
      el("h3", {}, agent.name, el("span", { class: "note" }, ` seed${agent.seeds.length === 1 ? "" : "s"} ${agent.seeds.join(", ")}`)),
      data.agents.length > 1 ? list(own.length ? own : [["", "nothing of its own"]]) : null,
      el("details", {}, el("summary", {}, `all ${pairs.length} options`), list(pairs.sort(([a], [b]) => (a < b ? -1 : 1)))));
  });
  const heads = [["agent", "text"], ["seed"], ["epochs"], ["best epoch"], ...data.varying.map((name) => [name, "text"]), ["repeat it by", "text"]];
  const body = data.runs.map((run) => row([
    [data.agents[run.agent].name, "text"], [String(run.seed)], [String(run.epochs)], [run.best === null ? DASH : String(run.best)],
    ...run.facts.map((fact) => [String(fact), "text"]),
    [run.command ? el("code", {}, run.command) : "its config.toml is not there", "long"],
  ]));
  section("runs", "Runs", el("h3", {}, "Machine and versions"), list(Object.entries(data.common)),
    el("details", {}, el("summary", {}, `${many(data.runs.length, "run")}, and how to repeat them`),
      el("div", { class: "scroll" }, el("table", {}, el("thead", {}, row(heads, "th")), el("tbody", {}, ...body)))),
    el("h3", {}, "Options"),
    el("p", { class: "note" }, "What differs between agents comes first. Runs of one agent differ by the seed alone."), ...options);
}

function unfinished() {
  const of = (run) => (run.epochs === null ? run.damage : run.of === null ? String(run.epochs) : `${run.epochs} of ${run.of}`);
  const made = [];
  if (data.unfinished.length) {
    const heads = [["run", "text"], ["epochs in its checkpoint"], ["go on by", "text"]];
    const body = data.unfinished.map((run) => row([[run.folder, "long"], [of(run), run.epochs === null ? "long" : ""], [run.command ? el("code", {}, run.command) : DASH, "long"]]));
    made.push(el("h3", {}, "Not finished"), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, row(heads, "th")), el("tbody", {}, ...body))));
  }
  if (data.failures.length) made.push(el("h3", {}, "Failed"), el("ul", {}, ...data.failures.map((text) => el("li", {}, text))));
  if (made.length) section("unfinished", "Failures and unfinished runs", ...made);
}

function tables() {
  data.tables.forEach(({ heading, note, heads, rows }, number) => {
    const texts = (cells) => cells.map((text, i) => [text, i ? "" : "text"]);
    const body = rows.map((cells) => row(texts(cells)));
    section(`table-${number}`, heading, el("p", { class: "note" }, note),
      el("div", { class: "scroll" }, el("table", {}, el("thead", {}, row(texts(heads), "th")), el("tbody", {}, ...body))));
  });
}

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function show() {
  document.querySelector("h1").textContent = data.title;
  const [agents, count] = [data.agents.length, data.runs.length];
  document.getElementById("subtitle").textContent = [
    count ? `${many(agents, "agent")}, ${many(count, "finished run")}` : data.tables.length ? "" : "no finished run",
    data.unfinished.length ? `${data.unfinished.length} not finished` : "",
  ].filter(Boolean).join(", ");
  if (data.warnings.length) main.append(el("div", { class: "warning", role: "note" }, ...data.warnings.map((text) => el("p", {}, text))));
  tables();
  if (count) {
    summary();
    curves();
    if (agents > 1) differences();
    maps();
    cost();
  }
  unfinished();
  if (count) runs();
  if (count) {
    const script = document.createElement("script");
    script.textContent = await unpacked(document.getElementById("plotly").textContent);
    document.head.append(script);
    redraw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }
  document.body.dataset.ready = "yes";
}

show().catch((error) => {
  main.prepend(el("p", { class: "warning" }, `The charts cannot be drawn in this browser: ${error}`));
  throw error;
});
