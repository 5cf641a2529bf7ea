"""The shards of a review as they are now: looked at again when their files change, for nobody may decide on others.

Must not know decisions, or who asks.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa

from raytrain import storage
from raytrain.config import LoaderSettings
from raytrain.errors import WorkNotFinished
from raytrain.tiles.reader import INDEX, MANIFEST, TileReader, read_index

ATTEMPTS = 3
"""How often shards are read that change meanwhile."""


@dataclass(frozen=True)
class Snapshot:
    """The shards as they were at one moment: a reader, what the index says of each tile, and what marks them."""

    reader: TileReader
    index: pa.Table
    stamp: tuple[str, ...] = field(repr=False)

    def position_of(self, tile_id: str, expected: int) -> int | None:
        """Return the position of a tile in the index, None where it is gone; `expected` is where it was."""
        if expected < self.index.num_rows and self.index["tile_id"][expected].as_py() == tile_id:
            return expected
        return self._positions.get(tile_id)

    def sha256_of(self, position: int) -> str:
        """Return the hash of the tile at a position."""
        return str(self.index["sha256"][position].as_py())

    def shape_of(self, position: int) -> tuple[int, int]:
        """Return height and width of the tile at a position, in pixels."""
        return int(self.index["height"][position].as_py()), int(self.index["width"][position].as_py())

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {tile_id: i for i, tile_id in enumerate(self.index["tile_id"].to_pylist())}


class ShardsNow:
    """The shards at `uri`, read again when their manifest or index is another. May be used by many threads."""

    def __init__(self, uri: str, bands: tuple[str, ...], loader: LoaderSettings | None = None) -> None:
        self._uri, self._bands, self._loader = uri, bands, loader
        self._lock = threading.Lock()
        self._snapshot = self._read()
        self._looked_at = time.monotonic()

    def snapshot(self, max_age_s: float = 0.0) -> Snapshot:
        """Return the shards as they were at most `max_age_s` ago; who allows an age does not wait for another's look.

        Raises `ConfigError` where they are gone or damaged, `WorkNotFinished` while they are being written.
        """
        if time.monotonic() - self._looked_at <= max_age_s or not self._lock.acquire(blocking=max_age_s == 0):
            return self._snapshot
        try:
            asked_at = time.monotonic()
            if self._stamp() != self._snapshot.stamp:
                self._snapshot = self._read()
            self._looked_at = asked_at
            return self._snapshot
        finally:
            self._lock.release()

    def _read(self) -> Snapshot:
        for _ in range(ATTEMPTS):
            stamp = self._stamp()
            index = read_index(self._uri, ["tile_id", "sha256", "height", "width"])
            reader = TileReader(self._uri, self._bands, self._loader)
            if self._stamp() == stamp:
                return Snapshot(reader, index, stamp)
        raise WorkNotFinished(f"{self._uri}: the shards are being written; try again when they are finished")

    def _stamp(self) -> tuple[str, ...]:
        """Return what is another once a file of the shards was written: two questions to a store."""
        uris = [storage.join(self._uri, name) for name in (MANIFEST, INDEX)]
        return tuple(storage.stamp_of(uri) or _identity_of(uri) for uri in uris)


def _identity_of(uri: str) -> str:
    try:
        return storage.identity_of(uri)
    except FileNotFoundError:
        return "gone"  # who reads it will say so
