"""An HTTP proxy between an S3 client and a server, which harms chosen requests as networks and stores do.

What it does not harm it forwards byte for byte, with the Host that the client signed. This module knows nothing of S3
but the form of its errors, and nothing of raytrain.
"""

from __future__ import annotations

import contextlib
import fcntl
import html
import http.client
import select
import socket
import socketserver
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

PIECE_BYTES = 1 << 18
DELIVERY_LIMIT_S = 2.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request: one of the constants below, or `slow_start`."""

    name: str
    status: int = 0  # of an error that the proxy answers itself
    code: str = ""  # of that error, as S3 calls it
    seconds: float = 0.0


# The server never sees these requests.
UNAVAILABLE = Fault("unavailable", 503, "SlowDown")
INTERNAL_ERROR = Fault("internal-error", 500, "InternalError")
NOT_FOUND = Fault("not-found", 404, "NoSuchKey")
FORBIDDEN = Fault("forbidden", 403, "SignatureDoesNotMatch")
RESET = Fault("reset")  # TCP reset in place of an answer

# The server does what these ask, but its answer suffers. An answer without a body, as to HEAD, comes whole.
ANSWER_LOST = Fault("answer-lost")  # TCP reset in place of the answer
RESET_MID_BODY = Fault("reset-mid-body")  # TCP reset after half of the body
TRUNCATED = Fault("truncated")  # an orderly end of the connection after half of the body
SHORT = Fault("short")  # half of the body, and a Content-Length that says so
CORRUPT = Fault("corrupt")  # a body with bytes inverted, in its second half, that keeps its length and its ETag


def slow_start(seconds: float) -> Fault:
    """Return the fault of a server that only starts to work on the request after so many seconds."""
    return Fault("slow-start", seconds=seconds)


@dataclass
class _Rule:
    fault: Fault
    times: int | None
    method: str | None
    match: str

    def takes(self, method: str, target: str) -> bool:
        return self.times != 0 and self.method in (None, method) and self.match in target


class FaultProxy:
    """A proxy before the server at `upstream`, that runs from `start` to `stop`, or in a `with`; and only once.

    It listens on `host`, an address of this machine. Each connection of a client has a thread, and one connection to
    the server, which is kept as long. While the server can't be reached connections just end.

    rasterio keeps the interpreter's lock while it opens a /vsis3/ file for writing, so that this proxy, like any server
    in threads of the same process, would never answer: write so from another process.
    """

    def __init__(self, upstream: str, host: str = "127.0.0.1") -> None:
        url = urlsplit(upstream)
        self._upstream = (url.hostname or "127.0.0.1", url.port or 80)
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._server = _Server(host, self._serve)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.endpoint = f"http://{host}:{self._server.server_address[1]}"
        self.requests: list[tuple[str, str]] = []  # the method and the path with its query, as they came
        self.latency_s = 0.0  # added to each request

    def start(self) -> None:
        """Serve, in threads."""
        self._thread.start()

    def stop(self) -> None:
        """End all connections, and with them their threads."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with self._lock:
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def inject(self, fault: Fault, *, times: int | None = 1, method: str | None = None, match: str = "") -> None:
        """Harm the next `times` requests (None: all) with this method whose path and query, as sent, contain `match`.

        A request suffers by the first rule that takes it, in the order in which they were injected.
        """
        with self._lock:
            self._rules.append(_Rule(fault, times, method, match))

    def clear(self) -> None:
        """Forget all rules."""
        with self._lock:
            self._rules.clear()

    def _fault_of(self, method: str, target: str) -> Fault | None:
        """Note the request and return what is to happen to it."""
        with self._lock:
            self.requests.append((method, target))
            rule = next((rule for rule in self._rules if rule.takes(method, target)), None)
            if rule is None:
                return None
            if rule.times is not None:
                rule.times -= 1
            return rule.fault

    def _serve(self, client: socket.socket) -> None:
        connection = _Connection(self, client)
        try:
            self._track(client)
            while connection.answer_one():
                pass
        except OSError:  # a side that went away, or `stop`
            pass
        finally:
            connection.close()

    def _reach(self) -> socket.socket:
        """Connect to the server."""
        upstream = socket.create_connection(self._upstream)
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._track(upstream)
        return upstream

    def _track(self, one: socket.socket) -> None:
        """Let `stop` end the socket."""
        with self._lock:
            self._sockets = {known for known in self._sockets if known.fileno() >= 0} | {one}
        if self._stopping.is_set():
            raise ConnectionAbortedError("the proxy stops")


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, serve: Callable[[socket.socket], None]) -> None:
        super().__init__((host, 0), socketserver.BaseRequestHandler)
        self._serve = serve

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._serve(request)


class _Connection:
    """A connection of a client with its connection to the server."""

    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._proxy = proxy
        self._client = _Stream(client)
        self._upstream: _Stream | None = None

    def close(self) -> None:
        """End both connections."""
        for stream in (self._client, self._upstream):
            if stream is not None:
                stream.socket.close()

    def answer_one(self) -> bool:
        """Answer a request; return whether another one may follow on this connection."""
        raw = self._client.head()
        if not raw:
            return False
        request = _Head(raw)
        fault = self._proxy._fault_of(*request.method_and_target)
        self._proxy._stopping.wait(self._proxy.latency_s + (fault.seconds if fault else 0.0))
        if fault is None or fault.name == "slow-start":
            return self._forward(request)
        if fault.status:
            self._take(request)
            self._client.socket.sendall(_error(fault, request))
            return not request.closes
        if fault == RESET:
            self._take(request)
            self._reset()
            return False
        return self._harm(request, fault)

    def _forward(self, request: _Head) -> bool:
        upstream = self._connected()
        answer, is_whole = self._ask(upstream, request)
        keeps = is_whole and not request.closes and not answer.closes
        self._client.socket.sendall(answer.raw if is_whole else answer.changed("Connection", "close"))
        if answer.has_body_after(request):
            keeps = keeps and not answer.ends_with_connection
            for piece in upstream.body(answer):
                self._client.socket.sendall(piece)
        return keeps

    def _harm(self, request: _Head, fault: Fault) -> bool:
        """Send the answer of the server as the fault leaves it; return whether another request may follow."""
        upstream = self._connected()
        answer, is_whole = self._ask(upstream, request)
        body, head = b"", answer.raw
        if answer.has_body_after(request):
            body = b"".join(upstream.body(answer, with_framing=False))
            head = answer.changed("Content-Length", str(len(body)))
        half = len(body) // 2
        send = self._client.socket.sendall
        if fault == ANSWER_LOST:
            self._reset()
        elif fault == RESET_MID_BODY:
            send(head + body[:half])
            self._client.wait_for_delivery()
            self._reset()
        elif fault == TRUNCATED:
            send(head + body[:half])
        elif fault == SHORT:
            send((answer.changed("Content-Length", str(half)) if body else head) + body[:half])
        else:
            assert fault == CORRUPT, fault
            harmed = bytearray(body)
            harmed[half::1000] = bytes(255 - value for value in harmed[half::1000])
            send(head + harmed)
        ends = fault in (ANSWER_LOST, RESET_MID_BODY) or (fault == TRUNCATED and bool(body))
        return is_whole and not ends and not request.closes and not answer.closes

    def _ask(self, upstream: _Stream, request: _Head) -> tuple[_Head, bool]:
        """Pass the request on; return the head of the answer, and whether the server took all of the request."""
        upstream.socket.sendall(request.raw)
        is_sent = True
        if request.expects_continue and self._client.is_slower_than(upstream):
            answer = _Head(upstream.head())
            if answer.status != 100:
                return answer, False  # refused before the client sent a body
            self._client.socket.sendall(answer.raw)
        for piece in self._client.body(request):
            try:
                upstream.socket.sendall(piece)
            except ConnectionError:  # the server has heard enough, and perhaps has said why
                is_sent = False
        while True:
            answer = _Head(upstream.head())
            if answer.status >= 200:
                return answer, is_sent
            self._client.socket.sendall(answer.raw)

    def _take(self, request: _Head) -> None:
        """Read the body of a request that the server is not to see."""
        if request.expects_continue:
            self._client.socket.sendall(CONTINUE)
        for _ in self._client.body(request):
            pass

    def _connected(self) -> _Stream:
        """Return the connection to the server, a new one if the server ended the old one meanwhile."""
        if self._upstream is not None and self._upstream.is_readable():
            self._upstream.socket.close()
            self._upstream = None
        if self._upstream is None:
            self._upstream = _Stream(self._proxy._reach())
        return self._upstream

    def _reset(self) -> None:
        self._client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._client.socket.close()


class _Head:
    """The first line and the fields of a request or an answer."""

    def __init__(self, raw: bytes) -> None:
        if not raw:
            raise ConnectionError("the server ended the connection in place of an answer")
        self.raw = raw
        first, *lines = raw.decode("latin-1").split("\r\n")
        self._words = first.split(" ", 2)
        self._fields: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            self._fields[name.lower()] = value.strip()

    @property
    def method_and_target(self) -> tuple[str, str]:
        return self._words[0], self._words[1]

    @property
    def status(self) -> int:
        return int(self._words[1])

    @property
    def length(self) -> int | None:
        return int(self._fields["content-length"]) if "content-length" in self._fields else None

    @property
    def is_chunked(self) -> bool:
        return "chunked" in self._fields.get("transfer-encoding", "").lower()

    @property
    def ends_with_connection(self) -> bool:
        """Whether the body of this answer, if it has one, ends where the connection does."""
        return not self.is_chunked and self.length is None and self._words[0].startswith("HTTP/")

    @property
    def expects_continue(self) -> bool:
        return self._fields.get("expect", "").lower() == "100-continue"

    @property
    def closes(self) -> bool:
        """Whether the connection ends after this message."""
        connection = self._fields.get("connection", "").lower()
        is_old = "HTTP/1.0" in (self._words[0], self._words[-1])
        return "close" in connection or (is_old and "keep-alive" not in connection)

    def has_body_after(self, request: _Head) -> bool:
        """Return whether a body follows this head, that of the answer to `request`."""
        return request.method_and_target[0] != "HEAD" and self.status not in (204, 304)

    def changed(self, name: str, value: str) -> bytes:
        """Return this head with another value of a field, and with no chunks if that is the Content-Length."""
        others = (b"transfer-encoding:",) if name == "Content-Length" else ()
        dropped = (f"{name}:".lower().encode(), *others)
        kept = [line for line in self.raw[:-4].split(b"\r\n") if not line.lower().startswith(dropped)]
        return b"\r\n".join([*kept, f"{name}: {value}".encode(), b"", b""])


class _Stream:
    """A socket with what was read from it ahead."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._ahead = b""

    def head(self) -> bytes:
        """Return all up to and with an empty line; nothing if the other side has ended."""
        while b"\r\n\r\n" not in self._ahead:
            if not (piece := self.socket.recv(PIECE_BYTES)):
                return b""
            self._ahead += piece
        head, end, self._ahead = self._ahead.partition(b"\r\n\r\n")
        return head + end

    def body(self, head: _Head, *, with_framing: bool = True) -> Iterator[bytes]:
        """Yield the body that follows a head in pieces, with or without what separates chunks.

        Raise ConnectionError if the other side ends too early.
        """
        if head.is_chunked:
            yield from self._chunks(with_framing)
        elif head.length is not None:
            yield from self._exactly(head.length)
        elif head.ends_with_connection:
            while piece := self._some(PIECE_BYTES):
                yield piece

    def is_readable(self) -> bool:
        """Return whether a read would return at once: with data, or since the other side has ended."""
        return bool(self._ahead) or bool(_readable(self.socket, limit_ms=0))

    def is_slower_than(self, other: _Stream) -> bool:
        """Wait for either to become readable; return whether it was the other and not this one."""
        return not self._ahead and self.socket.fileno() not in _readable(self.socket, other.socket)

    def wait_for_delivery(self) -> None:
        """Wait until the other side's system has all that was sent, which a reset would throw away; not for long."""
        deadline = time.monotonic() + DELIVERY_LIMIT_S
        while time.monotonic() < deadline and any(fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))):
            time.sleep(0.001)

    def _some(self, limit: int) -> bytes:
        if self._ahead:
            piece, self._ahead = self._ahead[:limit], self._ahead[limit:]
            return piece
        return self.socket.recv(min(limit, PIECE_BYTES))

    def _exactly(self, count: int) -> Iterator[bytes]:
        while count:
            if not (piece := self._some(count)):
                raise ConnectionError(f"the other side ended {count} bytes before the end of a body")
            count -= len(piece)
            yield piece

    def _line(self) -> bytes:
        while b"\r\n" not in self._ahead:
            if not (piece := self.socket.recv(PIECE_BYTES)):
                raise ConnectionError("the other side ended within a chunked body")
            self._ahead += piece
        line, end, self._ahead = self._ahead.partition(b"\r\n")
        return line + end

    def _chunks(self, with_framing: bool) -> Iterator[bytes]:
        while True:
            line = self._line()
            count = int(line.split(b";")[0], 16)
            if with_framing:
                yield line
            if not count:
                break
            yield from self._exactly(count)
            end = self._line()
            if with_framing:
                yield end
        while True:  # trailers, and an empty line
            line = self._line()
            if with_framing:
                yield line
            if line == b"\r\n":
                return


def _readable(*sockets: socket.socket, limit_ms: int | None = None) -> list[int]:
    """Wait until a read from some of these would return at once; return their numbers."""
    poll = select.poll()  # select.select knows no numbers above 1023
    for one in sockets:
        poll.register(one, select.POLLIN)
    return [number for number, _ in poll.poll(limit_ms)]


def _error(fault: Fault, request: _Head) -> bytes:
    """Return an error as S3 answers it, without its body to HEAD."""
    method, target = request.method_and_target
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{fault.code}</Code><Message>injected by a test</Message>"
        f"<Resource>{html.escape(target)}</Resource><RequestId>0</RequestId></Error>"
    ).encode()
    head = (
        f"HTTP/1.1 {fault.status} {http.client.responses[fault.status]}\r\n"
        f"Content-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    return head if method == "HEAD" else head + body
