"""What has no label and would be worth one: tiles, chips and scenes about which the members disagree.

Where members disagree, a label teaches them most (query by committee: Seung, Opper and Sompolinsky 1992). Must not know
pixels: the ledger of a scoring has the mean disagreement of each item.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raytrain import storage
from raytrain.review.predicted import Predictions, open_predictions
from raytrain.review.ranking import UNLABELLED_SCHEMA
from raytrain.scoring.ledger import read_all
from raytrain.tiles.reader import read_index

_COLUMNS = (
    "item_id",
    "kind",
    "source_uri",
    "datetime",
    "height",
    "width",
    "valid_px",
    "cloud_px",
    "disagreement_mean",
)


def unlabelled_table(predictions: Predictions, tiles: pa.Table, others: Sequence[str]) -> pa.Table:
    """Return the table of what has no label, the most disagreed about first; equals in the order of their ids.

    `tiles` are the rows of the index without a label, found again among `predictions` by their ids. Of `others`, URIs
    of scorings, tiles count whose shards have no label of them, and every chip and scene. An item without any data is
    left out. Raises `ConfigError` for a scoring that kept no disagreement, and for tiles whose shards are gone.
    """
    known = dict(zip(tiles["tile_id"].to_pylist(), tiles["location"].to_pylist(), strict=True))
    rows = [{**row, "location": known[row["item_id"]]} for row in _rows(predictions) if row["item_id"] in known]
    for uri in others:
        rows += _without_label(open_predictions(storage.normalise(uri), unseen=False))
    rows.sort(key=lambda row: (-row["disagreement_mean"], row["item_id"], row["source_uri"]))
    return pa.Table.from_pylist([{**row, "rank": i} for i, row in enumerate(rows, 1)], UNLABELLED_SCHEMA)


def _without_label(predictions: Predictions) -> Iterator[dict[str, Any]]:
    """Yield the items of a scoring but for tiles that their shards have a label of."""

    @lru_cache
    def tiles_of(shards: str) -> dict[str, tuple[str, bool]]:
        index = read_index(shards, ["tile_id", "location", "label_bytes"])
        columns = (index["tile_id"], index["location"], pc.is_valid(index["label_bytes"]))
        tile_ids, locations, is_labelled = (column.to_pylist() for column in columns)
        return dict(zip(tile_ids, zip(locations, is_labelled, strict=True), strict=True))

    for row in _rows(predictions):
        location, is_labelled = None, False
        if row["kind"] == "tile":
            location, is_labelled = tiles_of(row["source_uri"]).get(row["item_id"], (None, False))
        if not is_labelled:
            yield {**row, "location": location}


def _rows(predictions: Predictions) -> Iterator[dict[str, Any]]:
    """Yield the items of a scoring that have pixels with data."""
    for table in read_all(predictions.uri, _COLUMNS):
        for row in table.to_pylist():
            if row["disagreement_mean"] is not None:
                taken, fraction = row["datetime"], row["cloud_px"] / row["valid_px"]
                moment = None if taken is None else datetime.fromisoformat(taken)
                yield {**row, "datetime": moment, "cloud_fraction": fraction}
