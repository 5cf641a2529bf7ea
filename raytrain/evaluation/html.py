"""A page as one self-contained HTML document: nothing fetched, no link out of it, prints well, light and dark.

Must not know what is shown.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from string import Template

from raytrain.evaluation.page import Bar, Cell, Figure, Gallery, Page, Part, Plot, Problems, Shown, Table

PROBLEMS_SHOWN = 100


def render_page(page: Page) -> str:
    """Return `page` as an HTML document without any link out of it; every text is escaped."""
    parts = [
        _figures(page.figures, page.note),
        *(_part(part) for part in page.parts),
        _facts(page.facts),
    ]
    return _DOCUMENT.substitute(
        title=escape(page.title), subtitle=escape(page.subtitle), style=_STYLE, body="\n".join(filter(None, parts))
    )


def _part(part: Part) -> str:
    if isinstance(part, Plot):
        return _plot(part)
    if isinstance(part, Table):
        return _table(part)
    return _gallery(part) if isinstance(part, Gallery) else _problems(part)


def _figures(figures: Sequence[Figure], note: str) -> str:
    items = "".join(
        f'<div class="figure"><dt>{escape(figure.label)}</dt>'
        f"<dd><strong>{escape(figure.value)}</strong><span>{escape(figure.explanation)}</span></dd></div>\n"
        for figure in figures
    )
    shown = f'<dl class="figures">\n{items}</dl>\n' if figures else ""
    return shown + (f'<p class="note">{escape(note)}</p>' if note else "")


def _plot(plot: Plot) -> str:
    heading = escape(plot.heading)
    return (
        f"<section>\n<h2>{heading}</h2>\n{_caption(plot.caption)}"
        f'<div class="scroll plot" role="img" aria-label="{escape(plot.alt)}" tabindex="0">{plot.svg}</div>\n</section>'
    )


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    # A header stands over its numbers: right where the cells below it are.
    classes = [' class="number"' if isinstance(cell, int | float | Shown) else "" for cell in table.rows[0]]
    head = "".join(
        f'<th scope="col"{place}>{escape(header)}</th>' for header, place in zip(table.headers, classes, strict=True)
    )
    body = "\n".join(
        f"<tr>{''.join(_cell(cell, first=i == 0) for i, cell in enumerate(row))}</tr>" for row in table.rows
    )
    heading = escape(table.heading)
    return (
        f"<section>\n<h2>{heading}</h2>\n{_caption(table.caption)}"
        f'<div class="scroll" role="region" aria-label="{heading}" tabindex="0"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n</section>"
    )


def _cell(cell: Cell, *, first: bool) -> str:
    if isinstance(cell, Bar):
        width = min(max(cell.fraction, 0.0), 1.0) * 100
        bar = f'<span class="track" aria-hidden="true"><span style="width:{width:.1f}%"></span></span>'
        return f'<td class="bar"><span class="both">{bar}<span>{f"{cell.fraction:.4f}"}</span></span></td>'
    if isinstance(cell, Shown):
        return f'<td class="number">{escape(cell.text)}</td>'
    if isinstance(cell, str):
        return f'<th scope="row">{escape(cell)}</th>' if first else f"<td>{escape(cell)}</td>"
    return f'<td class="number">{f"{cell:,}" if isinstance(cell, int) else f"{cell:.4f}"}</td>'


def _caption(text: str) -> str:
    return f'<p class="caption">{escape(text)}</p>\n' if text else ""


def _problems(found: Problems) -> str:
    problems = found.problems
    if not problems:
        return ""
    items = "\n".join(
        f"<li><strong>{escape(problem.subject)}</strong> {escape(problem.found)}</li>"
        for problem in problems[:PROBLEMS_SHOWN]
    )
    more = len(problems) - PROBLEMS_SHOWN
    rest = f"\n<p class='caption'>And {more:,} more, not shown on this page.</p>" if more > 0 else ""
    heading = f"{escape(found.heading)} ({len(problems):,})"
    return f'<section>\n<h2>{heading}</h2>\n<ul class="problems">\n{items}\n</ul>{rest}\n</section>'


def _gallery(gallery: Gallery) -> str:
    if not gallery.pictures:
        return ""
    keys = "".join(
        f'<li><span class="key" style="background:rgb({red},{green},{blue})"></span>{escape(text)}</li>'
        for (red, green, blue), text in gallery.legend
    )
    legend = f'<ul class="legend">{keys}</ul>\n' if keys else ""
    pictures = "\n".join(
        f'<figure><img alt="{escape(picture.alt)}" src="{_data_url(picture.png)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in gallery.pictures
    )
    return (
        f"<section>\n<h2>{escape(gallery.heading)}</h2>\n{_caption(gallery.caption)}{legend}"
        f'<div class="gallery">\n{pictures}\n</div>\n</section>'
    )


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    if not facts:
        return ""
    items = "\n".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f'<section>\n<h2>Settings and versions</h2>\n<dl class="facts">\n{items}\n</dl>\n</section>'


# The policy makes the browser hold the promise: nothing is fetched, no script runs.
_DOCUMENT = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
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
</body>
</html>
""")

_STYLE = """\
:root { color-scheme: light dark; --page: #ffffff; --text: #1a2027; --quiet: #57626e; --line: #dde2e8;
  --panel: #f5f7f9; --accent: #1f6feb; --track: #e4e9ef; --warn: #9a4b00; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12161b; --text: #e5e9ee; --quiet: #9ba7b4; --line: #2b333d; --panel: #1a2027; --accent: #5b9dff;
    --track: #2b333d; --warn: #f0a35e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; break-after: avoid; }
header p, .caption, .note { color: var(--quiet); margin: 0 0 .75rem; max-width: 56rem; }
dl, dd { margin: 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .75rem;
  margin: 1.5rem 0 .75rem; }
.figure { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .9rem 1rem; }
.figure dt { font-weight: 600; }
.figure strong { display: block; font-size: 2rem; line-height: 1.25; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.figure span { display: block; color: var(--quiet); font-size: .875rem; margin-top: .2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; }
th, td { text-align: left; padding: .4rem .75rem; border-bottom: 1px solid var(--line);
  font-weight: 400; vertical-align: top; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--quiet); font-size: .8125rem; font-weight: 600; vertical-align: bottom; }
tbody th { overflow-wrap: anywhere; min-width: 7rem; }
tr { break-inside: avoid; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
thead .number { white-space: normal; }
td.bar { width: 40%; min-width: 9rem; }
.both { display: flex; align-items: center; gap: .75rem; font-variant-numeric: tabular-nums; }
.track { flex: 1; height: .6rem; background: var(--track); border-radius: .2rem; overflow: hidden; }
.track span { display: block; height: 100%; background: var(--accent); }
.problems { margin: 0; padding: .75rem 1rem .75rem 2rem; background: var(--panel); border: 1px solid var(--warn);
  border-radius: .5rem; font-size: .9375rem; overflow-wrap: anywhere; }
.problems strong { margin-right: .35rem; }
.problems + .caption { margin-top: .5rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0;
  margin: 0 0 .75rem; font-size: .875rem; }
.key { display: inline-block; width: .9rem; height: .9rem; border-radius: .2rem; border: 1px solid var(--line);
  vertical-align: -.1rem; margin-right: .45rem; }
.plot svg { display: block; min-width: 34rem; width: 100%; height: auto; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr));
  gap: 1.5rem 1.25rem; }
figure { margin: 0; break-inside: avoid; }
img { display: block; max-width: 100%; height: auto; border-radius: .25rem; }
figcaption { color: var(--quiet); font-size: .875rem; margin-top: .4rem; overflow-wrap: anywhere; }
.facts { font-size: .9375rem; }
.facts div { display: grid; grid-template-columns: 11rem 1fr; gap: .75rem; padding: .3rem 0;
  border-bottom: 1px solid var(--line); }
.facts dt { color: var(--quiet); }
.facts dd { overflow-wrap: anywhere; }
@media (max-width: 34rem) {
  main { padding: 1.5rem 1rem 3rem; }
  .figures { grid-template-columns: 1fr; }
  .facts div { grid-template-columns: 1fr; gap: 0; }
  th, td { padding: .4rem .5rem; }
  td.bar { min-width: 7.5rem; } }
@media print {
  :root { color-scheme: light; --page: #ffffff; --text: #000000; --quiet: #444444; --line: #cccccc; --panel: #ffffff;
    --track: #eeeeee; --accent: #1f6feb; --warn: #9a4b00; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  .plot svg { min-width: 0; }
  .track, .track span, .key { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
