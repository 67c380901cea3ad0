"""Style and script of the HTML report, kept as strings so that the package needs no data files."""

CSS = """
:root { color-scheme: light dark; --page: #f4f5f8; --card: #ffffff; --ink: #15181e; --muted: #5c6573;
  --line: #e2e5ea; --soft: #f0f2f6; --train: #7b8cf0; --validation: #e2570b; --accent: #3f51d6;
  --heat: 63 81 214; --on-heat: #ffffff; --warn: #9a3412; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d1015; --card: #161a21; --ink: #e9ecf1; --muted: #9aa4b2; --line: #272d37; --soft: #1d222b;
    --train: #7185f5; --validation: #ff9a52; --accent: #93a3ff; --heat: 116 135 255; --on-heat: #0d1015;
    --warn: #fdba74; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; scroll-padding-top: 3.5rem; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header.top { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header.top { padding-top: 44px; padding-bottom: 22px; }
.eyebrow { color: var(--accent); font-size: .8rem; font-weight: 650; letter-spacing: .08em;
  text-transform: uppercase; }
h1 { font-size: clamp(1.7rem, 4.5vw, 2.6rem); line-height: 1.15; letter-spacing: -.02em; margin: .25rem 0 .5rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; letter-spacing: -.01em; margin: 0 0 .15rem; }
h3 { font-size: .95rem; margin: 1.6rem 0 .5rem; }
p { margin: .25rem 0 1rem; }
.muted, figcaption, caption { color: var(--muted); }
.lead { color: var(--muted); max-width: 44rem; }
.note { border-left: 3px solid var(--accent); background: var(--soft); border-radius: 0 8px 8px 0;
  padding: .5rem .9rem; color: var(--muted); font-size: .92rem; }
nav { position: sticky; top: 0; z-index: 5; background: var(--page); border-bottom: 1px solid var(--line); }
nav ul { max-width: 1080px; margin: 0 auto; padding: 0 20px; display: flex; gap: 1.3rem; list-style: none;
  overflow-x: auto; scrollbar-width: none; }
nav a { display: block; padding: .7rem 0; color: var(--muted); text-decoration: none; font-size: .9rem;
  white-space: nowrap; }
nav a:hover, nav a:focus-visible { color: var(--accent); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 22px 24px;
  margin: 18px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 14px 16px 12px; }
.tile dt { color: var(--muted); font-size: .85rem; }
.tile dd { margin: 0; }
.tile .value { font-size: 1.75rem; font-weight: 680; letter-spacing: -.02em; line-height: 1.25;
  white-space: nowrap; }
.tile .value small { font-size: .95rem; font-weight: 500; color: var(--muted); letter-spacing: 0;
  margin-left: .2em; }
.tile .detail { color: var(--muted); font-size: .8rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 26px 30px; }
.chart { margin: 0; min-width: 0; }
.chart figcaption { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .88rem; }
.chart figcaption b { color: var(--ink); flex: 1 0 100%; }
.chart small { font-weight: 400; color: var(--muted); }
.key::before { content: ""; display: inline-block; width: 1.1em; height: 3px; border-radius: 2px;
  vertical-align: .25em; margin-right: .4em; background: currentColor; }
.key.train::before { background: var(--train); }
.key.validation::before { background: var(--validation); }
.key.other::before { background: var(--muted); }
.plot { position: relative; height: 230px; margin: .6rem 8px 1.7rem 3.9rem; border-bottom: 1px solid var(--muted); }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: hidden; }
.plot path { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round; stroke-linecap: round; }
.plot .rule { stroke: var(--line); stroke-width: 1; }
.plot .train { stroke: var(--train); stroke-width: 1.6; }
.plot .validation { stroke: var(--validation); stroke-width: 2.2; }
.plot .other { stroke: var(--muted); stroke-width: 1.6; }
.plot .dots { stroke-width: 6.5; }
.plot span { position: absolute; font-size: .74rem; color: var(--muted); white-space: nowrap; line-height: 1;
  font-variant-numeric: tabular-nums; }
.plot .y { right: 100%; margin-right: 7px; transform: translateY(-50%); }
.plot .x { top: 100%; margin-top: 7px; transform: translateX(-50%); }
.plot .x.last { transform: translateX(-100%); }
.plot .cursor { top: 0; bottom: 0; border-left: 1px solid var(--muted); display: none; }
.plot .readout { top: 4px; right: 4px; padding: .35rem .5rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; display: none; color: var(--ink); line-height: 1.35;
  white-space: pre; }
.pictures { display: grid; gap: 8px; margin: 0; }
.pictures img { display: block; width: 100%; height: auto; border-radius: 5px; }
.picture { margin: 0; }
.picture figcaption { font-size: .74rem; text-align: center; padding-top: 2px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; }
.pair img:first-child { border-radius: 5px 0 0 5px; }
.pair img:last-child { border-radius: 0 5px 5px 0; }
img.pixels, .player img { image-rendering: pixelated; }
.sweep { display: grid; grid-template-columns: 8.2rem auto minmax(0, 1fr); gap: 0 16px; align-items: center;
  padding: 12px 0; border-top: 1px solid var(--line); break-inside: avoid; }
.sweep:first-of-type { border-top: 0; }
.sweep .name { font-weight: 650; }
.sweep .hint { display: block; color: var(--muted); font-size: .8rem; font-weight: 400; }
.sweep .strip { min-width: 0; }
.frames { display: grid; grid-template-columns: repeat(var(--steps), minmax(0, 1fr)); gap: 3px; }
.frames img { display: block; width: 100%; height: auto; border-radius: 4px; }
.js .frames img.now { outline: 2px solid var(--accent); }
.sweep .ends { display: flex; justify-content: space-between; font-size: .74rem; color: var(--muted);
  font-variant-numeric: tabular-nums; padding-top: 2px; }
.player, .sweep input, .sweep output { display: none; }
.js .player { display: block; }
.player img { display: block; width: 112px; height: auto; border-radius: 8px; }
.js .sweep input { display: block; width: 100%; margin: 6px 0 0; accent-color: var(--accent); }
.js .sweep output { display: inline; color: var(--accent); font-weight: 650; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 600; }
thead th { color: var(--muted); font-size: .82rem; }
tfoot td, tfoot th { font-weight: 680; border-bottom: 0; }
td.text { text-align: left; overflow-wrap: anywhere; }
table.heat th:first-child { padding-left: .4rem; }
table.heat { border-collapse: separate; border-spacing: 3px; }
table.heat th, table.heat td { border: 0; }
table.heat td { min-width: 4.3rem; text-align: center; border-radius: 6px;
  background: rgb(var(--heat) / var(--share)); -webkit-print-color-adjust: exact; print-color-adjust: exact; }
table.heat td.strong { color: var(--on-heat); }
table.heat td.best { outline: 2px solid var(--ink); outline-offset: -2px; font-weight: 680; }
table.heat thead th { text-align: center; vertical-align: bottom; }
.scale { display: flex; align-items: center; gap: .6rem; font-size: .8rem; color: var(--muted); margin: .7rem 0 0; }
.scale i { width: 140px; height: 10px; border-radius: 5px;
  background: linear-gradient(90deg, rgb(var(--heat) / 0), rgb(var(--heat))); border: 1px solid var(--line);
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 10px 40px;
  align-items: start; }
.columns table, .flow table { width: 100%; }
.flow { columns: 270px 3; column-gap: 40px; }
.flow > div { break-inside: avoid; padding-bottom: 1rem; }
.flow h3 { margin-top: .6rem; }
details { margin-top: .5rem; }
summary { cursor: pointer; font-weight: 600; padding: .25rem 0; }
.broken { display: none; color: var(--warn); }
.js .broken.seen { display: block; }
footer { max-width: 1080px; margin: 0 auto; padding: 6px 20px 44px; color: var(--muted); font-size: .84rem; }
@media (max-width: 640px) {
  header.top { padding-top: 26px; }
  main, header.top { padding-left: 14px; padding-right: 14px; }
  section { padding: 18px 16px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tile:last-child:nth-child(odd) { grid-column: 1 / -1; }
  .tile .value { font-size: 1.4rem; }
  .sweep { grid-template-columns: minmax(0, 1fr) auto; gap: 8px 12px; }
  .sweep .strip { grid-column: 1 / -1; }
  .player img { width: 96px; }
  .plot { height: 190px; }
  th, td { padding: .34rem .45rem; }
  table.heat { border-spacing: 1px; font-size: .78rem; }
  table.heat th:first-child { padding-left: 0; }
  table.heat td, table.heat th { min-width: 0; padding: .34rem .1rem; }
  table.heat thead th { font-size: .62rem; }
  table.heat td { min-width: 2.35rem; }
}
@media print {
  :root { --page: #fff; --card: #fff; --ink: #111; --muted: #444; --line: #ccc; --soft: #f4f4f4;
    --train: #6073e0; --validation: #c2410c; --accent: #2f3fb8; --heat: 63 81 214; --on-heat: #fff; }
  nav, .js .player, .js .sweep input, .js .sweep output { display: none; }
  body { font-size: 11pt; }
  section { border: 0; padding: 8px 0; margin: 10px 0; }
  h2, h3, .lead { break-after: avoid; }
  table { break-inside: avoid; }
  .tiles { grid-template-columns: repeat(5, 1fr); gap: 6px; }
  .tile { padding: 8px 10px; }
  .tile .value { font-size: 1.15rem; }
  .js .frames img.now { outline: 0; }
  tr, .chart, .tile, .picture { break-inside: avoid; }
  .sweep { grid-template-columns: 8.2rem minmax(0, 1fr); }
  .sweep .strip { grid-column: auto; }
}
"""

# Everything works without it: the strips, curves and tables are all in the page already.
JS = """
"use strict";
document.documentElement.classList.add("js");
document.querySelectorAll(".sweep").forEach(function (row) {
  var frames = row.querySelectorAll(".frames img"), player = document.createElement("img");
  var slider = row.querySelector("input"), output = row.querySelector("output"),
    values = JSON.parse(row.dataset.values);
  player.alt = row.querySelector(".player").dataset.alt;
  row.querySelector(".player").appendChild(player);
  function show() {
    frames.forEach(function (frame, place) { frame.classList.toggle("now", place === +slider.value); });
    player.src = frames[slider.value].src;
    output.textContent = values[slider.value];
  }
  slider.addEventListener("input", show);
  frames.forEach(function (frame, place) {
    frame.addEventListener("pointerenter", function () { slider.value = place; show(); });
  });
  show();
});
document.querySelectorAll(".plot").forEach(function (plot) {
  var chart = JSON.parse(plot.dataset.chart), cursor = plot.querySelector(".cursor"),
    readout = plot.querySelector(".readout");
  function leave() { cursor.style.display = readout.style.display = "none"; }
  plot.addEventListener("pointermove", function (event) {
    var box = plot.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
    if (share < 0 || share > 1) { leave(); return; }
    var step = chart.low + share * (chart.high - chart.low);
    var lines = chart.series.map(function (series) {
      var best = 0;
      series.x.forEach(function (x, i) { if (Math.abs(x - step) < Math.abs(series.x[best] - step)) { best = i; } });
      return series.name + "  " + series.y[best] + "  at " + Math.round(series.x[best]);
    });
    cursor.style.left = 100 * share + "%";
    readout.textContent = lines.join("\\n");
    readout.style.right = share > 0.5 ? "auto" : "4px";
    readout.style.left = share > 0.5 ? "4px" : "auto";
    cursor.style.display = readout.style.display = "block";
  });
  plot.addEventListener("pointerleave", leave);
});
window.addEventListener("beforeprint", function () {
  document.querySelectorAll("details").forEach(function (element) { element.open = true; });
});
window.addEventListener("load", function () {
  var broken = Array.prototype.filter.call(document.images, function (image) { return !image.naturalWidth;
    }).length;
  if (broken) {
    var line = document.querySelector(".broken");
    line.textContent = broken + " of " + document.images.length + " pictures could not be shown: the file is damaged.";
    line.classList.add("seen");
  }
});
"""
