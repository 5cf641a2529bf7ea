"""Work on shards that may be cut off: what stands of it at the destination, and the index and the manifest in the end.

Beside each shard stands its part, with its rows of the index and what was left out, until the manifest is written: work
that was cut off goes on from the parts. Must not know what tiles are made from, who does the work, or where.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from raytrain import __version__, storage
from raytrain.errors import ConfigError, DataError, WorkNotFinished
from raytrain.tiles import format as shards
from raytrain.tiles.reader import INDEX, MANIFEST, is_ours

PARTS = "unfinished"
"""The folder of the parts, which goes when the manifest is written."""
DECISIONS_TABLE = "decisions.parquet"
"""What may lie beside the index: the decisions of people by which the shards differ from those they were made from."""
ROWS_AT_ONCE = 65536
"""Rows of a row group of the index, and what of it is in memory."""
PART_BYTES = 256 * 2**20
"""Of a part: some hundred rows of the index."""
_PART_KEY = b"raytrain.part"
_BESIDE = (INDEX, MANIFEST, DECISIONS_TABLE)
_WRITTEN = re.compile(rf"^({PARTS}/)?shard-\d{{5,}}\.parquet$|^({'|'.join(map(re.escape, _BESIDE))})$")
LIVE_S = 3600
"""A half-written local file that is older was left by a process that died."""


@dataclass(frozen=True)
class PlannedShard:
    """One shard to write: its name, where to, and what of it stands there; who plans it says what it depends on."""

    name: str
    dst: str
    standing_bytes: int | None = field(default=None, kw_only=True)
    has_part: bool = field(default=False, kw_only=True)

    def digest(self) -> str:
        """Return a hash of all that the shard and its rows of the index depend on."""
        raise NotImplementedError


PlannedT = TypeVar("PlannedT", bound=PlannedShard)


@dataclass(frozen=True)
class ShardPart:
    """What came of a shard: its record for the manifest (None if it has no tile), and what was left out.

    `facts` are what else the manifest needs to know, as JSON has it.
    """

    name: str
    work: str
    record: dict[str, Any] | None
    problems: list[tuple[str, str]]
    facts: dict[str, Any]

    @property
    def uri_name(self) -> str:
        """Where the part lies below the destination."""
        return f"{PARTS}/{self.name}"


def versions() -> dict[str, str]:
    """Return the versions of what the bytes of a shard depend on."""
    return {"raytrain": __version__, "pyarrow": version("pyarrow"), "blosc2": version("blosc2")}


def write_with_part(
    work: PlannedShard,
    bands: Sequence[str],
    data: bytes,
    rows: list[dict[str, Any]],
    problems: Sequence[DataError],
    facts: dict[str, Any],
) -> ShardPart:
    """Write a shard, `data` with these `rows` of the index, then its part, and return that; no rows are no shard."""
    record = {"name": work.name, "sha256": storage.sha256_of(data), "bytes": len(data), "num_tiles": len(rows)}
    named = [(each.subject, each.found) for each in problems]
    part = ShardPart(work.name, work.digest(), record if rows else None, named, facts)
    uri = storage.join(work.dst, work.name)
    if work.has_part:  # of other work: cut off here, it would speak of a shard that is no more its own
        storage.remove(storage.join(work.dst, part.uri_name))
    if rows:
        storage.write_bytes(uri, data)
    else:
        storage.remove(uri)
    _write_part(work.dst, bands, part, rows)
    return part


def standing_part(work: PlannedShard) -> ShardPart | None:
    """Return the part of `work` if it stands, and so does the shard that it speaks of."""
    if not work.has_part:
        return None
    try:
        part, _ = _read_part(work.dst, work.name)
    except (FileNotFoundError, pa.ArrowException, ValueError, LookupError, TypeError, storage.TooLarge):
        # Damaged: the shard is written again.
        return None
    whole = work.standing_bytes == (part.record["bytes"] if part.record else None)
    return part if whole and part.work == work.digest() else None


def _write_part(dst: str, bands: Sequence[str], part: ShardPart, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=shards.index_schema(bands))
    metadata = {**(table.schema.metadata or {}), _PART_KEY: json.dumps(asdict(part)).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
    storage.write_bytes(storage.join(dst, part.uri_name), sink.getvalue().to_pybytes())


def _read_part(dst: str, name: str) -> tuple[ShardPart, pa.Table]:
    table = storage.read_parquet(pa.BufferReader(storage.read_listed(storage.join(dst, PARTS, name), PART_BYTES)))
    values = json.loads(table.schema.metadata[_PART_KEY])
    return ShardPart(**{**values, "problems": [(subject, found) for subject, found in values["problems"]]}), table


@dataclass
class Standing:
    """What a listing of the destination shows of work that was cut off: files by name with their sizes."""

    sizes: dict[str, int]

    def work(self, work: PlannedT) -> PlannedT:
        """Return `work` with what stands of it."""
        has_part = f"{PARTS}/{work.name}" in self.sizes
        return replace(work, standing_bytes=self.sizes.get(work.name), has_part=has_part)

    def leftovers(self, names: Iterable[str]) -> list[str]:
        """Return the files that stand and are none of the shards `names`, their parts or the index."""
        kept = set(names)
        return [name for name in self.sizes if name != INDEX and name.removeprefix(f"{PARTS}/") not in kept]


def standing_at(dst: str) -> Standing:
    """Return what a run without an end left behind at `dst`: there is no manifest, so nobody reads it.

    Old half-written files are removed. Raises `ConfigError` if files of these names came from elsewhere, or if anything
    else stands there: an archive with a manifest in it would be read as shards from then on.
    """
    sizes: dict[str, int] = {}
    for name, info in storage.walk(dst):
        folder, slash, last = name.rpartition("/")
        whole = storage.partial_of(last)
        if whole is not None and _WRITTEN.match(folder + slash + whole):
            if time.time() - info["mtime"] > LIVE_S:
                storage.remove(storage.join(dst, name))
        elif name != MANIFEST and _WRITTEN.match(name):
            sizes[name] = info["size"]
        elif name != MANIFEST and not storage.is_hidden(name):
            raise ConfigError(f"{dst} holds what is no shards', among it {name}; choose an empty destination")
    for name in sizes:
        known = name.startswith(f"{PARTS}/") or f"{PARTS}/{name}" in sizes
        if not known and not is_ours(storage.join(dst, name)):
            raise ConfigError(f"{dst} holds a {name} that raytrain did not write; choose another destination")
    return Standing(sizes)


def discard(dst: str) -> None:
    """Remove the parts of work that came to nothing, and the folder that was made for it."""
    remove_parts(dst)
    _remove_empty(dst)


def remove_parts(dst: str) -> None:
    """Remove the parts at `dst`, and nothing else that may stand beside them."""
    parts = storage.join(dst, PARTS)
    for name, _ in list(storage.walk(parts)):
        if _WRITTEN.match(f"{PARTS}/{name}"):
            storage.remove(storage.join(parts, name))
    _remove_empty(parts)


def _remove_empty(uri: str) -> None:
    if storage.is_local(uri):
        with contextlib.suppress(OSError):  # something else is in it, or it is not there
            Path(storage.path_of(uri)).rmdir()


def write_index(dst: str, bands: Sequence[str], parts: Iterable[ShardPart]) -> dict[str, Any]:
    """Write the index from the rows of the parts, in order; return what the manifest says of it and of the tiles."""
    schema = shards.index_schema(bands)
    labelled = num_tiles = 0
    locations: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / INDEX
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for table in _batches(dst, parts, schema):
                writer.write_table(table, row_group_size=ROWS_AT_ONCE)
                num_tiles += len(table)
                labelled += len(table) - table["label_bytes"].null_count
                locations.update(table["location"].unique().to_pylist())
        with path.open("rb") as file:
            record = {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
        storage.write_file(storage.join(dst, INDEX), path)
    return {"num_tiles": num_tiles, "num_labelled": labelled, "num_locations": len(locations), "index": record}


def _batches(dst: str, parts: Iterable[ShardPart], schema: pa.Schema) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for part in parts:
        if part.record is not None:
            waiting.append(_rows_of(dst, part).replace_schema_metadata(schema.metadata))
        if sum(map(len, waiting)) >= ROWS_AT_ONCE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _rows_of(dst: str, part: ShardPart) -> pa.Table:
    """Return the rows of a part that was written a while ago; raise `WorkNotFinished` if it is another's now."""
    try:
        found, rows = _read_part(dst, part.name)
    except FileNotFoundError:
        found = None
    if found != part:
        raise WorkNotFinished(f"{dst}: another raytrain works here ({part.uri_name} is not what this one wrote)")
    return rows


def write_last(dst: str, manifest: dict[str, Any]) -> None:
    """Write the manifest, which makes the shards whole, and remove the parts."""
    storage.write_bytes(storage.join(dst, MANIFEST), json.dumps(manifest, indent=1).encode())
    remove_parts(dst)
