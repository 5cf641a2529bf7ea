"""An archive of chips in the challenge's layout(s): what it holds, and everything that is wrong with its listing.

`<root>/<split>_features/<chip>/<band>.tif`, `<split>_labels/<chip>.tif` and `<split>_metadata.csv`, or the same one
level deeper as the public dataset has it (`<root>/<split>/<split>_features/...`). Only names are looked at here; pixels
are judged where they are read. Must not know the shard format.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from raytrain import storage
from raytrain.errors import ConfigError, DataError
from raytrain.imagery import rasters
from raytrain.tiles.metadata import MetadataRow, read_metadata

_FEATURE = re.compile(r"^(?P<base>(?:[^/]+/)?)(?P<split>[^/]+)_features/(?P<chip>[^/]+)/(?P<band>[^/]+)\.tif$")
_LABEL = re.compile(r"^(?P<base>(?:[^/]+/)?)(?P<split>[^/]+)_labels/(?P<chip>.+)\.tif$")
_IDENTITY_BYTES = 16
FILE_BYTES = 256 * 2**20
"""Of a file of a chip, which is read as a whole: twice what its pixels may take."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the names of all chips of an archive share: `<root>/<prefix>_features/...`; the bands that are wanted."""

    root: str
    prefix: str
    bands: tuple[str, ...]
    labelled: bool

    def folder(self, chip_id: str) -> str:
        """Return the URI of the folder of a chip's bands."""
        return storage.join(self.root, f"{self.prefix}_features", chip_id)

    def label(self, chip_id: str) -> str:
        """Return the URI of a chip's label."""
        return storage.join(self.root, f"{self.prefix}_labels", f"{chip_id}.tif")


@dataclass(frozen=True, slots=True)
class Chip:
    """One chip as listed. An archive may have millions: what follows from the layout is not held."""

    row: MetadataRow
    layout: Layout
    digest: int

    @property
    def chip_id(self) -> str:
        """The chip's id."""
        return self.row.chip_id

    @property
    def bands(self) -> dict[str, str]:
        """The URIs of the bands, by name."""
        return {band: f"{self.source_uri}/{band}.tif" for band in self.layout.bands}

    @property
    def label(self) -> str | None:
        """The URI of the label; None in an archive without labels."""
        return self.layout.label(self.chip_id) if self.layout.labelled else None

    @property
    def source_uri(self) -> str:
        """The URI of the folder of the bands."""
        return self.layout.folder(self.chip_id)

    @property
    def identity(self) -> str:
        """What changes when a file of the chip changes."""
        return f"{self.digest:032x}"


@dataclass
class ChipArchive:
    """The good chips of an archive in the order of their ids, and what is wrong with the others."""

    chips: list[Chip] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)


@dataclass(slots=True)
class _Listed:
    """What a listing shows of a chip: its bands, and a hash of what changes when one of its files does."""

    bands: tuple[str, ...] = ()
    digest: int = 0
    has_label: bool = False

    def add(self, name: str, info: storage.FileInfo) -> None:
        """Let the hash depend on a file; the order in which files come does not matter."""
        text = f"{name} {storage.identity(info)}".encode()
        self.digest ^= int.from_bytes(hashlib.blake2b(text, digest_size=_IDENTITY_BYTES).digest())

    def add_label(self, info: storage.FileInfo) -> None:
        """Note the label."""
        self.add("label", info)
        self.has_label = True


@dataclass
class _Listing:
    """The chips of one split by id, and the names of the labels that no bands belong to."""

    prefix: str
    chips: dict[str, _Listed]
    stray_labels: list[str]
    has_labels: bool


def holds_chips(uri: str) -> bool:
    """Tell whether a listing of `uri` shows chips in one of the layouts."""
    return any(_FEATURE.match(name) for name, _ in storage.walk(uri))


def bands_of_chips(uri: str) -> set[str]:
    """Return the bands that a listing of `uri` shows, of whichever chips."""
    return {match["band"] for name, _ in storage.walk(uri) if (match := _FEATURE.match(name))}


def open_archive(uri: str, bands: Sequence[str], *, for_training: bool = True, all_bands: bool = True) -> ChipArchive:
    """List the chips at `uri`; each chip that lacks a file or a row, or has a bad one, is a problem of the result.

    Labels are looked at, and locations are needed, only where `for_training`. A chip lacks a file if it has not all of
    `bands`, or, where not `all_bands`, if it has none: else its bands are those that it has. Raises `ConfigError` if
    `uri` holds no chips, or chips of more than one split.
    """
    listing = _list(uri, set(bands), with_labels=for_training)
    metadata = read_metadata(storage.join(uri, f"{listing.prefix}_metadata.csv"), with_location=for_training)
    archive = ChipArchive(problems=metadata.problems)
    named = {row.chip_id for row in metadata.rows} | {row.chip_id for row in metadata.bad}
    for chip_id in sorted(listing.chips.keys() - named):
        archive.problems.append(DataError(chip_id, "files without a row in the metadata"))
    for chip_id in sorted(set(listing.stray_labels) - named):
        name = f"{listing.prefix}_labels/{chip_id}.tif"
        archive.problems.append(DataError(name, "a label without bands and without a row in the metadata"))
    _check_bands(uri, listing, bands)
    layout = Layout(uri, listing.prefix, tuple(bands), listing.has_labels)
    metadata.rows.sort(key=lambda row: row.chip_id)
    for row in metadata.rows:
        try:
            listed = listing.chips.pop(row.chip_id, None)
            archive.chips.append(_listed_chip(layout, row, listed, all_bands=all_bands))
        except DataError as error:
            archive.problems.append(error)
    return archive


def _list(uri: str, wanted: set[str], *, with_labels: bool) -> _Listing:
    """Return what a listing of `uri` shows, read once and held by chip."""
    splits: dict[str, dict[str, _Listed]] = {}
    strays: dict[str, dict[str, storage.FileInfo]] = {}
    combinations: dict[tuple[str, ...], tuple[str, ...]] = {}
    labelled: set[str] = set()
    for name, info in storage.walk(uri):
        if match := _FEATURE.match(name):
            listed = splits.setdefault(match["base"] + match["split"], {}).setdefault(match["chip"], _Listed())
            found = tuple(sorted((*listed.bands, match["band"])))
            listed.bands = combinations.setdefault(found, found)  # the same few for all chips
            if match["band"] in wanted:
                listed.add(match["band"], info)
        elif with_labels and (match := _LABEL.match(name)):
            prefix = match["base"] + match["split"]
            labelled.add(prefix)
            owner = splits.get(prefix, {}).get(match["chip"])
            if owner is not None:
                owner.add_label(info)
            else:  # a listing in the order of names has the features before
                strays.setdefault(prefix, {})[match["chip"]] = info
    if not splits:
        raise ConfigError(f"{uri}: no chips found (expected <split>_features/<chip>/<band>.tif below it)")
    if len(splits) > 1:
        raise ConfigError(
            f"{uri}: chips of several splits ({', '.join(sorted(splits))}); name the folder of one of them"
        )
    ((prefix, chips),) = splits.items()
    late = strays.get(prefix, {})
    for chip_id in late.keys() & chips.keys():
        chips[chip_id].add_label(late.pop(chip_id))
    return _Listing(prefix, chips, list(late), prefix in labelled)


def _check_bands(uri: str, listing: _Listing, bands: Sequence[str]) -> None:
    """Raise `ConfigError` for a band that not one chip has: it is the question that is wrong."""
    found = {band for names in {listed.bands for listed in listing.chips.values()} for band in names}
    nowhere = [band for band in bands if band not in found]
    if nowhere:
        raise ConfigError(f"{uri}: no chip has a band {', '.join(nowhere)} (found: {', '.join(sorted(found))})")


@lru_cache
def _with_bands(layout: Layout, bands: tuple[str, ...]) -> Layout:
    """Return the layout of chips that have only `bands`: one for all of them."""
    return replace(layout, bands=bands)


def _listed_chip(layout: Layout, row: MetadataRow, listed: _Listed | None, *, all_bands: bool) -> Chip:
    if listed is None:
        raise DataError(row.chip_id, "a row in the metadata, but no files")
    missing = [band for band in layout.bands if band not in listed.bands]
    if missing and (all_bands or len(missing) == len(layout.bands)):
        raise DataError(row.chip_id, f"no band {', '.join(missing)} (found: {', '.join(sorted(listed.bands))})")
    if layout.labelled and not listed.has_label:
        raise DataError(row.chip_id, "no label, where other chips have one")
    if missing:
        layout = _with_bands(layout, tuple(band for band in layout.bands if band not in missing))
    return Chip(row, layout, listed.digest)


def identity_now(folder: str, bands: Collection[str]) -> str:
    """Return what `Chip.identity` is now, by a listing, of the chip without a label whose `bands` lie in `folder`."""
    listed = _Listed()
    for name, info in storage.walk(folder):
        band, dot, kind = name.rpartition(".")
        if dot and kind == "tif" and band in bands:
            listed.add(band, info)
    return f"{listed.digest:032x}"


def read_chip(chip_id: str, bands: Mapping[str, str]) -> rasters.Raster:
    """Return the pixels of a chip from the URIs of its bands, in their order.

    Raises `DataError` that names chip and band for what can't be used.
    """
    try:
        return rasters.read_chip({band: storage.read_listed(uri, FILE_BYTES) for band, uri in bands.items()})
    except DataError as error:
        raise DataError(chip_id, str(error)) from error
    except FileNotFoundError as error:
        raise DataError(chip_id, f"a band vanished after the listing: {error}") from error
