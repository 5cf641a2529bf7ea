"""A page as one self-contained HTML document: nothing fetched, no link out of it, prints well, light and dark.

Must not know what is shown, or how it looks: that is `raytrain.evaluation.look`.
"""

from __future__ import annotations

import base64
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from raytrain.evaluation.look import DOCUMENT, POLICY, SCRIPT, STYLE
from raytrain.evaluation.page import (
    Bar,
    Cell,
    Comparison,
    Figure,
    Gallery,
    Page,
    Part,
    Picture,
    Plot,
    Problems,
    Scale,
    Shown,
    Table,
)

PROBLEMS_SHOWN = 100
LONG_TABLE_ROWS = 30
"""A longer table has a box of its own to scroll in."""
CONTENTS_FROM = 4
"""A page of so many parts has a table of contents."""
MISSING = "–"  # noqa: RUF001  # a dash, for a value that there is none of
_TYPES = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"))


@dataclass(frozen=True)
class _Section:
    """A part as it stands in the document, without its heading."""

    heading: str
    body: str
    half: bool = False


def render_page(page: Page) -> str:
    """Return `page` as an HTML document without any link out of it; every text is escaped."""
    sections = [section for i, part in enumerate(page.parts) if (section := _part(part, f"part{i}-"))]
    if page.facts:
        sections.append(_facts(page.facts))
    anchors = _anchors([section.heading for section in sections])
    parts = [
        _figures(page.figures, page.note),
        _contents(sections, anchors) if len(sections) >= CONTENTS_FROM else "",
        *_laid_out(sections, anchors),
    ]
    return DOCUMENT.substitute(
        policy=POLICY,
        title=escape(page.title),
        subtitle=escape(page.subtitle),
        style=STYLE,
        body="\n".join(filter(None, parts)),
        script=SCRIPT,
    )


def _anchors(headings: Sequence[str]) -> list[str]:
    """Return an id for each heading, none twice."""
    taken: list[str] = []
    for heading in headings:
        slug = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "part"
        candidates = itertools.chain([slug], (f"{slug}-{i}" for i in itertools.count(2)))
        taken.append(next(name for name in candidates if name not in taken))
    return taken


def _contents(sections: Sequence[_Section], anchors: Sequence[str]) -> str:
    items = "\n".join(
        f'<li><a href="#{anchor}">{escape(section.heading)}</a></li>'
        for section, anchor in zip(sections, anchors, strict=True)
    )
    return f'<nav aria-label="Contents"><ul>\n{items}\n</ul></nav>'


def _laid_out(sections: Sequence[_Section], anchors: Sequence[str]) -> Iterator[str]:
    """Yield the sections below each other, but halves that follow each other in rows."""
    pairs = zip(sections, anchors, strict=True)
    for half, group in itertools.groupby(pairs, key=lambda pair: pair[0].half):
        shown = "\n".join(
            f'<section id="{anchor}">\n<h2>{escape(section.heading)}</h2>\n{section.body}\n</section>'
            for section, anchor in group
        )
        yield f'<div class="pair">\n{shown}\n</div>' if half else shown


def _part(part: Part, prefix: str) -> _Section | None:
    """Return a part, or None where there is nothing in it; `prefix` makes ids in it the part's own."""
    if isinstance(part, Plot):
        return _plot(part, prefix)
    if isinstance(part, Table):
        return _table(part) if part.rows else None
    if isinstance(part, Gallery):
        return _gallery(part) if part.pictures else None
    return _problems(part) if part.problems else None


def _figures(figures: Sequence[Figure], note: str) -> str:
    items = "\n".join(_figure(figure) for figure in figures)
    shown = f'<dl class="figures">\n{items}\n</dl>\n' if figures else ""
    return shown + (f'<p class="note">{escape(note)}</p>' if note else "")


def _figure(figure: Figure) -> str:
    interval = f'<dd class="interval">{escape(figure.interval)}</dd>' if figure.interval else ""
    return (
        f'<div class="figure"><dt>{escape(figure.label)}</dt><dd class="value">{escape(figure.value)}</dd>{interval}'
        f"<dd>{escape(figure.explanation)}</dd></div>"
    )


def _plot(plot: Plot, prefix: str) -> _Section:
    size = "scroll half plot" if plot.half else "scroll plot"
    body = (
        f'{_caption(plot.caption)}<div class="{size}" role="img" aria-label="{escape(plot.alt)}" tabindex="0">'
        f"{_with_own_ids(plot.svg, prefix)}</div>"
    )
    return _Section(plot.heading, body, plot.half)


def _with_own_ids(svg: str, prefix: str) -> str:
    """Return a drawing whose ids are in no other one of the page: matplotlib counts from 1 in each."""
    used = set(re.findall(r"""(?:href=["']#|url\(["']?#)([^"')]+)""", svg))

    def own(match: re.Match[str]) -> str:
        return f' id="{prefix}{match[1]}"' if match[1] in used else ""

    svg = re.sub(r"""((?:href=["']#|url\(["']?#))""", rf"\g<1>{prefix}", svg)
    return re.sub(r'\sid="([^"]*)"', own, svg)


def _table(table: Table) -> _Section:
    columns = list(zip(*table.rows, strict=True))
    right = [any(not isinstance(cell, str | Bar) for cell in cells) for cells in columns]
    head = "".join(map(_header, table.headers, columns, right))
    body = "\n".join(f"<tr>{''.join(map(_cell, row, right, range(len(row))))}</tr>" for row in table.rows)
    box = "scroll long" if len(table.rows) > LONG_TABLE_ROWS else "scroll"
    return _Section(
        table.heading,
        f'{_caption(table.caption)}<div class="{box}" role="region" aria-label="{escape(table.heading)}" tabindex="0">'
        f'<table style="--columns:{len(columns)}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>",
    )


def _header(text: str, cells: Sequence[Cell], right: bool) -> str:
    """Return the header of a column, which stands over its numbers and says whether it is sorted by them."""
    kind = "number" if any(isinstance(cell, int | float | Bar | Shown) for cell in cells) else "text"
    return f'<th scope="col"{_place(right)} data-kind="{kind}">{_breakable(text)}</th>'


def _breakable(text: str) -> str:
    """Return a name, escaped, that a narrow column breaks between its words."""
    return re.sub(r"([._])(?=[^\W\d])", r"\1<wbr>", escape(text))


def _place(right: bool) -> str:
    return ' class="number"' if right else ""


def _cell(cell: Cell, right: bool, column: int) -> str:
    if isinstance(cell, str):
        tag = 'th scope="row"' if column == 0 else "td"
        shown = escape(cell) if column else _breakable(cell)
        return f"<{tag}{_place(right)}>{shown}</{tag[:2]}>"
    number = cell.fraction if isinstance(cell, Bar) else cell.number if isinstance(cell, Shown) else cell
    if number is None or math.isnan(number):
        return f'<td class="number missing">{escape(cell.text) if isinstance(cell, Shown) else MISSING}</td>'
    key = f'data-sort="{_key(number)}"'
    if isinstance(cell, Bar):
        width = min(max(cell.fraction, 0.0), 1.0) * 100
        bar = f'<span class="track" aria-hidden="true"><span style="width:{width:.1f}%"></span></span>'
        return f'<td class="bar" {key}><span class="both">{bar}<span>{f"{cell.fraction:.4f}"}</span></span></td>'
    if isinstance(cell, Shown):
        return f'<td class="number" {key}>{escape(cell.text)}</td>'
    return f'<td class="number" {key}>{f"{cell:,}" if isinstance(cell, int) else f"{cell:.4f}"}</td>'


def _key(number: float) -> str:
    """Return a number as JavaScript reads it."""
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return str(number) if isinstance(number, int) else repr(float(number))


def _caption(text: str) -> str:
    return f'<p class="caption">{escape(text)}</p>\n' if text else ""


def _problems(found: Problems) -> _Section:
    problems = found.problems
    items = "\n".join(
        f"<li><strong>{escape(problem.subject)}</strong> {escape(problem.found)}</li>"
        for problem in problems[:PROBLEMS_SHOWN]
    )
    more = len(problems) - PROBLEMS_SHOWN
    rest = f"\n<p class='caption'>And {more:,} more, not shown on this page.</p>" if more > 0 else ""
    return _Section(f"{found.heading} ({len(problems):,})", f'<ul class="problems">\n{items}\n</ul>{rest}')


def _gallery(gallery: Gallery) -> _Section:
    keys = "".join(
        f'<li><span class="key" style="background:{_rgb(colour)}"></span>{escape(text)}</li>'
        for colour, text in gallery.legend
    )
    keys += "".join(_scale(scale) for scale in gallery.scales)
    legend = f'<ul class="legend">{keys}</ul>\n' if keys else ""
    pictures = "\n".join(
        _comparison(each) if isinstance(each, Comparison) else _picture(each) for each in gallery.pictures
    )
    return _Section(gallery.heading, f'{_caption(gallery.caption)}{legend}<div class="gallery">\n{pictures}\n</div>')


def _scale(scale: Scale) -> str:
    steps = "".join(f'<span style="background:{_rgb(colour)}"></span>' for colour in scale.colours)
    ramp = f'<span class="ramp" aria-hidden="true">{steps}</span>'
    words = [f"<span>{escape(text)}</span>" for text in (f"{scale.name}:", scale.low, scale.high)]
    return f"<li>{words[0]}{words[1]}{ramp}{words[2]}</li>"


def _rgb(colour: tuple[int, int, int]) -> str:
    return f"rgb({colour[0]},{colour[1]},{colour[2]})"


def _picture(picture: Picture) -> str:
    return (
        f'<figure><img alt="{escape(picture.alt)}" src="{_data_url(picture.image)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _comparison(comparison: Comparison) -> str:
    panels = "\n".join(_picture(panel) for panel in comparison.panels)
    return (
        f'<figure class="comparison"><figcaption>{escape(comparison.caption)}</figcaption>'
        f'<div class="panels">\n{panels}\n</div></figure>'
    )


def _data_url(image: bytes) -> str:
    """Return an image as the text of a link; raise `ValueError` for what is neither PNG, JPEG nor WebP."""
    kind = next((kind for start, kind in _TYPES if image.startswith(start)), None)
    if kind is None:
        raise ValueError(f"a picture must be PNG, JPEG or WebP, found a file that begins with {image[:8]!r}")
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


def _facts(facts: Sequence[tuple[str, str]]) -> _Section:
    items = "\n".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return _Section("Settings and versions", f'<dl class="facts">\n{items}\n</dl>')
