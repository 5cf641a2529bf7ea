"""From uint16 reflectance x 10000 to the float32 in [-1, 1] that a member is trained on.

The band maxima are those of the published recipe; B01 and B11 are in none of its members, but its author tried them,
and these are the maxima of his public repository. Must not know models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytrain.config import Normalisation
from raytrain.errors import ConfigError

BAND_MAXIMUM = {"B01": 24000.0, "B02": 22500.0, "B03": 21000.0, "B04": 19500.0, "B08": 17000.0, "B11": 15500.0}
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


@dataclass(frozen=True)
class Scale:
    """The value of each band that becomes -1, and the distance to the one that becomes 1, each `[C, 1, 1] float32`."""

    low: NDArray[np.float32]
    span: NDArray[np.float32]


def scale_of(
    pixels: NDArray[np.uint16], valid: NDArray[np.bool_], bands: Sequence[str], normalisation: Normalisation
) -> Scale:
    """Return the scale of an image, `pixels` `[C, H, W]` and `valid` `[H, W]`; parts of the image share it.

    No-data pixels enter no minimum or maximum.
    """
    zeros = np.zeros((len(pixels), 1, 1), np.float32)
    if normalisation.kind == "minmax":
        low, high = _valid_range(pixels, valid)
        return Scale(low, np.where(high > low, high - low, np.float32(1)))
    if normalisation.maximum is not None:
        return Scale(zeros, zeros + np.float32(normalisation.maximum))
    return Scale(zeros, np.array([BAND_MAXIMUM[band] for band in bands], np.float32)[:, None, None])


def normalise(pixels: NDArray[np.uint16], valid: NDArray[np.bool_], scale: Scale) -> NDArray[np.float32]:
    """Return `[C, H, W] float32` in [-1, 1] from `pixels` `[C, H, W] uint16` and `valid` `[H, W] bool`.

    No-data pixels become `NO_DATA_VALUE`; a constant band becomes -1 under min-max.
    """
    return from_unit_range(to_unit_range(pixels, scale), valid)


def to_unit_range(pixels: NDArray[np.uint16], scale: Scale) -> NDArray[np.float32]:
    """Return `[C, H, W] float32` in [0, 1] from `pixels` `[C, H, W] uint16`: what augmentation works on.

    Values beyond the scale are clipped; a constant band becomes 0 under min-max, and so does a no-data pixel.
    """
    values = pixels.astype(np.float32)
    values -= scale.low
    values /= scale.span
    return np.clip(values, 0, 1, out=values)


def from_unit_range(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Bring `values` `[C, H, W] float32` from [0, 1] to [-1, 1] in place, and return them; `valid` is `[H, W] bool`.

    No-data pixels become `NO_DATA_VALUE`, whatever they were.
    """
    values *= 2
    values -= 1
    if not valid.all():
        values[:, ~valid] = NO_DATA_VALUE
    return values


def _valid_range(
    pixels: NDArray[np.uint16], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the minimum and maximum `[C, 1, 1]` of each band over its valid pixels; zeros where there are none."""
    if not valid.any():
        zeros = np.zeros((len(pixels), 1, 1), np.float32)
        return zeros, zeros
    low = np.min(pixels, axis=(1, 2), keepdims=True, where=valid, initial=np.iinfo(np.uint16).max)
    high = np.max(pixels, axis=(1, 2), keepdims=True, where=valid, initial=0)
    return low.astype(np.float32), high.astype(np.float32)
