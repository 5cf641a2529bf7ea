"""What is to be scored: an archive listed, held against what is done, cut into units. Must not know who does them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from raytrain import storage
from raytrain.config import ScoreSettings
from raytrain.errors import ConfigError, DataError, WorkNotFinished
from raytrain.imagery.scene_files import FileVersion, SceneSource
from raytrain.scoring.ledger import Known
from raytrain.scoring.listed import Unlisted, file_version
from raytrain.scoring.listing import is_listed, list_scenes
from raytrain.scoring.seen import SeenNames
from raytrain.scoring.units import (
    ChipSource,
    Problem,
    ShardsSource,
    TileSource,
    Unit,
    folder_of,
    shown_source,
    tile_identity,
    units_of_chips,
    units_of_tiles,
)
from raytrain.scoring.unseen import Unseen
from raytrain.tiles.archive import Chip, bands_of_chips, holds_chips, open_archive
from raytrain.tiles.reader import INDEX, MANIFEST, TileReader, manifest_digest, read_index, read_manifest
from raytrain.tiles.selection import Selection, select_chips

READERS = 8
TILES_AT_ONCE = 4096
"""Rows of an index that are Python's at a time."""


def holds_shards(uri: str) -> bool:
    """Tell whether `uri` is a folder of finished tile shards: it has a manifest and an index."""
    return is_listed(uri) and all(storage.exists(storage.join(uri, name)) for name in (MANIFEST, INDEX))


@dataclass
class Listing:
    """An archive as it is listed: `units` yields what is to be done and counts the rest on the way.

    `unseen` says of tiles which nets never saw them; None where all are scored by the same nets. `problems` are of
    items that are bad, gone or refused, `unreached` of those whose store did not answer. `outdated` are the ids of bad
    ones whose outputs must go: they come from nets that saw the place of the tile, as is known by now.
    """

    uri: str
    destination: str
    bands: tuple[str, ...]
    settings: ScoreSettings
    selection: Selection
    known: Known
    unseen: Unseen | None = None
    num_items: int = 0
    num_done: int = 0
    problems: list[Problem] = field(default_factory=list)
    unreached: list[Problem] = field(default_factory=list)
    outdated: set[str] = field(default_factory=set)
    _seen: SeenNames = field(default_factory=SeenNames)

    def units(self) -> Iterator[Unit]:
        """Yield the units of what is not done; raise `ConfigError` for a source with nothing to score."""
        if holds_shards(self.uri):
            yield from self._units_of_tiles()
            return
        if is_listed(self.uri) and holds_chips(self.uri):
            yield from units_of_chips(self._chips())
            return
        if self.selection.where:
            raise ConfigError("--where chooses among chips; the source holds scenes")
        for scene in self._scenes():
            yield Unit(kind="scene", scene=scene)

    def _units_of_tiles(self) -> Iterator[Unit]:
        """Yield units of tiles of one fold each, in the order of folds and then of the index."""
        if self.selection.where:
            raise ConfigError("--where chooses among chips; the source holds shards")
        if self.settings.baseline is not None:
            raise ConfigError(
                "--set baseline=... says what the values of chips and scenes are; those of shards are reflectance "
                "already: leave it out"
            )
        index = _TileIndex.open(self.uri, self.bands, with_fewer=self.settings.missing_bands == "leave-out")
        usable = self._usable(index)
        folds: list[int | None] = [None] * len(usable)
        if self.unseen is not None:
            usable, folds = self._of_folds(index, usable, self.unseen)
            self.unseen.check(fold for fold in set(folds) if fold is not None)
        for fold in sorted(set(folds), key=lambda fold: -1 if fold is None else fold):
            chosen = [i for i, own in zip(usable, folds, strict=True) if own == fold]
            yield from units_of_tiles(self._tiles(index, chosen, fold), index.source, fold)

    def _usable(self, index: _TileIndex) -> list[int]:
        """Return the positions of tiles whose id can be used, of equal ones the first in the order of the index."""
        usable = []
        for i in range(len(index.reader)):
            tile_id = index.reader.tile_id(i)
            if not storage.is_plain_name(tile_id):
                found = "can't be the name of a mask; make the shards anew from other ids"
                self._add(DataError(tile_id, found), self.uri)
            elif not self._seen.add(tile_id):
                found = f"a second tile of the id {tile_id}: the first counts"
                self._add(DataError(f"{self.uri}, tile {i}", found), self.uri)
            else:
                usable.append(i)
        return usable

    def _of_folds(
        self, index: _TileIndex, positions: Sequence[int], unseen: Unseen
    ) -> tuple[list[int], list[int | None]]:
        """Return which of the tiles at `positions` have nets that never saw their places, and the fold of these."""
        table = index.table.select(["tile_id", "location"]).take(pa.array(positions, pa.int64()))
        kept: list[int] = []
        folds: list[int | None] = []
        for row, (i, seen_in) in enumerate(zip(positions, unseen.folds_of(table), strict=True)):
            fold = unseen.fold_for(seen_in)
            if fold is not None:
                kept.append(i)
                folds.append(fold)
                continue
            tile_id = index.reader.tile_id(i)
            self._check_ours(tile_id, self.uri)
            self._add(DataError(tile_id, unseen.why_none(table["location"][row].as_py(), seen_in)), self.uri)
            if self.known.has(tile_id):
                self.outdated.add(tile_id)
        return kept, folds

    def _tiles(self, index: _TileIndex, chosen: Sequence[int], fold: int | None) -> Iterator[TileSource]:
        for tile in index.tiles(chosen, fold):
            if not self._is_done(tile.tile_id, self.uri, tile.identity):
                yield tile

    def _chips(self) -> Iterator[ChipSource]:
        bands = self.bands
        all_bands = self.settings.missing_bands == "error"
        if not all_bands:
            found = bands_of_chips(self.uri)
            bands = tuple(band for band in bands if band in found) or bands
        archive = select_chips(open_archive(self.uri, bands, for_training=False, all_bands=all_bands), self.selection)
        for problem in archive.problems:
            self._add(problem, self.uri)
        # In the order of the archive; what a local file is changes with its bytes alone, so it is read for that.
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(archive.chips), 64 * READERS):
                for found_chip in pool.map(_chip_source, archive.chips[start : start + 64 * READERS]):
                    if isinstance(found_chip, DataError):
                        self._add(found_chip, self.uri)
                    elif not self._is_done(found_chip.chip_id, folder_of(found_chip), found_chip.identity):
                        yield found_chip

    def _scenes(self) -> Iterator[SceneSource]:
        for scene in list_scenes(self.uri, self.bands, outputs=self.destination):
            if isinstance(scene, DataError):
                self._add(scene, scene.place)
            elif not self._is_done(scene.scene_id, shown_source(scene), scene.identity):
                if storage.join(self.destination, f"{scene.scene_id}.tif") in {
                    file.uri for file in scene.files.values()
                }:
                    raise ConfigError(
                        f"{self.destination}: the mask of {scene.scene_id} would take the place of the scene; "
                        "choose another destination"
                    )
                yield scene

    def _check_ours(self, item_id: str, source_uri: str) -> None:
        if self.known.is_of_another(item_id, source_uri):
            raise ConfigError(
                f"{self.destination} holds a mask of another {item_id}, not of {source_uri}; choose another destination"
            )

    def _is_done(self, item_id: str, source_uri: str, identity: str) -> bool:
        self._check_ours(item_id, source_uri)
        self.num_items += 1
        done = self.known.is_done(item_id, identity)
        self.num_done += done
        return done

    def _add(self, problem: DataError, uri: str) -> None:
        self.num_items += 1
        is_unreached = isinstance(problem, Unlisted) and problem.is_out_of_reach
        (self.unreached if is_unreached else self.problems).append(
            Problem(item_id=problem.subject, source_uri=uri, found=problem.found)
        )


def _chip_source(chip: Chip) -> ChipSource | DataError:
    """Return a chip with what changes when the bytes of one of its files do, and nothing else."""
    identity = chip.identity
    versions: dict[str, FileVersion] = {}
    if storage.is_local(chip.source_uri):
        try:
            versions = {uri: file_version(uri) for uri in chip.bands.values()}
        except DataError as error:
            return DataError(chip.chip_id, f"a band that can't be read: {error.found} ({error.subject})")
        parts = [f"{band} {versions[uri].identity}" for band, uri in sorted(chip.bands.items())]
        identity = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    return ChipSource(chip_id=chip.chip_id, files=chip.bands, identity=identity, versions=versions)


@dataclass(frozen=True)
class _TileIndex:
    """The index of shards; `table` has the columns tile_id, location, crs and transform."""

    source: ShardsSource
    reader: TileReader
    table: pa.Table

    @classmethod
    def open(cls, uri: str, bands: Sequence[str], *, with_fewer: bool) -> _TileIndex:
        """Read the index of the shards at `uri`, of which nets need `bands`, or some of them; raise `ConfigError`."""
        manifest = read_manifest(uri)
        found = tuple(band for band in bands if band in manifest["bands"])
        if len(found) < len(bands) and not (with_fewer and found):
            missing = ", ".join(band for band in bands if band not in found)
            remedy = "; --set missing_bands=leave-out scores with the members that do without" if found else ""
            raise ConfigError(f"{uri}: no band {missing} (the shards have {', '.join(manifest['bands'])}){remedy}")
        reader = TileReader(uri, found, labels=False)
        table = read_index(uri, ["tile_id", "location", "crs", "transform"])
        if len(table) != len(reader) or manifest_digest(read_manifest(uri)) != manifest_digest(manifest):
            raise WorkNotFinished(f"{uri}: the shards changed while they were listed; run again")
        source = ShardsSource(uri=uri, manifest_digest=manifest_digest(manifest), bands=found)
        return cls(source, reader, table)

    def tiles(self, chosen: Sequence[int], fold: int | None) -> Iterator[TileSource]:
        """Yield the tiles at the positions `chosen`, to be scored by the nets of `fold`."""
        places = self.table.select(["crs", "transform"])
        for start in range(0, len(chosen), TILES_AT_ONCE):
            some = chosen[start : start + TILES_AT_ONCE]
            for i, place in zip(some, places.take(pa.array(some, pa.int64())).to_pylist(), strict=True):
                tile_id = self.reader.tile_id(i)
                transform = None if place["transform"] is None else tuple(place["transform"])
                identity = tile_identity(self.reader.pixels_identity(i), place["crs"], transform, fold)
                yield TileSource(tile_id=tile_id, position=i, identity=identity, crs=place["crs"], transform=transform)
