"""An HTTP server of the standard library in a thread, which notes what it is asked and answers as a test says."""

from __future__ import annotations

import contextlib
import hashlib
import re
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Asked:
    """A request as it came."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass
class WebServer:
    """Serves `files` by their path with ranges and ETags; `answers` come first, by path, one a request.

    With `byte_s` each byte of a body comes so long after the one before. With `shortened` the body of an answer ends
    early once, though its Content-Length says more.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, list[Answer | Callable[[Asked], Answer]]] = field(default_factory=dict)
    has_etags: bool = True
    has_head: bool = True
    has_ranges: bool = True
    shortened: int = 0
    byte_s: float = 0.0
    tls: ssl.SSLContext | None = None
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self) -> Self:
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked = Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
                web.asked.append(asked)
                status, headers, body = web.answer(asked)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                if web.shortened and status in (200, 206):
                    web.shortened -= 1
                    self.close_connection = True
                    body = body[: len(body) // 2]
                if not web.byte_s:
                    self.wfile.write(body)
                    return
                with contextlib.suppress(OSError):  # who asked has had enough
                    for i in range(len(body)):
                        self.wfile.write(body[i : i + 1])
                        time.sleep(web.byte_s)

            do_HEAD = do_GET

            def do_PUT(self) -> None:
                web.asked.append(Asked("PUT", self.path, {k.lower(): v for k, v in self.headers.items()}))
                web.files[self.path.partition("?")[0]] = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.origin = f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, asked: Asked) -> Answer:
        path = asked.target.partition("?")[0]
        if self.answers.get(path):
            made = self.answers[path].pop(0)
            return made(asked) if callable(made) else made
        if asked.method == "HEAD" and not self.has_head:
            return 403, {}, b""
        data = self.files.get(path)
        if data is None:
            return 404, {}, b"nothing here"
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:16]}"'} if self.has_etags else {}
        if asked.method == "HEAD":
            return 200, headers | {"Content-Length": str(len(data))}, b""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.headers.get("range", ""))
        if wanted is None or not self.has_ranges:
            return 200, headers, data
        start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        if start >= len(data):
            return 416, headers | {"Content-Range": f"bytes */{len(data)}"}, b""
        return 206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}, data[start:end]
