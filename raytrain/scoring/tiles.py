"""Tiles of shards to masks: read ahead by the index, every cell checked against it. Must not know who asks."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from rasterio.errors import CRSError

from raytrain.errors import ConfigError, DataError, first_line
from raytrain.imagery.rasters import Georeference, Raster
from raytrain.scoring.images import Image, score_images
from raytrain.scoring.sources import CHANGED, shards_have_changed
from raytrain.scoring.units import Answer, Problem, ShardsSource, TileSource, Unit, tile_identity
from raytrain.scoring.work import Work
from raytrain.tiles.reader import TileReader

SHIFT_RULE = "tiles are reflectance already, as in training: nothing is taken off"


def score_tiles(unit: Unit, work: Work) -> Answer:
    """Score the tiles of `unit` and return their records, whose outputs stand then, and what is wrong with the rest.

    A cell that is not what the index names is damaged, unless the shards are others by now than those listed.
    """
    assert unit.shards is not None, "tiles are of shards"
    shards = unit.shards
    try:
        reader = work.shards.reader(shards)
    except ConfigError:
        if not shards_have_changed(shards):
            raise
        changed = [Problem(item_id=item_id, source_uri=uri, found=CHANGED) for item_id, uri in unit.sources]
        return Answer(changed=tuple(changed))

    def have_changed(group: Sequence[Image]) -> list[bool]:
        # What was read is what was listed: each cell by its CRC-32, against an index that has the same of it.
        unread = [image.raster is None for image in group]
        are_others = any(unread) and shards_have_changed(shards)
        return [image.has_changed or (are_others and failed) for image, failed in zip(group, unread, strict=True)]

    return score_images(_read(unit, shards, reader, work), have_changed, work)


def _read(unit: Unit, shards: ShardsSource, reader: TileReader, work: Work) -> Generator[Image]:
    bands = tuple(band for band in work.nets.bands if band in shards.bands)
    channels = [shards.bands.index(band) for band in bands]
    for tile in unit.tiles:
        image = Image(
            item_id=tile.tile_id,
            kind="tile",
            source_uri=shards.uri,
            identity=tile.identity,
            bands=bands,
            shift=0,
            shift_rule=SHIFT_RULE,
            fold=unit.fold,
            identity_bands=shards.bands,
        )
        try:
            work.members_left_out(tile.tile_id, bands)
            if not _is_still(tile, unit.fold, reader):
                yield replace(image, has_changed=True)
                continue
            pixels = reader.read(tile.position)[0][channels]
            place = _place(tile)
            yield replace(image, raster=Raster(pixels, (pixels != 0).any(0), place))
        except DataError as error:
            yield replace(image, found=error.found)
        except PermissionError as error:
            yield replace(image, found=str(error))


def _place(tile: TileSource) -> Georeference:
    place = Georeference(tile.crs, tile.transform)
    try:
        place.of_rasterio()
    except CRSError as error:
        raise DataError(tile.tile_id, f"its CRS in the index can't be read: {first_line(error)}") from error
    return place


def _is_still(tile: TileSource, fold: int | None, reader: TileReader) -> bool:
    """Tell whether the index that was opened here has of a tile what was listed."""
    i = tile.position
    if i >= len(reader) or reader.tile_id(i) != tile.tile_id:
        return False
    return tile_identity(reader.pixels_identity(i), tile.crs, tile.transform, fold) == tile.identity
