"""The metadata of an archive: a row a chip, with its place and its time, and filters on any column.

A table is read row by row, and of a row only what tiles need is kept. Must not know where the chips lie.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from raytrain import storage
from raytrain.config import choose
from raytrain.errors import ConfigError, DataError
from raytrain.tiles.tables import read_table

_VALUES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class MetadataRow:
    """One row of a metadata CSV: the chip, its place, and its time where it is known."""

    chip_id: str
    location: str
    taken: datetime | None


@dataclass(frozen=True)
class BadRow:
    """A row of a metadata CSV that can't be used, and why."""

    chip_id: str
    error: DataError


@dataclass(frozen=True)
class Metadata:
    """The usable rows that the filters leave, in their order, and the bad rows that they would have taken."""

    rows: list[MetadataRow]
    bad: list[BadRow]

    @property
    def problems(self) -> list[DataError]:
        """What is wrong with the bad rows, each once: a chip id in several rows is one problem."""
        return list({str(row.error): row.error for row in self.bad}.values())


class _Filters:
    """The `COLUMN=VALUE` filters on the rows; values are compared as text without the blanks around them."""

    def __init__(self, where: Sequence[str], known: Sequence[str]) -> None:
        self._where = where
        self._pairs = [_parse_filter(text) for text in where]
        self._kept: list[set[str]] = [set() for _ in where]
        for column, _ in self._pairs:
            choose("column", [column], known)

    def take(self, columns: Mapping[str, str]) -> bool:
        """Tell whether every filter holds; what a row had, up to the first that does not, is remembered."""
        for (column, wanted), kept in zip(self._pairs, self._kept, strict=True):
            found = columns[column].strip()
            kept.add(found)
            if found != wanted:
                return False
        return True

    def check_some_left(self) -> None:
        """Raise `ConfigError`, with values that the column has, for the first filter that leaves no row."""
        for (column, wanted), kept in zip(self._pairs, self._kept, strict=True):
            if wanted not in kept:
                values = sorted(kept)
                more = f" and {len(values) - _VALUES_SHOWN} more" if len(values) > _VALUES_SHOWN else ""
                shown = ", ".join(map(repr, values[:_VALUES_SHOWN]))
                raise ConfigError(
                    f"no row of the metadata is left by {' and '.join(self._where)}; "
                    f"values of {column} until then: {shown}{more}"
                )


def _parse_filter(text: str) -> tuple[str, str]:
    column, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not column:
        raise ConfigError(f"expected COLUMN=VALUE, found {text!r}")
    return column, value


def read_metadata(uri: str, where: Sequence[str] = (), *, with_location: bool = True) -> Metadata:
    """Return the rows of a metadata CSV (columns chip_id, location, datetime) for which every filter holds.

    Without `with_location` a table that only says more about chips will do: the location may be absent, and is blank.
    A bad row has a chip id twice, a chip id that is no plain file name, or an unreadable datetime; a blank datetime is
    fine. Raises `ConfigError` where the file or one of the columns is missing, for a malformed filter, an unknown
    column (with the known ones), and where filters leave no row.
    """
    table = read_table(uri, "metadata file")
    wanted = {"chip_id", "location"} if with_location else {"chip_id"}
    missing = wanted - set(table.columns)
    if missing:
        raise ConfigError(f"{uri}: no column {', '.join(sorted(missing))} (found: {', '.join(table.columns)})")
    filters = _Filters(where, table.columns)
    counts: Counter[str] = Counter()
    found = Metadata([], [])
    for columns in table:
        chip_id = columns["chip_id"]
        counts[chip_id] += 1
        if not filters.take(columns):
            continue
        try:
            found.rows.append(_parse_row(chip_id, columns, with_location))
        except DataError as error:
            found.bad.append(BadRow(chip_id, error))
    if where and not counts:
        raise ConfigError(f"{uri}: the metadata has no row")
    filters.check_some_left()
    return _without_duplicates(found, counts)


def _parse_row(chip_id: str, columns: Mapping[str, str], with_location: bool) -> MetadataRow:
    location, text = columns.get("location", "").strip(), columns.get("datetime", "").strip()
    if not storage.is_plain_name(chip_id):
        raise DataError(repr(chip_id), "chip id is not a plain file name (letters, digits, '.', '_', '-')")
    if with_location and not location:
        raise DataError(chip_id, "blank location in the metadata, but folds and scores group by it")
    try:
        taken = _in_utc(datetime.fromisoformat(text)) if text else None
    except (ValueError, OverflowError) as error:
        raise DataError(chip_id, f"unreadable datetime {text!r} in the metadata") from error
    return MetadataRow(chip_id, sys.intern(location), taken)


def _without_duplicates(found: Metadata, counts: Counter[str]) -> Metadata:
    """Return `found` with every row of a chip that has several, and a plain name, among the bad ones."""
    twice = {chip_id for chip_id, count in counts.items() if count > 1 and storage.is_plain_name(chip_id)}
    if not twice:
        return found
    bad = [row for row in found.bad if row.chip_id not in twice]
    for chip_id in sorted(twice & ({row.chip_id for row in found.rows} | {row.chip_id for row in found.bad})):
        text = f"duplicate chip id: {counts[chip_id]} rows of the metadata have it"
        bad.append(BadRow(chip_id, DataError(chip_id, text)))
    return Metadata([row for row in found.rows if row.chip_id not in twice], bad)


def _in_utc(time: datetime) -> datetime:
    """Return `time` in UTC, which it is in where it names no zone; raise `OverflowError` beyond the years 1 to 9999."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
