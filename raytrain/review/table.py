"""Decisions as a Parquet table, one row an entry, for any tool. Must not know where a log is kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raytrain import storage
from raytrain.errors import ConfigError, DataError
from raytrain.review.decisions import Decision, Outcome
from raytrain.review.regions import BadMask, name_of, png_of
from raytrain.tiles.format import VERSION_KEY

DECISIONS_KEY = b"raytrain.decisions"
"""What the metadata of a table of decisions have, with the version of its columns."""
SCHEMA = pa.schema(
    [
        pa.field("reviewer", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
        pa.field("decision_id", pa.string(), nullable=False),
        pa.field("time", pa.timestamp("ms", tz="UTC"), nullable=False),
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("tile_sha256", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("kind", pa.string()),
        pa.field("mask", pa.binary()),
        pa.field("undoes", pa.string()),
        pa.field("stands", pa.bool_(), nullable=False),
    ],
    metadata={DECISIONS_KEY: b"1"},
)
"""The fields of a decision, the mask as the bytes of a PNG; `stands` says whether nothing later took its place."""
Key = tuple[str, str]
"""Reviewer and id of a decision."""


def key_of(decision: Decision) -> Key:
    """Return what a decision is found by."""
    return decision.reviewer, decision.decision_id


def standing_keys(standing: Mapping[str, Mapping[str, Decision]]) -> set[Key]:
    """Return what the decisions that stand are found by."""
    return {key_of(each) for by_reviewer in standing.values() for each in by_reviewer.values()}


def decision_table(
    decisions: Sequence[Decision], stands: Collection[Key], outcomes: Mapping[Key, Outcome] | None = None
) -> tuple[pa.Table, list[DataError]]:
    """Return decisions as a table of `SCHEMA`; and those whose mask is none, null in it.

    With `outcomes` it has a column `outcome` besides: what came of each.
    """
    problems: list[DataError] = []
    rows = [_row(decision, key_of(decision) in stands, problems) for decision in decisions]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    if outcomes is not None:
        values = pa.array([outcomes[key_of(each)] for each in decisions], pa.string())
        table = table.append_column(pa.field("outcome", pa.string(), nullable=False), values)
    return table, problems


def _row(decision: Decision, stands: bool, problems: list[DataError]) -> dict[str, Any]:
    row = decision.model_dump(exclude={"format_version"})
    row |= {"time": datetime.fromisoformat(decision.time), "stands": stands, "mask": None}
    if decision.mask is not None:
        try:
            row["mask"] = png_of(decision.mask)
        except BadMask as error:
            problems.append(DataError(name_of(decision), f"its mask is {error}"))
    return row


def parquet_of(table: pa.Table, metadata: Iterable[tuple[str, str]] = ()) -> bytes:
    """Return a table as the bytes of a Parquet file, with `metadata` besides its own."""
    sink = pa.BufferOutputStream()
    own = {**(table.schema.metadata or {}), **{name.encode(): value.encode() for name, value in metadata}}
    pq.write_table(table.replace_schema_metadata(own), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def write_export(uri: str, table: pa.Table) -> None:
    """Write a table of decisions, in place of an older one; raise `ConfigError` where anything else stands."""
    if storage.exists(uri) and not _is_export(uri):
        raise ConfigError(f"{uri} holds something that raytrain review export did not write; choose another name")
    storage.write_bytes(uri, parquet_of(table))


def _is_export(uri: str) -> bool:
    try:
        with storage.open_ranged(uri) as file:
            metadata = storage.open_parquet(file).schema_arrow.metadata or {}
    except (pa.ArrowException, ValueError, OSError):
        return False
    return DECISIONS_KEY in metadata and VERSION_KEY.encode() not in metadata  # that is what shards were made by
