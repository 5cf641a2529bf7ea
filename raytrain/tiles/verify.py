"""Shards hashed again and held against their manifest; what differs is named, down to the tile. Writes nothing."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raytrain import storage
from raytrain.errors import ConfigError, DataError
from raytrain.tiles.reader import INDEX, read_index


def verify_shard(uri: str, record: dict[str, Any]) -> list[DataError]:
    """Return what is wrong with the shard of `record` in the shards at `uri`: the shard, then its damaged tiles."""
    shard = storage.join(uri, record["name"])
    difference, data = _difference(shard, record)
    if difference is None:
        return []
    found = [DataError(shard, difference)]
    if data is not None:
        found += _damaged_tiles(uri, record["name"], data)
    return found


def verify_index(uri: str, record: dict[str, Any]) -> list[DataError]:
    """Return what is wrong with the index of the shards at `uri`."""
    index = storage.join(uri, INDEX)
    difference, _ = _difference(index, record)
    return [] if difference is None else [DataError(index, difference)]


def verify_beside(uri: str, record: dict[str, Any]) -> list[DataError]:
    """Return what is wrong with the file of `record`, which the manifest of the shards at `uri` names beside them."""
    file = storage.join(uri, record["name"])
    difference, _ = _difference(file, record)
    return [] if difference is None else [DataError(file, difference)]


def unknown_files(uri: str, known: Iterable[str]) -> list[DataError]:
    """Return the Parquet files at `uri` that the manifest does not name."""
    names = {*known, INDEX}
    return [
        DataError(storage.join(uri, name), "not in the manifest")
        for name, _ in sorted(storage.walk(uri))
        if name.endswith(".parquet") and name not in names
    ]


def _difference(uri: str, record: dict[str, Any]) -> tuple[str | None, bytes | None]:
    """Return in which way the object at `uri` is not what `record` says, and its bytes where there are any."""
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        return "missing, but the manifest names it", None
    if len(data) != record["bytes"]:
        return f"{len(data)} bytes, where the manifest says {record['bytes']}", data
    digest = storage.sha256_of(data)
    if digest != record["sha256"]:
        return f"sha256 is {digest}, where the manifest says {record['sha256']}", data
    return None, data


def _damaged_tiles(uri: str, name: str, data: bytes) -> list[DataError]:
    """Return the tiles of a shard of which some cell is not what the index says."""
    try:
        index = read_index(uri)
    except ConfigError as error:
        return [DataError(storage.join(uri, name), f"which tiles are damaged can't be told: {error}")]
    rows = index.filter(pc.equal(index["shard"].cast(pa.string()), name)).to_pylist()
    cells = [column.removesuffix("_crc32") for column in index.column_names if column.endswith("_crc32")]
    damaged = {row["tile_id"]: [cell for cell in cells if _differs(row, cell, data)] for row in rows}
    found = [
        DataError(f"tile {tile_id} in {storage.join(uri, name)}", f"damaged: {', '.join(names)}")
        for tile_id, names in damaged.items()
        if names
    ]
    return found or [DataError(storage.join(uri, name), "every tile is whole; what differs lies between them")]


def _differs(row: dict[str, Any], cell: str, data: bytes) -> bool:
    start, size = row[f"{cell}_offset"], row[f"{cell}_bytes"]
    return start is not None and zlib.crc32(data[start : start + size]) != row[f"{cell}_crc32"]
