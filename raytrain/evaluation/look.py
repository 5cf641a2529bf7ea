"""How pages look and what moves in them: the document around a page, its style sheet, and the script that sorts tables.

Must not know what is shown. Whoever changes the script changes its hash with it: the policy lets no other run.
"""

from __future__ import annotations

import base64
import hashlib
from string import Template

SCALE_STEPS = 9
"""Colours of the scale for values, `--scale-0` to `--scale-8`: viridis, without what a page's background hides."""

# Headers become buttons here and not in the document: without JavaScript there is nothing to press.
SCRIPT = """
"use strict";
const words = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
const following = { none: "ascending", ascending: "descending", descending: "none" };

function keyOf(row, column, isNumber) {
  const cell = row.cells[column];
  if (isNumber) return "sort" in cell.dataset ? Number(cell.dataset.sort) : null;
  return cell.textContent.trim() || null;
}

function sorted(rows, column, isNumber, direction) {
  if (direction === "none") return rows;
  const sign = direction === "ascending" ? 1 : -1;
  const keyed = rows.map((row) => [keyOf(row, column, isNumber), row]);
  const known = keyed.filter(([key]) => key !== null);
  const missing = keyed.filter(([key]) => key === null);
  known.sort(([a], [b]) => sign * (isNumber ? a - b || 0 : words.compare(a, b)));
  return [...known, ...missing].map(([, row]) => row);
}

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  if (original.length < 2) continue;
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const direction = following[header.getAttribute("aria-sort") ?? "none"];
      for (const other of headers) other.removeAttribute("aria-sort");
      if (direction !== "none") header.setAttribute("aria-sort", direction);
      const rows = document.createDocumentFragment();
      for (const row of sorted(original, column, header.dataset.kind === "number", direction)) rows.append(row);
      body.append(rows);
    });
  });
}
"""

_SHA256 = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
# The policy makes the browser hold the promise: nothing is fetched or sent, and no script runs but the one above.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{_SHA256}'; base-uri 'none'; form-action 'none'"
)

DOCUMENT = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
<header>
<h1>$title</h1>
<p>$subtitle</p>
</header>
$body
</main>
<script>$script</script>
</body>
</html>
""")

STYLE = """\
:root { color-scheme: light dark; --page: #ffffff; --text: #1a2027; --quiet: #57626e; --line: #dde2e8;
  --panel: #f5f7f9; --accent: #1f6feb; --track: #e4e9ef; --warn: #9a4b00;
  --scale-0: #440154; --scale-1: #482374; --scale-2: #414287; --scale-3: #355e8d; --scale-4: #2a768e;
  --scale-5: #228d8d; --scale-6: #20a386; --scale-7: #37b878; --scale-8: #5cc863; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12161b; --text: #e5e9ee; --quiet: #9ba7b4; --line: #2b333d; --panel: #1a2027; --accent: #5b9dff;
    --track: #2b333d; --warn: #f0a35e;
    --scale-0: #32648e; --scale-1: #29798e; --scale-2: #228d8d; --scale-3: #1fa188; --scale-4: #2fb47c;
    --scale-5: #54c568; --scale-6: #84d44b; --scale-7: #bade28; --scale-8: #f1e51d; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--text); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
h1 { font-size: 1.875rem; line-height: 1.2; font-weight: 650; letter-spacing: -.01em; margin: 0 0 .5rem;
  overflow-wrap: anywhere; text-wrap: balance; }
h2 { font-size: 1.1875rem; line-height: 1.3; font-weight: 650; margin: 0 0 .5rem; break-after: avoid;
  overflow-wrap: anywhere; }
p { text-wrap: pretty; }
section { margin-top: 3rem; scroll-margin-top: 1rem; }
header p { color: var(--quiet); margin: 0; max-width: 48rem; overflow-wrap: anywhere; }
.caption, .note { color: var(--quiet); margin: 0 0 1rem; max-width: 48rem; font-size: .9375rem; }
dl, dd, figure { margin: 0; }

.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem; margin: 2rem 0 1rem; }
.figure { border: 1px solid var(--line); border-radius: .5rem; padding: 1rem 1.125rem; background: var(--panel);
  break-inside: avoid; }
.figure dt { font-size: .875rem; font-weight: 600; color: var(--quiet); }
.figure dd { font-size: .875rem; color: var(--quiet); margin-top: .5rem; line-height: 1.45; }
.figure .value { font-size: 2rem; line-height: 1.2; font-weight: 650; letter-spacing: -.01em; color: var(--text);
  font-variant-numeric: tabular-nums; margin-top: .125rem; overflow-wrap: anywhere; }
.figure .interval { font-size: .9375rem; color: var(--text); font-variant-numeric: tabular-nums; margin-top: 0; }

nav { margin-top: 2rem; border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); padding: .75rem 0; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: 0; padding: 0;
  font-size: .9375rem; }
nav a { display: inline-block; padding: .125rem 0; color: var(--accent); text-decoration: none; }
nav a:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }

.scroll { overflow-x: auto; }
.long { overflow: auto; max-height: min(38rem, 80vh); border-bottom: 1px solid var(--line); }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .9375rem; }
th, td { text-align: left; padding: .4375rem .75rem; border-bottom: 1px solid var(--line); font-weight: 400;
  vertical-align: baseline; }
th:first-child, td:first-child { padding-left: .25rem; }
th:last-child, td:last-child { padding-right: .25rem; }
.long tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--quiet); font-size: .8125rem; line-height: 1.3; font-weight: 600; vertical-align: bottom;
  border-bottom-color: var(--quiet); }
.long thead th { position: sticky; top: 0; background: var(--page); z-index: 1; }
thead button { all: unset; display: inline-flex; align-items: baseline; gap: .4em; cursor: pointer;
  border-radius: .2rem; }
thead button:hover, [aria-sort] button { color: var(--text); }
thead button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
thead button::after { content: ""; flex: none; width: .5em; height: .8em; background: currentColor; opacity: .45;
  clip-path: polygon(50% 0, 100% 42%, 0 42%, 50% 0, 50% 100%, 0 58%, 100% 58%, 50% 100%); }
[aria-sort] button::after { opacity: 1; }
[aria-sort=ascending] button::after { clip-path: polygon(50% 0, 100% 42%, 0 42%); }
[aria-sort=descending] button::after { clip-path: polygon(50% 100%, 100% 58%, 0 58%); }
.number button { flex-direction: row-reverse; }
tbody tr:hover > * { background: var(--panel); }
tbody th { overflow-wrap: anywhere; min-width: 9rem; }
tr { break-inside: avoid; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
thead .number { white-space: normal; }
.missing { color: var(--quiet); }
td.bar { min-width: 10rem; width: 34%; }
.both { display: flex; align-items: baseline; gap: .75rem; font-variant-numeric: tabular-nums; }
.track { flex: 1; align-self: center; height: .5rem; background: var(--track); border-radius: .125rem;
  overflow: hidden; }
.track span { display: block; height: 100%; background: var(--accent); }

.problems { margin: 0; padding: .75rem 1rem .75rem 2rem; border: 1px solid var(--line);
  border-left: .25rem solid var(--warn); border-radius: .25rem; background: var(--panel); font-size: .9375rem;
  overflow-wrap: anywhere; }
.problems li + li { margin-top: .25rem; }
.problems strong { font-weight: 600; margin-right: .35rem; }
.problems + .caption { margin: .5rem 0 0; }

.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 2.5rem; }
.pair section { min-width: 0; display: grid; grid-row: span 3; grid-template-rows: subgrid; align-items: start; }
.pair section > .plot { grid-row: 3; }
.plot svg { display: block; width: 100%; min-width: 42rem; height: auto; }
.half.plot svg { min-width: 20rem; }
.plot svg * { stroke-linejoin: round; stroke-linecap: butt; }

.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .375rem 1.25rem; padding: 0; margin: 0 0 1.25rem;
  font-size: .875rem; }
.legend li { display: flex; flex-wrap: wrap; align-items: center; gap: 0 .45rem; }
.key { flex: none; width: .9rem; height: .9rem; border-radius: .2rem; border: 1px solid var(--line); }
.ramp { flex: none; display: flex; border: 1px solid var(--line); border-radius: .2rem; overflow: hidden; }
.ramp span { width: .6rem; height: .8rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 2rem 1.25rem; }
.gallery > figure { break-inside: avoid; }
.comparison { grid-column: 1 / -1; }
.comparison > figcaption { color: var(--text); font-size: .9375rem; margin: 0 0 .5rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(45%, 11rem), 1fr)); gap: .75rem; }
img { display: block; max-width: 100%; height: auto; border-radius: .25rem; }
.panels img { width: 100%; }
figcaption { color: var(--quiet); font-size: .875rem; line-height: 1.4; margin-top: .375rem; overflow-wrap: anywhere; }

.facts { font-size: .9375rem; border-top: 1px solid var(--line); }
.facts div { display: grid; grid-template-columns: 14rem 1fr; gap: .75rem; padding: .375rem .25rem;
  border-bottom: 1px solid var(--line); break-inside: avoid; }
.facts dt { color: var(--quiet); overflow-wrap: anywhere; }
.facts dd { overflow-wrap: anywhere; }

@media (max-width: 34rem) {
  main { padding: 1.75rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  section { margin-top: 2.25rem; }
  .figures { grid-template-columns: 1fr; gap: .75rem; margin-top: 1.5rem; }
  nav ul { flex-direction: column; gap: 0; }
  nav a { padding: .3125rem 0; }
  .facts div { grid-template-columns: 1fr; gap: 0; }
  th, td { padding: .4375rem .5rem; }
  thead button { padding: .375rem 0; }
  td.bar { min-width: 8rem; }
  tbody th { min-width: 8rem; }
  td:last-child:not(.number, .bar) { min-width: 11rem; } }
@media print {
  :root { color-scheme: light; --page: #ffffff; --text: #000000; --quiet: #444444; --line: #cccccc; --panel: #ffffff;
    --accent: #1f6feb; --track: #eeeeee; --warn: #9a4b00;
    --scale-0: #440154; --scale-1: #482374; --scale-2: #414287; --scale-3: #355e8d; --scale-4: #2a768e;
    --scale-5: #228d8d; --scale-6: #20a386; --scale-7: #37b878; --scale-8: #5cc863; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  section { margin-top: 1.5rem; }
  .scroll, .long { overflow: visible; max-height: none; }
  .long thead th { position: static; }
  .caption, .legend { break-after: avoid; }
  section:has(> .plot) { break-inside: avoid; }
  .plot svg, .half.plot svg { min-width: 0; }
  .pair { grid-template-columns: 1fr 1fr; gap: 0 1.5rem; }
  .figures { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; }
  .figure { padding: .625rem .75rem; }
  .figure .value { font-size: 1.25rem; }
  .facts, .problems { font-size: 8.5pt; }
  table { font-size: clamp(5pt, calc(95pt / var(--columns)), 8.5pt); }
  thead th { font-size: inherit; }
  th, td { padding: .3em .5em; }
  thead { display: table-header-group; break-inside: avoid; }
  tbody th { min-width: 6em; }
  td.bar { min-width: 6rem; width: 24%; }
  td:last-child { overflow-wrap: anywhere; }
  thead button { display: contents; } /* the contents of a button are not drawn in headers of further pages */
  thead button::after { display: none; }
  .gallery { display: block; }
  .gallery > figure { margin-bottom: 1.25rem; }
  .panels { grid-template-columns: repeat(5, 1fr); gap: .375rem; }
  .track, .track span, .key, .ramp span { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
