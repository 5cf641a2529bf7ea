"""From uint16 reflectance x 10000 to the float32 in [-1, 1] that a member is trained on.

The band maxima are those of the published recipe. Must not know models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raytrain.config import Normalisation
from raytrain.errors import ConfigError

BAND_MAXIMUM = {"B02": 22500.0, "B03": 21000.0, "B04": 19500.0, "B08": 17000.0}
NO_DATA_VALUE = -1.0
"""What a no-data pixel is after normalisation: the same as no reflected light."""


def check_bands(normalisation: Normalisation, bands: Sequence[str]) -> None:
    """Raise `ConfigError` if `normalisation` has no scale for one of `bands`."""
    missing = [band for band in bands if band not in BAND_MAXIMUM]
    if normalisation.kind == "band-maximum" and missing:
        known = ", ".join(BAND_MAXIMUM)
        raise ConfigError(
            f"no band maximum is known for {', '.join(missing)} (known: {known}); use minmax or fixed-maximum"
        )


def normalise(
    pixels: NDArray[np.uint16], valid: NDArray[np.bool_], bands: Sequence[str], normalisation: Normalisation
) -> NDArray[np.float32]:
    """Return `[C, H, W] float32` in [-1, 1] from `pixels` `[C, H, W] uint16` and `valid` `[H, W] bool`.

    No-data pixels become `NO_DATA_VALUE` and enter no minimum or maximum; a constant band becomes -1 under min-max.
    """
    values = pixels.astype(np.float32)
    low, span = _range(values, valid, bands, normalisation)
    values = np.asarray(np.clip((values - low) / span, 0, 1) * 2 - 1, np.float32)
    values[:, ~valid] = NO_DATA_VALUE
    return values


def _range(
    values: NDArray[np.float32], valid: NDArray[np.bool_], bands: Sequence[str], normalisation: Normalisation
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the value that becomes -1 and the distance to the one that becomes 1, each `[C, 1, 1] float32`."""
    zeros = np.zeros((len(values), 1, 1), np.float32)
    if normalisation.kind == "minmax":
        low, high = _valid_range(values, valid)
        return low, np.where(high > low, high - low, np.float32(1))
    if normalisation.maximum is not None:
        return zeros, zeros + np.float32(normalisation.maximum)
    return zeros, np.array([BAND_MAXIMUM[band] for band in bands], np.float32)[:, None, None]


def _valid_range(
    values: NDArray[np.float32], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the minimum and maximum `[C, 1, 1]` of each band over its valid pixels; zeros where there are none."""
    if not valid.any():
        zeros = np.zeros((len(values), 1, 1), np.float32)
        return zeros, zeros
    low = np.min(values, axis=(1, 2), keepdims=True, where=valid, initial=np.inf)
    high = np.max(values, axis=(1, 2), keepdims=True, where=valid, initial=-np.inf)
    return low, high
