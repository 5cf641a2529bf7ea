"""Parquet files that others may have written: what they claim is looked at before it is decoded.

A few kilobytes may stand for gigabytes: of one value that is repeated, of zeros, of a footer that says so. What is
decoded is bounded here: by the footer where it tells the truth, and by what has been decoded so far where it does not.
Must not know what columns mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

LARGEST_TABLE_BYTES = 4 * 2**30
"""Decoded: the index of a million tiles has 0.5 GB, a table of the ledger of as many items 0.1."""
MOST_VALUES = 2**28
"""Of a column."""
MOST_LISTED_VALUES = 2**26
"""Of a column of lists, which are decoded before they are counted: the index of ten million tiles has 6 for each."""
MOST_COLUMNS, MOST_ROW_GROUPS = 10_000, 100_000
FOOTER_STRING_BYTES, FOOTER_VALUES = 64 * 2**20, 4_000_000
"""The limits of Thrift, by which a footer is coded: of one text in it, and of one list."""
ROWS_AT_ONCE = 8192


class ParquetBomb(ValueError):
    """A file that claims, or decodes to, more than any that raytrain writes or reads, or may do so unseen."""


def open_parquet(source: Any, limit_bytes: int = LARGEST_TABLE_BYTES, **options: Any) -> pq.ParquetFile:
    """Return the Parquet file in `source`; raise `ParquetBomb` for one that claims too much, or what pyarrow raises."""
    file = pq.ParquetFile(
        source,
        pre_buffer=False,  # else all of its columns are held, as they are stored, before the first row comes
        thrift_string_size_limit=FOOTER_STRING_BYTES,
        thrift_container_size_limit=FOOTER_VALUES,
        **options,
    )
    check_claims(file.metadata, limit_bytes)
    return file


def check_claims(metadata: pq.FileMetaData, limit_bytes: int = LARGEST_TABLE_BYTES) -> None:
    """Raise `ParquetBomb` if the footer of a file claims more values, columns or decoded bytes than there may be."""
    if metadata.num_columns > MOST_COLUMNS or metadata.num_row_groups > MOST_ROW_GROUPS:
        found = f"claims {metadata.num_columns} columns in {metadata.num_row_groups} row groups"
        raise ParquetBomb(f"{found}, expected at most {MOST_COLUMNS} and {MOST_ROW_GROUPS}")
    if not 0 <= metadata.num_rows <= MOST_VALUES:
        raise ParquetBomb(f"claims {metadata.num_rows} rows, expected at most {MOST_VALUES}")
    num_bytes, values = 0, [0] * metadata.num_columns
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for k in range(metadata.num_columns):
            column = group.column(k)
            num_bytes += max(0, column.total_uncompressed_size)
            values[k] += max(0, column.num_values)
    if num_bytes > limit_bytes:
        raise ParquetBomb(f"claims {num_bytes} bytes decoded, expected at most {limit_bytes}")
    for k, count in enumerate(values):
        most = MOST_LISTED_VALUES if metadata.schema.column(k).max_repetition_level else MOST_VALUES
        if count > most:
            raise ParquetBomb(f"claims {count} values of a column, expected at most {most}")


def iter_parquet(
    source: Any,
    columns: Sequence[str] | None = None,
    *,
    dictionaries: Sequence[str] = (),
    nested: Sequence[str] = (),
    limit_bytes: int = LARGEST_TABLE_BYTES,
    total_bytes: int | None = None,
    rows: int = ROWS_AT_ONCE,
    **options: Any,
) -> Iterator[pa.RecordBatch]:
    """Yield a Parquet file, or `columns` of it, by `rows`; `dictionaries` are columns of texts that repeat.

    Of a file without rows one empty batch comes. Columns are numbers, times, texts or bytes, and lists of numbers.
    `nested` are those that may be anything else, in a file whose writers are trusted: nothing tells how much they are
    before they are decoded. `options` are pyarrow's. Raises `ParquetBomb` for other columns, for a file that claims
    more than `limit_bytes`, before so many are held of one batch, and where all batches so far decode to more than
    `total_bytes`; or what pyarrow raises.
    """
    schema = open_parquet(source, limit_bytes).schema_arrow
    names = schema.names if columns is None else [name for name in schema.names if name in set(columns)]
    for name in names:
        if name not in nested and not _is_plain(schema.field(name).type):
            found = f"column {name} is {schema.field(name).type}"
            raise ParquetBomb(f"{found}, expected numbers, times, text, or lists of numbers")
    # Texts come as what the file has of each value once: a repeated one takes no more, however long it is.
    texts = [name for name in names if _is_text(schema.field(name).type)]
    file = open_parquet(source, limit_bytes, read_dictionary=texts, **options)
    kept = pa.schema([_kept(schema.field(name), dictionaries) for name in names], metadata=schema.metadata)
    is_empty, num_bytes = True, 0
    for batch in file.iter_batches(batch_size=rows, columns=names):
        is_empty = False
        batch_bytes = sum(map(_plain_bytes, batch.columns))
        num_bytes += batch_bytes
        if batch_bytes > limit_bytes:
            raise ParquetBomb(f"{batch.num_rows} rows decode to more than {limit_bytes} bytes")
        if total_bytes is not None and num_bytes > total_bytes:
            raise ParquetBomb(f"decodes to more than {total_bytes} bytes")
        arrays = [batch.column(field.name).cast(field.type) for field in kept]
        yield pa.RecordBatch.from_arrays(arrays, schema=kept)
    if is_empty:
        yield pa.RecordBatch.from_arrays([pa.array([], field.type) for field in kept], schema=kept)


def read_parquet(
    source: Any,
    columns: Sequence[str] | None = None,
    *,
    dictionaries: Sequence[str] = (),
    nested: Sequence[str] = (),
    limit_bytes: int = LARGEST_TABLE_BYTES,
    **options: Any,
) -> pa.Table:
    """Return what `iter_parquet` yields as one table; `limit_bytes` is that of all of it."""
    limits: dict[str, Any] = {"nested": nested, "limit_bytes": limit_bytes, "total_bytes": limit_bytes}
    return pa.Table.from_batches(list(iter_parquet(source, columns, dictionaries=dictionaries, **limits, **options)))


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_large_binary(kind)
    )


def _is_plain(kind: pa.DataType) -> bool:
    """Tell whether a column's bytes are bounded by the number of its values, or are looked at before they are many."""
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return bool(pa.types.is_primitive(kind.value_type))
    return bool(pa.types.is_primitive(kind) or pa.types.is_null(kind)) or _is_text(kind)


def _kept(field: pa.Field, dictionaries: Sequence[str]) -> pa.Field:
    is_dictionary = field.name in dictionaries and _is_text(field.type)
    return field.with_type(pa.dictionary(pa.int32(), field.type)) if is_dictionary else field


def _plain_bytes(array: pa.Array) -> int:
    """Return how many bytes an array takes once its values are no dictionary any more."""
    if not pa.types.is_dictionary(array.type):
        return int(array.nbytes)
    lengths = pc.binary_length(array.dictionary).take(array.indices)
    return 4 * len(array) + int(pc.sum(lengths.cast(pa.int64())).as_py() or 0)
