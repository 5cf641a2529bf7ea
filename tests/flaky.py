"""A TCP proxy that loses its connections again and again, as tunnels and home networks do. It knows no protocol."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Self


class FlakyProxy:
    """Forwards to `upstream` (host, port) within a `with`; `good_s` long, then it is away for `away_s`, and so on.

    As it goes away, every connection ends; while it is away none is taken. `num_cut` counts what was ended.
    """

    def __init__(self, upstream: tuple[str, int], good_s: float, away_s: float) -> None:
        self._upstream, self._good_s, self._away_s = upstream, good_s, away_s
        self._stopping = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.num_cut = 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join(10)
        self._cut()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with socket.socket() as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind(("127.0.0.1", self.port))
                server.listen()
                server.settimeout(0.1)
                until = time.monotonic() + self._good_s
                while time.monotonic() < until and not self._stopping.is_set():
                    with contextlib.suppress(TimeoutError):
                        self._serve(server.accept()[0])
            self.num_cut += self._cut()
            self._stopping.wait(self._away_s)

    def _serve(self, client: socket.socket) -> None:
        try:
            upstream = socket.create_connection(self._upstream, timeout=10)
        except OSError:
            client.close()
            return
        upstream.settimeout(None)
        client.settimeout(None)
        with self._lock:
            self._sockets |= {client, upstream}
        for source, target in ((client, upstream), (upstream, client)):
            threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._sockets -= {source, target}

    def _cut(self) -> int:
        """Reset all connections and return how many there were."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        return len(sockets) // 2
