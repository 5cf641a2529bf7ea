"""Rows of a metadata CSV chosen by `COLUMN=VALUE` filters. Must not know what the rows are chosen for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import model_validator

from raytrain.config import Settings, choose
from raytrain.errors import ConfigError, DataError
from raytrain.tiles.archive import BadRow, ChipArchive, MetadataRow, problems_of, read_metadata

_VALUES_SHOWN = 5


def select_rows(rows: Sequence[MetadataRow], where: Sequence[str]) -> list[MetadataRow]:
    """Return the rows for which every `COLUMN=VALUE` of `where` holds, in their order; without filters all of them.

    Values are compared as text without the blanks around them. Raises `ConfigError` for a malformed filter, an unknown
    column (with the known ones) and when no row is left (with values that the column has).
    """
    if not rows:
        raise ConfigError("the metadata has no usable row")
    known = list(dict.fromkeys(column for row in rows for column in row.columns))
    left = list(rows)
    for text in where:
        column, _ = _parse_filter(text)
        choose("column", [column], known)
        kept = [row for row in left if _fits(row.columns, text)]
        if not kept:
            raise ConfigError(f"no row of the metadata is left by {' and '.join(where)}; {_values(left, column)}")
        left = kept
    return left


def select_problems(bad: Sequence[BadRow], where: Sequence[str]) -> list[DataError]:
    """Return what is wrong with the bad rows that the filters would have taken."""
    return problems_of([row for row in bad if all(_fits(row.columns, text) for text in where)])


def _parse_filter(text: str) -> tuple[str, str]:
    column, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not column:
        raise ConfigError(f"expected COLUMN=VALUE, found {text!r}")
    return column, value


def _fits(columns: Mapping[str, str], text: str) -> bool:
    column, value = _parse_filter(text)
    return columns.get(column, "").strip() == value


def _values(rows: Sequence[MetadataRow], column: str) -> str:
    values = sorted({row.columns.get(column, "").strip() for row in rows})
    more = f" and {len(values) - _VALUES_SHOWN} more" if len(values) > _VALUES_SHOWN else ""
    return f"values of {column} until then: {', '.join(map(repr, values[:_VALUES_SHOWN]))}{more}"


class Selection(Settings):
    """Which chips of an archive to take: the rows of `metadata` for which every `COLUMN=VALUE` of `where` holds."""

    where: tuple[str, ...] = ()
    metadata: str | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if bool(self.where) != (self.metadata is not None):
            raise ValueError("where and metadata are given together: the columns are those of the metadata")
        return self


def select_chips(archive: ChipArchive, selection: Selection) -> ChipArchive:
    """Return the chips of `archive` that are chosen, and the problems of those and of their rows; without filters all.

    A chosen chip that the archive does not know is a problem. Raises `ConfigError` if it knows none of them.
    """
    if selection.metadata is None:
        return archive
    rows, bad = read_metadata(selection.metadata, with_location=False)
    chosen = {row.chip_id for row in select_rows(rows, selection.where)}
    chips = [chip for chip in archive.chips if chip.chip_id in chosen]
    problems = [problem for problem in archive.problems if problem.subject in chosen]
    if not chips and not problems:
        raise ConfigError(f"none of the {len(archive.chips)} chips is among the {len(chosen)} rows that --where leaves")
    unknown = chosen - {chip.chip_id for chip in chips} - {problem.subject for problem in problems}
    absent = [
        DataError(chip_id, f"chosen by the filters on {selection.metadata}, but not in the archive")
        for chip_id in sorted(unknown)
    ]
    return ChipArchive(chips, [*select_problems(bad, selection.where), *problems, *absent])
