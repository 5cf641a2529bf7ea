"""A threshold on B02: what a net must beat to be worth anything. Must not know nets.

Blue alone finds bright cloud over dark ground, and takes snow, sand and roofs for cloud. The threshold is fitted on
one set of chips and tested on another, as a net is.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from raytrain.imagery.rasters import LABEL_CLOUD, LABEL_IGNORE

BlueChip = tuple[NDArray[np.uint16], NDArray[np.uint8]]
"""B02, reflectance x 10000, and label (0, 1, 255), each `[H, W]`."""
THRESHOLDS = np.arange(0, 16_000, 100)
"""What is tried, reflectance x 10000."""


def fit(chips: Iterable[BlueChip]) -> int:
    """Return the threshold of the best pooled IoU, the lowest of equal ones; chips are read once, one at a time.

    Raises `ValueError` where the chips have no cloud: every threshold would find nothing.
    """
    return int(THRESHOLDS[int(np.argmax(pooled_ious(chips)))])


def pooled_ious(chips: Iterable[BlueChip]) -> NDArray[np.float64]:
    """Return the pooled IoU of `B02 >= threshold` for each of `THRESHOLDS`, `[T] float64`; label 255 is left out.

    Raises `ValueError` where the chips have no cloud.
    """
    edges = [*THRESHOLDS, 1 << 16]
    cloud, clear = np.zeros(len(THRESHOLDS)), np.zeros(len(THRESHOLDS))
    for b02, label in chips:
        cloud += np.histogram(b02[label == LABEL_CLOUD], edges)[0]
        clear += np.histogram(b02[(label != LABEL_CLOUD) & (label != LABEL_IGNORE)], edges)[0]
    if not cloud.any():
        raise ValueError("chips without any cloud: no threshold is better than another")
    true_positives, false_positives = np.cumsum(cloud[::-1])[::-1], np.cumsum(clear[::-1])[::-1]
    return np.asarray(true_positives / (cloud.sum() + false_positives))


def pooled_iou(chips: Iterable[BlueChip], threshold: int) -> float:
    """Return the pooled IoU of `B02 >= threshold` for one of `THRESHOLDS`."""
    return float(pooled_ious(chips)[THRESHOLDS.tolist().index(threshold)])


def predict(b02: NDArray[np.uint16], threshold: int) -> NDArray[np.uint8]:
    """Return the mask (0, 1) of the pixels at or above `threshold`, `[H, W]`."""
    return (b02 >= threshold).astype(np.uint8)


def read_archive(archive: Path, split: str) -> Iterator[BlueChip]:
    """Yield B02 and label of every chip of an archive in the challenge's layout."""
    with (archive / f"{split}_metadata.csv").open() as file:
        chip_ids = [row["chip_id"] for row in csv.DictReader(file)]
    for chip_id in chip_ids:
        b02 = _read(archive / f"{split}_features" / chip_id / "B02.tif")
        yield b02, _read(archive / f"{split}_labels" / f"{chip_id}.tif")


def _read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as image:
        return np.asarray(image.read(1))
