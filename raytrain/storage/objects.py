"""What is done with objects by their URI: read, write, list, remove; each store by its own means.

Writes are atomic: a local file is renamed into place, an object appears when its upload is complete. Must not know what
the bytes mean.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow.fs
from fsspec import AbstractFileSystem

from raytrain.errors import ConfigError, DataError, first_line
from raytrain.storage import http, local, ranged, retries, s3, timely
from raytrain.storage.ranged import RangedFile
from raytrain.storage.retries import persistently
from raytrain.storage.uris import is_hidden, is_http, is_local, join, normalise, path_of, shown

FileInfo = dict[str, Any]
LISTED_ATTEMPTS = 4
"""How often an object that a listing named is asked for while the store says that there is none."""
HASHED_BYTES = 8 * 2**20
"""What is held of an object whose content is hashed."""
JSON_BYTES = 64 * 2**20
"""Of one JSON object of ours: the manifest of ten million tiles has 25 MB. Parsed it can take twenty times as much."""
TEXT_BYTES = 2**30
"""Of a text that people made: the metadata of a million chips have 100 MB."""


class TooLarge(DataError):
    """An object has more bytes than were expected of its kind; what is beyond the limit was not read."""


@cache
def _local() -> AbstractFileSystem:
    return cast(AbstractFileSystem, fsspec.filesystem("file"))


def filesystem(uri: str) -> AbstractFileSystem:
    """Return the fsspec filesystem of `uri`; raise `ConfigError` for a URL, which is only read."""
    _refuse_url(uri)
    return _local() if is_local(uri) else s3.client(uri)


def arrow_filesystem(uri: str) -> pyarrow.fs.FileSystem:
    """Return the same filesystem for pyarrow and Ray, which ask a store themselves: this one asks again by itself."""
    _refuse_url(uri)
    if is_local(uri):
        return pyarrow.fs.LocalFileSystem()
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(s3.asking_again(uri, retries.RETRIES.attempts)))


def _refuse_url(uri: str) -> None:
    if is_http(uri):
        raise ConfigError(
            f"{shown(uri)}: over HTTP single files are read, nothing is written or listed; name a local folder or "
            "s3://bucket/prefix, or a catalogue that lists the files"
        )


def exists(uri: str) -> bool:
    """Tell whether an object or a folder stands at `uri`; over HTTP, whether a file does."""
    if is_http(uri):
        return persistently(uri, lambda: http.exists(normalise(uri)), "look")
    return persistently(uri, lambda: bool(filesystem(uri).exists(path_of(uri))), "look")


def is_special(uri: str) -> bool:
    """Tell whether a device, a pipe or a socket stands at `uri`, which may have no end."""
    if not is_local(uri):
        return False
    try:
        mode = os.stat(path_of(uri)).st_mode
    except OSError:  # who reads it will say so
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def read_bytes(uri: str, limit_bytes: int | None = None) -> bytes:
    """Return the whole object; raise `FileNotFoundError` where there is none, `TooLarge` for more than `limit_bytes`.

    A limit belongs to whoever reads what others wrote, and then parses it.
    """
    try:
        if is_local(uri):
            return _local_bytes(path_of(uri), limit_bytes)
        if is_http(uri):
            return persistently(uri, lambda: http.whole(normalise(uri), limit_bytes))
        return persistently(uri, lambda: s3.gets(uri).whole(path_of(uri), limit_bytes))
    except timely.OverLimit as error:
        found = f"{error.args[0]} bytes or more, expected at most {limit_bytes} of such a file; it was not read"
        raise TooLarge(shown(uri), found) from error


def _local_bytes(path: str, limit_bytes: int | None) -> bytes:
    if limit_bytes is None:
        return bytes(_local().cat_file(path))
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit_bytes:
            raise timely.OverLimit(size)
        pieces, received = [], 0
        while piece := file.read(HASHED_BYTES):  # as much as asked for is allocated; a pipe has no size
            received += len(piece)
            if received > limit_bytes:
                raise timely.OverLimit(received)
            pieces.append(piece)
    return b"".join(pieces)


def read_listed(uri: str, limit_bytes: int | None = None) -> bytes:
    """Return the whole object that a listing named: a store's 404 is asked again a few times before it counts.

    Raises `TooLarge` for more than `limit_bytes`.
    """
    return _as_listed(uri, lambda: read_bytes(uri, limit_bytes))


def _as_listed(uri: str, operation: Callable[[], bytes]) -> bytes:
    """Return what `operation` reads of an object that somebody named, which a store may not find at once."""
    for attempt in range(LISTED_ATTEMPTS):
        try:
            return operation()
        except FileNotFoundError:
            if is_local(uri) or attempt + 1 == LISTED_ATTEMPTS:
                raise
            time.sleep(retries.RETRIES.wait_s(attempt))
    raise AssertionError("the last attempt returns or raises")


def read_text(uri: str, what: str, limit_bytes: int = TEXT_BYTES) -> str:
    """Return the text of a small UTF-8 file that a person made; raise `ConfigError` that calls it a `what`."""
    try:
        return read_bytes(uri, limit_bytes).decode("utf-8-sig")
    except TooLarge as error:
        raise ConfigError(f"{error}; expected a {what}") from error
    except FileNotFoundError as error:
        raise ConfigError(f"no such {what}: {shown(uri)}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{shown(uri)}: a folder, expected a {what}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown(uri)}: not a UTF-8 text file, expected a {what}") from error


def read_json(uri: str, limit_bytes: int = JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object that stands at `uri`; raise `FileNotFoundError`, or `ConfigError` for anything else."""
    return read_hashed_json(uri, limit_bytes)[0]


def read_hashed_json(uri: str, limit_bytes: int = JSON_BYTES) -> tuple[dict[str, Any], str]:
    """Return what `read_json` does, and the sha256 of the very bytes that it was read from."""
    try:
        data = read_bytes(uri, limit_bytes)
        values = json.loads(data)
    except TooLarge as error:
        raise ConfigError(str(error)) from error
    except (ValueError, RecursionError) as error:  # the latter for lists in lists without end
        raise ConfigError(f"{shown(uri)}: damaged, not a JSON file: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{shown(uri)}: damaged, expected a JSON object")
    return values, sha256_of(data)


def read_range(uri: str, start: int, end: int) -> bytes:
    """Return bytes `start` to `end` (exclusive) of the object in one request."""
    if is_local(uri):
        return local.read_range(path_of(uri), start, end)
    if is_http(uri):
        return persistently(uri, lambda: http.part(normalise(uri), start, end))
    return persistently(uri, lambda: s3.gets(uri).part(path_of(uri), start, end))


def _read_exactly(uri: str, start: int, end: int) -> bytes:
    """Return what `read_range` does, but fewer bytes only where the object is known to end."""
    if is_local(uri) or is_http(uri):
        return read_range(uri, start, end)
    return persistently(uri, lambda: s3.gets(uri).part(path_of(uri), start, end, exactly=True))


def open_ranged(uri: str, block_bytes: int = ranged.BLOCK_BYTES, blocks: int = ranged.BLOCKS) -> RangedFile:
    """Return the object as a read-only file with a position, for one thread; nothing is asked before it is read.

    It is fetched by aligned blocks of `block_bytes`, of which `blocks` are held; sequential reads fetch one ahead. Its
    errors are those of `read_range`, and come out of `read` and, where the size is asked for, of `seek`.
    """

    def read(start: int, end: int) -> bytes:
        return _as_listed(uri, lambda: _read_exactly(uri, start, end))

    return RangedFile(shown(normalise(uri)), read, partial(size_of, uri), block_bytes, blocks)


def size_of(uri: str) -> int:
    """Return the size of the object at `uri` in bytes; it is counted where a server does not say it."""
    if is_local(uri):
        return os.stat(path_of(uri)).st_size
    size, _ = _head(uri)
    return persistently(uri, lambda: http.hashed(normalise(uri)))[0] if size is None else size


def _head(uri: str) -> tuple[int | None, str | None]:
    """Return size and ETag of a remote object, without its content; None for what is not said."""
    if is_http(uri):
        return persistently(uri, lambda: http.head(normalise(uri)), "look")
    return persistently(uri, lambda: s3.gets(uri).head(path_of(uri)), "look")


def identity(info: FileInfo) -> str:
    """Return what changes when the object changes: its size and its ETag, or its time of change where it has none."""
    return f"{info['size']}:{info.get('ETag') or info.get('mtime')}"


def identity_of(uri: str, info: FileInfo | None = None) -> str:
    """Return what changes when the bytes of the object at `uri` change, and depends on neither place nor time.

    That is its size and its ETag, or the sha256 of its content for a local file, and where the ETag is absent or a weak
    one. `info`, from a listing, saves the question where it has both.
    """
    if is_local(uri):
        return _identity_of_content(uri)
    size, etag = (None, None) if info is None else (info.get("size"), info.get("ETag"))
    if size is None or not _is_strong(etag):
        size, etag = _head(uri)
    if size is None or not _is_strong(etag):
        return _identity_of_content(uri)
    return f"{size}:{etag}"


def stamp_of(uri: str) -> str | None:
    """Return what changes with every write to the local file at `uri`, without its content; None for any other.

    As long as it is the same the bytes are; where it differs they may be the same, as on another machine.
    """
    if not is_local(uri):
        return None
    try:
        found = os.stat(path_of(uri))
    except OSError:  # who reads it will say so
        return None
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _is_strong(etag: str | None) -> bool:
    return bool(etag) and not str(etag).startswith("W/")


def _identity_of_content(uri: str) -> str:
    if is_http(uri):  # a server without ETags may well have no ranges
        size, sha256 = persistently(uri, lambda: http.hashed(normalise(uri)))
        return f"{size}:sha256:{sha256}"
    digest, size = hashlib.sha256(), 0
    while piece := _read_exactly(uri, size, size + HASHED_BYTES):
        digest.update(piece)
        size += len(piece)
    return f"{size}:sha256:{digest.hexdigest()}"


def write_bytes(uri: str, data: bytes, *, durably: bool = False, exclusively: bool = False) -> None:
    """Write the whole object so that it appears at once or not at all.

    With `durably` a local file lies on its disk when this returns, and a machine that loses its power keeps it; a store
    answers for that anyway. With `exclusively` a local file that stands there already stays, and `FileExistsError` is
    raised; an object of a store is written over, since not every store has a conditional PUT.
    """
    if is_local(uri):
        local.write_bytes(Path(path_of(uri)), data, durably=durably, exclusively=exclusively)
    else:
        persistently(uri, lambda: filesystem(uri).pipe_file(path_of(uri), data), "write", len(data))


def write_file(uri: str, path: Path) -> None:
    """Move the finished local file `path` to `uri`, where it appears at once or not at all."""
    if is_local(uri):
        local.move_in(path, Path(path_of(uri)))
    else:
        size = path.stat().st_size
        persistently(uri, lambda: filesystem(uri).put_file(str(path), path_of(uri)), "write", size)
        path.unlink()


def remove(uri: str) -> None:
    """Remove the object at `uri` if there is one."""
    with contextlib.suppress(FileNotFoundError):
        persistently(uri, lambda: filesystem(uri).rm_file(path_of(uri)), "remove")


def remove_once(uri: str) -> None:
    """Remove the object at `uri` if there is one; a store that can't do it now is not asked again."""
    with contextlib.suppress(FileNotFoundError):
        filesystem(uri).rm_file(path_of(uri))


def remove_empty_folder(uri: str) -> None:
    """Remove the local folder at `uri` if there is one and nothing is in it; a store has no empty folders."""
    if is_local(uri):
        try:
            os.rmdir(path_of(uri))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
                raise


def remove_below(uri: str, *, persistent: bool = False) -> None:
    """Remove all objects below `uri`, in the order of names, and a local folder with them.

    Each is asked for once, as by `remove_once`, or if `persistent` as by `remove`.
    """
    names = list(find(uri))
    for name in names:
        (remove if persistent else remove_once)(join(uri, name))
    folders = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 1)}
    for folder in sorted(folders, key=lambda each: -each.count("/")):
        remove_empty_folder(join(uri, folder))
    remove_empty_folder(uri)


def find(uri: str) -> dict[str, FileInfo]:
    """Return `{name relative to uri: file info}` of all objects below `uri`, by one listing, in the order of names.

    Links to files and folders are followed. Raises `OSError` for a folder that can't be listed.
    """
    return dict(sorted(walk(uri)))


def walk(uri: str) -> Iterator[tuple[str, FileInfo]]:
    """Yield what `find` returns, one by one: no more than a folder, or a page of a listing, is held."""
    _refuse_url(uri)
    root = path_of(uri).rstrip("/")
    for path, info in local.walk(root) if is_local(uri) else s3.walk(uri):
        yield path.removeprefix(root).removeprefix("/"), info


def foreign_file(uri: str, is_own: Callable[[str], bool]) -> str | None:
    """Return a file below `uri`, by its name relative to it, that is none of those that `is_own` tells; None without.

    Hidden ones never count.
    """
    return next((name for name, _ in walk(uri) if not is_hidden(name) and not is_own(name)), None)


def sha256_of(data: bytes) -> str:
    """Return the sha256 (hex) of `data`."""
    return hashlib.sha256(data).hexdigest()
