"""Which tiles of shards were predicted as they are now: by the identity that the ledger has of each prediction.

A prediction of other pixels, of another place, or of shards that were made anew since, judges no label. Where they lie
does not matter, nor what their labels are: a later version of them has the same pixels. Must not know pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from raytrain.errors import ConfigError, DataError
from raytrain.review.predicted import Predictions
from raytrain.scoring.ledger import read_all
from raytrain.scoring.units import tile_identity
from raytrain.tiles.reader import TileReader

MATCHED_COLUMNS = ("tile_id", "crs", "transform")
"""Of the index, besides the position of a tile in it."""


@dataclass(frozen=True, slots=True)
class _Record:
    """What a prediction was made of: its identity, the fold of its nets, the bands that these were given."""

    identity: str
    fold: int | None
    bands: tuple[str, ...]


def match(predictions: Predictions, shards: str, rows: pa.Table) -> tuple[list[int], list[DataError]]:
    """Return the numbers of those `rows` whose tile of `shards` was predicted as it is, and what is wrong with others.

    `rows` have `MATCHED_COLUMNS` and `position`. Of several tiles of one id the first counts.
    """
    records = {
        item_id: _Record(identity, fold, tuple(bands))
        for table in read_all(predictions.uri, ["item_id", "identity", "fold", "bands"])
        for item_id, identity, fold, bands in zip(*(column.to_pylist() for column in table.columns), strict=True)
    }

    @lru_cache
    def reader_of(bands: tuple[str, ...]) -> TileReader | None:
        try:
            return TileReader(shards, bands, labels=False)
        except ConfigError:  # the shards have not all of them
            return None

    kept: list[int] = []
    problems: list[DataError] = []
    seen: set[str] = set()
    for number, row in enumerate(_rows(rows)):
        tile_id, position, crs, transform = row
        record = records.get(tile_id)
        found = None
        if tile_id in seen:
            found = "a second tile of this id: the first counts"
        elif record is None:
            found = f"no prediction in {predictions.uri}; what score left out, and why, stands in its casualties.csv"
        else:
            reader = reader_of(record.bands)
            identity = reader and tile_identity(reader.pixels_identity(position), crs, transform, record.fold)
            if identity != record.identity:
                found = f"its prediction in {predictions.uri} is of other pixels, or of another place; score again"
        seen.add(tile_id)
        if found is None:
            kept.append(number)
        else:
            problems.append(DataError(tile_id, found))
    return kept, problems


def _rows(rows: pa.Table) -> zip[tuple[str, int, str | None, Sequence[float] | None]]:
    columns = (rows[name].to_pylist() for name in ("tile_id", "position", "crs", "transform"))
    return zip(*columns, strict=True)
