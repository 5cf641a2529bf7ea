"""Windows cover a scene, weights sum to one, and a block has the values of the whole scene to the last bit."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raytrain.config import ScoreSettings
from raytrain.imagery.rasters import Georeference, Raster
from raytrain.imagery.windows import axis_weights, window_starts
from raytrain.scoring.ahead import OneThread, ahead
from raytrain.scoring.blending import Region, blended_strips, region_bytes
from raytrain.scoring.units import blocks_of

SETTINGS = ScoreSettings(window_px=64, overlap_px=16)
BANDS = ("B02", "B03")
NOWHERE = Georeference(None, None)


@dataclass
class Pixels:
    """A scene in memory that counts how often each row is read."""

    values: NDArray[np.uint16]
    valid: NDArray[np.bool_]
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def height(self) -> int:
        return self.valid.shape[0]

    @property
    def width(self) -> int:
        return self.valid.shape[1]

    def read(self, row: int, column: int, height: int, width: int) -> Raster:
        self.reads.append((row, height))
        box = slice(row, row + height), slice(column, column + width)
        assert self.valid[box].shape == (height, width), "a window beyond the scene"
        return Raster(self.values[:, *box], self.valid[box], NOWHERE)


class Wave:
    """Nets whose values depend on all of the window and on the place in it, as those of real ones do."""

    def __init__(self) -> None:
        self.asked = 0

    def layer_kinds(self, bands: Sequence[str]) -> tuple[str, ...]:
        return ("sine", "cosine")

    def layers(
        self, windows: Sequence[NDArray[np.uint16]], valid: Sequence[NDArray[np.bool_]], bands: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        self.asked += len(windows)
        assert tuple(bands) == BANDS
        found = []
        for window in windows:
            first = window[0].astype(np.float32) / 1000 + np.float32(window[1].mean())
            first = first + np.linspace(0, 1, first.shape[1], dtype=np.float32)
            found.append(np.stack([np.sin(first), np.cos(first)]).astype(np.float32))
        return found


class Constant:
    def __init__(self, num_layers: int = 1) -> None:
        self.num_layers = num_layers

    def layer_kinds(self, bands: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(str, range(self.num_layers)))

    def layers(
        self, windows: Sequence[NDArray[np.uint16]], valid: Sequence[NDArray[np.bool_]], bands: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        return [np.full((self.num_layers, *mask.shape), 0.7, np.float32) for mask in valid]


def scene(height: int, width: int, seed: int = 0) -> Pixels:
    generator = np.random.default_rng(seed)
    values = generator.integers(1, 9000, (2, height, width)).astype(np.uint16)
    valid = generator.random((height, width)) > 0.1
    valid[: height // 3, : width // 2] = False
    return Pixels(values, valid)


def blended(pixels: Pixels, region: Region, nets: Wave | Constant) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    strips = list(blended_strips(pixels, BANDS, region, nets, SETTINGS))
    rows = [strip.row for strip in strips]
    assert rows == [region.row, *(np.cumsum([len(strip.valid) for strip in strips])[:-1] + region.row)]
    assert {strip.column for strip in strips} == {region.column}
    return np.concatenate([s.layers for s in strips], axis=1), np.concatenate([s.valid for s in strips])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 299), st.integers(0, 299), st.data())
def test_any_block_has_the_values_of_the_whole_scene(
    height: int, width: int, row: int, column: int, data: st.DataObject
) -> None:
    row, column = row % height, column % width
    rows, columns = data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - column))
    pixels = scene(height, width)
    whole, valid = blended(pixels, Region(row=0, column=0, height=height, width=width), Wave())
    assert whole.shape == (2, height, width)
    assert (valid == pixels.valid).all()
    block, block_valid = blended(pixels, Region(row=row, column=column, height=rows, width=columns), Wave())
    box = slice(row, row + rows), slice(column, column + columns)
    assert np.array_equal(block, whole[:, *box])
    assert np.array_equal(block_valid, valid[box])


@pytest.mark.parametrize("shape", [(64, 64), (200, 333), (30, 50), (65, 64), (1, 1)])
def test_constant_gives_a_constant(shape: tuple[int, int]) -> None:
    pixels = Pixels(np.ones((2, *shape), np.uint16), np.ones(shape, bool))
    found, _ = blended(pixels, Region(row=0, column=0, height=shape[0], width=shape[1]), Constant())
    assert np.abs(found - np.float32(0.7)).max() < 3e-7


@given(st.integers(1, 2000), st.integers(1, 8), st.integers(0, 128))
def test_weights_of_the_windows_sum_to_one_at_every_pixel(length: int, windows: int, overlap: int) -> None:
    window = min(windows * 32, length)
    overlap = min(overlap, window // 2)
    starts = window_starts(length, window, overlap)
    weights = axis_weights(length, starts, window, overlap)
    assert weights.shape == (len(starts), window)
    assert weights.dtype == np.float32
    assert (weights > 0).all()
    total = np.zeros(length)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + window] += row
    assert np.abs(total - 1).max() < 2e-7


def test_no_row_is_read_twice_and_no_window_without_data_is_computed() -> None:
    pixels = scene(300, 200)
    pixels.valid[:] = True
    pixels.valid[:100] = False
    nets = Wave()
    found, _ = blended(pixels, Region(row=0, column=0, height=300, width=200), nets)
    assert sum(height for _, height in pixels.reads) == 300
    columns = len(window_starts(200, 64, 16))
    rows = sum(start + 64 > 100 for start in window_starts(300, 64, 16))
    assert nets.asked == rows * columns
    assert (found[:, :48] == 0).all()


def test_error_of_a_source_is_raised_and_leaves_no_thread() -> None:
    class Broken(Pixels):
        def read(self, row: int, column: int, height: int, width: int) -> Raster:
            if row > 100:
                raise OSError("truncated")
            return super().read(row, column, height, width)

    whole = scene(300, 100)
    before = threading.active_count()
    with pytest.raises(OSError, match="truncated"):
        blended(Broken(whole.values, whole.valid), Region(row=0, column=0, height=300, width=100), Wave())
    assert threading.active_count() == before


@pytest.mark.parametrize("window", [64, 128])
@pytest.mark.parametrize("width", [1000, 3000])
@pytest.mark.parametrize("nets", [Wave(), Constant(), Constant(10)], ids=["two layers", "one layer", "ten layers"])
def test_memory_is_what_is_stated_for_the_width_and_no_more_for_more_rows(
    window: int, width: int, nets: Wave | Constant
) -> None:
    asked = ScoreSettings(window_px=window, overlap_px=window // 4)

    class Drawn(Pixels):
        def read(self, row: int, column: int, height: int, width: int) -> Raster:
            return Raster(np.ones((2, height, width), np.uint16), np.ones((height, width), bool), NOWHERE)

    def peak(rows: int) -> int:
        whole = np.broadcast_to(np.True_, (rows + 2 * window, width + 2 * window))
        region = Region(row=window, column=window, height=rows, width=width)
        tracemalloc.start()
        try:
            for strip in blended_strips(Drawn(whole, whole), BANDS, region, nets, asked):
                assert strip.layers.shape[2] == width
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    stated = region_bytes(len(BANDS), len(nets.layer_kinds(BANDS)), width, asked)
    peaks = [peak(rows) for rows in (4 * window, 16 * window)]
    assert 0.6 * stated < max(peaks) <= stated
    assert peaks[1] < 1.05 * peaks[0]


def test_reading_ahead_keeps_order_is_bounded_and_ends_with_its_reader() -> None:
    made: list[int] = []
    closed = threading.Event()

    def numbers() -> Generator[int]:
        try:
            for i in range(100):
                made.append(i)
                yield i
        finally:
            closed.set()

    with ahead(numbers(), 3) as items:
        found = [next(items) for _ in range(10)]
        assert found == list(range(10))
        assert len(made) <= 10 + 3
    assert closed.is_set()
    assert len(made) < 20
    with ahead((i for i in (1, 2, 3)), 8) as rest:
        assert list(rest) == [1, 2, 3]


def test_one_thread_does_all_and_raises_what_it_meets() -> None:
    with OneThread("t") as thread:
        assert len({thread.run(threading.get_ident) for _ in range(5)} - {threading.get_ident()}) == 1
        with pytest.raises(ZeroDivisionError):
            thread.run(lambda: 1 / 0)


def test_blocks_together_are_the_scene() -> None:
    pixels = scene(1300, 700)
    whole, _ = blended(pixels, Region(row=0, column=0, height=1300, width=700), Wave())
    found = np.full_like(whole, np.nan)
    for block in blocks_of(1300, 700, 512):
        box = slice(block.row, block.row + block.height), slice(block.column, block.column + block.width)
        found[:, *box] = blended(pixels, block, Wave())[0]
    assert np.array_equal(found, whole)
