"""What has no label and would be worth one: tiles, chips and scenes about which the members disagree.

Where members disagree, a label teaches them most (query by committee: Seung, Opper and Sompolinsky 1992). Must not know
pixels: the ledger of a scoring has the mean disagreement of each item.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from raytrain import storage
from raytrain.review.predicted import Predictions, open_predictions
from raytrain.review.ranking import UNLABELLED_SCHEMA
from raytrain.scoring.ledger import read_all

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

    `tiles` are the rows of the index without a label, found again among `predictions` by their ids; all of `others`,
    URIs of scorings, counts as without a label. An item without a pixel of data is left out. Raises `ConfigError` for a
    scoring that kept no disagreement.
    """
    known = dict(zip(tiles["tile_id"].to_pylist(), tiles["location"].to_pylist(), strict=True))
    rows = [{**row, "location": known[row["item_id"]]} for row in _rows(predictions) if row["item_id"] in known]
    for uri in others:
        rows += [{**row, "location": None} for row in _rows(open_predictions(storage.normalise(uri), unseen=False))]
    rows.sort(key=lambda row: (-row["disagreement_mean"], row["item_id"], row["source_uri"]))
    return pa.Table.from_pylist([{**row, "rank": i} for i, row in enumerate(rows, 1)], UNLABELLED_SCHEMA)


def _rows(predictions: Predictions) -> Iterator[dict[str, Any]]:
    """Yield the items of a scoring that have pixels with data."""
    for table in read_all(predictions.uri, _COLUMNS):
        for row in table.to_pylist():
            if row["disagreement_mean"] is not None:
                taken, fraction = row["datetime"], row["cloud_px"] / row["valid_px"]
                moment = None if taken is None else datetime.fromisoformat(taken)
                yield {**row, "datetime": moment, "cloud_fraction": fraction}
