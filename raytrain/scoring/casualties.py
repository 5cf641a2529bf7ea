"""The table of what can't be scored, as it lies at a destination: written, read, put together by cause.

Must not know who scores.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from raytrain import storage
from raytrain.errors import ConfigError
from raytrain.scoring.causes import Causes

CASUALTIES = "casualties.csv"
COLUMNS = ["item_id", "source_uri", "in_data", "cause"]
LONGEST_CAUSE = 10_000
"""Letters of a cause that are written: one far longer could not be read back as a cell of CSV."""
SHOWN = 100
"""Casualties that are kept one by one."""
IN_DATA, NOT_IN_DATA = "in_data", "not_in_data"


@dataclass
class Losses:
    """What the table says: how many items are in it, of how many the data is at fault, why, and the `first` of them."""

    num: int = 0
    num_in_data: int = 0
    causes: Causes = field(default_factory=Causes)
    first: list[list[str]] = field(default_factory=list)


def write_casualties(uri: str, rows: Sequence[Sequence[str]]) -> None:
    """Write the table of a destination, in the order of ids; without rows there is none.

    Endless causes are cut, and no query of an address is left in them, which may be a signature.
    """
    target = storage.join(uri, CASUALTIES)
    if not rows:
        storage.remove(target)
        return
    text = io.StringIO()
    written = [
        [*map(storage.without_queries, places), storage.without_queries(cause[:LONGEST_CAUSE])]
        for *places, cause in sorted(rows, key=lambda row: row[0])
    ]
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *written])
    storage.write_bytes(target, text.getvalue().encode())


def read_casualties(uri: str) -> list[list[str]]:
    """Return the rows of the table of a destination, without damaged ones; none where there is no such table."""
    try:
        text = storage.read_text(storage.join(uri, CASUALTIES), "table of casualties")
    except (FileNotFoundError, ConfigError):
        return []
    header, *rows = [*_whole_rows(text)] or [[]]
    return [row for row in rows if len(row) == len(COLUMNS)] if header == COLUMNS else []


def _whole_rows(text: str) -> Iterator[list[str]]:
    """Yield the rows of a CSV that can be read, e.g. not one with a cell of more than 131,072 letters."""
    lines = csv.reader(io.StringIO(text))
    while True:
        try:
            yield next(lines)
        except StopIteration:
            return
        except csv.Error:
            continue


def losses_of(rows: Sequence[Sequence[str]]) -> Losses:
    """Return what the rows of a table add up to; no query of an address is left in it."""
    losses = Losses()
    for item_id, source_uri, in_data, cause in rows:
        losses.num += 1
        losses.num_in_data += in_data == "true"
        word = IN_DATA if in_data == "true" else NOT_IN_DATA
        losses.causes.add(cause, item_id, word, names=(item_id, source_uri))
        if len(losses.first) < SHOWN:
            losses.first.append([item_id, storage.shown(source_uri), in_data, storage.without_queries(cause)])
    return losses
