"""What a store or a folder answers to one small question of each kind: list, write, read, delete; and how fast."""

from __future__ import annotations

import secrets

from raytrain.errors import ConfigError
from raytrain.storage import uris
from raytrain.storage.probe_answers import StoreReport
from raytrain.storage.probe_folder import probe_folder
from raytrain.storage.probe_store import probe_store

PREFIX = "raytrain-doctor-probe-"


def probe_name() -> str:
    """Return a name for a probe that nothing else has."""
    return f"{PREFIX}{secrets.token_hex(16)}.txt"


def probe(uri: str, name: str, *, writes: bool) -> StoreReport:
    """Ask the store or the folder at `uri`; with `writes` an object `name` is written, read and removed there.

    Without, one object that is there is read, up to `PROBE_BYTES`. Whatever the answer is, it is told. Raises
    `ConfigError` for a URL, which is no store.
    """
    if uris.is_http(uri):
        raise ConfigError(f"{uris.shown(uri)}: expected s3://bucket/prefix or a folder; over HTTP there is no store")
    place = uris.normalise(uri)
    return probe_folder(place, name, writes) if uris.is_local(uri) else probe_store(place, name, writes)
