"""Names that were seen before, of millions, at eight bytes each. Must not know what they name."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_RECENT = 8192


class SeenNames:
    """A set of hashes of names. Of a million names two differ and pass for the same once in thirty million sets."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: NDArray[np.uint64] = np.empty(0, np.uint64)

    def __contains__(self, name: str) -> bool:
        number = _number(name)
        at = int(np.searchsorted(self._sorted, np.uint64(number)))
        return number in self._recent or (at < len(self._sorted) and int(self._sorted[at]) == number)

    def add(self, name: str) -> bool:
        """Add `name`; return whether it is new."""
        if name in self:
            return False
        number = _number(name)
        self._recent.add(number)
        if len(self._recent) == _RECENT:
            recent = np.array(sorted(self._recent), np.uint64)
            self._sorted = np.insert(self._sorted, np.searchsorted(self._sorted, recent), recent)
            self._recent.clear()
        return True


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
