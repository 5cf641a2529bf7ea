"""Chips of an archive chosen by filters on a metadata CSV. Must not know what the chips are chosen for."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from raytrain.config import Settings
from raytrain.errors import ConfigError, DataError
from raytrain.tiles.archive import ChipArchive
from raytrain.tiles.metadata import read_metadata


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
    metadata = read_metadata(selection.metadata, selection.where, with_location=False)
    chosen = {row.chip_id for row in metadata.rows}
    chips = [chip for chip in archive.chips if chip.chip_id in chosen]
    problems = [problem for problem in archive.problems if problem.subject in chosen]
    if not chips and not problems:
        raise ConfigError(f"none of the {len(archive.chips)} chips is among the {len(chosen)} rows that --where leaves")
    unknown = chosen - {chip.chip_id for chip in chips} - {problem.subject for problem in problems}
    absent = [
        DataError(chip_id, f"chosen by the filters on {selection.metadata}, but not in the archive")
        for chip_id in sorted(unknown)
    ]
    return ChipArchive(chips, [*metadata.problems, *problems, *absent])
