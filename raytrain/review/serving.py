"""The process of the review page: a socket, its address, and uvicorn. Must not know what is served."""

from __future__ import annotations

import contextlib
import errno
import html
import ipaddress
import logging
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from raytrain.errors import ConfigError
from raytrain.review.access import EVERYWHERE
from raytrain.review.desk import Desk
from raytrain.review.server import guarded, make_app

MOST_CONNECTIONS, BACKLOG = 256, 128
CLOSING_S = 5
"""How long answers that are under way may take when the server ends."""
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that listens: who connects before the server runs waits. Raises `ConfigError` where it can't."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its number: asyncio turns Nagle's algorithm off for what it knows to be TCP, else an answer waits for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        _check_meant(host, listener)
        listener.listen(BACKLOG)
    except ConfigError:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port}: in use by another; give another one, or 0 for any that is free"
            ) from error
        raise ConfigError(f"--host {host} --port {port}: can't listen there: {error.strerror or error}") from error
    with listener:
        yield listener


def _check_meant(host: str, listener: socket.socket) -> None:
    """Raise `ConfigError` for what is all addresses without saying so: '', 0 and the like."""
    found = listener.getsockname()[0]
    if ipaddress.ip_address(found).is_unspecified and host.strip("[]") not in EVERYWHERE:
        raise ConfigError(f"--host {host!r}: means all addresses of this machine; if that is wanted, say {found}")


def url_of(host: str, listener: socket.socket, token: str) -> str:
    """Return the address of the page, with the token."""
    bare = host.strip("[]")
    name = socket.gethostname() if bare in EVERYWHERE else f"[{bare}]" if ":" in bare else bare
    return f"http://{name}:{port_of(listener)}/?token={token}"


def port_of(listener: socket.socket) -> int:
    """Return the port at which a socket listens."""
    return int(listener.getsockname()[1])


@contextlib.contextmanager
def opened(url: str) -> Iterator[None]:
    """Open the page in the browser of this machine, which may end before the browser does, or never.

    By way of a file that only its owner may read and that goes in the end: all users see what a browser is called with.
    """
    with tempfile.NamedTemporaryFile("w", prefix="raytrain-review-", suffix=".html", encoding="utf-8") as file:  # 0600
        file.write(f'<meta charset="utf-8"><meta http-equiv="refresh" content="0; url={html.escape(url)}">\n')
        file.flush()
        # A browser of text stays in the foreground until it is left, and has to find a server meanwhile.
        threading.Thread(target=_open, args=(Path(file.name),), name="open-browser", daemon=True).start()
        yield


def _open(page: Path) -> None:
    if not webbrowser.open(page.as_uri()):
        _logger.warning("--open: no browser is found here; open the address that was printed")


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
