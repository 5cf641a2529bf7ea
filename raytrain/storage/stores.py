"""Which settings a store is asked with, by the prefix of a URI; secrets never stand there, only names of profiles.

The table of a process is what `use_stores` set; a process that sets none has that of the one that started it, by an
environment variable which no person sets. Must not know how a store is asked.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from raytrain.config import Settings, parse
from raytrain.errors import ConfigError
from raytrain.storage import uris

VARIABLE = "RAYTRAIN_STORES"
"""How the table gets to processes that this one starts: loaders, Ray's workers."""
DEFAULT_PORTS = {"http": 80, "https": 443}


class StoreSettings(Settings):
    """How a store is asked; what is not given comes from the environment (`AWS_*`).

    `anonymous` signs nothing, `requester_pays` says with every request that the caller pays for it, `profile` names the
    profile of the shared credentials whose keys count then, in place of those of the environment. `private_address`
    lets a host be read over HTTP though its address is not public.
    """

    anonymous: bool = False
    region: str | None = Field(default=None, min_length=1)
    endpoint: str | None = Field(default=None, pattern=r"^https?://[^/@?#\s]+/?$")
    requester_pays: bool = False
    profile: str | None = Field(default=None, min_length=1)
    private_address: bool = False

    @model_validator(mode="after")
    def _keys_of_one_kind(self) -> Self:
        if self.anonymous and self.profile is not None:
            raise ValueError("anonymous signs nothing, so it has no profile; give one of the two")
        if self.anonymous and self.requester_pays:
            raise ValueError("requester_pays needs keys: somebody has to pay; leave anonymous out")
        return self


class Stores(Settings):
    """Settings by prefix (`s3://bucket`, `s3://bucket/folder`, `http://host:port`): the longest that fits counts."""

    stores: dict[str, StoreSettings] = Field(default_factory=dict)

    @field_validator("stores", mode="before")
    @classmethod
    def _in_one_form(cls, stores: Any) -> Any:
        if not isinstance(stores, Mapping):
            return stores
        try:
            named = {uris.normalise(str(prefix)).rstrip("/"): each for prefix, each in stores.items()}
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if len(named) != len(stores):
            raise ValueError("two of the prefixes are the same")
        return named

    @model_validator(mode="after")
    def _fit_their_prefixes(self) -> Self:
        for prefix, each in self.stores.items():
            if uris.is_http(prefix):
                parts = urlsplit(prefix)
                if parts.path or parts.query:
                    raise ValueError(f"{uris.shown(prefix)}: expected a host, as in http://host:port")
                if each != StoreSettings(private_address=each.private_address):
                    raise ValueError(f"{prefix}: of a host that is read over HTTP only private_address can be said")
            elif not prefix.startswith("s3://"):
                raise ValueError(f"{prefix}: expected s3://bucket, s3://bucket/prefix or http://host:port")
            elif each.private_address:
                raise ValueError(f"{prefix}: private_address is for http://host:port; a store has an endpoint")
        return self

    def prefix_of(self, uri: str) -> str | None:
        """Return the longest prefix that `uri` lies below, part by part; None where there is none."""
        place = uris.shown(uris.normalise(uri))
        fitting = [prefix for prefix in self.stores if place == prefix or place.startswith(f"{prefix}/")]
        return max(fitting, key=len, default=None)

    def settings_of(self, uri: str) -> StoreSettings:
        """Return the settings of the store of `uri`; those of nothing said where no prefix fits."""
        prefix = self.prefix_of(uri) if self.stores else None
        return _UNSAID if prefix is None else self.stores[prefix]

    def allows_private_address(self, scheme: str, host: str, port: int) -> bool:
        """Tell whether this host, as it is named in a URL, may have an address that is not public."""
        bare = host.strip("[]").rstrip(".").lower()
        place = f"[{bare}]" if ":" in bare else bare
        origin = f"{scheme}://{place}" if port == DEFAULT_PORTS[scheme] else f"{scheme}://{place}:{port}"
        return origin in self.stores and self.stores[origin].private_address


_UNSAID = StoreSettings()
_table: Stores | None = None


def use_stores(stores: Stores) -> None:
    """Set the table of this process, and of those that it starts from now on."""
    global _table
    _table = stores
    os.environ.pop(VARIABLE, None)
    os.environ.update(for_workers())


def current() -> Stores:
    """Return the table of this process."""
    global _table
    if _table is None:
        text = os.environ.get(VARIABLE)
        _table = parse(Stores, json.loads(text), VARIABLE) if text else Stores()
    return _table


def for_workers() -> dict[str, str]:
    """Return the environment variables by which a process gets the table of this one; none where nothing is said."""
    stores = current()
    return {VARIABLE: json.dumps(stores.model_dump(mode="json"), sort_keys=True)} if stores.stores else {}


def read_stores(text: str, source: str) -> Stores:
    """Return the table of a TOML text; raise `ConfigError`, which names its `source`."""
    try:
        return parse(Stores, tomllib.loads(text), source)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{source}: not a TOML file: {error}") from error
