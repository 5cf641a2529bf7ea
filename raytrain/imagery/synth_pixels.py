"""Pixels of a generated scene: ground, shadows, haze and clouds as a sensor records them, and the true mask.

Every pixel is a function of (place, scene seed, row, column) alone. This module must not know files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raytrain.imagery.noise import Box, hashed, mixed_seed
from raytrain.imagery.synth_clouds import CLOUD_OPACITY, Sky, sky_over
from raytrain.imagery.synth_ground import ground_bands
from raytrain.imagery.synth_places import Acquisition, Place, SwathEdge, make_acquisition

BAND_NAMES = ("B02", "B03", "B04", "B08")
CLEAR, CLOUD, NO_DATA_LABEL = 0, 1, 255
BLOCK_PX = 512
"""Windows are made in blocks of at most this many rows and columns, so that working memory is bounded."""

_CLOUD_TINT = (1.0, 0.975, 0.985, 1.03)
_HAZE_COLOUR = (4200, 3600, 3100, 2600)
# The sky lights a shadow too, and its light is blue.
_SHADOW_DEPTH = (0.50, 0.58, 0.64, 0.70)
_BRIGHTEST = 20_000


def generate_window(
    place: Place, scene_seed: int, row0: int, column0: int, height_px: int, width_px: int, edge: SwathEdge | None = None
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Return the bands, `[4, height_px, width_px] uint16`, and the label, `[height_px, width_px] uint8`.

    Bands are B02 B03 B04 B08, reflectance x 10000. The label is 1 where clouds and haze together are more opaque than
    `CLOUD_OPACITY`, 255 beyond `edge`, 0 elsewhere. Recorded pixels are at least 1 in every band, those beyond the edge
    0 in all. A window equals the crop of any larger one.
    """
    day = make_acquisition(place, scene_seed)
    bands = np.empty((4, height_px, width_px), np.uint16)
    label = np.empty((height_px, width_px), np.uint8)
    for top in range(0, height_px, BLOCK_PX):
        for left in range(0, width_px, BLOCK_PX):
            box = Box(row0 + top, column0 + left, min(BLOCK_PX, height_px - top), min(BLOCK_PX, width_px - left))
            here = (slice(top, top + box.height), slice(left, left + box.width))
            label[here] = _fill_block(bands[(slice(None), *here)], place, day, box, edge)
    return bands, label


def _fill_block(
    recorded: NDArray[np.uint16], place: Place, day: Acquisition, box: Box, edge: SwathEdge | None
) -> NDArray[np.uint8]:
    """Fill `recorded`, `[4, height, width]`, and return the label."""
    beyond = None if edge is None else _beyond(edge, box)
    if beyond is not None and beyond.all():
        recorded[:] = 0
        return np.full((box.height, box.width), NO_DATA_LABEL, np.uint8)
    sky = sky_over(day, box)
    bands = ground_bands(place, day, box)
    _look_through(bands, sky, np.float32(place.gain))
    _add_sensor_noise(bands, day, box)
    np.clip(bands, 1, _BRIGHTEST, out=bands)
    np.rint(bands, out=bands)
    recorded[:] = bands
    label = (1 - (1 - sky.cloud_opacity) * (1 - sky.haze_opacity) > CLOUD_OPACITY).astype(np.uint8)
    if beyond is not None:
        recorded[:, beyond] = 0
        label[beyond] = NO_DATA_LABEL
    return label


def _look_through(bands: NDArray[np.float32], sky: Sky, gain: np.float32) -> None:
    """Darken the ground by shadows, then lay haze and clouds over it, in place."""
    haze_through, cloud_through = 1 - sky.haze_opacity, 1 - sky.cloud_opacity
    own = sky.cloud_brightness * sky.cloud_opacity
    for band, depth, haze, tint in zip(bands, _SHADOW_DEPTH, _HAZE_COLOUR, _CLOUD_TINT, strict=True):
        band *= gain * (1 - np.float32(depth) * sky.shadow)
        band *= haze_through
        band += sky.haze_opacity * np.float32(haze)
        band *= cloud_through
        band += own * np.float32(tint)


def _add_sensor_noise(bands: NDArray[np.float32], day: Acquisition, box: Box) -> None:
    """Add noise of a few units and about half a percent of the signal, from two bytes of a hash per band, in place."""
    for pair in range(2):
        bits = hashed(mixed_seed(day.seed, 20, pair), box)
        for half in range(2):
            part = bits >> np.uint32(16 * half)
            noise = ((part & np.uint32(255)) + (part >> np.uint32(8) & np.uint32(255))).astype(np.float32)
            # The sum has mean 255 and deviation 104.
            noise -= 255
            noise *= np.float32(1 / 104)
            band = bands[2 * pair + half]
            noise *= 6 + np.float32(0.006) * band
            band += noise


def _beyond(edge: SwathEdge, box: Box) -> NDArray[np.bool_]:
    """Return which pixels lie beyond the edge of the swath, `[height, width] bool`."""
    rows = (np.arange(box.row0, box.row0 + box.height) - edge.row) * edge.normal_row
    columns = (np.arange(box.column0, box.column0 + box.width) - edge.column) * edge.normal_column
    return rows[:, None] + columns[None, :] > 0
