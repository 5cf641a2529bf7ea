"""Overlapping windows blended into the layers of a scene, or of a block of it, row of windows by row of windows.

The windows of a scene and their weights follow from its size and the settings alone, and a pixel is the sum over its
windows in their order: so a block has the values that the whole scene has there, to the last bit. Memory is that of one
row of windows as wide as the block. Must not know files.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raytrain.config import ScoreSettings, Settings
from raytrain.imagery.rasters import Raster
from raytrain.imagery.windows import axis_weights, window_starts
from raytrain.scoring.ahead import ahead

ROWS_AHEAD = 1
"""Rows of windows that are read while one is computed."""
PASSES_AT_ONCE = 2
"""Forward passes that nets are asked for at once: the layers of more need not be held."""


class Source(Protocol):
    """Pixels of a scene, by windows."""

    @property
    def height(self) -> int:
        """Rows of pixels."""
        ...

    @property
    def width(self) -> int:
        """Columns of pixels."""
        ...

    def read(self, row: int, column: int, height: int, width: int) -> Raster:
        """Return the pixels `[C, height, width]` from (row, column) on."""
        ...


class Nets(Protocol):
    """What turns windows into layers `[L, H, W] float32`, each independent of the others."""

    def layer_kinds(self, bands: Sequence[str]) -> Sequence[str]:
        """Return what the layers of a window with the channels `bands` show, in their order."""
        ...

    def layers(
        self, windows: Sequence[NDArray[np.uint16]], valid: Sequence[NDArray[np.bool_]], bands: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        """Return the layers of each window; the windows have the channels `bands`."""
        ...


class Region(Settings):
    """A box of pixels of a scene."""

    row: int
    column: int
    height: int
    width: int


@dataclass(frozen=True)
class Strip:
    """Finished rows of a region: where they lie in the scene, their layers `[L, h, w] float32`, `valid` `[h, w]`."""

    row: int
    column: int
    layers: NDArray[np.float32]
    valid: NDArray[np.bool_]


def needed_windows(length_px: int, first: int, span_px: int, settings: ScoreSettings) -> list[int]:
    """Return the numbers of the windows along an axis that the pixels from `first` on, `span_px` of them, need."""
    starts, window_px = _windows(length_px, settings)
    return [i for i, start in enumerate(starts) if start < first + span_px and start + window_px > first]


def _windows(length_px: int, settings: ScoreSettings) -> tuple[list[int], int]:
    """Return where the windows along an axis start, and how long they are."""
    window_px = min(settings.window_px, length_px)
    return window_starts(length_px, window_px, min(settings.overlap_px, window_px // 2)), window_px


@dataclass(frozen=True)
class _Axis:
    """The windows along one axis that a span of pixels needs: where they start, how long they are, their weights."""

    starts: list[int]
    window_px: int
    weights: NDArray[np.float32]

    @classmethod
    def of(cls, length_px: int, first: int, span_px: int, settings: ScoreSettings) -> _Axis:
        starts, window_px = _windows(length_px, settings)
        weights = axis_weights(length_px, starts, window_px, min(settings.overlap_px, window_px // 2))
        needed = needed_windows(length_px, first, span_px, settings)
        return cls([starts[i] for i in needed], window_px, weights[needed])

    @property
    def end(self) -> int:
        """The pixel behind the last window."""
        return self.starts[-1] + self.window_px


def blended_strips(
    source: Source, bands: Sequence[str], region: Region, nets: Nets, settings: ScoreSettings
) -> Iterator[Strip]:
    """Yield the layers of `region` from top to bottom, each row once; `source` has the channels `bands`.

    A window without data asks no net and counts as 0. The next rows are read while the nets compute.
    """
    rows = _Axis.of(source.height, region.row, region.height, settings)
    columns = _Axis.of(source.width, region.column, region.width, settings)
    end_row, end_column = region.row + region.height, region.column + region.width
    inner = slice(region.column - columns.starts[0], end_column - columns.starts[0])
    width = columns.end - columns.starts[0]
    sums: NDArray[np.float32] = np.zeros((len(nets.layer_kinds(bands)), rows.window_px, width), np.float32)
    bounds = [*rows.starts[1:], rows.end]
    held = _Rows.empty(len(bands), rows.window_px, width)
    with ahead(_fresh_rows(source, rows, columns), ROWS_AHEAD) as fresh:
        for start, following, weights in zip(rows.starts, bounds, rows.weights, strict=True):
            held.add(next(fresh))
            _add_windows(sums, held, bands, columns, weights, nets, settings.windows_per_pass * PASSES_AT_ONCE)
            top, bottom = max(start, region.row), min(following, end_row)
            done = slice(top - start, bottom - start)
            yield Strip(top, region.column, sums[:, done, inner].copy(), held.valid[done, inner].copy())
            for layer in sums:
                _move_up(layer, following - start)
            sums[:, rows.window_px - (following - start) :] = 0


def _fresh_rows(source: Source, rows: _Axis, columns: _Axis) -> Generator[Raster]:
    """Yield the pixels of the first row of windows, and then those that each next one has beside the one before it.

    What was yielded is not held: it is the most that reading takes.
    """
    left, width = columns.starts[0], columns.end - columns.starts[0]
    yield source.read(rows.starts[0], left, rows.window_px, width)
    for before, start in zip(rows.starts, rows.starts[1:], strict=False):
        yield source.read(before + rows.window_px, left, start - before, width)


@dataclass(frozen=True)
class _Rows:
    """The pixels `[C, H, W]` and the no-data mask `[H, W]` of the row of windows that is computed."""

    pixels: NDArray[np.uint16]
    valid: NDArray[np.bool_]

    @classmethod
    def empty(cls, num_bands: int, height: int, width: int) -> _Rows:
        return cls(np.zeros((num_bands, height, width), np.uint16), np.zeros((height, width), bool))

    def add(self, fresh: Raster) -> None:
        """Put `fresh` rows below those that are still needed; the uppermost ones go."""
        count = len(fresh.valid)
        for plane, below in zip((*self.pixels, self.valid), (*fresh.pixels, fresh.valid), strict=True):
            _move_up(plane, count)
            plane[len(plane) - count :] = below


def _move_up(plane: NDArray[np.generic], count: int) -> None:
    """Move the rows of `plane` `[H, W]` up by `count`; the last ones stay as they were."""
    plane[: len(plane) - count] = plane[count:]


def _add_windows(
    sums: NDArray[np.float32],
    held: _Rows,
    bands: Sequence[str],
    columns: _Axis,
    row_weights: NDArray[np.float32],
    nets: Nets,
    at_once: int,
) -> None:
    """Add the weighted layers of a row of windows to `sums`, in the order of the windows, `at_once` of them asked."""
    boxes = [
        slice(start - columns.starts[0], start - columns.starts[0] + columns.window_px) for start in columns.starts
    ]
    asked = [(box, weights) for box, weights in zip(boxes, columns.weights, strict=True) if held.valid[:, box].any()]
    for some in (asked[first : first + at_once] for first in range(0, len(asked), at_once)):
        pixels, valid = [held.pixels[:, :, box] for box, _ in some], [held.valid[:, box] for box, _ in some]
        for (box, weights), layers in zip(some, nets.layers(pixels, valid, bands), strict=True):
            sums[:, :, box] += layers * (row_weights[:, None] * weights)


def region_bytes(num_bands: int, num_layers: int, width_px: int, settings: ScoreSettings) -> int:
    """Return the most memory that blending a region of this width takes, and who uses its strips one by one.

    Rows of windows are held: the one computed, what was just read, what is being read; and in float32, for each layer,
    the sums, the strip handed on, and the one before it. Windows beside the region are read, too. Beside these there
    are the layers of the windows that are asked for at once.
    """
    asked = 4 * num_layers * settings.window_px**2 * settings.windows_per_pass * PASSES_AT_ONCE
    row_px = settings.window_px * (width_px + 2 * settings.window_px)
    return row_px * ((2 + ROWS_AHEAD) * (2 * num_bands + 1) + 3 * 4 * num_layers) + asked
