"""Reading shards: the manifest, the index, one ranged read a tile. Must not know what is done to a tile afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raytrain import storage
from raytrain.config import CellEncoding
from raytrain.errors import ConfigError, DataError, first_line
from raytrain.tiles import format as shards

MANIFEST, INDEX = "manifest.json", "index.parquet"
_MANIFEST_NAMES = {"bands", "cell_encoding", "shards", "settings", "source", "left_out"}


def read_manifest(uri: str) -> dict[str, Any]:
    """Return the manifest of the shards at `uri`; raise `ConfigError` where there is none or of another version."""
    try:
        manifest = storage.read_json(storage.join(uri, MANIFEST))
    except FileNotFoundError as error:
        raise ConfigError(f"{uri}: no {MANIFEST}, so no finished shards; make them with raytrain shard") from error
    if manifest.get("format_version") != shards.FORMAT_VERSION:
        found = manifest.get("format_version")
        raise ConfigError(f"{uri}: shards of format version {found}; this raytrain reads {shards.FORMAT_VERSION}")
    missing = _MANIFEST_NAMES - manifest.keys()
    if missing:
        raise ConfigError(f"{uri}: {MANIFEST} is damaged, it has no {', '.join(sorted(missing))}")
    return manifest


def shards_digest(manifest: Mapping[str, Any]) -> str:
    """Return a hash of what a net learns from shards: their bytes and their folds."""
    learnt_from = [manifest["shards"], manifest["source"]["folds_digest"]]
    return storage.sha256_of(json.dumps(learnt_from, sort_keys=True).encode())


def read_index(uri: str) -> pa.Table:
    """Return the index of the shards at `uri`; raise `ConfigError` where it can't be read."""
    path = storage.join(uri, INDEX)
    try:
        return pq.read_table(pa.BufferReader(storage.read_bytes(path)))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file, but {MANIFEST} stands beside it") from error
    except pa.ArrowException as error:
        raise ConfigError(f"{path}: damaged: {first_line(error)}") from error


def is_ours(uri: str) -> bool:
    """Tell whether the file at `uri` is a shard or an index, of any version of the format."""
    try:
        schema = pq.read_schema(storage.path_of(uri), filesystem=storage.arrow_filesystem(uri))
    except pa.ArrowInvalid:
        return False
    return shards.VERSION_KEY.encode() in (schema.metadata or {})


class TileReader:
    """Random access to the tiles of a set of shards, by position in the index.

    Only what a tile needs is read: its label and the asked bands, in one ranged read that spans them.
    """

    def __init__(self, uri: str, bands: Sequence[str]) -> None:
        manifest = read_manifest(uri)
        missing = [band for band in bands if band not in manifest["bands"]]
        if missing:
            raise ConfigError(f"{uri}: no band {', '.join(missing)} (the shards have {', '.join(manifest['bands'])})")
        self.uri = uri
        self.bands = tuple(bands)
        self.index: pa.Table = read_index(uri)
        self._encoding: CellEncoding = manifest["cell_encoding"]
        columns = ["height", "width", *(f"{cell}_{part}" for cell in ("label", *bands) for part in ("offset", "bytes"))]
        self._numbers = {name: self.index[name].fill_null(-1).to_numpy() for name in columns}
        self._shards = self.index["shard"].to_pylist()

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def tile_ids(self) -> list[str]:
        """The ids of all tiles, in the order of the index."""
        return cast(list[str], self.index["tile_id"].to_pylist())

    @property
    def locations(self) -> list[str]:
        """The location of every tile."""
        return cast(list[str], self.index["location"].to_pylist())

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Height and width of every tile, in pixels."""
        return [(int(h), int(w)) for h, w in zip(self._numbers["height"], self._numbers["width"], strict=True)]

    def labelled(self) -> NDArray[np.bool_]:
        """Tell of every tile whether it has a label, `[N] bool`."""
        return np.asarray(self._numbers["label_bytes"] >= 0)

    def read(self, i: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8] | None]:
        """Return the bands `[C, H, W] uint16` and the label `[H, W] uint8` (None without) of tile `i`.

        Raises `DataError` that names tile and shard if its bytes are not there or can't be decoded; a store that can't
        be reached is an `OSError`.
        """
        cells = [cell for cell in ("label", *self.bands) if self._number(f"{cell}_bytes", i) >= 0]
        starts = [self._number(f"{cell}_offset", i) for cell in cells]
        ends = [start + self._number(f"{cell}_bytes", i) for start, cell in zip(starts, cells, strict=True)]
        first, last = min(starts), max(ends)
        shard = storage.join(self.uri, self._shards[i])
        try:
            data = memoryview(storage.read_range(shard, first, last))
        except FileNotFoundError as error:
            raise DataError(self._subject(i), "no such file, but the index names it") from error
        try:
            if len(data) != last - first:
                raise ValueError(f"{len(data)} bytes where the index names {last - first}")
            arrays = {
                cell: self._decode(data[start - first : end - first], cell, i)
                for cell, start, end in zip(cells, starts, ends, strict=True)
            }
        except (ValueError, RuntimeError) as error:
            raise DataError(self._subject(i), f"can't be read: {error}") from error
        return np.stack([arrays[band] for band in self.bands]), arrays.get("label")

    def _subject(self, i: int) -> str:
        return f"tile {self.tile_ids[i]} in {storage.join(self.uri, self._shards[i])}"

    def _number(self, column: str, i: int) -> int:
        return int(self._numbers[column][i])

    def _decode(self, data: memoryview, cell: str, i: int) -> NDArray[Any]:
        shape = (self._number("height", i), self._number("width", i))
        return shards.decode_cell(data, shape, "u1" if cell == "label" else "<u2", self._encoding)


def select_tiles(reader: TileReader, fold: int | None, part: Literal["train", "validation"]) -> NDArray[np.int64]:
    """Return the positions of the labelled tiles to train on (not in `fold`) or to validate on (in `fold`).

    Without a fold all tiles are for training. Raises `ConfigError` if nothing is left, or for an unknown fold.
    """
    folds = reader.index["fold"].to_numpy()
    if fold is not None and fold not in folds:
        raise ConfigError(f"{reader.uri}: no fold {fold}; the shards have {sorted({int(each) for each in folds})}")
    inside = np.zeros(len(folds), bool) if fold is None else folds == fold
    chosen = np.flatnonzero((inside if part == "validation" else ~inside) & reader.labelled())
    if not chosen.size and not (part == "validation" and fold is None):
        raise ConfigError(f"{reader.uri}: no labelled tiles for {part} with fold {fold}")
    return chosen
