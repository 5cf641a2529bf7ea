"""Fractal noise whose every value is a function of (seed, row, column) alone, for any window of an endless plane.

A coarse lattice of hashed values is refined by cubic B-spline subdivision, and each finer lattice adds its own hashed
values: ten octaves cost little more than the finest one. Only additions and products of neighbours are used, element by
element, so that a window equals the crop of a larger one to the last bit. This module must not know bands, clouds or
files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatField = NDArray[np.float32]
HashField = NDArray[np.uint32]
IndexField = NDArray[np.int64]

_MASK_64 = (1 << 64) - 1


class Box(NamedTuple):
    """A window of the endless lattice: the first row and column may be negative."""

    row0: int
    column0: int
    height: int
    width: int

    def grown(self, margin: int) -> Box:
        """Return the box with `margin` more lattice points on each side."""
        return Box(self.row0 - margin, self.column0 - margin, self.height + 2 * margin, self.width + 2 * margin)

    def halved(self) -> Box:
        """Return the box of the lattice of twice the spacing that `refined` needs to fill this one."""
        row0, column0 = self.row0 // 2 - 1, self.column0 // 2 - 1
        last_row, last_column = (self.row0 + self.height - 1) // 2 + 1, (self.column0 + self.width - 1) // 2 + 1
        return Box(row0, column0, last_row - row0 + 1, last_column - column0 + 1)

    def cut(self, field: NDArray[Any], inner: Box) -> NDArray[Any]:
        """Return the part of `field`, which covers this box, that covers `inner`."""
        row, column = inner.row0 - self.row0, inner.column0 - self.column0
        assert 0 <= row <= self.height - inner.height
        assert 0 <= column <= self.width - inner.width
        return field[row : row + inner.height, column : column + inner.width]


def mixed_seed(*parts: int) -> int:
    """Return a 64-bit seed that depends on every part and on their order (splitmix64)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & _MASK_64)) * 0xBF58476D1CE4E5B9 & _MASK_64
        state = (state ^ (state >> 29)) * 0x94D049BB133111EB & _MASK_64
        state ^= state >> 32
    return state


def hashed(seed: int, box: Box) -> HashField:
    """Return one hash per lattice point, `[height, width] uint32`, each bit about fair."""
    seed = mixed_seed(seed)
    rows = np.arange(box.row0, box.row0 + box.height, dtype=np.int64).astype(np.uint32)
    columns = np.arange(box.column0, box.column0 + box.width, dtype=np.int64).astype(np.uint32)
    # The two axes are scrambled before they meet, so one cheap round over the plane is enough.
    values = (
        _scrambled(rows ^ np.uint32(seed & 0xFFFFFFFF))[:, None] + _scrambled(columns ^ np.uint32(seed >> 32))[None, :]
    )
    return _scrambled(values)


def white(seed: int, box: Box) -> FloatField:
    """Return independent values, uniform in [-1, 1), `[height, width] float32`."""
    values = hashed(seed, box).view(np.int32).astype(np.float32)
    values *= np.float32(2.0**-31)
    return values


def refined(coarse: FloatField, box: Box) -> FloatField:
    """Return the field on `box` from the one on `box.halved()`, by one step of cubic B-spline subdivision."""
    rows = np.empty((2 * (coarse.shape[0] - 2), coarse.shape[1]), np.float32)
    _subdivide(coarse, rows)
    row = box.row0 - 2 * (box.row0 // 2)
    rows = rows[row : row + box.height]
    fine = np.empty((box.height, 2 * (coarse.shape[1] - 2)), np.float32)
    _subdivide(rows.T, fine.T)
    column = box.column0 - 2 * (box.column0 // 2)
    return fine[:, column : column + box.width]


def fbm(seed: int, box: Box, *, coarsest: int, finest: int = 0, gain: float = 0.5) -> FloatField:
    """Return fractal noise, `[height, width] float32`, mean about 0, variance about 1.

    Octave k has lattice points 2**k apart; octaves run from `coarsest` down to `finest`, each `gain` times as strong as
    the one before.
    """
    boxes = [box]
    for _ in range(coarsest):
        boxes.append(boxes[-1].halved())
    field = white(mixed_seed(seed, coarsest), boxes[coarsest])
    variance = _octave_variance(coarsest)
    strength = 1.0
    for octave in range(coarsest - 1, -1, -1):
        field = refined(field, boxes[octave])
        if octave >= finest:
            strength *= gain
            variance += strength**2 * _octave_variance(octave)
            octave_values = white(mixed_seed(seed, octave), boxes[octave])
            octave_values *= np.float32(strength)
            octave_values += field
            field = octave_values
    field *= np.float32(1.0 / math.sqrt(variance))
    return field


def sampled(make: Callable[[Box], FloatField], rows: NDArray[np.float64], columns: NDArray[np.float64]) -> FloatField:
    """Return a lattice field at points between the lattice points, bilinear, `[height, width] float32`.

    `make` is called once, with the smallest box that holds all points.
    """
    whole_rows, whole_columns = np.floor(rows), np.floor(columns)
    row0, column0 = int(whole_rows.min()), int(whole_columns.min())
    box = Box(row0, column0, int(whole_rows.max()) - row0 + 2, int(whole_columns.max()) - column0 + 2)
    field = np.ascontiguousarray(make(box)).reshape(-1)
    row_weight, column_weight = (rows - whole_rows).astype(np.float32), (columns - whole_columns).astype(np.float32)
    at = ((whole_rows - row0) * box.width + (whole_columns - column0)).astype(np.int32)
    upper, lower = field.take(at), field.take(at + box.width)
    at += 1
    upper += column_weight * (field.take(at) - upper)
    lower += column_weight * (field.take(at + box.width) - lower)
    lower -= upper
    lower *= row_weight
    upper += lower
    return np.asarray(upper)


def cell_hashes(seed: int, cell_rows: IndexField, cell_columns: IndexField) -> HashField:
    """Return the hash of the cell that each pixel lies in, `[height, width] uint32`."""
    row0, column0 = int(cell_rows.min()), int(cell_columns.min())
    box = Box(row0, column0, int(cell_rows.max()) - row0 + 1, int(cell_columns.max()) - column0 + 1)
    return hashed(seed, box).reshape(-1).take((cell_rows - row0) * box.width + (cell_columns - column0))


def _scrambled(values: HashField) -> HashField:
    """Return a bijective scramble of 32-bit values (the multipliers are those of `lowbias32` by C. Wellons)."""
    values = values ^ (values >> np.uint32(16))
    values *= np.uint32(0x7FEB352D)
    values ^= values >> np.uint32(15)
    values *= np.uint32(0x846CA68B)
    values ^= values >> np.uint32(16)
    return values


def _subdivide(coarse: FloatField, fine: FloatField) -> None:
    """Fill `fine` with twice as many rows as `coarse` has inside its border of one row."""
    even = coarse[:-2] + coarse[2:]
    even *= np.float32(0.125)
    even += coarse[1:-1] * np.float32(0.75)
    fine[0::2] = even
    np.add(coarse[1:-1], coarse[2:], out=even)
    np.multiply(even, np.float32(0.5), out=fine[1::2])


def _octave_variance(octave: int) -> float:
    """Return the mean variance of one octave; a hashed value has 1/3, the splines between them less."""
    return (1 / 3, 0.0997, 0.0810)[octave] if octave < 3 else 0.0766
