"""Reading shards: the manifest, the index, one ranged read a tile. Must not know what is done to a tile afterwards."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raytrain import storage
from raytrain.config import CellEncoding, LoaderSettings
from raytrain.errors import ConfigError, DataError, StoreOutOfReach, first_line
from raytrain.tiles import format as shards
from raytrain.tiles.cache import ShardCache

MANIFEST, INDEX = "manifest.json", "index.parquet"
_MANIFEST_NAMES = {"bands", "cell_encoding", "shards", "index", "settings", "source", "left_out"}
INDEX_BYTES = 4 * 2**30
"""Of an index as it is stored: that of a million tiles has 100 MB."""
LARGEST_TILE_BYTES = 128 * 2**20
"""Of a band of a tile, decoded or as it is stored; a chip has no more (`raster_limits.LARGEST_CHIP_BYTES`)."""
_FETCHES = 4
"""How often a tile is asked of a store that answers, but not with the bytes that the index names."""
_ROWS_AT_ONCE = 2**15
"""Some MB of the index: checks of a million tiles at once would take as much memory as it has."""
_logger = logging.getLogger(__name__)


def read_manifest(uri: str) -> dict[str, Any]:
    """Return the manifest of the shards at `uri`; raise `ConfigError` where there is none or of another version.

    `beside` are the files that lie beside the index, none where it has no word of them.
    """
    return read_hashed_manifest(uri)[0]


def read_hashed_manifest(uri: str) -> tuple[dict[str, Any], str]:
    """Return what `read_manifest` does, and the sha256 of the very bytes that it was read from."""
    try:
        manifest, sha256 = storage.read_hashed_json(storage.join(uri, MANIFEST))
    except FileNotFoundError as error:
        raise ConfigError(f"{uri}: no {MANIFEST}, so no finished shards; make them with raytrain shard") from error
    if manifest.get("format_version") != shards.FORMAT_VERSION:
        found = manifest.get("format_version")
        raise ConfigError(f"{uri}: shards of format version {found}; this raytrain reads {shards.FORMAT_VERSION}")
    missing = _MANIFEST_NAMES - manifest.keys()
    if missing:
        raise ConfigError(
            f"{uri}: {MANIFEST} is damaged, or of an older raytrain: it has no {', '.join(sorted(missing))}"
        )
    manifest.setdefault("beside", [])
    try:
        names = [str(record["name"]) for record in [*manifest["shards"], *manifest["beside"]]]
    except (TypeError, LookupError) as error:
        raise ConfigError(f"{uri}: {MANIFEST} is damaged: its shards have no names") from error
    _check_names(storage.join(uri, MANIFEST), names)
    return manifest, sha256


def shards_digest(manifest: Mapping[str, Any]) -> str:
    """Return a hash of what a net learns from shards: their bytes and their folds."""
    learnt_from = [manifest["shards"], manifest["source"]["folds_digest"]]
    return storage.sha256_of(json.dumps(learnt_from, sort_keys=True).encode())


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return a hash of all that a manifest says, which changes when any of its shards or the index is written anew."""
    return storage.sha256_of(json.dumps(manifest, sort_keys=True).encode())


def read_index(uri: str, columns: Sequence[str] | None = None, record: Mapping[str, Any] | None = None) -> pa.Table:
    """Return the index of the shards at `uri`, or `columns` of it; raise `ConfigError` where it can't be read.

    With `record`, what the manifest says of the index, also where it is another. Locations and the names of shards,
    which repeat, are dictionaries.
    """
    with _open_index(uri, record) as index:
        return pa.Table.from_batches(list(index.batches(columns)))


@dataclass(frozen=True)
class _OpenIndex:
    """The file of an index: a path, or bytes that came from a store."""

    path: str
    source: Any

    @property
    def num_rows(self) -> int:
        """What its footer claims."""
        return int(storage.open_parquet(self.source).metadata.num_rows)

    def batches(self, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        """Yield `columns` of all rows, some at a time and at least once, checked."""
        names: set[str] = set()
        options: dict[str, Any] = {"dictionaries": ("location", "shard"), "rows": _ROWS_AT_ONCE}
        for batch in storage.iter_parquet(self.source, columns, total_bytes=storage.LARGEST_TABLE_BYTES, **options):
            missing = sorted(set(columns or ()) - set(batch.schema.names))
            if missing:
                raise ConfigError(f"{self.path}: damaged, it has no column {', '.join(missing)}")
            if "shard" in batch.schema.names:
                new = set(map(str, batch["shard"].unique().to_pylist())) - names
                _check_names(self.path, sorted(new))
                names |= new
            yield batch


@contextlib.contextmanager
def _open_index(uri: str, record: Mapping[str, Any] | None = None) -> Iterator[_OpenIndex]:
    """Give the index of the shards at `uri`; what is wrong with it, as the body finds, is a `ConfigError`."""
    path = storage.join(uri, INDEX)
    try:
        if record is None and storage.is_local(path):  # of which no more is read than the columns
            yield _OpenIndex(path, storage.path_of(path))
            return
        data = storage.read_bytes(path, INDEX_BYTES)
        if record is not None:
            _check_index(path, data, record)
        yield _OpenIndex(path, pa.BufferReader(data))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file, but {MANIFEST} stands beside it") from error
    except (pa.ArrowException, ValueError, storage.TooLarge) as error:
        raise ConfigError(f"{path}: damaged: {first_line(error)}") from error


def _check_index(path: str, data: bytes, record: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where an index is not the one that `record` of the manifest names."""
    found, wanted = (len(data), storage.sha256_of(data)), (record["bytes"], record["sha256"])
    if found != wanted:
        raise ConfigError(
            f"{path}: {found[0]} bytes with the sha256 {found[1]}, where the manifest says {wanted[0]} with "
            f"{wanted[1]}; raytrain verify tells what else is damaged"
        )


def _check_names(path: str, names: Sequence[str]) -> None:
    """Raise `ConfigError` for a shard's name in the file at `path` that leads out of its folder."""
    for name in names:
        if not storage.is_plain_name(name):
            raise ConfigError(f"{path}: damaged: {name!r} is no name of a shard; was it changed by others?")


def is_ours(uri: str) -> bool:
    """Tell whether the file at `uri` is a shard or an index, of any version of the format."""
    if storage.is_special(uri):
        return False
    try:
        with storage.open_ranged(uri) as file:  # its footer alone: what others wrote may be large
            schema = storage.open_parquet(file).schema_arrow
    except (pa.ArrowException, ValueError, OSError):
        return False
    return shards.VERSION_KEY.encode() in (schema.metadata or {})


@dataclass(frozen=True)
class _Cell:
    """Where the bytes of a cell lie in its shard, and their CRC-32."""

    name: str
    start: int
    end: int
    crc32: int

    def within(self, data: memoryview, start: int) -> memoryview:
        """Return the cell's bytes from `data`, which starts at `start`; raise `ValueError` if they are others."""
        found = data[self.start - start : self.end - start]
        if len(found) != self.end - self.start:
            raise ValueError(f"{self.name}: {len(found)} bytes where the index names {self.end - self.start}")
        if zlib.crc32(found) != self.crc32:
            raise ValueError(f"{self.name}: its {len(found)} bytes are not those that the index names (CRC-32)")
        return found


class TileReader:
    """Random access to the tiles of a set of shards, by position in the index.

    Only what a tile needs is read, its label (unless `labels` says without) and the asked bands, in one ranged read
    that spans them; what the cache of `loader` has of it is not read again. Every cell is checked against the index.
    May be used by many threads, and sent to other processes.
    """

    def __init__(
        self, uri: str, bands: Sequence[str], loader: LoaderSettings | None = None, *, labels: bool = True
    ) -> None:
        manifest = read_manifest(uri)
        missing = [band for band in bands if band not in manifest["bands"]]
        if missing:
            raise ConfigError(f"{uri}: no band {', '.join(missing)} (the shards have {', '.join(manifest['bands'])})")
        self.uri = uri
        self.bands = tuple(bands)
        self._encoding: CellEncoding = manifest["cell_encoding"]
        self._cells = ("label", *bands) if labels else tuple(bands)
        self._num_cells = 1 + len(manifest["bands"])  # those that are not asked for may lie between
        parts = ("offset", "bytes", "crc32")
        numbers = ["height", "width", "fold", *(f"{cell}_{part}" for cell in self._cells for part in parts)]
        with _open_index(uri) as index:
            self._take(index, numbers)
        self._check_numbers()
        self._cache = _open_cache(loader, manifest) if loader is not None else None

    def _take(self, index: _OpenIndex, numbers: Sequence[str]) -> None:
        """Keep the columns of the index: of a million tiles `numbers` are 100 MB, which are never there twice."""
        texts: dict[str, list[pa.Array]] = {name: [] for name in ("tile_id", "location", "shard")}
        count, taken = index.num_rows, 0
        self._has_label = np.empty(count, np.bool_)
        self._numbers: dict[str, NDArray[Any]] = {}
        for batch in index.batches(list(dict.fromkeys([*numbers, *texts, "label_bytes"]))):
            for name, arrays in texts.items():
                arrays.append(batch[name])
            here = slice(taken, taken + batch.num_rows)
            taken += batch.num_rows
            if taken > count:
                raise ValueError(f"has more than the {count} rows that it claims")
            self._has_label[here] = batch["label_bytes"].is_valid().to_numpy(zero_copy_only=False)
            for name in numbers:
                values = batch[name].fill_null(0).to_numpy()
                if name not in self._numbers:
                    self._numbers[name] = np.empty(count, values.dtype)
                self._numbers[name][here] = values
        if taken < count:
            raise ValueError(f"has {taken} of the {count} rows that it claims")
        self._tile_ids, self._locations, self._shards = (
            pa.chunked_array(arrays).combine_chunks() for arrays in texts.values()
        )

    def _check_numbers(self) -> None:
        """Raise `ConfigError` for tiles, or places of cells, of which no reader could hold one."""
        for first in range(0, len(self), _ROWS_AT_ONCE):
            some = slice(first, first + _ROWS_AT_ONCE)
            sizes = np.stack([self._numbers[f"{cell}_bytes"][some] for cell in self._cells], dtype=np.int64)
            starts = np.stack([self._numbers[f"{cell}_offset"][some] for cell in self._cells], dtype=np.int64)
            height, width = (self._numbers[name][some].astype(np.int64) for name in ("height", "width"))
            is_cell = sizes > 0
            start = np.where(is_cell, starts, np.iinfo(np.int64).max).min(0)
            span = np.where(is_cell.any(0), np.where(is_cell, starts + sizes, 0).max(0) - start, 0)
            bad = (height < 1) | (width < 1) | (height > LARGEST_TILE_BYTES) | (width > LARGEST_TILE_BYTES)
            bad |= 2 * height * width > LARGEST_TILE_BYTES
            bad |= (sizes < 0).any(0) | (sizes > LARGEST_TILE_BYTES).any(0) | (starts < 0).any(0) | (span < 0)
            bad |= span > self._num_cells * LARGEST_TILE_BYTES
            if bad.any():
                i = int(np.flatnonzero(bad)[0])
                raise ConfigError(
                    f"{storage.join(self.uri, INDEX)}: damaged: {self.subject(first + i)} claims {width[i]} x "
                    f"{height[i]} px in {span[i]} bytes, expected at most {LARGEST_TILE_BYTES >> 20} MiB a band"
                )

    def __len__(self) -> int:
        return len(self._tile_ids)

    @property
    def tile_ids(self) -> list[str]:
        """The ids of all tiles, in the order of the index."""
        return cast(list[str], self._tile_ids.to_pylist())

    @property
    def locations(self) -> list[str]:
        """The location of every tile."""
        return cast(list[str], self._locations.to_pylist())

    @property
    def folds(self) -> NDArray[np.int32]:
        """The fold of every tile, `[N] int32`."""
        return np.asarray(self._numbers["fold"])

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Height and width of every tile, in pixels."""
        return [(int(h), int(w)) for h, w in zip(self._numbers["height"], self._numbers["width"], strict=True)]

    def labelled(self) -> NDArray[np.bool_]:
        """Tell of every tile whether it has a label, `[N] bool`."""
        return np.asarray(self._has_label)

    @property
    def index_bytes(self) -> int:
        """How much memory is held of the index."""
        texts = sum(array.nbytes for array in (self._tile_ids, self._locations, self._shards))
        return int(texts + self._has_label.nbytes + sum(array.nbytes for array in self._numbers.values()))

    def tile_id(self, i: int) -> str:
        """Return the id of the tile at position `i`."""
        return cast(str, self._tile_ids[i].as_py())

    def position(self, tile_id: str) -> int | None:
        """Return where the index has a tile; None where it has none of this id."""
        i = int(pc.index(self._tile_ids, tile_id).as_py())
        return None if i < 0 else i

    def pixels_identity(self, i: int) -> str:
        """Return what changes when the asked bands of tile `i` do, as the index has it, and with no label."""
        sides = f"{self._number('height', i)} {self._number('width', i)}"
        cells = [self._place(band, i) for band in self.bands]
        text = "\n".join([sides, *(f"{cell.name} {cell.end - cell.start} {cell.crc32:08x}" for cell in cells)])
        return storage.sha256_of(text.encode())[:32]

    def stored_bytes(self, i: int) -> int:
        """Return how many bytes the cells of tile `i` that `read` decodes have in their shard."""
        return sum(cell.end - cell.start for cell in (self._place(name, i) for name in self._cells))

    def read(self, i: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8] | None]:
        """Return the bands `[C, H, W] uint16` and the label `[H, W] uint8` of tile `i`; None without, or unasked.

        Raises `DataError` that names tile and shard if its bytes are not there, are others than those of the index, or
        can't be decoded; `StoreOutOfReach`, which names them, too, if the store gives no answer.
        """
        cells = [self._place(cell, i) for cell in self._cells if cell != "label" or self._has_label[i]]
        found = self._from_cache(cells, i)
        missing = [cell for cell in cells if cell.name not in found]
        if missing:
            found |= self._fetch(missing, i)
        shape = (self._number("height", i), self._number("width", i))
        bands = np.empty((len(self.bands), *shape), "<u2")
        label = np.empty(shape, np.uint8) if "label" in found else None
        try:
            for name, out in zip(self.bands, bands, strict=True):
                shards.decode_cell(found[name], out, self._encoding)
            if label is not None:
                shards.decode_cell(found["label"], label, self._encoding)
        except (ValueError, RuntimeError) as error:
            raise DataError(self.subject(i), f"can't be read: {error}") from error
        return bands, label

    def _from_cache(self, cells: Sequence[_Cell], i: int) -> dict[str, memoryview]:
        """Return what the cache has of `cells`, checked."""
        found: dict[str, memoryview] = {}
        if self._cache is None:
            return found
        start = min(cell.start for cell in cells)
        kept = self._cache.read(self._shard(i), start, max(cell.end for cell in cells))
        if kept is not None:
            for cell in cells:
                with contextlib.suppress(ValueError):
                    found[cell.name] = cell.within(memoryview(kept), start)
        return found

    def _fetch(self, cells: Sequence[_Cell], i: int) -> dict[str, memoryview]:
        """Return `cells` by one ranged read of the store, and keep them in the cache.

        Bytes that are not those of the index are asked for again: a store may have been interrupted without noticing.
        """
        start, end = min(cell.start for cell in cells), max(cell.end for cell in cells)
        uri = storage.join(self.uri, self._shard(i))
        attempts = 1 if storage.is_local(uri) else _FETCHES
        for attempt in range(attempts):
            try:
                data = memoryview(storage.read_range(uri, start, end))
                found = {cell.name: cell.within(data, start) for cell in cells}
                break
            except StoreOutOfReach as error:
                raise StoreOutOfReach(f"tile {self._tile_ids[i]} in {error}") from error
            except (FileNotFoundError, ValueError) as error:
                gone = isinstance(error, FileNotFoundError)
                what = "no such file, but the index names it" if gone else f"can't be read: {error}"
                if attempt + 1 == attempts:
                    raise DataError(self.subject(i), what) from error
                _logger.info("%s: %s; asked again", self.subject(i), what)
                time.sleep(storage.retries.RETRIES.wait_s(attempt))
        if self._cache is not None:
            self._cache.write(self._shard(i), start, data)
        return found

    def subject(self, i: int) -> str:
        """Return what messages call the tile at position `i`: its id and where it lies."""
        return f"tile {self._tile_ids[i]} in {storage.join(self.uri, self._shard(i))}"

    def _shard(self, i: int) -> str:
        return cast(str, self._shards[i].as_py())

    def _number(self, column: str, i: int) -> int:
        return int(self._numbers[column][i])

    def _place(self, cell: str, i: int) -> _Cell:
        start, size, crc32 = (self._number(f"{cell}_{part}", i) for part in ("offset", "bytes", "crc32"))
        return _Cell(cell, start, start + size, crc32)


def _open_cache(loader: LoaderSettings, manifest: Mapping[str, Any]) -> ShardCache | None:
    """Return the cache that `loader` names; None without one, or where the disk has no room even for a folder.

    Raises `ConfigError` for a place where there can be none.
    """
    if loader.cache_folder is None:
        return None
    digest = storage.sha256_of(json.dumps(manifest["shards"], sort_keys=True).encode())
    try:
        return ShardCache(Path(loader.cache_folder), int(loader.cache_limit_gb * 1e9), digest[:32])
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise ConfigError(f"no cache can be in {loader.cache_folder}: {error}") from error
        _logger.warning("%s: the disk is full; tiles are read from the store each time", loader.cache_folder)
        return None


def select_tiles(
    reader: TileReader, fold: int | None, part: Literal["train", "validation"], kept_back: int | None = None
) -> NDArray[np.int64]:
    """Return the positions of the labelled tiles to train on (not in `fold`) or to validate on (in `fold`).

    Those of the fold `kept_back` are in neither. Without a fold all others are for training. Raises `ConfigError` if
    nothing is left, or for an unknown fold.
    """
    folds = reader.folds
    for each in (fold, kept_back):
        if each is not None and each not in folds:
            raise ConfigError(f"{reader.uri}: no fold {each}; the shards have {sorted({int(each) for each in folds})}")
    inside = np.zeros(len(folds), bool) if fold is None else folds == fold
    usable = reader.labelled() if kept_back is None else reader.labelled() & (folds != kept_back)
    chosen = np.flatnonzero((inside if part == "validation" else ~inside) & usable)
    if not chosen.size and not (part == "validation" and fold is None):
        only = "; they have only this fold: train with --fold none, or make shards of more folds"
        hint = only if part == "train" and bool(inside.all()) else ""
        back = "" if kept_back is None else f" and {kept_back} kept back"
        raise ConfigError(f"{reader.uri}: no labelled tiles for {part} with fold {fold}{back}{hint}")
    return chosen
