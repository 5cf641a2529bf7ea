"""All STAC items of a destination as one STAC-GeoParquet table, in bounded memory.

The columns are fixed beforehand: with columns inferred from the items, two batches could differ, as where no item of
one has a cloud cover. Must not know how items come about.
"""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from stac_geoparquet.arrow import to_parquet
from stac_geoparquet.arrow._api import stac_items_to_arrow  # one batch with a schema: the public names take a file

from raytrain.errors import DataError
from raytrain.scoring.layers import Layers
from raytrain.scoring.stac import ITEM_FOLDER

ITEMS_PER_BATCH = 4096
"""Items in memory at a time, some 10 kB each, and rows of a row group."""

_TEXT, _NUMBER, _COUNT = pa.string(), pa.float64(), pa.int64()
_PROPERTIES = {
    "datetime": _TEXT,
    "eo:cloud_cover": _NUMBER,
    "processing:software": pa.struct({"raytrain": _TEXT}),
    "proj:bbox": pa.list_(_NUMBER),
    "proj:code": _TEXT,
    "proj:shape": pa.list_(_COUNT),
    "proj:transform": pa.list_(_NUMBER),
    "proj:wkt2": _TEXT,
    "raytrain:baseline_rule": _TEXT,
    "raytrain:baseline_shift": _COUNT,
    "raytrain:ensemble": _TEXT,
    "raytrain:members_left_out": pa.list_(_TEXT),
    "raytrain:settings": _TEXT,
    "raytrain:threshold": _NUMBER,
}
_ASSET = {
    "data_type": _TEXT,
    "file:checksum": _TEXT,
    "file:size": _COUNT,
    "href": _TEXT,
    "roles": pa.list_(_TEXT),
    "title": _TEXT,
    "type": _TEXT,
}
_CLASS = {"color_hint": _TEXT, "description": _TEXT, "name": _TEXT, "nodata": pa.bool_(), "value": _COUNT}


def write_table(items: Iterable[dict[str, Any]], path: Path, layers: Layers) -> int:
    """Write items of `scene_item`, made with `layers`, to the local file `path`; return how many there are.

    The same items in the same order give the same bytes. References to files of the destination are relative to the
    table, which lies at its top. Without items no file is written. Raises `DataError` for an item with a field that
    the table has no column for.
    """
    schema = _schema(layers)
    batches = (_batch(batch, schema) for batch in _batched(items))
    first = next(batches, None)
    if first is None:
        return 0
    reader = pa.RecordBatchReader.from_batches(first.schema, itertools.chain([first], batches))
    to_parquet(reader, path, compression="zstd")
    return int(pq.read_metadata(path).num_rows)


def _batched(items: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    source = iter(items)
    while batch := list(itertools.islice(source, ITEMS_PER_BATCH)):
        yield batch


def _batch(items: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    whole = pa.struct(schema)
    for item in items:
        foreign = next(_foreign({**item, "geometry": None}, whole, ""), None)
        if foreign is not None:
            raise DataError(item["id"], f"its STAC item has {foreign}, which the table has no column for")
    return stac_items_to_arrow([_at_top(item) for item in items], schema=schema)


def _foreign(value: Any, kind: pa.DataType, path: str) -> Iterator[str]:
    """Yield the paths of fields in `value` that `kind` lacks: pyarrow would drop them in silence."""
    if pa.types.is_struct(kind) and value is not None:
        for name, part in value.items():
            if kind.get_field_index(name) < 0:
                yield f"{path}{name}"
            else:
                yield from _foreign(part, kind.field(name).type, f"{path}{name}.")
    elif pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
        for part in value:
            yield from _foreign(part, kind.value_type, path)


def _at_top(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item whose relative references hold from the top of the destination instead of its own folder."""
    assets = {name: _moved(asset) for name, asset in item["assets"].items()}
    return {**item, "assets": assets, "links": [_moved(link) for link in item["links"]]}


def _moved(reference: dict[str, Any]) -> dict[str, Any]:
    href = reference["href"]
    if "://" in href or href.startswith("/"):
        return reference
    return {**reference, "href": posixpath.normpath(posixpath.join(ITEM_FOLDER, href))}


def _schema(layers: Layers) -> pa.Schema:
    """Return the columns of items as they stand in JSON, but for the geometry, which is WKB."""
    link = {"href": _TEXT, "rel": _TEXT, "type": _TEXT}
    return pa.schema(
        {
            "type": _TEXT,
            "stac_version": _TEXT,
            "stac_extensions": pa.list_(_TEXT),
            "id": _TEXT,
            "geometry": pa.binary(),
            "bbox": pa.list_(_NUMBER),
            "links": pa.list_(pa.struct(link)),
            "assets": pa.struct({kind: pa.struct(_asset_columns(layers, kind)) for kind in layers.kinds}),
            "collection": _TEXT,
            "properties": pa.struct(_PROPERTIES),
        }
    )


def _asset_columns(layers: Layers, kind: Any) -> dict[str, pa.DataType]:
    layer = layers.layer(kind)
    columns = {**_ASSET, "nodata": _COUNT if layer.dtype == "uint8" else _TEXT}
    if kind == "mask":
        columns["classification:classes"] = pa.list_(pa.struct(_CLASS))
    elif layer.scale != 1:
        columns |= {"raster:scale": _NUMBER, "raster:offset": _NUMBER}
    return dict(sorted(columns.items()))
