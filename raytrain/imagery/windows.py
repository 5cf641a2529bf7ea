"""Windows: boxes of pixels that cover a scene, and reflection up to a size that a network takes.

Pure functions of integers and arrays. Must not know files or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NETWORK_STRIDE_PX = 32
"""The encoders halve a side five times, so a side must be a multiple of this."""


def window_starts(length_px: int, window_px: int, overlap_px: int) -> list[int]:
    """Return where windows of `window_px` start so that they cover `length_px` and overlap by at least `overlap_px`.

    The last window is moved inwards to end at the edge; a length below one window gives one window at 0.
    """
    if length_px <= window_px:
        return [0]
    stride = window_px - overlap_px
    return [*range(0, length_px - window_px, stride), length_px - window_px]


def axis_weights(length_px: int, starts: Sequence[int], window_px: int, overlap_px: int) -> NDArray[np.float32]:
    """Return the blending weights of the windows along one axis, `[windows, window_px] float32`.

    A weight falls towards the sides of its window over the overlap and is above 0; the weights of all windows at a
    pixel sum to one, to a rounding of float32.
    """
    distance = np.minimum(np.arange(window_px), np.arange(window_px)[::-1]) + 1
    ramp = np.minimum(distance / (overlap_px + 1), 1)
    total = np.zeros(length_px)
    for start in starts:
        total[start : start + window_px] += ramp
    return np.stack([ramp / total[start : start + window_px] for start in starts]).astype(np.float32)


def round_up(length_px: int) -> int:
    """Return the least multiple of the network's stride that is at least `length_px`."""
    return -(-length_px // NETWORK_STRIDE_PX) * NETWORK_STRIDE_PX


def reflect_up(array: NDArray[Any], height_px: int, width_px: int) -> NDArray[Any]:
    """Return `array` `[..., H, W]` reflected at its lower and right edges up to `[..., height_px, width_px]`.

    Works for any size: where one reflection is not enough, it is reflected again. An array of that size is returned as
    it is.
    """
    if array.shape[-2:] == (height_px, width_px):
        return array
    rows = _reflected_indices(array.shape[-2], height_px)
    columns = _reflected_indices(array.shape[-1], width_px)
    return array[..., rows[:, None], columns]


def _reflected_indices(length: int, wanted: int) -> NDArray[np.int64]:
    period = max(2 * (length - 1), 1)
    folded = np.arange(wanted) % period
    return np.minimum(folded, period - folded) if length > 1 else np.zeros(wanted, np.int64)
