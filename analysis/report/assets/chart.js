"use strict";
// The page's chart, calculator and sortable tables. DATA holds per family: name, color, dash, points, lines by axis, draws.
const raised = (power) => `${power}`.replace(/./g, (c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻");
const NAMES = { tokens: "training tokens D", parameters: "parameters N", flops: "training compute C (FLOPs)" };
const SVG = "http://www.w3.org/2000/svg";
const chart = document.getElementById("chart");
const axis = document.getElementById("axis");
const hidden = new Set();

function compact(value) {
  for (const [scale, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]])
    if (value >= scale * 0.9995 && value < 1e15) return `${+(value / scale).toPrecision(3)}${letter}`;
  return value >= 1e4 || value < 1e-2 ? value.toExponential(1).replace("e+", "e").replace(".0", "") : `${+value.toPrecision(3)}`;
}

function powerOfTen(value) {  // as the figures write FLOPs
  const power = Math.floor(Math.log10(value) + 1e-9), factor = +(value / 10 ** power).toPrecision(3);
  return `${factor === 1 ? "" : `${factor}×`}10${raised(power)}`;
}

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const digit of [1, 2, 5]) {
      const value = digit * 10 ** power;
      if (value >= low && value <= high && (digit === 1 || high / low < 300)) ticks.push(value);
    }
  return ticks;
}

function lossTicks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= rough);
  const ticks = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) ticks.push(+value.toFixed(10));
  return ticks;
}

function draw() {
  const along = axis.value;
  const shown = DATA.families.filter((family) => !hidden.has(family.name));
  const points = shown.flatMap((family) => family.points);
  chart.querySelector("svg")?.remove();
  hideTip();
  if (!points.length) return;
  const width = Math.max(320, chart.clientWidth), height = Math.min(460, Math.max(300, width * 0.55));
  const left = 62, right = 12, top = 10, bottom = 44;
  const xs = points.map((point) => point[along]), ys = points.map((point) => point.loss);
  const x0 = Math.min(...xs) / 1.4, x1 = Math.max(...xs) * 1.4;
  const pad = 0.12 * (Math.max(...ys) - Math.min(...ys)), y0 = Math.min(...ys) - pad, y1 = Math.max(...ys) + pad;
  const x = (value) => left + (Math.log(value / x0) / Math.log(x1 / x0)) * (width - left - right);
  const y = (value) => top + ((y1 - value) / (y1 - y0)) * (height - top - bottom);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "font-size": 12 });
  const clip = element("clipPath", { id: "inside" });
  clip.append(element("rect", { x: left, y: top, width: width - left - right, height: height - top - bottom }));
  svg.append(clip);
  let ticks = logTicks(x0, x1);
  while (ticks.length > width / 55) ticks = ticks.filter((_, index) => index % 2 === 0);
  for (const value of ticks) {
    svg.append(element("line", { class: "grid", x1: x(value), x2: x(value), y1: top, y2: height - bottom }));
    svg.append(element("text", { x: x(value), y: height - bottom + 18, "text-anchor": "middle" }, along === "flops" ? powerOfTen(value) : compact(value)));
  }
  for (const value of lossTicks(y0, y1)) {
    svg.append(element("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(element("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, `${value}`));
  }
  svg.append(element("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, NAMES[along]));
  const middle = (top + height - bottom) / 2;
  svg.append(element("text", { x: 14, y: middle, transform: `rotate(-90 14 ${middle})`, "text-anchor": "middle" }, "loss (nats per token)"));
  const inside = element("g", { "clip-path": "url(#inside)" });
  for (const family of shown)
    for (const line of family.lines[along]) {
      const up = line.x.map((value, index) => `${x(value)},${y(line.low[index])}`);
      const down = line.x.map((value, index) => `${x(value)},${y(line.high[index])}`).reverse();
      inside.append(element("polygon", { points: [...up, ...down].join(" "), fill: family.color, opacity: 0.13 }));
      const path = line.x.map((value, index) => `${x(value)},${y(line.y[index])}`).join(" ");
      const drawn = element("polyline", { points: path, fill: "none", stroke: family.color, "stroke-dasharray": family.dash, "stroke-width": 1.6 });
      drawn.append(element("title", {}, `${family.name}, ${line.label}`));
      inside.append(drawn);
    }
  for (const family of shown)
    for (const point of family.points) {
      const dot = element("circle", { cx: x(point[along]), cy: y(point.loss), r: points.length > 100 ? 3.5 : 5, fill: family.color, tabindex: 0 });
      const show = () => showTip(family, point, x(point[along]), y(point.loss), width);
      for (const event of ["mouseenter", "click", "focus"]) dot.addEventListener(event, show);
      for (const event of ["mouseleave", "blur"]) dot.addEventListener(event, hideTip);
      inside.append(dot);
    }
  svg.append(inside);
  chart.prepend(svg);
}

const tip = document.getElementById("tip");
function showTip(family, point, left, top, width) {
  tip.textContent = "";
  const lines = [
    point.run, `${family.name}: N = ${compact(point.parameters)}, D = ${compact(point.tokens)}`,
    `C = ${powerOfTen(point.flops)} FLOPs`,
    `loss ${point.loss.toFixed(4)}, ${point.residual >= 0 ? "+" : ""}${point.residual.toFixed(2)} % of the law`,
  ];
  for (const line of lines) tip.append(Object.assign(document.createElement("div"), { textContent: line }));
  tip.hidden = false;
  tip.style.left = `${Math.max(0, Math.min(left + 12, width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${top + 12}px`;
}
function hideTip() { tip.hidden = true; }

function quantity(text) {
  const found = /^\s*([\d.]+(?:e[+-]?\d+)?)\s*([KMBT]?)\s*$/i.exec(text);
  return found ? parseFloat(found[1]) * { "": 1, K: 1e3, M: 1e6, B: 1e9, T: 1e12 }[found[2].toUpperCase()] : NaN;
}

function answer() {
  const n = quantity(document.getElementById("size").value), d = quantity(document.getElementById("tokens").value);
  const answers = document.getElementById("answers");
  answers.textContent = "";
  if (!(n > 0 && d > 0)) { answers.textContent = "write sizes such as 125M, 15B or 3e9"; return; }
  const loss = ([a, b, e, alpha, beta, gamma = 1]) => Math.exp(e) + (Math.exp(a - alpha * Math.log(n)) + Math.exp(b - beta * Math.log(d))) ** gamma;
  for (const family of DATA.families) {
    if (!family.law) { answers.append(`${family.name}: ask scaling predict. `); continue; }
    const center = loss(family.law), drawn = family.draws.map(loss);
    const apart = family.rivals.map((law) => loss(law) - center);
    const bounds = (values) => {  // of the draws, apart by what other forms say, widened by the rollout
      const sorted = [...values].sort((one, other) => one - other);
      const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
      const ends = [Math.max(0, at(0.025) + Math.min(0, ...apart)), at(0.975) + Math.max(0, ...apart)];
      return ends.map((end) => center * (end / center) ** family.widening);
    };
    const isBounded = ([low, high]) => Number.isFinite(low) && high <= family.most;
    const written = (ends) => `[${ends.map((end) => end.toFixed(4)).join(", ")}]`;
    // Where the scatter falls with compute, it falls no further beyond the dearest run.
    const flops = family.per_token * n * d;
    const logC = Math.log(flops) - family.meanLogC, seen = Math.min(logC, Math.log(family.ranges.C[1]) - family.meanLogC);
    const run = bounds(drawn.map((value, index) => {
      const exponent = family.scatter[index];
      return value * family.noise[index] ** Math.max(Math.exp(exponent * (exponent < 0 ? seen : logC)), family.weighed ? 0 : 1);
    }));
    const beyond = Object.entries({ N: n, D: d, C: flops }).flatMap(([letter, value]) => {
      const [least, most] = family.ranges[letter];
      if (value > 1.005 * most) return [`${letter} ${+(value / most).toPrecision(3)} times the largest`];
      return value < least / 1.005 ? [`${letter} ${+(value / least).toPrecision(3)} times the smallest`] : [];
    }).join(", ");
    const far = beyond && `; ${beyond} of its runs`;
    const law = bounds(drawn), unbounded = "is not told: its interval is unbounded";
    const ofRun = isBounded(run) ? `a new run ${written(run)}` : `what a new run would show ${unbounded}`;
    const told = isBounded(law) ? `loss ${center.toFixed(4)} ${written(law)}; ${ofRun}` : `the loss ${unbounded}`;
    const said = `${family.name}: ${told}${far}`;
    answers.append(Object.assign(document.createElement("p"), { textContent: said }));
  }
}

for (const family of DATA.families) {
  const button = document.createElement("button");
  const mark = document.createElement("i");
  mark.style.background = family.color;
  button.append(mark, family.name);
  button.setAttribute("aria-pressed", "true");
  button.addEventListener("click", () => {
    if (!hidden.delete(family.name)) hidden.add(family.name);
    button.setAttribute("aria-pressed", String(!hidden.has(family.name)));
    draw();
  });
  document.getElementById("families").append(button);
}
axis.addEventListener("change", draw);
addEventListener("resize", draw);
for (const name of ["size", "tokens"]) document.getElementById(name).addEventListener("input", answer);

for (const table of document.querySelectorAll("table.sortable"))
  table.querySelectorAll("th").forEach((head, column) => head.addEventListener("click", () => {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      const order = a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b : a.localeCompare(b);
      return ascending ? order : -order;
    });
    table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  }));

document.getElementById("csv").addEventListener("click", () => {
  const rows = [...document.querySelectorAll("table.sortable tr")].map((row) => [...row.cells].map((cell) => {
    const shown = cell.dataset.value ?? cell.textContent;
    const text = /^[=+\-@\t\r]/.test(shown) && isNaN(shown) ? `'${shown}` : shown; // no formula of a spreadsheet
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }).join(","));
  const file = URL.createObjectURL(new Blob([`${rows.join("\n")}\n`], { type: "text/csv" }));
  Object.assign(document.createElement("a"), { href: file, download: `${document.title}.csv` }).click();
  URL.revokeObjectURL(file);
});
draw();
answer();
