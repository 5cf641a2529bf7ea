"""URIs to files: one place that turns a local path or `s3://bucket/key` into reads, listings and atomic writes.

Writes are atomic: a local file is renamed into place, an object appears when its upload is complete. Credentials and
endpoints come from the environment (`AWS_*`). This module must not know what the bytes mean.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow.fs
from fsspec import AbstractFileSystem

from raytrain.errors import ConfigError

FileInfo = dict[str, Any]

GDAL_CACHE_BYTES = 128 * 2**20
"""GDAL's own default is 5 % of the machine's memory in every process."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PARTIAL_NAME = re.compile(r"^\.(?P<name>.+)\.[0-9a-f]{32}\.partial$")


def normalise(uri: str) -> str:
    """Return `uri` in its one form: an absolute local path, or `s3://bucket/key` without a trailing slash."""
    if not uri.strip():
        raise ConfigError("an empty path; expected a local path or s3://bucket/prefix")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return os.path.abspath(os.path.expanduser(uri))
    if scheme == "file":
        return os.path.abspath(rest)
    if scheme != "s3" or not rest.strip("/"):
        raise ConfigError(f"{uri}: expected a local path or s3://bucket/prefix")
    return f"s3://{rest.strip('/')}"


def is_local(uri: str) -> bool:
    """Tell whether `uri` is a path on this machine."""
    return "://" not in normalise(uri)


def join(uri: str, *names: str) -> str:
    """Return the URI of `names` below `uri`."""
    return "/".join([uri.rstrip("/"), *names])


def name_of(uri: str) -> str:
    """Return the last part of `uri`."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def is_plain_name(text: str) -> bool:
    """Tell whether `text` can be the name of one file anywhere: letters, digits, '.', '_', '-', no dot in front."""
    return bool(_PLAIN_NAME.fullmatch(text))


def partial_of(name: str) -> str | None:
    """Return the name that a half-written local file was to get; None for any other file."""
    match = _PARTIAL_NAME.match(name)
    return match["name"] if match else None


def path_of(uri: str) -> str:
    """Return what the filesystem of `uri` calls it: the local path, or `bucket/key`."""
    return normalise(uri).removeprefix("s3://")


@cache
def _s3() -> AbstractFileSystem:
    # Listings are not cached, since others write to the store; read-ahead is off, since readers name their ranges.
    return cast(AbstractFileSystem, fsspec.filesystem("s3", use_listings_cache=False, default_cache_type="none"))


@cache
def _local() -> AbstractFileSystem:
    return cast(AbstractFileSystem, fsspec.filesystem("file"))


def filesystem(uri: str) -> AbstractFileSystem:
    """Return the fsspec filesystem of `uri`."""
    return _local() if is_local(uri) else _s3()


def arrow_filesystem(uri: str) -> pyarrow.fs.FileSystem:
    """Return the same filesystem for pyarrow and Ray."""
    if is_local(uri):
        return pyarrow.fs.LocalFileSystem()
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(_s3()))


def gdal_path(uri: str) -> str:
    """Return the name under which GDAL opens `uri`."""
    return path_of(uri) if is_local(uri) else f"/vsis3/{path_of(uri)}"


@contextlib.contextmanager
def gdal_environment() -> Iterator[None]:
    """Give GDAL the endpoint that `AWS_ENDPOINT_URL` names, which it spells in its own way."""
    import rasterio

    options: dict[str, Any] = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_CACHEMAX": GDAL_CACHE_BYTES}
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        scheme, _, host = endpoint.partition("://")
        options |= {"AWS_S3_ENDPOINT": host, "AWS_HTTPS": scheme == "https", "AWS_VIRTUAL_HOSTING": False}
    with rasterio.Env(**options):
        yield


def exists(uri: str) -> bool:
    """Tell whether an object or a folder stands at `uri`."""
    return bool(filesystem(uri).exists(path_of(uri)))


def read_bytes(uri: str) -> bytes:
    """Return the whole object; raise `FileNotFoundError` where there is none."""
    return bytes(filesystem(uri).cat_file(path_of(uri)))


def read_text(uri: str, what: str) -> str:
    """Return the text of a small UTF-8 file that a person made; raise `ConfigError` that calls it a `what`."""
    try:
        return read_bytes(uri).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"no such {what}: {uri}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{uri}: a folder, expected a {what}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{uri}: not a UTF-8 text file, expected a {what}") from error


def read_json(uri: str) -> dict[str, Any]:
    """Return the JSON object that stands at `uri`; raise `FileNotFoundError`, or `ConfigError` for anything else."""
    try:
        values = json.loads(read_bytes(uri))
    except ValueError as error:
        raise ConfigError(f"{uri}: damaged, not a JSON file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{uri}: damaged, expected a JSON object")
    return values


def read_range(uri: str, start: int, end: int) -> bytes:
    """Return bytes `start` to `end` (exclusive) of the object in one request."""
    return bytes(filesystem(uri).cat_file(path_of(uri), start=start, end=end))


def write_bytes(uri: str, data: bytes) -> None:
    """Write the whole object so that it appears at once or not at all."""
    if is_local(uri):
        path = Path(path_of(uri))
        path.parent.mkdir(parents=True, exist_ok=True)
        with _renamed_into_place(path) as partial:
            partial.write_bytes(data)
    else:
        filesystem(uri).pipe_file(path_of(uri), data)


def write_file(uri: str, path: Path) -> None:
    """Move the finished local file `path` to `uri`, where it appears at once or not at all."""
    if is_local(uri):
        target = Path(path_of(uri))
        target.parent.mkdir(parents=True, exist_ok=True)
        with _renamed_into_place(target) as partial:
            shutil.move(path, partial)
    else:
        filesystem(uri).put_file(str(path), path_of(uri))
        path.unlink()


@contextlib.contextmanager
def _renamed_into_place(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove(uri: str) -> None:
    """Remove the object at `uri` if there is one."""
    with contextlib.suppress(FileNotFoundError):
        filesystem(uri).rm_file(path_of(uri))


def find(uri: str) -> dict[str, FileInfo]:
    """Return `{name relative to uri: file info}` of all objects below `uri`, by one listing, in the order of names.

    Links to files and folders are followed. Raises `OSError` for a folder that can't be listed.
    """
    root = path_of(uri).rstrip("/")
    found = dict(_walk(root)) if is_local(uri) else filesystem(uri).find(root, detail=True)
    return {path.removeprefix(root).lstrip("/"): info for path, info in sorted(found.items())}


def _walk(folder: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[tuple[str, FileInfo]]:
    """Yield the files below a local folder, nothing where there is none; a link to a folder above is not entered."""
    try:
        status = os.stat(folder)
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):  # it may have gone since its own folder was listed
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        try:
            found = entry.stat()
        except FileNotFoundError:  # gone as well, or a link to nothing
            continue
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link to itself
                continue
            raise
        if stat.S_ISDIR(found.st_mode):
            yield from _walk(entry.path, above | {here})
        else:
            yield entry.path, {"size": found.st_size, "mtime": found.st_mtime}


def identity(info: FileInfo) -> str:
    """Return what changes when the object changes: its size and its ETag, or its time of change where it has none."""
    return f"{info['size']}:{info.get('ETag') or info.get('mtime')}"


def is_out_of_reach(error: BaseException) -> bool:
    """Tell whether `error` says that a disk, a network or a store failed, rather than a program."""
    import botocore.exceptions

    return isinstance(error, (OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError))


def sha256_of(data: bytes) -> str:
    """Return the sha256 (hex) of `data`."""
    return hashlib.sha256(data).hexdigest()
