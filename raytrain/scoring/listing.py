"""From an archive's URI to its scenes, one by one: a folder, a STAC document, a list of URIs, or one file.

Nothing of the size of the archive is held: the rasters of a folder, a batch of a list, a page of a listing or of an
answer at a time.
What can't be used is a `DataError` among the scenes. Must not know pixels, or who asks.
"""

from __future__ import annotations

import contextlib
import csv
import posixpath
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

import pyarrow as pa

from raytrain import storage
from raytrain.errors import ConfigError, DataError, StoreOutOfReach, first_line
from raytrain.imagery.scene_files import SceneSource, shown, utc_text
from raytrain.scoring.listed import Unlisted, Work, file_scene, hashed, id_by_name, is_raster, refusal, resolved
from raytrain.scoring.listed_folder import folder_scene, folder_works, is_folder
from raytrain.scoring.listed_stac import document_works, item_scene, read_document
from raytrain.scoring.seen import SeenNames

THREADS = 16
"""Requests for identities and items at the same time."""
OUT_OF_REACH = 20
"""So many scenes out of reach one after the other, and it is their store that is."""
AHEAD = 4
"""Scenes asked for and not yet taken, for each thread."""
LIST_BYTES, LIST_ROWS = 2**20, 4096
"""What is held of a list: of a text, and of Parquet."""
_TEXTS, _PARQUET, _DOCUMENTS = (".txt", ".csv"), ".parquet", (".json", ".geojson")


def is_listed(uri: str) -> bool:
    """Tell whether `uri` is taken for a folder, by its name alone: for no list, STAC document or scene's file."""
    return not (storage.is_http(uri) or is_raster(uri) or _ending(uri) in (*_TEXTS, _PARQUET, *_DOCUMENTS))


def list_scenes(
    uri: str, bands: Sequence[str], *, threads: int = THREADS, outputs: str | None = None
) -> Iterator[SceneSource | Unlisted]:
    """Yield the scenes at `uri` with the files of those of `bands` that they have, in the order of the listing.

    `uri` is a folder, a STAC document (item, collection of items, static catalog, an API's answer), a list of scene
    files, folders of a scene's bands and STAC items (`.txt`, `.csv`: one column; `.parquet`: columns uri, id,
    datetime), or a scene's file. What lies below `outputs` in a folder is no scene.
    A scene's own trouble is an `Unlisted` in its place, by its id; the second of an id, and one whose files are out of
    reach, is one by its place. Raises `ConfigError` where there is nothing like that at `uri`, and `StoreOutOfReach`
    where `uri` itself, or all scenes, or `OUT_OF_REACH` one after the other are.
    """
    seen = SeenNames()
    count = in_a_row = 0
    last: object = None
    with contextlib.closing(_made_in_order(_works(uri, tuple(bands), outputs), threads)) as all_made:
        for made in all_made:
            count += 1
            in_a_row = in_a_row + 1 if isinstance(made.outcome, StoreOutOfReach) else 0
            if isinstance(made.outcome, StoreOutOfReach) and in_a_row == OUT_OF_REACH:
                raise made.outcome
            yield _judged(made, seen)
            last = made.outcome
    if count == in_a_row and isinstance(last, StoreOutOfReach):
        raise last
    if not count:
        raise ConfigError(
            f"{shown(uri)}: no scenes found (expected <id>.tif, scenes/<id>.tif, <scene>/B02.tif, *.SAFE, "
            "a STAC document, or a list of URIs)"
        )


@dataclass(frozen=True)
class _Made:
    """What came of a work."""

    place: str
    scene_id: str | None
    outcome: SceneSource | DataError | StoreOutOfReach


def _judged(made: _Made, seen: SeenNames) -> SceneSource | Unlisted:
    """Return a scene, or what is wrong: by the id only where no other of the listing has it, which would suffer too."""
    outcome, place = made.outcome, made.place
    if isinstance(outcome, SceneSource):
        if seen.add(outcome.scene_id):
            return outcome
        return Unlisted(place, f"a second scene of the id {outcome.scene_id}: the first counts", place)
    if isinstance(outcome, StoreOutOfReach):
        if made.scene_id is not None:
            seen.add(made.scene_id)
        # By its place: the outputs of an id that is wrong are removed, and those of this one may be right.
        name = "" if made.scene_id is None else f"{made.scene_id}: "
        return Unlisted(place, f"{name}{outcome}; run again for it", place, is_out_of_reach=True)
    if storage.is_plain_name(outcome.subject) and not seen.add(outcome.subject):
        return Unlisted(place, f"a second scene of the id {outcome}; the first counts", place)
    return Unlisted(outcome.subject, outcome.found, place)


def _made_in_order(works: Iterable[Work | DataError], threads: int) -> Generator[_Made]:
    """Yield what comes of `works`, done by so many threads, in their order; only a few are ahead."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="listing")
    ahead: deque[Future[_Made]] = deque()
    try:
        for work in works:
            ahead.append(pool.submit(_made, work))
            if len(ahead) >= AHEAD * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _made(work: Work | DataError) -> _Made:
    if isinstance(work, DataError):
        return _Made(work.subject, None, work)
    outcome: SceneSource | DataError | StoreOutOfReach
    try:
        outcome = work.make()
    except StoreOutOfReach as error:
        outcome = error
    except DataError as error:
        is_named = work.scene_id in (None, error.subject)
        outcome = error if is_named else DataError(str(work.scene_id), str(error))
    return _Made(work.place, work.scene_id, outcome)


def _ending(uri: str) -> str:
    return posixpath.splitext(shown(uri))[1].lower()


def _works(uri: str, bands: tuple[str, ...], outputs: str | None) -> Iterator[Work | DataError]:
    if is_listed(uri):
        return folder_works(uri, bands, outputs)
    kind = _ending(uri)
    if kind in _TEXTS:
        return _listed_works(uri, _text_rows(uri, with_commas=kind == ".csv"), bands)
    if kind == _PARQUET:
        return _listed_works(uri, _parquet_rows(uri), bands)
    if is_raster(uri):
        return iter([Work(shown(uri), partial(file_scene, uri), id_by_name(uri))])
    try:
        document = read_document(uri)
    except DataError as error:
        raise ConfigError(str(error)) from error
    return document_works(uri, document, bands)


Row = tuple[str, str | None, str | datetime | None]
"""URI, id and datetime of a row of a list; or what is wrong with it."""


def _listed_works(uri: str, rows: Iterator[Row | DataError], bands: tuple[str, ...]) -> Iterator[Work | DataError]:
    """Yield the work of each row; a relative path is from where the list lies."""
    for row in rows:
        if isinstance(row, DataError):
            yield row
            continue
        try:
            at = resolved(row[0], uri)
        except DataError as error:
            yield error
            continue
        make, scene_id = partial(_single_item, at, bands), row[1]
        if is_raster(at):
            make, scene_id = partial(file_scene, at), id_by_name(at) if row[1] is None else row[1]
        yield Work(shown(at), partial(_with_row, make, row), scene_id)


def _single_item(uri: str, bands: tuple[str, ...], scene_id: str | None = None) -> SceneSource:
    if _ending(uri) not in _DOCUMENTS and is_folder(uri):
        return folder_scene(uri, bands, scene_id)
    document = read_document(uri)
    if document.get("type") != "Feature":
        raise DataError(shown(uri), f"type {document.get('type')!r}: a list has scene files and STAC items")
    return item_scene(document, uri, bands, scene_id)


def _with_row(make: Callable[..., SceneSource], row: Row) -> SceneSource:
    """Return the scene with the id and the datetime that its row gives it; the identity depends on the latter."""
    scene = make(scene_id=row[1])
    if row[2] is None:
        return scene
    try:
        text = utc_text(row[2] if isinstance(row[2], datetime) else datetime.fromisoformat(row[2]))
    except (ValueError, OverflowError) as error:  # the latter for years that are none in UTC
        raise DataError(scene.scene_id, f"datetime {row[2]!r} of the list is not like 2024-05-31T10:20:30Z") from error
    if text == scene.datetime:
        return scene
    return scene.model_copy(update={"datetime": text, "identity": hashed([scene.identity, text])})


def _text_rows(uri: str, *, with_commas: bool) -> Iterator[Row | DataError]:
    for number, line in enumerate(_lines(uri), start=1):
        place = f"{shown(uri)}, line {number}"
        try:
            text = line.decode("utf-8-sig").strip()
            if not text or text.startswith("#"):
                continue
            cells = next(csv.reader([text])) if with_commas else [text]
        except UnicodeDecodeError as error:
            if number == 1:
                raise ConfigError(f"{shown(uri)}: not a UTF-8 text file, expected a list of URIs") from error
            yield DataError(place, "not UTF-8 text, expected a URI")
            continue
        except csv.Error as error:
            yield DataError(place, f"{error}, expected one column, the URI")
            continue
        if len(cells) != 1:
            yield DataError(place, f"{len(cells)} columns, expected one, the URI")
        elif not (with_commas and cells[0].strip().lower() == "uri"):
            yield cells[0].strip(), None, None


def _lines(uri: str) -> Iterator[bytes]:
    """Yield the lines of a text, of which some blocks are held."""
    rest = b""
    try:
        for block in _blocks(uri):
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
            if len(rest) > LIST_BYTES:
                raise ConfigError(f"{shown(uri)}: a line of more than {LIST_BYTES} bytes, expected a list of URIs")
        yield rest
    except FileNotFoundError as error:
        raise ConfigError(f"no such list: {shown(uri)}") from error
    except OSError as error:
        raise _unreadable_list(uri, error) from error


def _blocks(uri: str) -> Iterator[bytes]:
    """Yield what stands at `uri`, block by block; what a server gives only as a whole is held."""
    start = 0
    with storage.open_ranged(uri, LIST_BYTES, blocks=3) as file:
        try:
            while block := file.read(LIST_BYTES):
                yield block
                start += len(block)
        except storage.NoRanges:
            yield _whole(uri)[start:]


def _whole(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri, storage.objects.TEXT_BYTES)
    except storage.TooLarge as error:
        raise ConfigError(f"{error}, a list of URIs") from error


def _unreadable_list(uri: str, error: OSError) -> ConfigError:
    return ConfigError(f"a list that can't be read: {refusal(uri, error)}")


def _parquet_rows(uri: str) -> Iterator[Row | DataError]:
    try:
        with storage.open_ranged(uri) as file:
            known = storage.open_parquet(file).schema_arrow.names
            names = [name for name in ("uri", "id", "datetime") if name in known]
            if "uri" not in names:
                found = ", ".join(known)
                raise ConfigError(f"{shown(uri)}: a list needs a column uri (found: {found})")
            number = 0
            for batch in storage.iter_parquet(file, names, rows=LIST_ROWS):
                for row in _rows_of(batch):
                    number += 1
                    place = f"{shown(uri)}, row {number}"
                    yield DataError(place, row) if isinstance(row, str) else _parquet_row(place, row)
    except FileNotFoundError as error:
        raise ConfigError(f"no such list: {shown(uri)}") from error
    except (pa.ArrowException, storage.ParquetBomb) as error:
        raise ConfigError(f"{shown(uri)}: not a readable Parquet file: {first_line(error)}") from error
    except OSError as error:
        raise _unreadable_list(uri, error) from error


def _rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of a batch, or what is wrong with one that has values which Python has not."""
    columns = [
        # Of pandas; Python's moments have no nanoseconds.
        column.cast(pa.timestamp("us", column.type.tz), safe=False) if _is_in_ns(column.type) else column
        for column in batch.columns
    ]
    batch = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = [_row_of(batch.slice(number, 1)) for number in range(len(batch))]
    yield from rows


def _row_of(row: pa.RecordBatch) -> dict[str, Any] | str:
    try:
        return dict(row.to_pylist()[0])
    except (ValueError, OverflowError) as error:
        return f"a value that can't be read: {first_line(error)}"


def _is_in_ns(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) and kind.unit == "ns")


def _parquet_row(place: str, row: dict[str, Any]) -> Row | DataError:
    uri, scene_id, moment = row["uri"], row.get("id"), row.get("datetime")
    if not isinstance(uri, str) or not uri.strip():
        return DataError(place, f"uri is {uri!r}")
    if isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    if moment is not None and not isinstance(moment, str | datetime):
        return DataError(place, f"datetime is {moment!r}: expected a timestamp, a date or text")
    return uri.strip(), None if scene_id is None else str(scene_id), moment
