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
    items that are bad, gone or refused, `unreached` of those whose store did not answer.
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
        locations = index.reader.locations
        folds: dict[str, int | None] = {}
        if self.unseen is not None:
            folds = {location: self.unseen.fold_for(location) for location in set(locations)}
            self.unseen.check(fold for fold in folds.values() if fold is not None)
            for i, location in enumerate(locations):
                if folds[location] is None:
                    self._add(DataError(index.reader.tile_id(i), self.unseen.why_none(location)), self.uri)
        of_folds = sorted(fold for fold in set(folds.values()) if fold is not None)
        for fold in [None] if self.unseen is None else of_folds:
            chosen = [i for i, location in enumerate(locations) if folds.get(location) == fold]
            yield from units_of_tiles(self._tiles(index, chosen, fold), index.source, fold)

    def _tiles(self, index: _TileIndex, chosen: Sequence[int], fold: int | None) -> Iterator[TileSource]:
        for tile in index.tiles(chosen, fold):
            if isinstance(tile, DataError):
                self._add(tile, self.uri)
            elif not self._seen.add(tile.tile_id):
                place = f"{self.uri}, tile {tile.position}"
                self._add(DataError(place, f"a second tile of the id {tile.tile_id}: the first counts"), self.uri)
            elif not self._is_done(tile.tile_id, self.uri, tile.identity):
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

    def _is_done(self, item_id: str, source_uri: str, identity: str) -> bool:
        if self.known.is_of_another(item_id, source_uri):
            raise ConfigError(
                f"{self.destination} holds a mask of another {item_id}, not of {source_uri}; choose another destination"
            )
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
    """The index of shards with what a unit says of each tile; `georeference` has the columns crs and transform."""

    source: ShardsSource
    reader: TileReader
    georeference: pa.Table

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
        table = read_index(uri, ["tile_id", "crs", "transform"])
        if len(table) != len(reader) or manifest_digest(read_manifest(uri)) != manifest_digest(manifest):
            raise WorkNotFinished(f"{uri}: the shards changed while they were listed; run again")
        source = ShardsSource(uri=uri, manifest_digest=manifest_digest(manifest), bands=found)
        return cls(source, reader, table.select(["crs", "transform"]))

    def tiles(self, chosen: Sequence[int], fold: int | None) -> Iterator[TileSource | DataError]:
        """Yield the tiles at the positions `chosen`, to be scored by the nets of `fold`, and what is wrong with one."""
        for start in range(0, len(chosen), TILES_AT_ONCE):
            some = chosen[start : start + TILES_AT_ONCE]
            for i, place in zip(some, self.georeference.take(pa.array(some, pa.int64())).to_pylist(), strict=True):
                tile_id = self.reader.tile_id(i)
                if not storage.is_plain_name(tile_id):
                    yield DataError(tile_id, "can't be the name of a mask; make the shards anew from other ids")
                    continue
                transform = None if place["transform"] is None else tuple(place["transform"])
                identity = tile_identity(self.reader.pixels_identity(i), place["crs"], transform, fold)
                yield TileSource(tile_id=tile_id, position=i, identity=identity, crs=place["crs"], transform=transform)
