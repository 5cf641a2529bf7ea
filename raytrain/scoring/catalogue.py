"""The catalogue of a destination, made of its ledger: the table of all STAC items, and the collection over them.

Must not know who scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raytrain import storage
from raytrain.errors import ConfigError, DataError, first_line
from raytrain.scoring import ledger
from raytrain.scoring.destination import Scoring
from raytrain.scoring.records import Output
from raytrain.scoring.stac import COLLECTION_KEY, SHA256_MULTIHASH, TABLE_KEY, Summary, collection, scene_item, to_bytes
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


def is_catalogue_whole(uri: str) -> bool:
    """Tell whether the catalogue of the destination `uri` stands, undamaged, and is one of all items of its ledger.

    Reads a column of the ledger and the whole table. Raises `DamagedTable`.
    """
    return not catalogue_differences(uri, _count_items(uri))


def catalogue_differences(uri: str, num_items: int | None) -> list[DataError]:
    """Return what is wrong with the catalogue of the destination `uri`, whose ledger has `num_items` STAC items.

    That is what is missing, a table of other bytes than the collection says, one of fewer or more items, and all of it
    where there are no items. For None it is not known how many there are, so only what stands is looked at.
    """
    where = {key: storage.join(uri, key) for key in (COLLECTION_KEY, TABLE_KEY)}
    missing = [key for key, each in where.items() if not storage.exists(each)]
    if num_items == 0:
        return [
            DataError(each, "a catalogue, but the ledger has no STAC items; score again")
            for key, each in where.items()
            if key not in missing
        ]
    if num_items is None and len(missing) == 2:  # there may be no items
        return []
    if missing:
        return [DataError(where[key], "missing, but the ledger has STAC items; score again") for key in missing]
    try:
        sha256 = _recorded_sha256(where[COLLECTION_KEY])
        return _table_differences(where[TABLE_KEY], sha256, num_items)
    except ConfigError as error:
        collection_uri = where[COLLECTION_KEY]
        return [DataError(collection_uri, f"{str(error).removeprefix(f'{collection_uri}: ')}; score again")]


def _count_items(uri: str) -> int:
    """Return how many records of the ledger have a STAC item."""
    count = 0
    for digit in ledger.DIGITS:
        outputs = ledger.read_table(uri, digit, ["outputs"])["outputs"].combine_chunks()
        count += pc.sum(pc.equal(outputs.flatten().field("kind"), "item")).as_py() or 0
    return count


def _recorded_sha256(uri: str) -> str:
    """Return what the collection at `uri` says of its table; raise `ConfigError` where it says nothing."""
    try:
        checksum = storage.read_json(uri)["assets"]["items"]["file:checksum"]
    except (LookupError, TypeError) as error:
        raise ConfigError(f"{uri}: damaged, names no checksum of {TABLE_KEY}") from error
    return str(checksum).removeprefix(SHA256_MULTIHASH)


def _table_differences(uri: str, sha256: str, num_items: int | None) -> list[DataError]:
    with storage.open_ranged(uri) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            return [DataError(uri, f"sha256 is {found}, {COLLECTION_KEY} says {sha256}; score again")]
        file.seek(0)
        try:
            num_rows = pq.read_metadata(file).num_rows
        except pa.ArrowException as error:
            return [DataError(uri, f"not a Parquet file: {first_line(error)}; score again")]
    if num_items is not None and num_rows != num_items:
        return [DataError(uri, f"{num_rows} STAC items, where the ledger has {num_items}; score again")]
    return []
