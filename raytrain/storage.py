"""URIs to files: one place that turns a local path or `s3://bucket/key` into reads, listings and atomic writes.

Writes are atomic: a local file is renamed into place, an object appears when its upload is complete. Credentials and
endpoints come from the environment (`AWS_*`). What a store answers only in passing (5xx, resets, timeouts) is asked
again, with growing waits, here and nowhere else: the clients below do not retry. Must not know what the bytes mean.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import random
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import fsspec
import pyarrow.fs
from fsspec import AbstractFileSystem

from raytrain.errors import ConfigError, StoreOutOfReach, first_line

FileInfo = dict[str, Any]
ResultT = TypeVar("ResultT")

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 20
"""How long a store may take to accept a connection, and to send the next bytes."""
CONNECTIONS = 64
LISTING_PAGE = 1000
"""Keys in one answer of a store: S3's own limit."""


@dataclass(frozen=True)
class Retries:
    """How often something is asked of a store, and how the waits in between grow: doubled each time, then drawn.

    The draw (between half of the wait and all of it) keeps many readers from coming back at the same moment.
    """

    attempts: int = 10
    first_wait_s: float = 0.2
    longest_wait_s: float = 10.0

    def wait_s(self, attempt: int) -> float:
        """Return how long to wait after the attempt of this number, from 0."""
        return min(self.first_wait_s * 2.0**attempt, self.longest_wait_s) * random.uniform(0.5, 1)


RETRIES = Retries()
LISTED_ATTEMPTS = 4
"""How often an object that a listing named is asked for while the store says that there is none."""
QUIET_ATTEMPTS = 3
"""Attempts that fail without a warning."""
_logger = logging.getLogger(__name__)

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
    if "@" in rest.partition("/")[0]:
        raise ConfigError(f"{scheme}://...@...: keys never stand in a URI; set AWS_ACCESS_KEY_ID and the like")
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


Environment = tuple[tuple[str, str], ...]


def _environment() -> Environment:
    """Return what names the store and the credentials now; a client is made for each."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


def _s3() -> AbstractFileSystem:
    """Return the client for the store and the credentials that the environment names now."""
    return _s3_client(_environment())


@cache
def _s3_client(environment: Environment) -> AbstractFileSystem:
    client = _new_s3({"max_attempts": 0})
    client.retries = 1
    return client


def _new_s3(retries: dict[str, Any]) -> AbstractFileSystem:
    # Listings are not cached, since others write to the store; read-ahead is off, since readers name their ranges.
    client = fsspec.filesystem(
        "s3",
        use_listings_cache=False,
        default_cache_type="none",
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "max_pool_connections": CONNECTIONS,
            "retries": retries,
        },
    )
    return cast(AbstractFileSystem, client)


@cache
def _local() -> AbstractFileSystem:
    return cast(AbstractFileSystem, fsspec.filesystem("file"))


def filesystem(uri: str) -> AbstractFileSystem:
    """Return the fsspec filesystem of `uri`."""
    return _local() if is_local(uri) else _s3()


def arrow_filesystem(uri: str) -> pyarrow.fs.FileSystem:
    """Return the same filesystem for pyarrow and Ray, which ask a store themselves: this one asks again by itself."""
    if is_local(uri):
        return pyarrow.fs.LocalFileSystem()
    client = _new_s3({"max_attempts": RETRIES.attempts, "mode": "standard"})
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(client))


def gdal_path(uri: str) -> str:
    """Return the name under which GDAL opens `uri`."""
    return path_of(uri) if is_local(uri) else f"/vsis3/{path_of(uri)}"


@contextlib.contextmanager
def gdal_environment() -> Iterator[None]:
    """Give GDAL the endpoint that `AWS_ENDPOINT_URL` names, which it spells in its own way."""
    import rasterio

    options: dict[str, Any] = {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_CACHEMAX": GDAL_CACHE_BYTES,
        "GDAL_HTTP_MAX_RETRY": RETRIES.attempts - 1,
        "GDAL_HTTP_RETRY_DELAY": RETRIES.first_wait_s,
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        scheme, _, host = endpoint.partition("://")
        options |= {"AWS_S3_ENDPOINT": host, "AWS_HTTPS": scheme == "https", "AWS_VIRTUAL_HOSTING": False}
    with rasterio.Env(**options):
        yield


def persistently(uri: str, operation: Callable[[], ResultT]) -> ResultT:
    """Return what `operation` on the object at `uri` returns; ask again after an error that may pass.

    Raises `StoreOutOfReach` once the attempts are used up, `PermissionError` that names `uri` where the store refuses,
    and any other error as it comes: a missing object, a wrong request, a local disk.
    """
    policy = RETRIES
    start = time.monotonic()
    for attempt in range(policy.attempts):
        try:
            return operation()
        except Exception as error:
            if is_local(uri):
                raise
            if isinstance(error, PermissionError):
                raise _refused(uri, error) from error
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"{uri}: {first_line(error)}") from error
            if not is_passing(error):
                raise
            last = error
        if attempt + 1 < policy.attempts:
            wait_s = policy.wait_s(attempt)
            level = logging.INFO if attempt < QUIET_ATTEMPTS else logging.WARNING
            _logger.log(level, "%s: %s; attempt %d, again in %.1f s", uri, _short(last), attempt + 1, wait_s)
            time.sleep(wait_s)
    spent_s = time.monotonic() - start
    raise StoreOutOfReach(
        f"{uri}: out of reach, {policy.attempts} attempts in {spent_s:.0f} s, the last: {_short(last)}"
    ) from last


def _refused(uri: str, error: PermissionError) -> PermissionError:
    return PermissionError(
        f"{uri}: access refused ({_short(error)}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL "
        "and the rights of this key"
    )


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


class _Gets:
    """Reads from S3 with little around them: botocore says where a key lies, signs and asks.

    A training reads one range a tile, where s3fs takes half as much time again. Unusual answers go to s3fs.
    """

    def __init__(self) -> None:
        import botocore.session
        from botocore.httpsession import URLLib3Session
        from botocore.utils import get_environ_proxies

        session = botocore.session.get_session()
        self._credentials = session.get_credentials()
        self._client = session.create_client("s3")
        self._urls: dict[str, str] = {}
        self._session = URLLib3Session(
            verify=session.get_config_variable("ca_bundle") or True,
            proxies=get_environ_proxies(self._client.meta.endpoint_url),
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            max_pool_connections=CONNECTIONS,
        )

    def part(self, path: str, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` of `bucket/key`, fewer where the object ends before."""
        status, _, data = self._ask(path, {"Range": f"bytes={start}-{end - 1}"})
        if status == 206:
            return data
        if status == 416:  # the object ends before `start`
            return b""
        return bytes(_s3().cat_file(path, start=start, end=end))

    def whole(self, path: str) -> bytes:
        """Return all bytes of `bucket/key`, held against the MD5 that its ETag is, where it is one."""
        status, headers, data = self._ask(path, {})
        if status != 200:
            return bytes(_s3().cat_file(path))
        etag = headers.get("ETag", "").strip('"')
        encrypted = headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
        if not encrypted and re.fullmatch("[0-9a-f]{32}", etag) and _md5(data) != etag:
            raise _PassingAnswer(f"{len(data)} bytes that are not those of the ETag {etag}")
        return data

    def _ask(self, path: str, headers: dict[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body of the answer, or raise what an error means."""
        answer = self._session.send(self._signed(self._urls.get(path) or self._place(path), headers))
        data = answer.content
        code = re.search(rb"<Code>(\w+)</Code>", data) if answer.status_code >= 400 else None
        text = f"{answer.status_code} {code[1].decode() if code else ''}".strip()
        if answer.status_code == 404:
            raise FileNotFoundError(text)
        if answer.status_code == 403:
            raise PermissionError(text)
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise _PassingAnswer(text)
        expected = int(answer.headers.get("Content-Length", len(data)))
        if len(data) != expected:
            raise _PassingAnswer(f"{len(data)} of {expected} bytes")
        return answer.status_code, answer.headers, data

    def _place(self, path: str) -> str:
        bucket, _, key = path.partition("/")
        signed = self._client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})
        self._urls[path] = signed.partition("?")[0]
        return self._urls[path]

    def _signed(self, url: str, headers: dict[str, str]) -> Any:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import NoCredentialsError

        if self._credentials is None:
            raise NoCredentialsError
        request = AWSRequest("GET", url, headers)
        region = self._client.meta.region_name or "us-east-1"
        S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", region).add_auth(request)
        return request.prepare()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class _PassingAnswer(OSError):
    """A store says that it can't answer now, or what it answered is not the object."""


@cache
def _gets(environment: Environment) -> _Gets:
    return _Gets()


def is_passing(error: BaseException) -> bool:
    """Tell whether asking a store again may help: 5xx, 429, resets, timeouts, bodies that end too soon."""
    import aiohttp
    import botocore.exceptions
    import botocore.parsers
    import urllib3.exceptions
    from fsspec.exceptions import FSTimeoutError

    cause = error if isinstance(error, botocore.exceptions.ClientError) else error.__cause__
    if isinstance(cause, botocore.exceptions.ClientError):
        status = int(cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return status >= 500 or status in (408, 429) or cause.response.get("Error", {}).get("Code") == "RequestTimeout"
    passing = (
        _PassingAnswer,
        urllib3.exceptions.HTTPError,
        botocore.exceptions.HTTPClientError,
        botocore.exceptions.ConnectionError,
        botocore.exceptions.IncompleteReadError,
        botocore.parsers.ResponseParserError,
        botocore.exceptions.FlexibleChecksumError,
        aiohttp.ClientError,
        FSTimeoutError,
        ConnectionError,
        TimeoutError,
    )
    return isinstance(error, passing)


def exists(uri: str) -> bool:
    """Tell whether an object or a folder stands at `uri`."""
    return persistently(uri, lambda: bool(filesystem(uri).exists(path_of(uri))))


def read_bytes(uri: str) -> bytes:
    """Return the whole object; raise `FileNotFoundError` where there is none."""
    if is_local(uri):
        return bytes(_local().cat_file(path_of(uri)))
    return persistently(uri, lambda: _gets(_environment()).whole(path_of(uri)))


def read_listed(uri: str) -> bytes:
    """Return the whole object that a listing named: a store's 404 is asked again a few times before it counts."""
    for attempt in range(LISTED_ATTEMPTS):
        try:
            return read_bytes(uri)
        except FileNotFoundError:
            if is_local(uri) or attempt + 1 == LISTED_ATTEMPTS:
                raise
            time.sleep(RETRIES.wait_s(attempt))
    raise AssertionError("the last attempt returns or raises")


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
    if is_local(uri):  # without fsspec's checks, a tenth of the time
        path = path_of(uri)
        with open(path, "rb", buffering=0) as file:
            try:
                return os.pread(file.fileno(), end - start, start)
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from error
    return persistently(uri, lambda: _gets(_environment()).part(path_of(uri), start, end))


def write_bytes(uri: str, data: bytes, *, durably: bool = False) -> None:
    """Write the whole object so that it appears at once or not at all.

    With `durably` a local file lies on its disk when this returns, and a machine that loses its power keeps it; a store
    answers for that anyway.
    """
    if is_local(uri):
        path = Path(path_of(uri))
        path.parent.mkdir(parents=True, exist_ok=True)
        with _renamed_into_place(path) as partial:
            partial.write_bytes(data)
            if durably:
                _to_disk(partial)
        if durably:
            _to_disk(path.parent)
    else:
        persistently(uri, lambda: filesystem(uri).pipe_file(path_of(uri), data))


def _to_disk(path: Path) -> None:
    """Wait until what was written to a file or a folder lies on its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(uri: str, path: Path) -> None:
    """Move the finished local file `path` to `uri`, where it appears at once or not at all."""
    if is_local(uri):
        target = Path(path_of(uri))
        target.parent.mkdir(parents=True, exist_ok=True)
        with _renamed_into_place(target) as partial:
            shutil.move(path, partial)
    else:
        persistently(uri, lambda: filesystem(uri).put_file(str(path), path_of(uri)))
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
        persistently(uri, lambda: filesystem(uri).rm_file(path_of(uri)))


def remove_once(uri: str) -> None:
    """Remove the object at `uri` if there is one; a store that can't do it now is not asked again."""
    with contextlib.suppress(FileNotFoundError):
        filesystem(uri).rm_file(path_of(uri))


def remove_empty_folder(uri: str) -> None:
    """Remove the local folder at `uri` if there is one and nothing is in it; a store has no empty folders."""
    if is_local(uri):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.rmdir(path_of(uri))


def remove_below(uri: str) -> None:
    """Remove all objects below `uri`, and a local folder with them; each is asked for once, as by `remove_once`."""
    names = list(find(uri))
    for name in names:
        remove_once(join(uri, name))
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
    root = path_of(uri).rstrip("/")
    for path, info in _walk(root) if is_local(uri) else _walk_store(uri):
        yield path.removeprefix(root).removeprefix("/"), info


def _walk_store(uri: str) -> Iterator[tuple[str, FileInfo]]:
    bucket, _, key = path_of(uri).partition("/")
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "MaxKeys": LISTING_PAGE}
    more = True
    while more:
        page = persistently(uri, lambda: _s3().call_s3("list_objects_v2", **request))
        for each in page.get("Contents", []):
            if not each["Key"].endswith("/"):  # what some tools write to stand for a folder
                yield f"{bucket}/{each['Key']}", {"size": each["Size"], "ETag": each.get("ETag")}
        more = page.get("IsTruncated", False)
        request["ContinuationToken"] = page.get("NextContinuationToken")


def _walk(folder: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[tuple[str, FileInfo]]:
    """Yield the files below a local folder, nothing where there is none; a link to a folder above is not entered."""
    try:
        status = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
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

    failures = (StoreOutOfReach, OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
    return isinstance(error, failures)


def sha256_of(data: bytes) -> str:
    """Return the sha256 (hex) of `data`."""
    return hashlib.sha256(data).hexdigest()
