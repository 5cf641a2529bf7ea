"""The process of the review page: a socket, its address, and uvicorn. Must not know what is served."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

import uvicorn

from raytrain.errors import ConfigError
from raytrain.review.desk import Desk
from raytrain.review.server import guarded, make_app

MOST_CONNECTIONS, BACKLOG = 256, 128
CLOSING_S = 5
"""How long answers that are under way may take when the server ends."""


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that listens: who connects before the server runs waits. Raises `ConfigError` where it can't."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its number: asyncio turns Nagle's algorithm off for what it knows to be TCP, else an answer waits for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port}: in use by another; give another one, or 0 for any that is free"
            ) from error
        raise ConfigError(f"--host {host} --port {port}: can't listen there: {error.strerror or error}") from error
    with listener:
        yield listener


def url_of(host: str, listener: socket.socket, token: str) -> str:
    """Return the address of the page, with the token."""
    bare = host.strip("[]")
    name = socket.gethostname() if bare in ("0.0.0.0", "::") else f"[{bare}]" if ":" in bare else bare
    return f"http://{name}:{port_of(listener)}/?token={token}"


def port_of(listener: socket.socket) -> int:
    """Return the port at which a socket listens."""
    return int(listener.getsockname()[1])


def serve(desk: Desk, reviewer: str, token: str, host: str, listener: socket.socket) -> None:
    """Serve until a signal ends it; then what is under way is answered, and the signal's own handler runs."""
    app = guarded(make_app(desk, reviewer), desk, token, host, port_of(listener))
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # it would print the token
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=CLOSING_S,
        lifespan="on",
    )
    uvicorn.Server(config).run(sockets=[listener])
