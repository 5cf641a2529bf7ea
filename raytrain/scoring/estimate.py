"""What a scoring takes, said beforehand: pixels, windows, memory, disk, bytes and time. Must not know who asks."""

from __future__ import annotations

from dataclasses import dataclass

from raytrain.config import ScoreSettings
from raytrain.scoring.blending import needed_windows, region_bytes
from raytrain.scoring.layers import Layers
from raytrain.scoring.units import blocks_of


@dataclass(frozen=True)
class Sample:
    """An item that was looked at: its size in pixels, and the bytes of its files."""

    height: int
    width: int
    num_bytes: int


@dataclass(frozen=True)
class Calibration:
    """What one worker takes: seconds a window, and its memory with the nets loaded and a window computed."""

    window_s: float
    resident_bytes: int


def windows_of(height: int, width: int, settings: ScoreSettings) -> int:
    """Return how many windows are computed for an item; those that two blocks need count twice."""
    return sum(
        len(needed_windows(height, block.row, block.height, settings))
        * len(needed_windows(width, block.column, block.width, settings))
        for block in blocks_of(height, width, settings.block_px)
    )


def unit_bytes(sample: Sample, num_bands: int, num_layers: int, settings: ScoreSettings) -> int:
    """Return about how much memory a unit of a scene takes beside the nets."""
    widest = max(block.width for block in blocks_of(sample.height, sample.width, settings.block_px))
    return region_bytes(num_bands, num_layers, widest, settings)


def disk_bytes(sample: Sample, layers: Layers) -> int:
    """Return how much local disk a scene takes while it is put together: its layers, and as COGs at most as much."""
    return 2 * layers.temporary_bytes(sample.height, sample.width)
