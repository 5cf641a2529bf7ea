"""A share of tiles, of each location alike: what a search can learn from in less time. Must not know what it is for."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def share_of_locations(
    tiles: NDArray[np.int64], tile_ids: Sequence[str], locations: Sequence[str], fraction: float, seed: int
) -> NDArray[np.int64]:
    """Return about `fraction` of `tiles` (positions, ascending): of each location as many, rounded up, one at least.

    `tile_ids` and `locations` are of all tiles. Which ones is a function of seed and tile id, so that a smaller share
    lies within a larger one, and other tiles change nothing.
    """
    if fraction == 1:
        return tiles
    by_location: dict[str, list[int]] = defaultdict(list)
    for i in tiles:
        by_location[locations[int(i)]].append(int(i))
    chosen: list[int] = []
    for found in by_location.values():
        found.sort(key=lambda i: hashlib.sha256(f"{seed} {tile_ids[i]}".encode()).digest())
        chosen += found[: math.ceil(fraction * len(found))]
    return np.array(sorted(chosen), np.int64)
