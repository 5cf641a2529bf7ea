"""The shift of Sentinel-2's processing baseline 04.00, and whether values look as if they had it.

From January 2022 on, products hold reflectance x 10000 + 1000, so that negative reflectance can be told from no data
(ESA, Sentinel-2 Products Specification, `BOA_ADD_OFFSET`). Must not know where pixels come from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raytrain.config import Baseline

SHIFT = 1000
DARK_PIXELS_FRACTION = 0.01
"""A tile is dark if more of its valid pixels than this have a band below the shift, as water, shadow and woods have."""
DARK_TILES_FRACTION = 0.1
"""Of the tiles of unshifted archives, 60 to 80 % are dark (real chips of two sensors, generated ones)."""
FEWEST_TILES = 10
"""With fewer tiles nothing is said."""


def to_reflectance(pixels: NDArray[np.uint16], valid: NDArray[np.bool_], baseline: Baseline) -> NDArray[np.uint16]:
    """Return reflectance x 10000 `[C, H, W] uint16`, 0 where `valid` `[H, W]` is not, and nowhere else.

    What is 0 (or negative, after the shift is taken off) becomes 1: so any choice of bands shows what has no data.
    """
    shift = SHIFT if baseline == "from-04.00" else 0
    return (np.maximum(pixels, shift + 1) - np.uint16(shift)) * valid


def is_dark(pixels: NDArray[np.uint16], valid: NDArray[np.bool_]) -> bool:
    """Tell whether a tile as stored, `pixels` `[C, H, W]`, has more than a few values that the shift rules out."""
    below = pixels.min(axis=0)[valid] < SHIFT
    return bool(below.size and below.mean() > DARK_PIXELS_FRACTION)


def doubt(num_dark: int, num_tiles: int, baseline: Baseline) -> str | None:
    """Return why the values of an archive do not look like those of `baseline`, and what to do; None where they do."""
    if num_tiles < FEWEST_TILES:
        return None
    found = f"{num_dark} of {num_tiles} tiles have more than {DARK_PIXELS_FRACTION:.0%} of pixels below {SHIFT}"
    if baseline == "before-04.00" and num_dark < DARK_TILES_FRACTION * num_tiles:
        return f"the values look shifted by {SHIFT} ({found}); products of baseline 04.00 on need --baseline from-04.00"
    if baseline == "from-04.00" and num_dark > DARK_TILES_FRACTION * num_tiles:
        return f"the values do not look shifted by {SHIFT} ({found}); is --baseline from-04.00 right for this source?"
    return None
