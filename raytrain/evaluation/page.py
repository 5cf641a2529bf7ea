"""What a page shows, whichever command it is of: figures, drawings, tables, pictures, problems, facts.

Must not know how a page is drawn, where it is stored, or who made the numbers.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import raytrain
from raytrain.errors import DataError
from raytrain.evaluation.results import Problem


@dataclass(frozen=True)
class Figure:
    """A headline number, one sentence that says what it is, and its interval ("0.84 to 0.91, 95%") if it has one."""

    label: str
    value: str
    explanation: str
    interval: str = ""


@dataclass(frozen=True)
class Bar:
    """A number in [0, 1], shown with a bar of that length."""

    fraction: float


@dataclass(frozen=True)
class Shown:
    """A number by which rows are sorted, shown as `text`, right in its cell: a percentage, a duration, an interval."""

    number: float
    text: str


Cell = str | int | float | Bar | Shown | None
"""What a cell shows. None and NaN, for a number that there is none of, are a dash and sorted last."""


@dataclass(frozen=True)
class Table:
    """A table under its own heading; text stands left, numbers right (floats with four decimals).

    Readers sort it by any column. A column with a number in it is sorted by numbers, and any text in it counts as
    missing; other columns are sorted as text.
    """

    heading: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A drawing by `raytrain.evaluation.plots`, what it shows for those who can't see it, and the text below it.

    One that is `half` shares a row with the half one after it where a screen is wide enough.
    """

    heading: str
    svg: str
    alt: str
    caption: str = ""
    half: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG, JPEG or WebP file, what it shows for those who can't see it, and the text below it."""

    image: bytes
    alt: str
    caption: str


@dataclass(frozen=True)
class Comparison:
    """Pictures of one thing side by side, each with its name as caption, and the text over them all."""

    panels: Sequence[Picture]
    caption: str


Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


@dataclass(frozen=True)
class Scale:
    """The colours that stand for values, in their order, and what those at its ends stand for."""

    name: str
    colours: Sequence[Colour]
    low: str
    high: str


@dataclass(frozen=True)
class Gallery:
    """Pictures under one heading; `legend` and `scales` name the colours drawn in them."""

    pictures: Sequence[Picture | Comparison]
    legend: Sequence[tuple[Colour, str]] = ()
    heading: str = "Pictures"
    caption: str = ""
    scales: Sequence[Scale] = ()


@dataclass(frozen=True)
class Problems:
    """What was left out or is wrong, each with its cause."""

    problems: Sequence[Problem | DataError]
    heading: str = "Problems"


Part = Plot | Table | Gallery | Problems


@dataclass(frozen=True)
class Page:
    """What a page shows, from top to bottom: headline figures, a note on them, the parts in their order, facts.

    Parts without anything in them are left out. Many parts have a table of contents before them.
    """

    title: str
    subtitle: str
    figures: Sequence[Figure] = ()
    note: str = ""
    parts: Sequence[Part] = ()
    facts: Sequence[tuple[str, str]] = ()


def counted(count: int, noun: str) -> str:
    """Return a number of things in words, as in `1 chip` and `11,748 chips`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def version_facts() -> list[tuple[str, str]]:
    """Return the versions that a number may depend on."""
    facts = [("raytrain", raytrain.__version__), ("Python", platform.python_version())]
    for package in ("torch", "ray", "rasterio", "numpy"):
        try:
            facts.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return facts
