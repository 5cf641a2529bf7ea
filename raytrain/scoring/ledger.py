"""The ledger of a destination: a record of each finished chip or scene, which makes scoring go on where it stopped.

Who finishes items writes their records as one small object (`ledger/new/`), after the outputs stand. Some thousand of
these are rolled into a table now and then (`ledger/rolled/`), and all of them, at the start and at the end of a run,
into the canonical tables `ledger/records-<x>.parquet`: by the first hex digit of the hash of the id, in the order of
ids, one record an id. So these are a function of the records alone; each of the three is written whole or not at all,
read before it is removed, and read twice to no harm. Must not know who scores.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from raytrain import storage
from raytrain.errors import ConfigError, first_line
from raytrain.scoring.records import Record

LEDGER, NEW, ROLLED = "ledger", "ledger/new", "ledger/rolled"
DIGITS = "0123456789abcdef"
READERS = 16
READ_TOGETHER = 4 * READERS
"""Objects that are read at a time; of rolled tables, each has some thousand records."""
RECORDS_AT_ONCE = 100_000
"""Records that compaction holds; the tables are rewritten for each such lot."""

TABLE_BYTES = 2 * 2**30
"""Of a table as it is stored, one of sixteen: those of a million items have 10 MB each."""

_OUTPUT = pa.struct([("kind", pa.string()), ("key", pa.string()), ("sha256", pa.string()), ("num_bytes", pa.int64())])
SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("kind", pa.string()),
        ("source_uri", pa.string()),
        ("source_item_uri", pa.string()),
        ("identity", pa.string()),
        ("settings_digest", pa.string()),
        ("outputs", pa.list_(_OUTPUT)),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("crs", pa.string()),
        ("transform", pa.list_(pa.float64())),
        ("datetime", pa.string()),
        ("valid_px", pa.int64()),
        ("cloud_px", pa.int64()),
        ("disagreement_mean", pa.float64()),
        ("members_left_out", pa.list_(pa.string())),
        ("shift", pa.int32()),
        ("shift_rule", pa.string()),
        ("notes", pa.list_(pa.string())),
        ("fold", pa.int32()),
        ("bands", pa.list_(pa.string())),
    ]
)
_ADDED = (("fold", "bands"), ("disagreement_mean", "fold", "bands"))
"""What older tables lack, by when they were written: they count, and have nulls, or empty lists, there."""


class DamagedTable(ConfigError):
    """A canonical table, at `uri`, that can't be read; `found` says why, and what to do."""

    def __init__(self, uri: str, why: object) -> None:
        self.uri, self.found = uri, f"damaged, not a table of the ledger ({why}); remove it to score its items again"
        super().__init__(f"{uri}: {self.found}")


def enter(uri: str, records: Sequence[Record]) -> None:
    """Enter finished items in the ledger of the destination `uri`; the same items again leave the same object."""
    lines = "".join(f"{record.model_dump_json()}\n" for record in records)
    storage.write_bytes(storage.join(uri, NEW, entry_name([record.item_id for record in records])), lines.encode())


def entry_name(item_ids: Iterable[str]) -> str:
    """Return the name of the object that records of these items are entered by."""
    return f"{hashlib.sha256(chr(0).join(item_ids).encode()).hexdigest()[:32]}.jsonl"


def roll(uri: str, records: Sequence[Record], entries: Iterable[str]) -> None:
    """Put `records` into one table in place of the objects `entries` that they were entered by."""
    data = _to_parquet(_table(records))
    storage.write_bytes(storage.join(uri, ROLLED, f"{storage.sha256_of(data)[:32]}.parquet"), data)
    # Their folder stays, also where it is empty: a worker may be about to write into it.
    _remove(uri, [f"{NEW}/{name}" for name in entries])


def compact(uri: str, dropped: Iterable[str] = ()) -> None:
    """Bring all records into the canonical tables; those of the items `dropped` are taken out.

    Nobody may enter items meanwhile.
    """
    loose = _loose(uri)
    gone = pa.array(sorted(dropped), pa.string())
    left = {bucket_of(each) for each in gone.to_pylist()}
    for fresh in _gathered(_read_loose(uri, loose)):
        digits = pa.array([bucket_of(each) for each in fresh["item_id"].to_pylist()], pa.string())
        for digit in pc.unique(digits).to_pylist():
            _rewrite(uri, digit, fresh.filter(pc.equal(digits, digit)), gone)
            left.discard(digit)
    for digit in left:
        _rewrite(uri, digit, SCHEMA.empty_table(), gone)
    _remove(uri, [f"{LEDGER}/{name}" for name in loose])
    for folder in (NEW, ROLLED):
        storage.remove_empty_folder(storage.join(uri, folder))


def _loose(uri: str) -> list[str]:
    """Return the names below `ledger/` of what is not compacted."""
    return [name for name in storage.find(storage.join(uri, LEDGER)) if name.startswith(("new/", "rolled/"))]


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield `tables` in their order, put together to about `RECORDS_AT_ONCE` records."""
    some: list[pa.Table] = []
    for table in tables:
        some.append(table)
        if sum(each.num_rows for each in some) >= RECORDS_AT_ONCE:
            yield pa.concat_tables(some)
            some = []
    if some:
        yield pa.concat_tables(some)


def _rewrite(uri: str, digit: str, fresh: pa.Table, gone: pa.Array) -> None:
    """Write the table of one digit anew, with `fresh` in place of older records of the same ids."""
    before = read_table(uri, digit)
    both = pa.concat_tables([before, fresh]).append_column("at", pa.array(range(before.num_rows + fresh.num_rows)))
    last = both.group_by("item_id").aggregate([("at", "max")])["at_max"]
    kept = both.take(last).drop_columns("at")
    kept = kept.filter(pc.invert(pc.is_in(kept["item_id"], value_set=gone))).sort_by("item_id")
    target = _table_uri(uri, digit)
    if kept.num_rows:
        storage.write_bytes(target, _to_parquet(kept))
    else:
        storage.remove(target)


def bucket_of(item_id: str) -> str:
    """Return the hex digit of the table that holds the record of an item."""
    return hashlib.sha256(item_id.encode()).hexdigest()[0]


def read_table(uri: str, digit: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the canonical table of one digit, empty where there is none; raise `DamagedTable`."""
    target = _table_uri(uri, digit)
    try:
        data = storage.read_bytes(target, TABLE_BYTES)
    except storage.TooLarge as error:
        raise DamagedTable(target, error.found) from error
    except FileNotFoundError:
        table = SCHEMA.empty_table()
        return table if columns is None else table.select(columns)
    try:
        return _from_parquet(data, columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedTable(target, first_line(error)) from error


def read_all(uri: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield `columns`, `item_id` among them, of all records, also of those that a stopped run left uncompacted.

    Of several records of an item one counts. A table at a time is held, and 8 bytes a record that is not compacted.
    Nothing is written. Raises `DamagedTable`.
    """
    seen = np.zeros(0, np.uint64)
    for table in _read_loose(uri, _loose(uri)):
        hashes = _hashes(table["item_id"].to_pylist())
        _, first = np.unique(hashes, return_index=True)
        fresh = np.sort(first[~np.isin(hashes[first], seen)])
        seen = np.concatenate([seen, hashes[fresh]])
        yield table.take(fresh).select(columns)
    for digit in DIGITS:
        table = read_table(uri, digit, columns)
        if len(seen):
            table = table.filter(pa.array(~np.isin(_hashes(table["item_id"].to_pylist()), seen)))
        yield table


def read_records(uri: str, digits: Iterable[str] = DIGITS) -> Iterator[Record]:
    """Yield the records of the canonical tables, in the order of these and of ids; a table at a time is held.

    Raises `DamagedTable`.
    """
    for digit in digits:
        for batch in read_table(uri, digit).to_batches(max_chunksize=1024):
            yield from _records(uri, digit, batch.to_pylist())


def _records(uri: str, digit: str, rows: Iterable[dict[str, Any]]) -> Iterator[Record]:
    try:
        yield from map(_record, rows)
    except (ValidationError, TypeError) as error:
        raise DamagedTable(_table_uri(uri, digit), first_line(error)) from error


class Known:
    """What a destination has records of: by id, what each was made from, and whether all of it still stands.

    Records that a stopped run left uncompacted count as well; nothing is written. Holds 24 bytes a record. `num_done`
    counts those made with the settings asked for whose outputs all stand. Raises `DamagedTable`.
    """

    def __init__(self, uri: str, settings_digest: str, standing: Standing) -> None:
        def rows_of(tables: Iterable[pa.Table]) -> list[NDArray[np.uint64]]:
            return [rows for table in tables for rows in _rows(table, settings_digest, standing)]

        fresh = rows_of(_read_loose(uri, _loose(uri)))  # first: what is compacted meanwhile is in the tables then
        lots = rows_of(read_table(uri, digit, _KNOWN_COLUMNS) for digit in DIGITS)
        rows = np.concatenate([np.zeros((3, 0), np.uint64), *lots, *fresh], axis=1)
        rows = rows[:, np.argsort(rows[0], kind="stable")]
        is_last = np.append(rows[0, 1:] != rows[0, :-1], np.ones(min(1, rows.shape[1]), bool))  # of records of one id
        self._ids, self._sources, self._identities = rows[:, is_last]
        self.num_done = int(np.count_nonzero(self._identities))

    def is_done(self, item_id: str, identity: str) -> bool:
        """Tell whether all outputs of an item stand, made of a source of this identity."""
        at = self._at(item_id)
        return at is not None and int(self._identities[at]) == _hash(identity)

    def has(self, item_id: str) -> bool:
        """Tell whether there is a record of this id, of whatever it was made."""
        return self._at(item_id) is not None

    def is_of_another(self, item_id: str, source_uri: str) -> bool:
        """Tell whether there is a record of this id that was made from another source."""
        at = self._at(item_id)
        return at is not None and int(self._sources[at]) != _hash(source_uri)

    def _at(self, item_id: str) -> int | None:
        wanted = np.uint64(_hash(item_id))
        at = int(self._ids.searchsorted(wanted))
        return at if at < len(self._ids) and self._ids[at] == wanted else None


_KNOWN_COLUMNS = ("item_id", "source_uri", "identity", "settings_digest", "outputs")


def _rows(table: pa.Table, settings_digest: str, standing: Standing) -> Iterator[NDArray[np.uint64]]:
    """Yield the hashes of id, source and identity of some records `[3, records]`.

    That of the identity is 0 where a record was made with other settings, or not all of its outputs stand.
    """
    for batch in table.to_batches(max_chunksize=65536):
        outputs = batch["outputs"]
        values = outputs.flatten()
        keys, sizes = values.field("key").to_pylist(), values.field("num_bytes").to_pylist()
        gone = ~standing.has(list(map(_sized, keys, sizes)))
        gone_before = np.concatenate([[0], np.cumsum(gone)])[outputs.offsets.to_numpy() - outputs.offsets[0].as_py()]
        ours = pc.equal(batch["settings_digest"], settings_digest).to_numpy(zero_copy_only=False)
        rows = np.stack([_hashes(batch[name].to_pylist()) for name in _KNOWN_COLUMNS[:3]])
        rows[2] *= ours & (np.diff(gone_before) == 0)
        yield rows


def standing_at(uri: str) -> Standing:
    """Return the objects of the destination `uri` with their sizes, as one listing shows them."""
    return Standing(_sized(name, info["size"]) for name, info in storage.walk(uri))


def _sized(key: str, num_bytes: int) -> str:
    return f"{key} {num_bytes}"


class Standing:
    """Names, at 8 bytes each: of a destination's objects, each with its size behind it."""

    def __init__(self, names: Iterable[str]) -> None:
        hashes = array("Q", (_hash(name) for name in names))
        self._hashes = np.sort(np.frombuffer(hashes, np.uint64)) if hashes else np.zeros(0, np.uint64)

    def __contains__(self, name: str) -> bool:
        return bool(self.has([name])[0])

    def has(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Tell of each of `names` whether it is among them."""
        wanted = _hashes(names)
        if not len(self._hashes):
            return np.zeros(len(wanted), bool)
        at = self._hashes.searchsorted(wanted)
        return np.asarray(self._hashes[np.minimum(at, len(self._hashes) - 1)] == wanted)


def _hash(text: str) -> int:
    return int.from_bytes(_digest(text))


def _hashes(texts: Iterable[str]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(_digest(text) for text in texts), ">u8").astype(np.uint64)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _read_loose(uri: str, names: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the tables of what is not compacted, rolled ones first; what is torn counts for nothing."""

    def read(name: str) -> pa.Table | None:
        try:
            data = storage.read_bytes(storage.join(uri, LEDGER, name), TABLE_BYTES)
        except (FileNotFoundError, storage.TooLarge):
            return None
        try:
            if name.startswith("rolled/"):
                return _from_parquet(data)
            return _table([Record.model_validate_json(line) for line in data.splitlines()])
        except (ValueError, pa.ArrowException, OSError):
            return None

    ordered = sorted(names, key=lambda name: (not name.startswith("rolled/"), name))
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(ordered), READ_TOGETHER):
            found = pool.map(read, ordered[start : start + READ_TOGETHER])
            yield from (table for table in found if table is not None)


def _remove(uri: str, names: Sequence[str]) -> None:
    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(lambda name: storage.remove(storage.join(uri, name)), names):
            pass


def _table(records: Sequence[Record]) -> pa.Table:
    rows = []
    for record in records:
        row = record.model_dump(mode="json")
        row["outputs"] = [{"kind": kind, **output} for kind, output in sorted(row["outputs"].items())]
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _record(row: dict[str, Any]) -> Record:
    by_kind = {each["kind"]: {name: each[name] for name in ("key", "sha256", "num_bytes")} for each in row["outputs"]}
    return Record.model_validate({**row, "outputs": by_kind})


def _to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # The library's version would make bytes depend on where they were written.
    pq.write_table(
        table, sink, compression="zstd", store_schema=False, write_statistics=False, write_page_checksum=True
    )
    return bytes(sink.getvalue())


def _from_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table, or some columns of it, of the bytes of `_to_parquet`; raise for damaged ones."""
    source = pa.BufferReader(data)
    found = storage.open_parquet(source).schema_arrow
    names = SCHEMA.names if columns is None else list(columns)
    lacking = next((each for each in ((), *_ADDED) if found.equals(_without(each))), None)
    if lacking is None:  # of the footer, which has no checksum
        raise ValueError("other columns than the ledger has")
    wanted = [name for name in names if name not in lacking]
    # Lists of texts are decoded whole: who may write a destination is trusted with what it costs to read it.
    nested = ("outputs", "members_left_out", "notes", "bands")
    table = storage.read_parquet(source, wanted, nested=nested, page_checksum_verification=True)
    for name in lacking:
        table = table.append_column(SCHEMA.field(name), _nothing(SCHEMA.field(name).type, table.num_rows))
    table.validate(full=True)
    return table.select(names)


def _without(names: Sequence[str]) -> pa.Schema:
    return pa.schema([field for field in SCHEMA if field.name not in names])


def _nothing(kind: pa.DataType, count: int) -> pa.Array:
    """Return what `_table` makes of as many records that have nothing in a column: empty lists, or nulls."""
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), pa.array([], kind.value_type))
    return pa.nulls(count, kind)


def _table_uri(uri: str, digit: str) -> str:
    return storage.join(uri, LEDGER, f"records-{digit}.parquet")
