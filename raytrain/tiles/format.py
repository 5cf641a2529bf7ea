"""The shard format, version 1: Parquet, one row and one row group a tile, one binary cell a band.

Cells are encoded by themselves and Parquet's own codec is off, so a cell's bytes stand in the file as they are: the
index keeps where, and a tile is one ranged read, without Parquet. `raw` cells are uint16 (label uint8), little-endian,
row-major, for any tool; the blosc2 encodings are blosc2 chunks of the same bytes. The index keeps a CRC-32 of each
cell, too, so that no answer of a store and nothing in a cache is taken for what it is not. Must not know where tiles
come from.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import blosc2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raytrain.config import CellEncoding

blosc2.set_releasegil(True)  # tiles are read by threads, which it keeps waiting otherwise
FORMAT_VERSION = 1
VERSION_KEY = "raytrain.format_version"
"""What the metadata of every Parquet file of this format has."""
FIRST_BANDS = ("B02", "B03", "B04", "B08")
"""The order of bands in a shard: these first, so that a 3-band member reads one range, then others by name."""

_CODECS = {"blosc2-bitshuffle-lz4": (blosc2.Codec.LZ4HC, 5), "blosc2-bitshuffle-zstd": (blosc2.Codec.ZSTD, 1)}
"""Codec and level; what LZ4HC packs, at leisure, is unpacked as LZ4."""
_BLOCK_BYTES = 2**20
"""A cell of 512 px is one block: smaller ones, blosc2's default, take 2 to 4 % more bytes and half as long again."""


@dataclass(frozen=True)
class Tile:
    """One training sample: bands `[H, W] uint16` by name, label `[H, W] uint8` or None, and what is known of it."""

    tile_id: str
    location: str
    taken: datetime | None
    bands: dict[str, NDArray[np.uint16]]
    label: NDArray[np.uint8] | None
    valid_fraction: float
    cloud_fraction: float | None
    crs: str | None
    transform: tuple[float, ...] | None
    source_uri: str

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = next(iter(self.bands.values())).shape
        return height, width

    def sha256(self) -> str:
        """Return the hash over the decoded bytes."""
        return sha256_of_tile(self.bands, self.label)


def sha256_of_tile(bands: Mapping[str, NDArray[np.uint16]], label: NDArray[np.uint8] | None) -> str:
    """Return the hash over the decoded bytes: the bands `[H, W]` in the order of the format, then the label."""
    digest = hashlib.sha256()
    for band in band_order(bands):
        digest.update(bands[band].astype("<u2").tobytes())
    if label is not None:
        digest.update(label.tobytes())
    return digest.hexdigest()


def band_order(bands: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Return `bands` in the order in which a shard stores them."""
    return [band for band in FIRST_BANDS if band in bands] + sorted(set(bands) - set(FIRST_BANDS))


def row_schema(bands: Sequence[str]) -> pa.Schema:
    """Return the schema of all columns but the cells."""
    return pa.schema(
        [
            pa.field("tile_id", pa.string(), nullable=False),
            pa.field("location", pa.string(), nullable=False),
            pa.field("datetime", pa.timestamp("us", tz="UTC")),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("crs", pa.string()),
            pa.field("transform", pa.list_(pa.float64(), 6)),
            pa.field("cloud_fraction", pa.float32()),
            pa.field("valid_fraction", pa.float32(), nullable=False),
            pa.field("source_uri", pa.string(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
        ]
    )


def shard_schema(bands: Sequence[str], encoding: CellEncoding) -> pa.Schema:
    """Return the schema of a shard; its metadata name the format version and the cell encoding."""
    cells = [pa.field("label", pa.binary())] + [
        pa.field(band, pa.binary(), nullable=False) for band in band_order(bands)
    ]
    metadata = {VERSION_KEY: str(FORMAT_VERSION), "raytrain.cell_encoding": encoding}
    return pa.schema([*row_schema(bands), *cells], metadata=metadata)


def index_schema(bands: Sequence[str]) -> pa.Schema:
    """Return the schema of the index: all columns but the cells, and of each cell where it lies in which shard.

    That is its offset, its size in bytes, and the CRC-32 of these bytes.
    """
    kinds = {"offset": pa.int64(), "bytes": pa.int64(), "crc32": pa.uint32()}
    places = [
        pa.field(f"{cell}_{part}", kind) for cell in ["label", *band_order(bands)] for part, kind in kinds.items()
    ]
    where = [pa.field("shard", pa.string()), pa.field("row_group", pa.int32()), pa.field("fold", pa.int32())]
    return pa.schema([*row_schema(bands), *where, *places], metadata={VERSION_KEY: str(FORMAT_VERSION)})


def encode_cell(array: NDArray[Any], encoding: CellEncoding) -> bytes:
    """Return `array` (`[H, W]`, uint16 or uint8) as the bytes of a cell."""
    data = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    if encoding == "raw":
        return data.tobytes()
    codec, level = _CODECS[encoding]
    encoded = blosc2.compress2(
        data,
        typesize=data.dtype.itemsize,
        codec=codec,
        clevel=level,
        blocksize=_BLOCK_BYTES,
        filters=[blosc2.Filter.BITSHUFFLE],
        filters_meta=[0],
        nthreads=1,
    )
    return bytes(encoded)


def decode_cell(data: bytes | memoryview, out: NDArray[Any], encoding: CellEncoding) -> None:
    """Decode a cell into `out`, contiguous, of the cell's size and dtype; raise `ValueError` if its size is another."""
    num_bytes = len(data) if encoding == "raw" else blosc2.get_cbuffer_sizes(data)[0]
    if num_bytes != out.nbytes:  # blosc2 writes as much as the cell says, whatever there is room for
        raise ValueError(f"{num_bytes} bytes for {out.nbytes} of {out.shape} {out.dtype}")
    if encoding == "raw":
        out[...] = np.frombuffer(data, out.dtype).reshape(out.shape)
    else:
        blosc2.decompress2(data, dst=out, nthreads=1)


def row_of(tile: Tile) -> dict[str, Any]:
    """Return the values of all columns but the cells."""
    height, width = tile.shape
    return {
        "tile_id": tile.tile_id,
        "location": tile.location,
        "datetime": tile.taken,
        "height": height,
        "width": width,
        "crs": tile.crs,
        "transform": list(tile.transform) if tile.transform is not None else None,
        "cloud_fraction": tile.cloud_fraction,
        "valid_fraction": tile.valid_fraction,
        "source_uri": tile.source_uri,
        "sha256": tile.sha256(),
    }


class ShardWriter:
    """Write tiles one by one into the bytes of one shard, and collect the rows of the index."""

    def __init__(self, name: str, bands: Sequence[str], encoding: CellEncoding) -> None:
        self._name = name
        self._bands = band_order(bands)
        self._encoding = encoding
        self._buffer = io.BytesIO()
        self._schema = shard_schema(bands, encoding)
        self._writer = pq.ParquetWriter(
            self._buffer,
            self._schema,
            compression="none",
            use_dictionary=False,
            write_statistics=["tile_id", "location", "datetime"],
            data_page_version="1.0",
            store_schema=True,
        )
        self._rows: list[dict[str, Any]] = []
        self._cells: list[dict[str, tuple[int, int] | None]] = []

    def add(self, tile: Tile) -> None:
        """Append `tile` as a row group of its own."""
        cells: dict[str, bytes | None] = {
            "label": None if tile.label is None else encode_cell(tile.label, self._encoding),
            **{band: encode_cell(tile.bands[band], self._encoding) for band in self._bands},
        }
        self.add_encoded(row_of(tile), cells)

    def add_encoded(self, row: dict[str, Any], cells: Mapping[str, bytes | None]) -> None:
        """Append a tile whose cells are encoded already, as a shard of this encoding has them; `row` is `row_of` it."""
        table = pa.Table.from_pylist([{**row, **cells}], schema=self._schema)
        self._writer.write_table(table, row_group_size=1)
        self._rows.append(row)
        self._cells.append({k: None if data is None else (len(data), zlib.crc32(data)) for k, data in cells.items()})

    def finish(self) -> tuple[bytes, list[dict[str, Any]]]:
        """Return the shard's bytes and one row of the index per tile (without its fold)."""
        self._writer.close()
        data = self._buffer.getvalue()
        metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
        for row_group, (row, cells) in enumerate(zip(self._rows, self._cells, strict=True)):
            row |= {"shard": self._name, "row_group": row_group}
            row |= _cell_places(metadata.row_group(row_group), cells)
        return data, self._rows


def _cell_places(row_group: pq.RowGroupMetaData, cells: Mapping[str, tuple[int, int] | None]) -> dict[str, int | None]:
    """Return `<cell>_offset`, `<cell>_bytes` and `<cell>_crc32` of each cell of a row group; `cells` has the last two.

    An uncompressed column chunk of one value ends with that value (Parquet's PLAIN encoding).
    """
    places: dict[str, int | None] = {}
    for i in range(row_group.num_columns):
        column = row_group.column(i)
        name = column.path_in_schema
        if name in cells:
            size, crc32 = cells[name] or (None, None)
            end = column.data_page_offset + column.total_compressed_size
            places[f"{name}_offset"] = None if size is None else end - size
            places[f"{name}_bytes"] = size
            places[f"{name}_crc32"] = crc32
    return places
