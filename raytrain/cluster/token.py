"""The token of a cluster on the machine of whoever submits: where it is found, and to whom it may be sent.

Ray's own clients send it only where `RAY_AUTH_MODE=token` is set; here it is sent wherever there is one. It never
stands in a message. Must not import ray: whether it is found does not depend on Ray's state.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from raytrain.errors import ConfigError

TOKEN, TOKEN_PATH, MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"
"""Ray's own names for them."""


def default_path() -> Path:
    """Return where Ray keeps the token of a person, also of one without a home."""
    return Path(os.path.expanduser("~/.ray/auth_token"))


@contextlib.contextmanager
def kept_from_others() -> Iterator[None]:
    """Keep a token that Ray makes in the body, where there was none, for its owner: Ray lets all read the file."""
    path = default_path()
    was_there = os.path.exists(path)
    try:
        yield
    finally:
        if not was_there and os.path.exists(path):
            os.chmod(path, 0o600)


def find_token() -> str | None:
    """Return the token: of `RAY_AUTH_TOKEN`, else of the file at `RAY_AUTH_TOKEN_PATH`, else of `~/.ray/auth_token`.

    None where there is none, or `RAY_AUTH_MODE=disabled`. Raises `ConfigError` where `RAY_AUTH_MODE=token` and none is
    found, for a file that is named and can't be read, and for what can be no token.
    """
    mode = os.environ.get(MODE, "").lower()
    if mode == "disabled":
        return None
    text, place = _found()
    token = None if text is None else text.strip()
    if not token:
        if mode == "token":
            raise ConfigError(
                f"{MODE}=token, but there is no token in {place}; copy the cluster's there, or set {TOKEN} "
                "(`ray get-auth-token --generate` makes one before a head starts)"
            )
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ConfigError(f"what stands in {place} is no token: expected one line of letters, digits and signs")
    return token


def _found() -> tuple[str | None, str]:
    """Return the text of the token, None where there is none, and where it was looked for."""
    if text := os.environ.get(TOKEN):
        return text, TOKEN
    named = os.environ.get(TOKEN_PATH)
    path = Path(named).expanduser() if named else default_path()
    try:
        return path.read_text(errors="replace"), str(path)
    except FileNotFoundError:
        if named:
            raise ConfigError(f"{TOKEN_PATH}: there is no file {path}") from None
        return None, str(path)
    except OSError as error:
        raise ConfigError(f"can't read the token in {path}: {error.strerror}") from error


def check_server(address: str, *, sends_token: bool, allow_plain_http: bool) -> SplitResult:
    """Return the parts of a job API's address; raise `ConfigError` for one that can't be, or where it must not be sent.

    A token goes over plain HTTP to this machine only, where a tunnel may begin, unless that is allowed.
    """
    if address.startswith("ray://"):
        raise ConfigError(f"{address}: Ray Client is not supported; expected the job API, http://127.0.0.1:8265")
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ConfigError(f"address {address!r}: expected that of a cluster's job API, such as http://127.0.0.1:8265")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{parts.scheme}://...@{host}: passwords never stand in an address; set {TOKEN}")
    if sends_token and parts.scheme == "http" and not is_this_machine(host) and not allow_plain_http:
        raise ConfigError(
            f"{address}: the token would cross the network in the clear, and whoever has it can run anything on the "
            "cluster; use https://, or a tunnel (`ray dashboard cluster.yaml`, then http://127.0.0.1:8265), or say "
            "--plain-http where the network is to be trusted"
        )
    return parts


def is_this_machine(host: str) -> bool:
    """Tell whether a host is this machine by its loopback address; other names are not asked for."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in ("localhost", "localhost.")
