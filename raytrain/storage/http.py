"""Reads over HTTP, from hosts with public addresses alone; nothing is written or listed there.

A host that resolves to a loopback, link-local, private, multicast or otherwise reserved address is refused, unless the
table of stores allows it by name. The check is made of the very address that is connected to, so neither a redirect nor
another answer of the name server gets round it. Proxies are not used: they would resolve names themselves. Must not
know what the bytes mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urljoin

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NameResolutionError, NewConnectionError
from urllib3.response import BaseHTTPResponse

from raytrain import __version__
from raytrain.errors import ConfigError, first_line
from raytrain.storage import s3, stores, timely, uris
from raytrain.storage.counts import AddressRefused
from raytrain.storage.retries import PassingAnswer
from raytrain.storage.stores import Stores

REDIRECTS = 5
"""How many redirects are followed, each to a host that is checked like the first."""
_REDIRECTING = (301, 302, 303, 307, 308)
_HEAD_REFUSED = (400, 401, 403, 405, 501)
"""Answers to HEAD of servers, or of signatures for GET, that answer GET well."""
LARGEST_UNSAID_BYTES = 2**30
"""Of a body whose server does not say how large it is, and which is only counted or hashed: it may have no end."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class NoRanges(OSError):
    """A server gives what stands at a URL only as a whole."""


def part(url: str, start: int, end: int) -> bytes:
    """Return bytes `start` to `end` (exclusive) of what stands at `url`, fewer where it ends before.

    Of a server that sends more than it was asked for, no more than that is held.
    """
    with _answer("GET", url, {"Range": f"bytes={start}-{end - 1}"}) as answer:
        if answer.status == 416:  # it ends before `start`
            return b""
        if answer.status == 206:
            first, size = _content_range(answer.headers)
            data = _at_most(answer, end - start)
            expected = (end if size is None else min(end, size)) - start
            if first != start or (size is not None and len(data) != expected) or len(data) > expected:
                raise PassingAnswer(f"{len(data)} bytes from {first} on where {expected} from {start} on were asked")
            return data
        length = answer.headers.get("Content-Length", "")
        if start == 0 and length.isdecimal() and int(length) <= end:
            return _at_most(answer, end)
        raise NoRanges(
            f"{uris.shown(url)}: its server answers no ranges (status {answer.status}); copy it to a folder or a store"
        )


def _at_most(answer: BaseHTTPResponse, asked_bytes: int) -> bytes:
    """Return the body of an answer; raise `PassingAnswer` for a longer one than was asked for, or a torn one."""
    try:
        data = timely.read(answer, asked_bytes)
    except timely.OverLimit as error:
        raise PassingAnswer(f"{error.args[0]} bytes or more where {asked_bytes} were asked") from error
    if _length(answer.headers) not in (None, len(data)):
        raise PassingAnswer(f"{len(data)} of {_length(answer.headers)} bytes")
    return data


def whole(url: str, limit_bytes: int | None = None) -> bytes:
    """Return all bytes of what stands at `url`; raise `timely.OverLimit` for more than `limit_bytes`."""
    with _answer("GET", url, {}) as answer:
        return _body(answer, limit_bytes)


def hashed(url: str) -> tuple[int, str]:
    """Return size and sha256 (hex) of what stands at `url`; no more than a piece is held.

    Raises `NoRanges` for more than `LARGEST_UNSAID_BYTES` where the server does not say how many there are.
    """
    digest, size = hashlib.sha256(), 0
    with _answer("GET", url, {}) as answer:
        length = _length(answer.headers)
        for piece in timely.pieces(answer):
            digest.update(piece)
            size += len(piece)
            if size > (LARGEST_UNSAID_BYTES if length is None else length):
                break
        if length is None and size > LARGEST_UNSAID_BYTES:
            found = f"more than {LARGEST_UNSAID_BYTES} bytes, and its server does not say how many"
            raise NoRanges(f"{uris.shown(url)}: {found}; copy it to a folder or a store")
        if length not in (None, size):
            raise PassingAnswer(f"{size} of {length} bytes")
    return size, digest.hexdigest()


def head(url: str) -> tuple[int | None, str | None]:
    """Return size and ETag of what stands at `url`, None for what its server does not say; no body is read."""
    with _answer("HEAD", url, {}, accepted=_HEAD_REFUSED) as answer:
        if answer.status == 200:
            return _length(answer.headers), answer.headers.get("ETag")
    with _answer("GET", url, {"Range": "bytes=0-0"}) as answer:
        if answer.status == 200:
            return _length(answer.headers), answer.headers.get("ETag")
        return _content_range(answer.headers)[1], answer.headers.get("ETag")


def exists(url: str) -> bool:
    """Tell whether something stands at `url`."""
    try:
        head(url)
    except FileNotFoundError:
        return False
    return True


def _length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return the first byte and the size of the whole that an answer names; None for what it does not."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", "").strip())
    if match is None:
        raise PassingAnswer(f"Content-Range {headers.get('Content-Range')!r}")
    return (int(match[1]) if match[1] else None), (None if match[2] == "*" else int(match[2]))


def _body(answer: BaseHTTPResponse, limit_bytes: int | None = None) -> bytes:
    if answer.status != 200:
        raise PassingAnswer(f"status {answer.status} to a plain GET")
    data = timely.read(answer, limit_bytes)
    length = _length(answer.headers)
    if length is not None and len(data) != length:
        raise PassingAnswer(f"{len(data)} of {length} bytes")
    return data


@contextlib.contextmanager
def _answer(
    method: str, url: str, headers: dict[str, str], accepted: tuple[int, ...] = ()
) -> Iterator[BaseHTTPResponse]:
    """Yield the answer after redirects, its body unread; raise what an error means, but for `accepted` statuses."""
    answer = _following(method, url, headers)
    try:
        if answer.status not in accepted:
            _raise_for(answer.status, url)
        if method == "HEAD":
            answer.drain_conn()
        yield answer
    finally:
        answer.close()  # with its connection, if a rest of a body is in it
        answer.release_conn()


def _following(method: str, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
    for _ in range(REDIRECTS + 1):
        answer = _ask(method, url, headers)
        target = answer.headers.get("Location") if answer.status in _REDIRECTING else None
        if target is None:
            return answer
        answer.close()
        url = _target(url, target)
    raise OSError(f"{uris.shown(url)}: more than {REDIRECTS} redirects")


def _target(url: str, target: str) -> str:
    """Return where a redirect leads; raise `PermissionError` for what is not followed."""
    try:
        found = uris.normalise(urljoin(url, target))
    except ConfigError as error:
        raise AddressRefused(f"{uris.shown(url)}: redirects to what is no plain URL") from error
    if not uris.is_http(found) or (url.startswith("https:") and not found.startswith("https:")):
        raise AddressRefused(f"{uris.shown(url)}: redirects to {uris.shown(found)}, which is not followed")
    return found


def _ask(method: str, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
    try:
        return _pools(stores.current()).request(
            method,
            url,
            headers={"Accept-Encoding": "identity", "User-Agent": f"raytrain/{__version__}", **headers},
            preload_content=False,
            redirect=False,
            retries=False,
        )
    except _NotPublic as error:
        raise AddressRefused(f"{uris.shown(url)}: {error}") from None
    except urllib3.exceptions.SSLError as error:
        if isinstance(error.args[0], ssl.SSLCertVerificationError):
            raise OSError(f"{uris.shown(url)}: its server has no certificate to trust: {first_line(error)}") from error
        raise
    except urllib3.exceptions.LocationValueError as error:
        raise ConfigError(f"{uris.shown(url)}: not a URL that can be asked; expected https://host/path") from error


def _raise_for(status: int, url: str) -> None:
    if status in (404, 410):
        raise FileNotFoundError(f"{status}")
    if status in (401, 403):
        raise PermissionError(f"{status}")
    if status >= 500 or status in (408, 429):
        raise PassingAnswer(f"{status}")
    if status not in (200, 206, 416):
        raise OSError(f"{uris.shown(url)}: its server answers {status}")


class _Table:
    """A table by its identity, as the key of a cache: connections live no longer than the table that allowed them."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores

    def __hash__(self) -> int:
        return id(self.stores)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Table) and other.stores is self.stores


def _pools(table: Stores) -> urllib3.PoolManager:
    return _pools_of(_Table(table))


@lru_cache(maxsize=1)
def _pools_of(table: _Table) -> urllib3.PoolManager:
    class PlainConnection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _connected(self, "http", table.stores)

    class SafeConnection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _connected(self, "https", table.stores)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = PlainConnection

    class SafePool(HTTPSConnectionPool):
        ConnectionCls = SafeConnection

    pools = urllib3.PoolManager(
        num_pools=32,
        maxsize=s3.CONNECTIONS,
        timeout=urllib3.Timeout(connect=s3.CONNECT_TIMEOUT_S, read=s3.READ_TIMEOUT_S),
    )
    pools.pool_classes_by_scheme = {"http": PlainPool, "https": SafePool}
    return pools


class _NotPublic(Exception):
    """The address of a host is not public; not an OSError, which urllib3 would take for one of the network."""


def _connected(connection: Any, scheme: str, table: Stores) -> socket.socket:
    """Return a socket to one of the addresses of the connection's host, all of which were checked."""
    host, port = connection._dns_host, connection.port
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        cause = error if isinstance(error, socket.gaierror) else socket.gaierror(str(error))
        raise NameResolutionError(host, connection, cause) from error
    addresses = [each[4] for each in found]
    if not table.allows_private_address(scheme, host, port):
        for address in addresses:
            if not is_public(str(address[0])):
                raise _NotPublic(
                    f"{host} has the address {address[0]}, which is not public; if it is meant, name it in --stores: "
                    f'[stores."{scheme}://{host}:{port}"] private_address = true'
                )
    return _first_that_answers(connection, found)


def _first_that_answers(connection: Any, found: list[Any]) -> socket.socket:
    last: OSError | None = None
    for family, kind, protocol, _, address in found:
        made = socket.socket(family, kind, protocol)
        try:
            for option in connection.socket_options or ():
                made.setsockopt(*option)
            made.settimeout(connection.timeout)
            made.connect(address)
            return made
        except OSError as error:
            made.close()
            last = error
    raise NewConnectionError(connection, f"no connection: {last}") from last


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the public network; that of the IPv4 address counts which it stands for."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if found in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
        tunnelled = [found.sixtofour, *(found.teredo or ())]
        if found.is_site_local or any(each is not None and not is_public(str(each)) for each in tunnelled):
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved and not found.is_unspecified
