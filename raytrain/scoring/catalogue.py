"""The catalogue of a destination, made of its ledger: the table of all STAC items, and the collection over them.

Must not know who scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raytrain import storage
from raytrain.scoring import ledger
from raytrain.scoring.destination import Scoring
from raytrain.scoring.records import Output
from raytrain.scoring.stac import COLLECTION_KEY, TABLE_KEY, Summary, collection, scene_item, to_bytes
from raytrain.scoring.stac_table import write_table
from raytrain.scoring.work import making_of
from raytrain.storage.temporary import temporary_folder


def write_catalogue(uri: str, scoring: Scoring) -> int:
    """Write the catalogue of the destination `uri` and return its number of items; one without items has none."""
    making, summary = making_of(scoring), Summary()

    def items() -> Iterator[dict[str, Any]]:
        for record in ledger.read_records(uri):
            if "item" in record.outputs:
                item = scene_item(record, making)
                assert not isinstance(item, str), "a record of an item has all that it needs"
                yield item

    with temporary_folder() as temporary:
        path = Path(temporary) / TABLE_KEY
        count = write_table(summary.passing(items()), path, making.layers)
        if not count:
            storage.remove(storage.join(uri, TABLE_KEY))
            storage.remove(storage.join(uri, COLLECTION_KEY))
            return 0
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        table = Output(key=TABLE_KEY, sha256=sha256, num_bytes=path.stat().st_size)
        storage.write_file(storage.join(uri, TABLE_KEY), path)
    storage.write_bytes(storage.join(uri, COLLECTION_KEY), to_bytes(collection(summary, making, table)))
    return count
