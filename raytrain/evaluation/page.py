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
    """A headline number with one sentence that says what it is."""

    label: str
    value: str
    explanation: str


@dataclass(frozen=True)
class Bar:
    """A number in [0, 1], shown with a bar of that length."""

    fraction: float


@dataclass(frozen=True)
class Shown:
    """A number by which rows are sorted, shown as `text`, right in its cell: a percentage, a duration, an interval."""

    number: float
    text: str


Cell = str | int | float | Bar | Shown


@dataclass(frozen=True)
class Table:
    """A table under its own heading; text stands left, numbers right (floats with four decimals)."""

    heading: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A drawing by `raytrain.evaluation.plots`, what it shows for those who can't see it, and the text below it."""

    heading: str
    svg: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG, what it shows for those who can't see it, and the text below it."""

    png: bytes
    alt: str
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Pictures under one heading; `legend` names the colours (red, green, blue) drawn in them."""

    pictures: Sequence[Picture]
    legend: Sequence[tuple[tuple[int, int, int], str]] = ()
    heading: str = "Pictures"
    caption: str = ""


@dataclass(frozen=True)
class Problems:
    """What was left out or is wrong, each with its cause."""

    problems: Sequence[Problem | DataError]
    heading: str = "Problems"


Part = Plot | Table | Gallery | Problems


@dataclass(frozen=True)
class Page:
    """What a page shows, from top to bottom: headline figures, a note on them, the parts in their order, facts.

    Parts without anything in them are left out.
    """

    title: str
    subtitle: str
    figures: Sequence[Figure] = ()
    note: str = ""
    parts: Sequence[Part] = ()
    facts: Sequence[tuple[str, str]] = ()


def version_facts() -> list[tuple[str, str]]:
    """Return the versions that a number may depend on."""
    facts = [("raytrain", raytrain.__version__), ("Python", platform.python_version())]
    for package in ("torch", "ray", "rasterio", "numpy"):
        try:
            facts.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return facts
