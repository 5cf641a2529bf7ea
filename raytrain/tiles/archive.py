"""An archive of chips in the challenge's layout(s): what it holds, and everything that is wrong with its listing.

`<root>/<split>_features/<chip>/<band>.tif`, `<split>_labels/<chip>.tif` and `<split>_metadata.csv`, or the same one
level deeper as the public dataset has it (`<root>/<split>/<split>_features/...`). Only names are looked at here; pixels
are judged where they are read. Must not know the shard format.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from raytrain import storage
from raytrain.errors import ConfigError, DataError
from raytrain.imagery import rasters
from raytrain.tiles.tables import read_table

_FEATURE = re.compile(r"^(?P<base>(?:[^/]+/)?)(?P<split>[^/]+)_features/(?P<chip>[^/]+)/(?P<band>[^/]+)\.tif$")


@dataclass(frozen=True)
class MetadataRow:
    """One row of a metadata CSV: the chip, its place, and its time where it is known."""

    chip_id: str
    location: str
    taken: datetime | None
    columns: Mapping[str, str]


@dataclass(frozen=True)
class BadRow:
    """A row of a metadata CSV that can't be used, and why."""

    error: DataError
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Chip:
    """One chip as listed: URIs of its bands and of its label (None in an archive without labels)."""

    row: MetadataRow
    bands: dict[str, str]
    label: str | None
    source_uri: str
    identity: str

    @property
    def chip_id(self) -> str:
        """The chip's id."""
        return self.row.chip_id


@dataclass
class ChipArchive:
    """The good chips of an archive in the order of their ids, and what is wrong with the others."""

    chips: list[Chip] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)


def read_metadata(uri: str, *, with_location: bool = True) -> tuple[list[MetadataRow], list[BadRow]]:
    """Return the rows of a metadata CSV (columns chip_id, location, datetime; further ones are kept) and its bad rows.

    Without `with_location` a table that only says more about chips will do: the location may be absent, and is blank.
    A bad row has a chip id twice, a chip id that is no plain file name, or an unreadable datetime; a blank datetime is
    fine. Raises `ConfigError` where the file or one of the columns is missing.
    """
    known, raw = read_table(uri, "metadata file")
    wanted = {"chip_id", "location"} if with_location else {"chip_id"}
    missing = wanted - set(known)
    if missing:
        raise ConfigError(f"{uri}: no column {', '.join(sorted(missing))} (found: {', '.join(known)})")
    counts = Counter(row["chip_id"] for row in raw)
    rows, bad = [], []
    for columns in raw:
        try:
            rows.append(_parse_row(columns, counts[columns["chip_id"]], with_location))
        except DataError as error:
            bad.append(BadRow(error, columns))
    return rows, bad


def problems_of(bad: Sequence[BadRow]) -> list[DataError]:
    """Return what is wrong, each once: a chip id in several rows is one problem."""
    return list({str(row.error): row.error for row in bad}.values())


def _parse_row(columns: Mapping[str, str], count: int, with_location: bool) -> MetadataRow:
    chip_id = columns["chip_id"]
    location, text = columns.get("location", "").strip(), columns.get("datetime", "").strip()
    if not storage.is_plain_name(chip_id):
        raise DataError(repr(chip_id), "chip id is not a plain file name (letters, digits, '.', '_', '-')")
    if count > 1:
        raise DataError(chip_id, f"duplicate chip id: {count} rows of the metadata have it")
    if with_location and not location:
        raise DataError(chip_id, "blank location in the metadata, but folds and scores group by it")
    try:
        taken = _in_utc(datetime.fromisoformat(text)) if text else None
    except (ValueError, OverflowError) as error:
        raise DataError(chip_id, f"unreadable datetime {text!r} in the metadata") from error
    return MetadataRow(chip_id, location, taken, columns)


def _in_utc(time: datetime) -> datetime:
    """Return `time` in UTC, which it is in where it names no zone; raise `OverflowError` beyond the years 1 to 9999."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def holds_chips(uri: str) -> bool:
    """Tell whether a listing of `uri` shows chips in one of the layouts."""
    return any(_FEATURE.match(name) for name in storage.find(uri))


def open_archive(uri: str, bands: Sequence[str], *, for_training: bool = True) -> ChipArchive:
    """List the chips at `uri`; each chip that lacks a file or a row, or has a bad one, is a problem of the result.

    Labels are looked at, and locations are needed, only where `for_training`. Raises `ConfigError` if `uri` holds no
    chips, or chips of more than one split.
    """
    files = storage.find(uri)
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for name in files:
        match = _FEATURE.match(name)
        if match:
            place = (match["base"], match["split"])
            found.setdefault(place, {}).setdefault(match["chip"], {})[match["band"]] = name
    if not found:
        raise ConfigError(f"{uri}: no chips found (expected <split>_features/<chip>/<band>.tif below it)")
    if len(found) > 1:
        names = ", ".join(base + split for base, split in sorted(found))
        raise ConfigError(f"{uri}: chips of several splits ({names}); name the folder of one of them")
    ((base, split), chips) = found.popitem()
    rows, bad = read_metadata(storage.join(uri, f"{base}{split}_metadata.csv"), with_location=for_training)
    label_folder = f"{base}{split}_labels/"
    labels = [name for name in files if for_training and name.startswith(label_folder) and name.endswith(".tif")]
    archive = ChipArchive(problems=problems_of(bad))
    named = {row.chip_id for row in rows} | {row.columns["chip_id"] for row in bad}
    for chip_id in sorted(set(chips) - named):
        archive.problems.append(DataError(chip_id, "files without a row in the metadata"))
    for name in sorted(set(labels) - {f"{label_folder}{chip_id}.tif" for chip_id in named | set(chips)}):
        archive.problems.append(DataError(name, "a label without bands and without a row in the metadata"))
    for row in sorted(rows, key=lambda each: each.chip_id):
        label = f"{label_folder}{row.chip_id}.tif" if labels else None
        try:
            archive.chips.append(_listed_chip(uri, row, chips.get(row.chip_id), label, bands, files))
        except DataError as error:
            archive.problems.append(error)
    return archive


def _listed_chip(
    uri: str,
    row: MetadataRow,
    bands_found: Mapping[str, str] | None,
    label: str | None,
    bands: Sequence[str],
    files: Mapping[str, storage.FileInfo],
) -> Chip:
    if bands_found is None:
        raise DataError(row.chip_id, "a row in the metadata, but no files")
    missing = [band for band in bands if band not in bands_found]
    if missing:
        raise DataError(row.chip_id, f"no band {', '.join(missing)} (found: {', '.join(sorted(bands_found))})")
    if label is not None and label not in files:
        raise DataError(row.chip_id, "no label, where other chips have one")
    names = [bands_found[band] for band in bands] + ([label] if label else [])
    return Chip(
        row=row,
        bands={band: storage.join(uri, bands_found[band]) for band in bands},
        label=storage.join(uri, label) if label else None,
        source_uri=storage.join(uri, bands_found[bands[0]].rsplit("/", 1)[0]),
        identity=" ".join(storage.identity(files[name]) for name in names),
    )


def read_chip(chip_id: str, bands: Mapping[str, str]) -> rasters.Raster:
    """Return the pixels of a chip from the URIs of its bands, in their order.

    Raises `DataError` that names chip and band for what can't be used.
    """
    try:
        return rasters.read_chip({band: storage.read_bytes(uri) for band, uri in bands.items()})
    except DataError as error:
        raise DataError(chip_id, str(error)) from error
    except FileNotFoundError as error:
        raise DataError(chip_id, f"a band vanished after the listing: {error}") from error
