"""Clients of S3 stores, one for each set of settings and credentials; none of them asks again by itself.

Must not know what objects mean.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, cast

import fsspec
from fsspec import AbstractFileSystem

from raytrain.errors import ConfigError
from raytrain.storage import stores, timely, uris
from raytrain.storage.retries import PassingAnswer, persistently
from raytrain.storage.stores import StoreSettings

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, timely.READ_TIMEOUT_S
"""How long a store may take to accept a connection, and to send the next bytes."""
CONNECTIONS = 64
ERROR_BYTES = 2**20
"""Of what a store says of an error; they have some hundred."""
LISTING_PAGE = 1000
"""Keys in one answer of a store: S3's own limit."""

Environment = tuple[tuple[str, str], ...]


def _environment() -> Environment:
    """Return what names the store and the credentials now; a client is made for each."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


def client(uri: str) -> AbstractFileSystem:
    """Return the client for the store of `uri` as the table and the environment name it now."""
    return _client(stores.current().settings_of(uri), _environment())


@cache
def _client(settings: StoreSettings, environment: Environment) -> AbstractFileSystem:
    client = _new_client(settings, {"max_attempts": 0})
    client.retries = 1
    return client


def asking_again(uri: str, attempts: int) -> AbstractFileSystem:
    """Return a client of its own for the store of `uri`, which asks up to `attempts` times by itself."""
    return _new_client(stores.current().settings_of(uri), {"max_attempts": attempts, "mode": "standard"})


def _new_client(settings: StoreSettings, retries: dict[str, Any]) -> AbstractFileSystem:
    _check_profile(settings)
    # Listings are not cached, since others write to the store; read-ahead is off, since readers name their ranges.
    client = fsspec.filesystem(
        "s3",
        anon=settings.anonymous,
        requester_pays=settings.requester_pays,
        client_kwargs=_place(settings),
        **({"profile": settings.profile} if settings.profile else {}),
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


def _place(settings: StoreSettings) -> dict[str, str]:
    """Return where a client of botocore looks; what is not said it takes from the environment."""
    named = {"region_name": settings.region, "endpoint_url": settings.endpoint}
    return {name: value for name, value in named.items() if value is not None}


def _check_profile(settings: StoreSettings) -> None:
    """Raise `ConfigError` for the name of a profile that no shared file has."""
    import botocore.exceptions
    import botocore.session

    if settings.profile is None:
        return
    try:
        botocore.session.Session(profile=settings.profile).get_scoped_config()
    except botocore.exceptions.ProfileNotFound as error:
        raise ConfigError(
            f"no profile {settings.profile!r}; expected one of the shared files that AWS_SHARED_CREDENTIALS_FILE and "
            "AWS_CONFIG_FILE name (~/.aws by default), on every machine"
        ) from error


def plain_client(settings: StoreSettings, connect_s: float, read_s: float) -> tuple[Any, Any]:
    """Return a session and a client of botocore, which asks each question once; raise `ConfigError` for no profile."""
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    _check_profile(settings)
    session = botocore.session.Session(profile=settings.profile)
    config = Config(connect_timeout=connect_s, read_timeout=read_s, retries={"max_attempts": 0})
    unsigned = Config(signature_version=UNSIGNED) if settings.anonymous else None
    client = session.create_client("s3", config=config.merge(unsigned) if unsigned else config, **_place(settings))
    return session, client


class Gets:
    """Reads from S3 with little around them: botocore says where a key lies, signs and asks.

    A training reads one range a tile, where s3fs takes half as much time again. Unusual answers go to s3fs.
    """

    def __init__(self, settings: StoreSettings) -> None:
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.httpsession import URLLib3Session
        from botocore.utils import get_environ_proxies

        _check_profile(settings)
        session = botocore.session.Session(profile=settings.profile)
        self._settings = settings
        self._credentials = None if settings.anonymous else session.get_credentials()
        config = Config(signature_version=UNSIGNED) if settings.anonymous else None
        self._client = session.create_client("s3", config=config, **_place(settings))
        self._urls: dict[str, str] = {}
        self._session = URLLib3Session(
            verify=session.get_config_variable("ca_bundle") or True,
            proxies=get_environ_proxies(self._client.meta.endpoint_url),
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            max_pool_connections=CONNECTIONS,
        )

    def part(self, path: str, start: int, end: int, *, exactly: bool = False) -> bytes:
        """Return bytes `start` to `end` of `bucket/key`, fewer where the object ends before.

        With `exactly` fewer are believed only where the answer says that the object ends there. Of more than was asked
        for nothing is held.
        """
        try:
            status, headers, data = self._ask("GET", path, {"Range": f"bytes={start}-{end - 1}"}, end - start)
        except timely.OverLimit as error:
            raise PassingAnswer(f"{error.args[0]} bytes or more where {end - start} were asked") from error
        if status == 206:
            size = headers.get("Content-Range", "").rpartition("/")[2]
            expected = min(end, int(size)) - start if size.isdecimal() else end - start
            if exactly and len(data) != expected:
                raise PassingAnswer(f"{len(data)} bytes where {expected} were asked")
            return data
        if status == 416:  # the object ends before `start`
            return b""
        if status == 200:  # by a store without ranges: all of it, which is no more than was asked
            return data[start:end]
        return bytes(client(f"s3://{path}").cat_file(path, start=start, end=end))

    def whole(self, path: str, limit_bytes: int | None = None) -> bytes:
        """Return all bytes of `bucket/key`, held against the MD5 that its ETag is, where it is one.

        Raises `timely.OverLimit` for more than `limit_bytes`.
        """
        status, headers, data = self._ask("GET", path, {}, limit_bytes)
        if status != 200:
            more = None if limit_bytes is None else limit_bytes + 1
            data = bytes(client(f"s3://{path}").cat_file(path, end=more))
            if limit_bytes is not None and len(data) > limit_bytes:
                raise timely.OverLimit(len(data))
            return data
        etag = headers.get("ETag", "").strip('"')
        encrypted = headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
        if not encrypted and re.fullmatch("[0-9a-f]{32}", etag) and _md5(data) != etag:
            raise PassingAnswer(f"{len(data)} bytes that are not those of the ETag {etag}")
        return data

    def head(self, path: str) -> tuple[int, str | None]:
        """Return the size of `bucket/key` in bytes, and its ETag if it has one."""
        status, headers, _ = self._ask("HEAD", path, {})
        if status != 200:
            info = client(f"s3://{path}").info(path)
            return int(info["size"]), info.get("ETag")
        return int(headers["Content-Length"]), headers.get("ETag")

    def _ask(
        self, method: str, path: str, headers: dict[str, str], limit_bytes: int | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body of the answer, or raise what an error means."""
        answer = self._session.send(self._signed(method, self._urls.get(path) or self._place(path), headers))
        data = timely.read(answer.raw, limit_bytes) if answer.status_code < 300 else _error_text(answer.raw)
        code = re.search(rb"<Code>(\w+)</Code>", data) if answer.status_code >= 400 else None
        text = f"{answer.status_code} {code[1].decode() if code else ''}".strip()
        if answer.status_code == 404:
            raise FileNotFoundError(text)
        if answer.status_code == 403:
            raise PermissionError(text)
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise PassingAnswer(text)
        expected = int(answer.headers.get("Content-Length", len(data)))
        if method == "GET" and len(data) != expected:
            raise PassingAnswer(f"{len(data)} of {expected} bytes")
        return answer.status_code, answer.headers, data

    def _place(self, path: str) -> str:
        bucket, _, key = path.partition("/")
        signed = self._client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})
        self._urls[path] = signed.partition("?")[0]
        return self._urls[path]

    def _signed(self, method: str, url: str, headers: dict[str, str]) -> Any:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import NoCredentialsError

        payer = {"x-amz-request-payer": "requester"} if self._settings.requester_pays else {}
        request = AWSRequest(method, url, headers | payer, stream_output=True)
        if not self._settings.anonymous:
            if self._credentials is None:
                raise NoCredentialsError
            region = self._client.meta.region_name or "us-east-1"
            S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", region).add_auth(request)
        return request.prepare()


def _error_text(body: Any) -> bytes:
    try:
        return timely.read(body, ERROR_BYTES)
    except timely.OverLimit:  # its status says enough
        return b""


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def gets(uri: str) -> Gets:
    """Return the reader for the store of `uri` as the table and the environment name it now."""
    return _gets(stores.current().settings_of(uri), _environment())


@cache
def _gets(settings: StoreSettings, environment: Environment) -> Gets:
    return Gets(settings)


def walk(uri: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `bucket/key` and what the listing says of each object below `uri`, a page at a time."""
    bucket, _, key = uris.path_of(uri).partition("/")
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "MaxKeys": LISTING_PAGE}
    more = True
    while more:
        page = persistently(uri, lambda: client(uri).call_s3("list_objects_v2", **request), "list")
        for each in page.get("Contents", []):
            if not each["Key"].endswith("/"):  # what some tools write to stand for a folder
                yield f"{bucket}/{each['Key']}", {"size": each["Size"], "ETag": each.get("ETag")}
        more = page.get("IsTruncated", False)
        request["ContinuationToken"] = page.get("NextContinuationToken")
