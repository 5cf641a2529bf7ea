"""What predictions of one tile come to against its labels of two versions. Must not know who predicted, or places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytrain import storage
from raytrain.errors import DataError, StoreOutOfReach
from raytrain.evaluation.counting import Truth, near_edges
from raytrain.evaluation.masks import Prediction, Reading, read_counted
from raytrain.evaluation.tally import Tally
from raytrain.imagery.rasters import LABEL_CLOUD
from raytrain.tiles.reader import TileReader

EDGE_PX = 5
"""How far from cloud edges pixels count as near, as `evaluate` has it by default."""
OLD, NEW = range(2)
"""The labels that predictions are held against: those of BEFORE and those of AFTER."""


@dataclass(frozen=True)
class CountedTile:
    """A tile's id, location, and counts `[label, prediction, zone, 4] int64`; of a label that it has not, zeros."""

    tile_id: str
    location: str
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class TileToCount:
    """A tile at `positions` of the two readers of labels, None where it has no label there."""

    tile_id: str
    location: str
    positions: tuple[int | None, int | None]


def count_tiles(
    tiles: Sequence[TileToCount], labels: tuple[str, str], predictions: Sequence[str]
) -> tuple[list[CountedTile], list[DataError]]:
    """Return what each of `predictions` (folders of masks `<tile_id>.tif`) comes to on `tiles`, and what can't be read.

    `labels` are the shards whose labels count, old and new. A tile counts for all predictions or for none.
    """
    readers = [TileReader(uri, ()) for uri in labels]
    counted: list[CountedTile] = []
    problems: list[DataError] = []
    for tile in tiles:
        try:
            counted.append(CountedTile(tile.tile_id, tile.location, _counts(tile, readers, predictions)))
        except StoreOutOfReach:
            raise
        except DataError as error:
            problems.append(DataError(f"tile {tile.tile_id}", str(error)))
    return counted, problems


def _counts(tile: TileToCount, readers: Sequence[TileReader], predictions: Sequence[str]) -> NDArray[np.int64]:
    masks = [_read_mask(storage.join(folder, f"{tile.tile_id}.tif")) for folder in predictions]
    found = np.zeros((len(readers), len(masks), 2, 4), np.int64)
    for which, (reader, position) in enumerate(zip(readers, tile.positions, strict=True)):
        label = None if position is None else reader.read(position)[1]
        if label is None:
            continue
        truth = Truth.of(label, near_edges(label, EDGE_PX))
        for i, (mask, folder) in enumerate(zip(masks, predictions, strict=True)):
            if mask.shape != label.shape:
                size = f"{mask.shape[1]} x {mask.shape[0]} px"
                raise DataError(storage.join(folder, f"{tile.tile_id}.tif"), f"{size}, expected those of the tile")
            found[which, i] = truth.confusion(mask == LABEL_CLOUD)
    return found


def _read_mask(uri: str) -> NDArray[np.uint8]:
    return read_counted(Prediction(uri), Reading(), lambda source: (source.height, source.width))


def tally_of(tiles: Sequence[CountedTile], label: int, prediction: int) -> Tally:
    """Return what one of the predictions came to on `tiles` against one of the labels."""
    return Tally(
        [tile.tile_id for tile in tiles],
        [tile.location for tile in tiles],
        np.array([tile.counts[label, prediction] for tile in tiles], np.int64).reshape(-1, 2, 4),
        np.zeros(len(tiles), np.int64),
    )
