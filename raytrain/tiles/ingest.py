"""From listed chips to shards: one shard at a time, then the manifest of all.

A shard's bytes are a function of its chips and the settings. Must not know who does the work, or where.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytrain import storage
from raytrain.config import Baseline, ShardSettings
from raytrain.errors import DataError
from raytrain.imagery import rasters
from raytrain.imagery.baseline import is_dark, to_reflectance
from raytrain.tiles import format as shards
from raytrain.tiles.archive import FILE_BYTES, Chip, read_chip
from raytrain.tiles.parts import PlannedShard, ShardPart, standing_part, versions, write_last, write_with_part


@dataclass(frozen=True)
class ShardWork(PlannedShard):
    """One shard to write: its chips in order, and the fold of each."""

    chips: list[Chip]
    folds: list[int]
    settings: ShardSettings

    def digest(self) -> str:
        """Return a hash of all that the shard and its rows of the index depend on."""
        settings = self.settings.model_dump(mode="json", exclude={"folds", "seed", "tiles_per_shard"})
        made_by = [shards.FORMAT_VERSION, versions(), self.name, settings]
        digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
        for chip, fold in zip(self.chips, self.folds, strict=True):
            digest.update(json.dumps([*chip_facts(chip), fold]).encode())
        return digest.hexdigest()


def chip_facts(chip: Chip) -> list[str]:
    """Return what is known of a chip before its pixels are read, and changes when they may."""
    return [chip.source_uri, chip.row.location, str(chip.row.taken), chip.identity]


def write_shard(work: ShardWork) -> ShardPart:
    """Read the chips of a shard, write it, then its part; a chip that can't be used is a problem of the result.

    A shard that stands with the part of this very work is left as it is.
    """
    standing = standing_part(work)
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
    rows = [row | {"fold": fold} for row, fold in zip(rows, folds, strict=True)]
    return write_with_part(work, work.settings.bands, data, rows, problems, {"num_dark": num_dark})


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
        cloud_fraction = rasters.cloud_fraction(label)
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
        "versions": versions(),
    }
    write_last(dst, manifest)
    return manifest
