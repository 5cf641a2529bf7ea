"""The ranking as a table: one row a labelled tile, the most suspicious first; and one of what has no label yet.

Must not know how suspicion is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain import storage
from raytrain.errors import ConfigError, first_line
from raytrain.review.features import Features
from raytrain.review.folder import RANKING, UNLABELLED
from raytrain.review.kinds import ERROR_KINDS
from raytrain.review.suspicion import Judgement

RANKING_BYTES = 2 * 2**30
"""Of a ranking as it is stored: a million tiles take some 150 MB."""

IDENTITY_FIELDS = [
    pa.field("rank", pa.int32(), nullable=False),
    pa.field("position", pa.int64(), nullable=False),
    pa.field("tile_id", pa.string(), nullable=False),
    pa.field("location", pa.string(), nullable=False),
    pa.field("sha256", pa.string(), nullable=False),
    pa.field("fold", pa.int32(), nullable=False),
    pa.field("datetime", pa.timestamp("us", tz="UTC")),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("source_uri", pa.string(), nullable=False),
]
"""From 1 on; the position in the index; what the index says of the tile, its hash (bands and label) among it."""
IDENTITY_COLUMNS = tuple(field.name for field in IDENTITY_FIELDS if field.name not in ("rank", "position"))
"""Those that the index has."""

FEATURE_NAMES = tuple(field.name for field in fields(Features))
"""The numbers that a tile is judged by; what each is stands with `raytrain.review.features.Features`."""

JUDGEMENT_FIELDS = [
    pa.field("suspicion", pa.float32(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),
    *(pa.field(f"suspicion_{kind}", pa.float32(), nullable=False) for kind in ERROR_KINDS),
]
"""Suspicion in [0, 1], of any error and of each kind; `kind` is the one that explains most."""

RANKING_SCHEMA = pa.schema(
    [*IDENTITY_FIELDS, *JUDGEMENT_FIELDS, *(pa.field(name, pa.float32()) for name in FEATURE_NAMES)]
)
UNLABELLED_SCHEMA = pa.schema(
    [
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("location", pa.string()),
        pa.field("datetime", pa.timestamp("us", tz="UTC")),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("disagreement_mean", pa.float32(), nullable=False),
        pa.field("cloud_fraction", pa.float32()),
    ]
)
"""`kind` is tile, chip or scene."""


def ranking_table(rows: pa.Table, features: Sequence[Features], judgements: Sequence[Judgement]) -> pa.Table:
    """Return the ranking of `rows`, which have the columns of the index and `position`: the most suspicious first.

    Equals stand in the order of their ids.
    """
    suspicion = np.array([each.suspicion for each in judgements], np.float32)
    order = sorted(range(len(rows)), key=lambda i: (-float(suspicion[i]), rows["tile_id"][i].as_py()))
    columns: dict[str, Any] = {name: rows[name] for name in ("position", *IDENTITY_COLUMNS)}
    columns["suspicion"] = suspicion
    columns["kind"] = [each.kind for each in judgements]
    for kind in ERROR_KINDS:
        columns[f"suspicion_{kind}"] = np.array([each.of_kind[kind] for each in judgements], np.float32)
    for name in FEATURE_NAMES:
        columns[name] = np.array([getattr(each, name) for each in features], np.float32)
    table = pa.table(columns).take(order)
    table = table.append_column("rank", pa.array(np.arange(1, len(table) + 1)))
    return table.select(RANKING_SCHEMA.names).cast(RANKING_SCHEMA)


def write_table(uri: str, name: str, table: pa.Table) -> None:
    """Write a table of a review: `RANKING` or `UNLABELLED`."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(storage.join(uri, name), sink.getvalue().to_pybytes())


def read_ranking(uri: str) -> pa.Table:
    """Return the ranking of the review in the folder `uri`, by rank; raise `ConfigError` where it can't be read."""
    return _read(storage.join(uri, RANKING), RANKING_SCHEMA)


def read_unlabelled(uri: str) -> pa.Table:
    """Return what has no label yet, by rank; raise `ConfigError` where it can't be read."""
    return _read(storage.join(uri, UNLABELLED), UNLABELLED_SCHEMA)


def _read(path: str, schema: pa.Schema) -> pa.Table:
    try:
        table = storage.read_parquet(pa.BufferReader(storage.read_bytes(path, RANKING_BYTES)))
        return table.select(schema.names).cast(schema)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file, but review.json stands beside it; rank again") from error
    except (pa.ArrowException, KeyError, ValueError, storage.TooLarge) as error:
        raise ConfigError(f"{path}: damaged: {first_line(error)}; rank again") from error
