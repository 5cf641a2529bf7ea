"""Who may ask the server of the review page, and how: everything passes here before anything else sees it.

A request counts with the token alone, by a cookie or by a header; what comes from another site, under another name of
the server (DNS rebinding), or with a body beyond the limit, is refused. Must not know what is served.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import os
import re
import secrets
import socket
import stat
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from raytrain.errors import ConfigError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22,200}")
"""At least 128 bits, as `secrets.token_urlsafe` writes them."""
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
EVERYWHERE = ("0.0.0.0", "::")
"""The addresses that stand for all of a machine's."""
SAFE_METHODS = ("GET", "HEAD")
_ENDING = "the server is ending; ask the next one the same again"
_NO_ACCESS = "no access without the token: open the address that raytrain review serve printed"

SECURITY_HEADERS: dict[bytes, bytes] = {
    # No script or style within the page: what a tile or a reason says can never become one.
    b"content-security-policy": (
        b"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"private, no-store",
}
"""What every answer has, unless it says something of its own."""


def new_token() -> str:
    """Return a fresh token of 256 random bits."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def token_of_file(path: Path) -> str:
    """Return the token that stands in the file `path`, which is made, for its owner alone, where there is none.

    Raises `ConfigError` for a file that others may read, that belongs to another, or that holds no token.
    """
    try:
        path = path.expanduser()
    except RuntimeError as error:
        raise ConfigError(f"--token-file {path}: nobody's home is known by this name; give the path") from error
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_token(path)
    except OSError as error:
        raise ConfigError(f"--token-file {path}: can't be made: {error.strerror}") from error
    token = new_token()
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{token}\n")
    return token


def _read_token(path: Path) -> str:
    try:
        # Without waiting: a pipe that nobody writes to would never be open.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            _check_token_file(path, os.fstat(descriptor))
            text = os.read(descriptor, 1024).decode("ascii", "replace").strip()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"--token-file {path}: can't be read: {error.strerror}") from error
    if not _TOKEN.fullmatch(text):
        raise ConfigError(
            f"--token-file {path}: holds no token (22 to 200 letters, digits, '-' and '_'); remove it, and one is made"
        )
    return text


def _check_token_file(path: Path, found: os.stat_result) -> None:
    """Raise `ConfigError` unless it is a file of this user's, for nobody else: who wrote a token knows it."""
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"--token-file {path}: no regular file; give another path, and the file is made")
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"--token-file {path}: belongs to user {found.st_uid}, expected {os.geteuid()}, who serves; give another"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"--token-file {path}: others may read it ({stat.S_IMODE(found.st_mode):o}); chmod 600 it")


def names_of(host: str) -> tuple[str, ...]:
    """Return the names under which a server that listens at `host` may be asked, as a Host header has them.

    A number is never looked up, so it can't be rebound: who listens at all addresses takes any number (`0.0.0.0` is
    returned for that), and this machine's own names.
    """
    bare = host.strip("[]").lower()
    if is_loopback(bare):
        return tuple(dict.fromkeys([*LOOPBACK_NAMES, _bracketed(bare)]))
    if bare in EVERYWHERE:
        return tuple(
            dict.fromkeys([*LOOPBACK_NAMES, "0.0.0.0", socket.gethostname().lower(), socket.getfqdn().lower()])
        )
    return (_bracketed(bare),)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a server that listens at `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class Guard:
    """Let through to `app` what has the token, and give every answer the headers of a page that trusts nobody.

    `names` are those of `names_of`. The cookie is named after the `port`: cookies of one host go to all its ports, and
    two servers must not take each other's away. A body is read here, as a whole, before `app` sees the request.
    """

    def __init__(self, app: App, token: str, names: Iterable[str], port: int, body_limit_bytes: int) -> None:
        self._app = app
        self._token = token.encode()
        self._names = frozenset(name.lower() for name in names)
        self.cookie = f"raytrain_review_{port}"
        self._body_limit_bytes = body_limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket: there is none here
            await send({"type": "websocket.close", "code": 1008})
            return
        answering = _Answering(send)
        try:
            await self._answer(scope, receive, answering)
        except asyncio.CancelledError:
            # By the server, which ends and waits no longer. What a thread writes may still arrive, or not.
            if not answering.has_begun:
                await _answer(answering, 503, _ENDING, {"Connection": "close"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _Headers(scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
        elif scope["method"] in SAFE_METHODS:
            await self._app(scope, receive, send)
        else:
            body = await _whole_body(receive, self._body_limit_bytes)
            if body is None:
                await _answer(send, 413, f"a body of more than {self._body_limit_bytes} bytes; no decision is so long")
            else:
                await self._app(scope, _replayed(body, receive), send)

    def _refusal(self, scope: Scope, headers: _Headers) -> tuple[int, str, dict[str, str]] | None:
        """Return the answer to a request that goes no further: a refusal, or the way from the token to the page."""
        host = headers.one("host")
        if host is None or not self._is_ours(host):
            return 421, f"no server of this name: {host or 'none given'}", {}
        found = _token_of_query(scope)
        if found is not None:
            if not self._is_token(found):
                return 401, _NO_ACCESS, {}
            # Lax: the way from a link on another site, a chat for one, to the page has to bring the cookie with it.
            # What a site might make of that, a write, needs an Origin besides.
            cookie = f"{self.cookie}={self._token.decode()}; Path=/; HttpOnly; SameSite=Lax"
            return 303, "the page", {"Location": "/", "Set-Cookie": cookie}
        by_header = self._is_token(_bearer(headers))
        if not by_header and not any(self._is_token(each) for each in self._in_cookies(headers)):
            return 401, _NO_ACCESS, {"WWW-Authenticate": "Bearer"}
        if scope["method"] in SAFE_METHODS:
            return None
        return _refusal_of_write(headers, host, by_header, self._body_limit_bytes)

    def _is_ours(self, host: str) -> bool:
        """Tell whether a Host header names this server; of any port, since tunnels have another at their end."""
        name = re.sub(r":[0-9]{1,5}$", "", host).lower()
        if name in self._names:
            return True
        return "0.0.0.0" in self._names and _is_number(name)

    def _in_cookies(self, headers: _Headers) -> Iterable[str]:
        """Return what the cookies of our name hold.

        By hand: `SimpleCookie` drops all of them for one that it dislikes, and what listens at other ports of this
        machine may have set any.
        """
        for text in headers.all("cookie"):
            for pair in text.split(";"):
                name, _, value = pair.partition("=")
                if name.strip() == self.cookie:
                    yield value.strip()

    def _is_token(self, found: str) -> bool:
        # In a time that says nothing of where the two differ.
        return hmac.compare_digest(found.encode("utf-8", "surrogateescape"), self._token)


class _Headers:
    """The headers of a request by name; one that stands twice has no single value."""

    def __init__(self, scope: Scope) -> None:
        self._pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]

    def all(self, name: str) -> list[str]:
        return [value for each, value in self._pairs if each == name]

    def one(self, name: str) -> str | None:
        found = self.all(name)
        return found[0] if len(found) == 1 else None


def _token_of_query(scope: Scope) -> str | None:
    """Return the token of `GET /?token=T`, the one address that has it in its query."""
    if scope["method"] != "GET" or scope["path"] != "/":
        return None
    try:
        found = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=10).get("token")
    except ValueError:
        return None
    return found[0] if found else None


def _bearer(headers: _Headers) -> str:
    kind, _, value = (headers.one("authorization") or "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else ""


def _refusal_of_write(
    headers: _Headers, host: str, by_header: bool, limit_bytes: int
) -> tuple[int, str, dict[str, str]] | None:
    """Return why a request that would change something is refused, None where it is not.

    A browser adds its cookies to what any site asks for, and then says for which: without an Origin a cookie is not
    enough. `by_header` is what no site can add.
    """
    kind = (headers.one("content-type") or "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a form of another site can't send without asking first
        return 415, f"expected application/json, found {kind or 'no content type'}", {}
    origins = headers.all("origin")
    if origins and any(urlsplit(each).netloc.lower() != host.lower() for each in origins):
        return 403, "a request from another site", {}
    if not origins and not by_header:
        return 403, "a request by cookie that does not say where it is from; without a browser, send the token", {}
    length = headers.one("content-length")
    if length is not None and length.isdecimal() and int(length) > limit_bytes:
        return 413, f"a body of {length} bytes, expected at most {limit_bytes}; no decision is so long", {}
    return None


async def _whole_body(receive: Receive, limit_bytes: int) -> bytes | None:
    """Return the body of a request; None once it has more than `limit_bytes`, or its sender has gone."""
    pieces, received = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        piece: bytes = message.get("body", b"")
        received += len(piece)
        if received > limit_bytes:
            return None
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read, once, and then what the connection says."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


class _Answering:
    """What an answer is sent by: adds the headers that every one has, and knows whether one has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            own = list(message.get("headers", []))
            names = {name.lower() for name, _ in own}
            message = {**message, "headers": own + [pair for pair in SECURITY_HEADERS.items() if pair[0] not in names]}
        await self._send(message)


async def _answer(send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    body = f"{status}: {quote(text, safe=_READABLE)}\n".encode()
    fields = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), **(headers or {})}
    pairs = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


_READABLE = " :;,.'()/[]-_"
"""What a stranger's text may have in a plain body besides letters and digits."""


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
