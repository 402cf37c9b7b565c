"use strict";
(() => {
// Everything below puts data into text nodes, attributes of numbers, and a canvas. Nothing is ever read as markup.
let data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const HUES = ["#3b76c4", "#2a9d7f", "#8e5bb5", "#cf5a8c", "#1b98b8", "#7f8f2f", "#8a6a4f", "#5b6b8c"];
const PALE = new Set(["free", "ready", "off", "ended", "start"]);
const WORDS = { train: "train", rollout: "rollout", ready: "awake, nothing to do", weights: "new weights", switch: "switch", start: "start", failed: "failed", withheld: "withheld", free: "free", off: "no supervisor", generate: "generate", lease: "wait for GPUs", engine: "wait for an engine", own: "own work", ended: "ended" };
const style = () => getComputedStyle(document.documentElement);
let colours = {};
const readColours = () => { const s = style(); colours = {}; for (const kind of [...Object.keys(WORDS), "text", "quiet", "line", "grid", "card", "empty", "bad", "warn", "good"]) colours[kind] = s.getPropertyValue("--" + kind).trim(); };
const make = (tag, className, text) => { const e = document.createElement(tag); if (className) e.className = className; if (text !== undefined) e.textContent = text; return e; };
const put = (id, ...children) => $(id).replaceChildren(...children);
const hueOf = (name) => { const at = data.pipelines.findIndex((p) => p.name === name); return HUES[(at < 0 ? 0 : at) % HUES.length]; };
const ownerOf = (who) => { const p = data.pipelines.find((one) => who === one.name || who.startsWith(one.name + "/")); return p ? p.name : ""; };
const percent = (share) => (share * 100 >= 9.95 || share === 0 ? (share * 100).toFixed(0) : (share * 100).toFixed(1)) + " %";
const span = (s) => { if (s < 0.0995) return (s * 1000).toFixed(0) + " ms"; if (s < 59.95) return s.toFixed(s < 9.995 ? 2 : 1) + " s"; const m = Math.round(s / 60 * 10) / 10; if (s < 3600) return Math.floor(s / 60) + " min " + String(Math.round(s % 60) % 60).padStart(2, "0") + " s"; if (s < 172800) return Math.floor(s / 3600) + " h " + String(Math.floor(s % 3600 / 60)).padStart(2, "0") + " min"; return (s / 86400).toFixed(1) + " days"; };
const clock = (s) => data.began_at ? new Date((data.began_at + s) * 1000).toLocaleString() : "";
const count = (n) => n >= 1e9 ? (n / 1e9).toFixed(2) + " G" : n >= 1e6 ? (n / 1e6).toFixed(2) + " M" : n >= 1e4 ? (n / 1e3).toFixed(1) + " k" : String(n);
const figure = (v) => v === 0 ? "0" : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(1) : String(Number(v.toPrecision(4)));
function mix(hex, share) { // towards the card's colour
  const parse = (h) => [1, 3, 5].map((i) => parseInt(h.slice(i, i + 2), 16)), a = parse(hex), b = parse(colours.card);
  return "#" + a.map((v, i) => Math.round(v * share + b[i] * (1 - share)).toString(16).padStart(2, "0")).join("");
}

// ---- the timeline
let view = null, byPipeline = true, lanes = [];
const GUTTER = 96, ROW = 24, GAP = 5, AXIS = 26, MARKS = 20;
function expand(lane, gpu) { const begins = new Float64Array(lane.steps.length); let at = 0; for (let i = 0; i < lane.steps.length; i++) begins[i] = (at += lane.steps[i]) / 1000; return { name: lane.name, begins, doings: lane.doings, gpu }; }
function paint(doing, gpu) {
  const [kind, who] = doing;
  if (gpu && typeof gpu === "string" && byPipeline) return { train: hueOf(gpu), generate: mix(hueOf(gpu), 0.62), own: mix(hueOf(gpu), 0.28) }[kind] || colours[kind];
  if (gpu !== true || !byPipeline || !who || !["train", "rollout", "ready", "weights", "start", "switch"].includes(kind)) return colours[kind];
  const hue = hueOf(ownerOf(who));
  return { train: hue, rollout: mix(hue, 0.62), ready: mix(hue, 0.25), weights: mix(hue, 0.45), start: mix(hue, 0.16), switch: colours.switch }[kind];
}
function rgb(hex) { return [parseInt(hex.slice(1, 3), 16), parseInt(hex.slice(3, 5), 16), parseInt(hex.slice(5, 7), 16)]; }
function firstAt(begins, t) { let a = 0, b = begins.length; while (a < b) { const m = (a + b) >> 1; if (begins[m] <= t) a = m + 1; else b = m; } return Math.max(0, a - 1); }
function draw() {
  const canvas = $("lanes"), scale = window.devicePixelRatio || 1, width = canvas.clientWidth;
  const height = AXIS + MARKS + lanes.length * (ROW + GAP) + (lanes.some((l) => !l.gpu) ? 12 : 0);
  canvas.style.height = height + "px"; canvas.width = width * scale; canvas.height = height * scale;
  const c = canvas.getContext("2d"); c.scale(scale, scale); c.clearRect(0, 0, width, height);
  c.font = '12px system-ui, "DejaVu Sans", sans-serif'; c.textBaseline = "middle";
  const [t0, t1] = view, room = width - GUTTER - 4, x = (t) => GUTTER + (t - t0) / (t1 - t0) * room;
  axis(c, x, t0, t1, height, width);
  const palettes = new Map();
  lanes.forEach((lane, at) => {
    const whose = lane.gpu || lane.name; if (!palettes.has(whose)) palettes.set(whose, data.doings.map((d) => rgb(paint(d, whose))));
    row(c, lane, rowTop(at), x, t0, t1, room, palettes.get(whose));
  });
  for (const [when, kind, level, about, text] of data.marks) {
    if (when < t0 || when > t1 || (level === "info" && kind !== "recovered" && kind !== "life")) continue;
    const px = x(when); c.fillStyle = level === "error" ? colours.bad : level === "warning" ? colours.warn : kind === "recovered" ? colours.good : colours.quiet;
    c.beginPath(); c.moveTo(px, AXIS + 14); c.lineTo(px - 4.5, AXIS + 5); c.lineTo(px + 4.5, AXIS + 5); c.fill();
  }
  $("range").textContent = t0 <= 0 && t1 >= data.seconds ? span(data.seconds) : span(t0) + " to " + span(t1);
}
const rowTop = (at) => AXIS + MARKS + at * (ROW + GAP) + (lanes[at].gpu ? 0 : 12);
function axis(c, x, t0, t1, height, width) {
  const wanted = (t1 - t0) / Math.max(2, (width - GUTTER) / 110), steps = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800];
  const step = steps.find((s) => s >= wanted) || 604800;
  c.strokeStyle = colours.grid; c.fillStyle = colours.quiet; c.textAlign = "center"; c.lineWidth = 1;
  for (let t = Math.ceil(t0 / step - 1e-9) * step; t <= t1; t += step) {
    const px = Math.round(x(t)) + 0.5; c.beginPath(); c.moveTo(px, AXIS - 6); c.lineTo(px, height); c.stroke(); c.fillText(tick(t, step), Math.min(width - 18, px), 10);
  }
}
const tick = (t, step) => { if (step < 1) return t.toFixed(step < 0.01 ? 3 : step < 0.1 ? 2 : 1) + " s"; const s = Math.round(t), two = (n) => String(n).padStart(2, "0"); return s < 3600 && data.seconds < 3600 ? Math.floor(s / 60) + ":" + two(s % 60) : (s >= 86400 ? Math.floor(s / 86400) + "d " : "") + Math.floor(s % 86400 / 3600) + ":" + two(Math.floor(s % 3600 / 60)) + (step < 60 ? ":" + two(s % 60) : ""); };
function row(c, lane, top, x, t0, t1, room, palette) {
  c.textAlign = "left"; c.fillStyle = colours.text; const clipped = lane.name.length > 13 ? lane.name.slice(0, 12) + "…" : lane.name;
  c.fillText(clipped, 2, top + ROW / 2);
  c.fillStyle = colours.empty; c.fillRect(GUTTER, top, room, ROW);
  const pixels = room / (t1 - t0); let i = firstAt(lane.begins, t0), px = -1, weight = 0, sums = [0, 0, 0];
  const flush = () => { if (weight > 0) { const rest = Math.max(0, 1 - weight), e = rgb(colours.empty); c.fillStyle = "rgb(" + sums.map((v, k) => Math.round(v + e[k] * rest)).join(",") + ")"; c.fillRect(GUTTER + px, top, 1, ROW); } weight = 0; sums = [0, 0, 0]; };
  for (; i < lane.begins.length && lane.begins[i] < t1; i++) {
    const doing = data.doings[lane.doings[i]], end = i + 1 < lane.begins.length ? lane.begins[i + 1] : data.seconds;
    const a = Math.max(0, (lane.begins[i] - t0) * pixels), b = Math.min(room, (end - t0) * pixels);
    if (b <= a || doing[0] === "free" || doing[0] === "ended") continue;
    const colour = palette[lane.doings[i]];
    if (b - a >= 1.5) {
      flush(); c.fillStyle = "rgb(" + colour.join(",") + ")"; c.fillRect(GUTTER + a, top, b - a, ROW); px = -1;
      if (b - a > 46 && doing[0] !== "off") label(c, lane.gpu ? ownerOf(doing[1]) || WORDS[doing[0]] : WORDS[doing[0]], a, b, top, colour);
    } else { // thinner than a pixel: its share of the pixel's colour
      const at = Math.floor(a); if (at !== px) { flush(); px = at; }
      const share = Math.min(b - a, 1 - weight); weight += share; colour.forEach((v, k) => { sums[k] += v * share; });
    }
  }
  flush();
}
function label(c, text, a, b, top, colour) {
  const fits = Math.floor((b - a - 10) / 6.6); if (text.length > fits) return;
  c.fillStyle = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 165 ? "#1d2330" : "#ffffff"; c.textAlign = "left"; c.fillText(text, GUTTER + Math.max(a, 0) + 5, top + ROW / 2 + 0.5);
}
function show(t0, t1) { const least = 0.002, full = Math.max(data.seconds, 0.01); let w = Math.min(full, Math.max(least, t1 - t0)); t0 = Math.max(0, Math.min(full - w, t0)); view = [t0, t0 + w]; draw(); }
function zoom(factor, at) { const [t0, t1] = view, t = at === undefined ? (t0 + t1) / 2 : at; show(t - (t - t0) * factor, t + (t1 - t) * factor); }
const timeAt = (event) => { const r = $("lanes").getBoundingClientRect(); return view[0] + (event.clientX - r.left - GUTTER) / (r.width - GUTTER - 4) * (view[1] - view[0]); };
function hover(event) {
  const r = $("lanes").getBoundingClientRect(), y = event.clientY - r.top, t = timeAt(event), tip = $("tip"); let text = "";
  if (y >= AXIS && y < AXIS + MARKS) {
    const near = (view[1] - view[0]) / r.width * 6, found = data.marks.filter((m) => Math.abs(m[0] - t) < near).slice(0, 6);
    text = found.map((m) => span(m[0]) + "  " + (m[3] ? m[3] + ": " : "") + m[4]).join("\n");
  } else lanes.forEach((lane, at) => {
    if (y < rowTop(at) || y > rowTop(at) + ROW || t < 0 || t > data.seconds || event.clientX - r.left < GUTTER) return;
    const i = firstAt(lane.begins, t), [kind, who, what] = data.doings[lane.doings[i]], end = i + 1 < lane.begins.length ? lane.begins[i + 1] : data.seconds;
    const about = lane.gpu ? [who, WORDS[kind] + (what && what !== kind ? " (" + what + ")" : "")] : [WORDS[kind], what + (who && !what.includes(who) ? " — " + who : "")];
    text = lane.name + ": " + about.filter(Boolean).join(", ") + "\n" + span(end - lane.begins[i]) + ", from " + span(lane.begins[i]) + (data.began_at ? " (" + clock(lane.begins[i]) + ")" : "");
  });
  tip.hidden = !text; if (!text) return;
  tip.textContent = text; const left = Math.min(event.clientX - r.left + 14, r.width - tip.offsetWidth - 6); tip.style.left = Math.max(0, left) + "px"; tip.style.top = y + 18 + "px";
}
function timeline() {
  lanes = [...data.gpus.map((l) => expand(l, true)), ...data.lanes.map((l) => expand(l, false))];
  $("by").textContent = byPipeline ? "colour: whose" : "colour: what";
  const used = new Set(lanes.flatMap((l) => l.doings.map((d) => data.doings[d][0]))), items = [];
  if (byPipeline) data.pipelines.forEach((p) => items.push([hueOf(p.name), p.name + ": train"], [mix(hueOf(p.name), 0.62), "generate"], [mix(hueOf(p.name), 0.25), "awake, nothing to do; own work"]));
  const shown = byPipeline ? ["switch", "failed", "withheld", "off"] : Object.keys(data.gpu_kinds).filter((k) => k !== "free");
  shown.filter((k) => used.has(k)).forEach((k) => items.push([colours[k], WORDS[k]]));
  (byPipeline ? ["lease", "engine"] : ["generate", "lease", "engine", "own"]).filter((k) => used.has(k)).forEach((k) => items.push([colours[k], WORDS[k]]));
  put("legend", ...items.map(([colour, text]) => { const s = make("span"), i = make("i"); i.style.background = colour; s.append(i, text); return s; }));
  $("thinned").textContent = data.thinned_s ? "A long run: what happened within " + span(data.thinned_s) + " is put together; totals are exact." : "";
  if (!view) view = [0, Math.max(data.seconds, 0.01)];
  draw();
}

// ---- where the time went
function splitBars(id, splits, kinds) {
  put(id, ...splits.map((s) => {
    const total = Object.values(s.seconds).reduce((a, b) => a + b, 0) || 1, line = make("div", "split"), bar = make("div", "bar"), name = make("div", "name", s.name); name.title = s.name; line.append(name, bar);
    for (const kind of Object.keys(kinds)) {
      const share = (s.seconds[kind] || 0) / total; if (!share) continue;
      const part = make("div", PALE.has(kind) ? "pale" : "", share > 0.055 ? percent(share) : ""); part.style.width = share * 100 + "%"; part.style.background = colours[kind]; part.title = WORDS[kind] + ": " + percent(share) + ", " + span(s.seconds[kind]) + " — " + kinds[kind]; bar.append(part);
    }
    return line;
  }), keyOf(splits, kinds));
}
function keyOf(splits, kinds) {
  const box = make("div", "legend"), sums = {}; let total = 0;
  splits.forEach((s) => Object.entries(s.seconds).forEach(([k, v]) => { sums[k] = (sums[k] || 0) + v; total += v; }));
  Object.keys(kinds).filter((k) => sums[k] / total >= 0.0005).forEach((k) => { const s = make("span"), i = make("i"); i.style.background = colours[k]; s.append(i, WORDS[k] + " " + percent(sums[k] / total)); s.title = kinds[k]; box.append(s); });
  return box;
}
function table(heads, rows, numeric) {
  const box = make("div", "scroll"), t = make("table"), head = make("tr"); heads.forEach((h, i) => head.append(make("th", numeric.includes(i) ? "num" : "", h))); t.append(head);
  rows.forEach((cells) => { const tr = make("tr"); cells.forEach((cell, i) => { const td = make("td", numeric.includes(i) ? "num" : ""); if (cell instanceof Node) td.append(cell); else td.textContent = cell; tr.append(td); }); t.append(tr); });
  box.append(t); return box;
}
const dotted = (name) => { const s = make("span"), d = make("span", "dot"); d.style.background = hueOf(name); s.append(d, name); return s; };
function waits() {
  const rows = data.waits.map((w) => [dotted(w.name), span(w.counted), String(w.times), span(w.longest), span(w.by_kind.lease || 0), span(w.by_kind.rollout || 0),
    Object.entries(w.by_pipeline).sort((a, b) => b[1] - a[1]).map(([who, s]) => (who === w.name ? "its own engines" : who || "nobody: it had to start") + " " + span(s)).join(", ") || "–"]);
  put("waits", table(["pipeline", "waited", "waits", "longest", "for GPUs to train on", "for an engine", "who had what it waited for"], rows, [1, 2, 3, 4, 5]));
}
function worthIt() {
  const w = data.worth; if (!w) { put("worth", make("p", "quiet", "Not one pipeline has trained and generated yet.")); return; }
  const ratio = w.in_turn / w.shared, verdict = make("p", "verdict"), box = make("div", "worth"), most = Math.max(w.in_turn, w.shared);
  if (Object.keys(w.alone).length < 2) verdict.textContent = "Only one pipeline has worked: there was nothing to share.";
  else verdict.append("One after another, the same work would have taken ", make("b", "", span(w.in_turn)), "; shared it took ", make("b", "", span(w.shared)), ": ", make("b", ratio >= 1.02 ? "good" : ratio < 0.98 ? "error" : "", ratio.toFixed(2) + " times as fast"), ".");
  const add = (name, parts) => { const bar = make("div", "bar"); let sum = 0; parts.forEach(([s, colour, title]) => { const d = make("div"); d.style.width = s / most * 100 + "%"; d.style.background = colour; d.title = title; bar.append(d); sum += s; }); box.append(make("div", "", name), bar, make("div", "num", span(sum))); };
  add("shared, as it was", [[w.shared, colours.rollout, "measured"]]);
  add("one after another", Object.entries(w.alone).map(([name, s]) => [s, hueOf(name), name + " alone: " + span(s)]));
  put("worth", verdict, box, make("p", "hint", "Alone and in turn are simulated with the durations measured in this run; all samples count as equally long, so a queue's long tails are missing: what sharing brings is rather said too low. The start of the run is left out."));
}

// ---- curves
let byStep = true;
const SVG = "http://www.w3.org/2000/svg", svg = (tag, attributes) => { const e = document.createElementNS(SVG, tag); for (const k in attributes) e.setAttribute(k, attributes[k]); return e; };
function curves() {
  $("axis").textContent = byStep ? "over steps" : "over time"; const names = [...new Set(data.curves.map((c) => c.name))];
  const first = ["reward", "loss"], order = names.sort((a, b) => (first.indexOf(a) + 9) % 9 - (first.indexOf(b) + 9) % 9 || (a < b ? -1 : 1));
  const charts = order.map((name) => chart(name, data.curves.filter((c) => c.name === name && c.values.length))).filter(Boolean);
  put("curves", ...(charts.length ? charts : [make("p", "quiet", "No trainer has reported anything yet: pipeline.report(step=…, reward=…).")]));
}
function chart(name, series) {
  const points = series.map((c) => ({ name: c.pipeline, xs: byStep && c.steps.length ? c.steps : c.times, timed: !(byStep && c.steps.length), ys: c.values }));
  const all = points.flatMap((p) => p.ys).filter((v) => v !== null); if (!all.length) return null;
  const W = 400, H = 190, L = 58, B = 20, xs = points.flatMap((p) => p.xs); let lo = Math.min(...all), hi = Math.max(...all); if (lo === hi) { lo -= Math.abs(lo) * 0.1 || 0.5; hi += Math.abs(hi) * 0.1 || 0.5; }
  const pad = (hi - lo) * 0.06; lo -= lo === 0 ? 0 : pad; hi += pad; const x0 = Math.min(...xs), x1 = Math.max(...xs), px = (v) => L + (x1 > x0 ? (v - x0) / (x1 - x0) : 0.5) * (W - L - 8), py = (v) => 8 + (hi - v) / (hi - lo) * (H - B - 14);
  const root = svg("svg", { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", role: "img" }), text = (x, y, s, anchor) => { const t = svg("text", { x, y, "text-anchor": anchor }); t.textContent = s; root.append(t); };
  root.setAttribute("preserveAspectRatio", "xMidYMid meet");
  for (let i = 0; i <= 3; i++) { const v = lo + (hi - lo) * i / 3, y = py(v); root.append(svg("line", { x1: L, x2: W - 8, y1: y, y2: y })); text(L - 6, y + 4, Math.abs(v) < (hi - lo) * 1e-6 ? "0" : figure(Number(v.toPrecision(3))), "end"); }
  const axisWord = (v) => points[0].timed ? tick(v, x1 - x0 < 60 ? 1 : 60) : String(v); text(L, H - 4, axisWord(x0), "start"); text(W - 8, H - 4, (points[0].timed ? "" : "step ") + axisWord(x1), "end");
  for (const p of points) {
    let d = "", pen = false; p.ys.forEach((v, i) => { if (v === null) { pen = false; return; } d += (pen ? "L" : "M") + px(p.xs[i]).toFixed(2) + " " + py(v).toFixed(2); pen = true; });
    root.append(svg("path", { d, stroke: hueOf(p.name) })); if (p.ys.length <= 40) p.ys.forEach((v, i) => { if (v !== null) root.append(svg("circle", { cx: px(p.xs[i]), cy: py(v), r: 2.6, fill: hueOf(p.name) })); });
  }
  const box = make("div", "curve"), key = make("div", "legend"); box.append(make("h3", "", name), root, key);
  const last = () => put2(key, points.map((p) => [p.name, p.ys[p.ys.length - 1]]), ""); last();
  root.addEventListener("pointermove", (e) => { const r = root.getBoundingClientRect(), scale = Math.min(r.width / W, r.height / H), v = x0 + (((e.clientX - r.left - (r.width - W * scale) / 2) / scale) - L) / (W - L - 8) * (x1 - x0); let at = x0; put2(key, points.map((p) => { let best = 0; p.xs.forEach((x, i) => { if (Math.abs(x - v) < Math.abs(p.xs[best] - v)) best = i; }); at = p.xs[best]; return [p.name, p.ys[best]]; }), points[0].timed ? span(at) : "step " + at); });
  root.addEventListener("pointerleave", last);
  return box;
}
const put2 = (key, pairs, at) => key.replaceChildren(...pairs.map(([name, v]) => { const s = dotted(name); s.append(" " + (v === null || v === undefined ? "not a number" : figure(v))); return s; }), at ? make("span", "", "at " + at) : "");

// ---- the rest
function summary() {
  document.title = data.run + " – Trainshed"; $("run").textContent = data.run;
  $("state").textContent = { ended: "ended", killed: "killed", runs: "running" }[data.state] || data.state; $("state").className = "chip " + data.state;
  $("when").textContent = (data.began_at ? clock(0) + ", " : "") + span(data.seconds) + (data.lives.length > 1 ? ", " + data.lives.length + " starts" : ""); $("meaning").textContent = data.meaning;
  const samples = data.pipelines.reduce((a, p) => a + p.samples, 0), tokens = data.pipelines.reduce((a, p) => a + p.tokens, 0), steps = data.pipelines.reduce((a, p) => a + p.steps_done, 0), failures = data.marks.filter((m) => m[1] === "failed" && m[2] === "error").length;
  const tiles = [[percent(data.utilisation), "of GPU time at work"], [percent(data.switching), "lost to switches"], [percent(data.idle), "idle"], [String(steps), "steps done"], [count(samples), "samples"], [count(tokens), "tokens"], [String(failures), failures === 1 ? "failure" : "failures"]];
  if (data.worth && Object.keys(data.worth.alone).length > 1) tiles.unshift([(data.worth.in_turn / data.worth.shared).toFixed(2) + " ×", "as fast as in turn"]);
  put("tiles", ...tiles.map(([value, word]) => { const t = make("div", "tile"); t.append(make("b", "", value), make("span", "", word)); return t; }));
  put("pipelines", table(["pipeline", data.state === "runs" ? "now" : "at the end", "steps", "samples", "tokens", "weights", "outcome"], data.pipelines.map((p) => [dotted(p.name), WORDS[p.state] || p.state, p.steps_done + (p.steps ? "/" + p.steps : ""), count(p.samples), count(p.tokens), "v" + p.version, p.outcome + (p.why ? ": " + p.why : "")]), [2, 3, 4, 5]));
  const told = data.marks.filter((m) => m[1] !== "checkpoint");
  put("marks", told.length ? table(["after", "", "who", "what"], told.slice(-400).map(([at, kind, level, about, text]) => { const b = make("button", "", span(at)); b.addEventListener("click", () => { const w = Math.max(1, Math.min(30, data.seconds / 20)); show(at - w / 2, at + w / 2); $("lanes").scrollIntoView({ block: "center", behavior: "smooth" }); }); return [b, make("span", level === "info" ? (kind === "recovered" ? "good" : "") : level, kind), about, text]; }), []) : make("p", "quiet", "Nothing failed, and nobody asked for anything."));
  if (data.marks_left_out) $("marks").append(make("p", "hint", data.marks_left_out + " more are in the recording."));
  put("configuration", table(["key", "value"], data.configuration.map(([k, v]) => [make("code", "", k), make("code", "", v)]), []));
  $("foot").textContent = data.directory;
}
function render() { readColours(); summary(); timeline(); splitBars("gpu-splits", data.gpu_splits, data.gpu_kinds); splitBars("pipeline-splits", data.pipeline_splits, data.pipeline_kinds); waits(); worthIt(); curves(); }
const canvas = $("lanes"); let dragged = null;
canvas.addEventListener("wheel", (e) => { e.preventDefault(); if (Math.abs(e.deltaX) > Math.abs(e.deltaY)) { const d = e.deltaX / canvas.clientWidth * (view[1] - view[0]); show(view[0] + d, view[1] + d); } else zoom(Math.exp(e.deltaY * 0.0016), timeAt(e)); }, { passive: false });
canvas.addEventListener("pointerdown", (e) => { dragged = [e.clientX, view[0], view[1]]; canvas.setPointerCapture(e.pointerId); });
canvas.addEventListener("pointermove", (e) => { if (dragged) { const d = (dragged[0] - e.clientX) / (canvas.clientWidth - GUTTER) * (dragged[2] - dragged[1]); show(dragged[1] + d, dragged[2] + d); } hover(e); });
canvas.addEventListener("pointerup", () => { dragged = null; });
canvas.addEventListener("pointerleave", () => { $("tip").hidden = true; });
canvas.addEventListener("dblclick", () => show(0, data.seconds));
canvas.addEventListener("keydown", (e) => { const w = view[1] - view[0]; if (e.key === "ArrowLeft") show(view[0] - w / 8, view[1] - w / 8); else if (e.key === "ArrowRight") show(view[0] + w / 8, view[1] + w / 8); else if (e.key === "+") zoom(0.7); else if (e.key === "-") zoom(1.4); });
$("in").addEventListener("click", () => zoom(0.5)); $("out").addEventListener("click", () => zoom(2)); $("all").addEventListener("click", () => show(0, data.seconds));
$("by").addEventListener("click", () => { byPipeline = !byPipeline; timeline(); }); $("axis").addEventListener("click", () => { byStep = !byStep; curves(); });
window.addEventListener("resize", draw); matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
render();
})();
