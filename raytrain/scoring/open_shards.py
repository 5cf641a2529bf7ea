"""The shards that a process reads tiles of, each opened once for all of its threads. Must not know what is scored."""

from __future__ import annotations

import threading

from raytrain.scoring.units import ShardsSource
from raytrain.tiles.reader import TileReader


class OpenShards:
    """Readers of tiles without labels, by the shards as they were listed."""

    def __init__(self) -> None:
        self._readers: dict[ShardsSource, TileReader] = {}
        self._lock = threading.Lock()

    @property
    def index_bytes(self) -> int:
        """How much memory the indexes take that were opened."""
        with self._lock:
            return sum(reader.index_bytes for reader in self._readers.values())

    def reader(self, shards: ShardsSource) -> TileReader:
        """Return the reader of the bands of `shards`; raise `ConfigError` where they can't be opened any more."""
        with self._lock:
            if shards not in self._readers:
                self._readers[shards] = TileReader(shards.uri, shards.bands, labels=False)
            return self._readers[shards]
