"""What a scoring takes, said beforehand: pixels, windows, memory, disk, bytes and time. Must not know who asks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raytrain import storage
from raytrain.config import ScoreSettings
from raytrain.imagery.windows import round_up
from raytrain.scoring.blending import needed_windows, region_bytes
from raytrain.scoring.images import IMAGES_AHEAD
from raytrain.scoring.layers import Layers
from raytrain.scoring.units import blocks_of

WASTE = 1.5
"""What resident memory grows by for each byte of a unit's arrays, at most: malloc keeps some of what is freed.

Found were 1.4 (6000 px wide, windows of 512), 1.2 (10,000 px, 512) and 0.9 (10,000 px, 1024); most where arrays are
below 32 MiB, which glibc does not map one by one.
"""
RASTER_BYTES = 32 * 2**20
"""What GDAL and PROJ take beside the cache: their tables, some 9 MiB, and 10 MiB in which overviews are made."""


@dataclass(frozen=True)
class Sample:
    """An item that was looked at: its size in pixels, and the bytes of its files or cells; chips and tiles are small.

    Of a scene, `num_remote_files` are read by ranges, and `copied_bytes` are of files that lie on the local disk while
    it is read (remote JPEG 2000).
    """

    height: int
    width: int
    num_bytes: int
    is_small: bool = False
    num_remote_files: int = 0
    copied_bytes: int = 0


@dataclass(frozen=True)
class Calibration:
    """What one worker takes: seconds a window, and its memory with the nets loaded and windows computed."""

    window_s: float
    resident_bytes: int


def windows_of(height: int, width: int, settings: ScoreSettings) -> float:
    """Return how many windows are computed for an item; those that two blocks need count twice.

    Of an item smaller than a window, this is the share of one that the nets see.
    """
    count = sum(
        len(needed_windows(height, block.row, block.height, settings))
        * len(needed_windows(width, block.column, block.width, settings))
        for block in blocks_of(height, width, settings.block_px)
    )
    sides = [round_up(min(length, settings.window_px)) for length in (height, width)]
    return count * math.prod(sides) / round_up(settings.window_px) ** 2


def hours_of(windows: float, num_units: int, workers: int, window_s: float) -> float:
    """Return how long so many windows take, of units of about one size that each are one worker's."""
    if not num_units:
        return 0.0
    rounds = -(-num_units // workers)
    return rounds * windows / num_units * window_s / 3600


def worker_bytes(calibration: Calibration, unit_bytes: int, units_in_flight: int, index_bytes: int = 0) -> int:
    """Return how much memory a worker takes that has this many units at once, each of at most `unit_bytes`.

    GDAL's cache is one for all of a process, and so is the index of shards. No raster, nor an index, was read yet when
    a worker is calibrated.
    """
    of_rasters = storage.GDAL_CACHE_BYTES + RASTER_BYTES
    return calibration.resident_bytes + of_rasters + index_bytes + units_in_flight * unit_bytes


def unit_bytes(sample: Sample, num_bands: int, layers: Layers, settings: ScoreSettings) -> int:
    """Return how much memory a unit takes beside the nets and GDAL's cache, with what malloc wastes on the way."""
    if sample.is_small:
        arrays = _images_bytes(sample, num_bands, layers, settings)
    else:
        widest = max(block.width for block in blocks_of(sample.height, sample.width, settings.block_px))
        encoded = settings.window_px * widest * _encoding_bytes(layers)
        arrays = region_bytes(num_bands, layers.num_computed, widest, settings) + encoded
    caches = sample.num_remote_files * storage.ranged.BLOCKS * storage.ranged.BLOCK_BYTES
    return round(WASTE * arrays) + caches


def _images_bytes(sample: Sample, num_bands: int, layers: Layers, settings: ScoreSettings) -> int:
    """Return what a unit of chips or tiles takes: those read ahead, scored together, or being read, and layers."""
    pixels, together = sample.height * sample.width, settings.windows_per_pass
    held = (IMAGES_AHEAD + 2 + 2 * together) * pixels * (2 * num_bands + 1) + 2 * sample.num_bytes
    computed = together * pixels * (4 * layers.num_computed + _encoding_bytes(layers))
    blended = max(sample.height, sample.width) > settings.window_px
    return held + computed + (region_bytes(num_bands, layers.num_computed, sample.width, settings) if blended else 0)


def _encoding_bytes(layers: Layers) -> int:
    """Return the bytes a pixel that `layers.encode` takes for one layer, its result included."""
    encodings = {layers.probability, layers.disagreement, layers.members}
    return 12 if "uint8" in encodings else 8 if "float32" in encodings else 3


def disk_bytes(sample: Sample, layers: Layers) -> int:
    """Return how much local disk a scene takes while it is put together: its layers, and as COGs at most as much."""
    return 2 * layers.temporary_bytes(sample.height, sample.width) + sample.copied_bytes
