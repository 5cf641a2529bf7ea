"""The tone of all pictures in true colour: one stretch, so that they compare. Must not know files, or what is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raytrain.errors import ConfigError

TRUE_COLOUR_BANDS = ("B04", "B03", "B02")
# Reflectance x 10000. Thick cloud is near 10000 and keeps its shape; sunlit snow and cloud tops above WHITE are white.
BLACK, WHITE, GAMMA = 150.0, 13000.0, 2.1


def true_colour(pixels: NDArray[np.uint16], bands: Sequence[str]) -> NDArray[np.uint8]:
    """Return `pixels` `[C, H, W]` (reflectance x 10000) as `[H, W, 3] uint8`, by one stretch for all pictures.

    Raises `ConfigError` unless `bands`, the names along C, hold B04, B03 and B02.
    """
    missing = [band for band in TRUE_COLOUR_BANDS if band not in bands]
    if missing:
        raise ConfigError(f"a picture needs bands B04, B03 and B02; there is no {', '.join(missing)} in {list(bands)}")
    red_green_blue = pixels[[list(bands).index(band) for band in TRUE_COLOUR_BANDS]].astype(np.float32)
    linear = np.clip((red_green_blue - BLACK) / (WHITE - BLACK), 0, 1)
    return np.asarray(np.rint(np.moveaxis(linear ** (1 / GAMMA), 0, -1) * 255), np.uint8)
