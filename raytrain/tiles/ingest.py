"""From listed chips to shards: one shard at a time, then the index and the manifest of all.

A shard's bytes are a function of its chips and the settings. Beside each stands its part, with its rows of the index
and what was left out, until the manifest is written: work that was cut off goes on from the parts. Must not know who
does the work, or where.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain import __version__, storage
from raytrain.config import Baseline, ShardSettings
from raytrain.errors import ConfigError, DataError, WorkNotFinished
from raytrain.imagery import rasters
from raytrain.imagery.baseline import is_dark, to_reflectance
from raytrain.tiles import format as shards
from raytrain.tiles.archive import FILE_BYTES, Chip, read_chip
from raytrain.tiles.reader import INDEX, MANIFEST, is_ours

PARTS = "unfinished"
"""The folder of the parts, which goes when the manifest is written."""
ROWS_AT_ONCE = 65536
"""Rows of a row group of the index, and what of it is in memory."""
PART_BYTES = 256 * 2**20
"""Of a part: some hundred rows of the index."""
_PART_KEY = b"raytrain.part"
_WRITTEN = re.compile(rf"^({PARTS}/)?shard-\d{{5,}}\.parquet$|^({re.escape(INDEX)}|{re.escape(MANIFEST)})$")
LIVE_S = 3600
"""A half-written local file that is older was left by a process that died."""


@dataclass(frozen=True)
class ShardWork:
    """One shard to write: its chips in order, the fold of each, and what of it stands at the destination."""

    name: str
    dst: str
    chips: list[Chip]
    folds: list[int]
    settings: ShardSettings
    standing_bytes: int | None = None
    has_part: bool = False

    def digest(self) -> str:
        """Return a hash of all that the shard and its rows of the index depend on."""
        settings = self.settings.model_dump(mode="json", exclude={"folds", "seed", "tiles_per_shard"})
        made_by = [shards.FORMAT_VERSION, _versions(), self.name, settings]
        digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
        for chip, fold in zip(self.chips, self.folds, strict=True):
            digest.update(json.dumps([*chip_facts(chip), fold]).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ShardPart:
    """What came of a shard: its record for the manifest (None if no chip is good), and what was left out."""

    name: str
    work: str
    record: dict[str, Any] | None
    problems: list[tuple[str, str]]
    num_dark: int

    @property
    def uri_name(self) -> str:
        """Where the part lies below the destination."""
        return f"{PARTS}/{self.name}"


def _versions() -> dict[str, str]:
    """Return the versions of what the bytes of a shard depend on."""
    return {"raytrain": __version__, "pyarrow": version("pyarrow"), "blosc2": version("blosc2")}


def chip_facts(chip: Chip) -> list[str]:
    """Return what is known of a chip before its pixels are read, and changes when they may."""
    return [chip.source_uri, chip.row.location, str(chip.row.taken), chip.identity]


def write_shard(work: ShardWork) -> ShardPart:
    """Read the chips of a shard, write it, then its part; a chip that can't be used is a problem of the result.

    A shard that stands with the part of this very work is left as it is.
    """
    uri = storage.join(work.dst, work.name)
    standing = _standing_part(work)
    if standing is not None:
        return standing
    writer = shards.ShardWriter(work.name, work.settings.bands, work.settings.cell_encoding)
    problems: list[DataError] = []
    num_dark = 0
    folds: list[int] = []
    for chip, fold in zip(work.chips, work.folds, strict=True):
        try:
            tile, dark = read_tile(chip, work.settings.baseline)
        except DataError as error:
            problems.append(error)
            continue
        writer.add(tile)
        folds.append(fold)
        num_dark += dark
    data, rows = writer.finish()
    record = {"name": work.name, "sha256": storage.sha256_of(data), "bytes": len(data), "num_tiles": len(rows)}
    if rows:
        storage.write_bytes(uri, data)
    else:
        storage.remove(uri)
    named = [(each.subject, each.found) for each in problems]
    part = ShardPart(work.name, work.digest(), record if rows else None, named, num_dark)
    _write_part(work, part, [row | {"fold": fold} for row, fold in zip(rows, folds, strict=True)])
    return part


def check_shard(work: ShardWork) -> list[DataError]:
    """Return what is wrong with the chips of a shard, without writing it."""
    problems = []
    for chip in work.chips:
        try:
            read_tile(chip, work.settings.baseline)
        except DataError as error:
            problems.append(error)
    return problems


def read_tile(chip: Chip, baseline: Baseline) -> tuple[shards.Tile, bool]:
    """Return the tile of `chip`, and whether the pixels as delivered are dark (see `imagery.baseline`).

    No-data pixels are 0 in every band and 255 in the label. Raises `DataError`.
    """
    raster = read_chip(chip.chip_id, chip.bands)
    pixels = to_reflectance(raster.pixels, raster.valid, baseline)
    label = None
    cloud_fraction = None
    if chip.label is not None:
        try:
            found = rasters.read_label("label", storage.read_listed(chip.label, FILE_BYTES), raster)
        except DataError as error:
            raise DataError(chip.chip_id, str(error)) from error
        except FileNotFoundError as error:
            raise DataError(chip.chip_id, f"the label vanished after the listing: {error}") from error
        label = np.where(raster.valid, found, np.uint8(rasters.LABEL_IGNORE))
        known = label != rasters.LABEL_IGNORE
        cloud_fraction = float((label == rasters.LABEL_CLOUD).sum() / known.sum()) if known.any() else None
    tile = shards.Tile(
        tile_id=chip.chip_id,
        location=chip.row.location,
        taken=chip.row.taken,
        bands=dict(zip(chip.bands, pixels, strict=True)),
        label=label,
        valid_fraction=float(raster.valid.mean()),
        cloud_fraction=cloud_fraction,
        crs=raster.georeference.crs,
        transform=raster.georeference.transform,
        source_uri=chip.source_uri,
    )
    return tile, is_dark(raster.pixels, raster.valid)


def _standing_part(work: ShardWork) -> ShardPart | None:
    """Return the part of `work` if it stands, and so does the shard that it speaks of."""
    if not work.has_part:
        return None
    try:
        part, _ = _read_part(work.dst, work.name)
    except (FileNotFoundError, pa.ArrowException, ValueError, LookupError, TypeError, storage.TooLarge):
        # Damaged: the shard is written again.
        return None
    whole = work.standing_bytes == (part.record["bytes"] if part.record else None)
    return part if whole and part.work == work.digest() else None


def _write_part(work: ShardWork, part: ShardPart, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=shards.index_schema(work.settings.bands))
    metadata = {**(table.schema.metadata or {}), _PART_KEY: json.dumps(asdict(part)).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
    storage.write_bytes(storage.join(work.dst, part.uri_name), sink.getvalue().to_pybytes())


def _read_part(dst: str, name: str) -> tuple[ShardPart, pa.Table]:
    table = storage.read_parquet(pa.BufferReader(storage.read_listed(storage.join(dst, PARTS, name), PART_BYTES)))
    values = json.loads(table.schema.metadata[_PART_KEY])
    return ShardPart(**{**values, "problems": [(subject, found) for subject, found in values["problems"]]}), table


@dataclass
class Standing:
    """What a listing of the destination shows of work that was cut off: files by name with their sizes."""

    sizes: dict[str, int]

    def work(self, work: ShardWork) -> ShardWork:
        """Return `work` with what stands of it."""
        has_part = f"{PARTS}/{work.name}" in self.sizes
        return ShardWork(
            work.name, work.dst, work.chips, work.folds, work.settings, self.sizes.get(work.name), has_part
        )

    def leftovers(self, names: Iterable[str]) -> list[str]:
        """Return the files that stand and are none of the shards `names`, their parts or the index."""
        kept = set(names)
        return [name for name in self.sizes if name != INDEX and name.removeprefix(f"{PARTS}/") not in kept]


def standing_at(dst: str) -> Standing:
    """Return what a run without an end left behind at `dst`: there is no manifest, so nobody reads it.

    Old half-written files are removed. Raises `ConfigError` if files of these names came from elsewhere.
    """
    sizes: dict[str, int] = {}
    for name, info in storage.walk(dst):
        folder, slash, last = name.rpartition("/")
        whole = storage.partial_of(last)
        if whole is not None and _WRITTEN.match(folder + slash + whole):
            if time.time() - info["mtime"] > LIVE_S:
                storage.remove(storage.join(dst, name))
        elif name != MANIFEST and _WRITTEN.match(name):
            sizes[name] = info["size"]
    for name in sizes:
        known = name.startswith(f"{PARTS}/") or f"{PARTS}/{name}" in sizes
        if not known and not is_ours(storage.join(dst, name)):
            raise ConfigError(f"{dst} holds a {name} that raytrain did not write; choose another destination")
    return Standing(sizes)


def discard(dst: str) -> None:
    """Remove the parts of work that came to nothing, and the folder that was made for it."""
    remove_parts(dst)
    _remove_empty(dst)


def remove_parts(dst: str) -> None:
    """Remove the parts at `dst`, and nothing else that may stand beside them."""
    parts = storage.join(dst, PARTS)
    for name, _ in list(storage.walk(parts)):
        if _WRITTEN.match(f"{PARTS}/{name}"):
            storage.remove(storage.join(parts, name))
    _remove_empty(parts)


def _remove_empty(uri: str) -> None:
    if storage.is_local(uri):
        with contextlib.suppress(OSError):  # something else is in it, or it is not there
            Path(storage.path_of(uri)).rmdir()


def write_index(dst: str, bands: Sequence[str], parts: Iterable[ShardPart]) -> dict[str, Any]:
    """Write the index from the rows of the parts, in order; return what the manifest says of it and of the tiles."""
    schema = shards.index_schema(bands)
    labelled = num_tiles = 0
    locations: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / INDEX
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for table in _batches(dst, parts, schema):
                writer.write_table(table, row_group_size=ROWS_AT_ONCE)
                num_tiles += len(table)
                labelled += len(table) - table["label_bytes"].null_count
                locations.update(table["location"].unique().to_pylist())
        with path.open("rb") as file:
            record = {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
        storage.write_file(storage.join(dst, INDEX), path)
    return {"num_tiles": num_tiles, "num_labelled": labelled, "num_locations": len(locations), "index": record}


def _batches(dst: str, parts: Iterable[ShardPart], schema: pa.Schema) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for part in parts:
        if part.record is not None:
            waiting.append(_rows_of(dst, part).replace_schema_metadata(schema.metadata))
        if sum(map(len, waiting)) >= ROWS_AT_ONCE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _rows_of(dst: str, part: ShardPart) -> pa.Table:
    """Return the rows of a part that was written a while ago; raise `WorkNotFinished` if it is another's now."""
    try:
        found, rows = _read_part(dst, part.name)
    except FileNotFoundError:
        found = None
    if found != part:
        raise WorkNotFinished(f"{dst}: another raytrain shard works here ({part.uri_name} is not what this one wrote)")
    return rows


def write_manifest(
    dst: str,
    settings: ShardSettings,
    source: dict[str, Any],
    parts: Sequence[ShardPart],
    problems: Sequence[DataError],
    totals: dict[str, Any],
) -> dict[str, Any]:
    """Write the manifest, which makes the shards whole, and remove the parts; return it."""
    records = [part.record for part in parts if part.record is not None]
    manifest = {
        "format_version": shards.FORMAT_VERSION,
        "cell_encoding": settings.cell_encoding,
        "bands": shards.band_order(settings.bands),
        **totals,
        "bytes": sum(record["bytes"] for record in records),
        "shards": records,
        "settings": settings.model_dump(mode="json"),
        "source": source,
        "left_out": [{"subject": problem.subject, "found": problem.found} for problem in problems],
        "versions": _versions(),
    }
    storage.write_bytes(storage.join(dst, MANIFEST), json.dumps(manifest, indent=1).encode())
    remove_parts(dst)
    return manifest
