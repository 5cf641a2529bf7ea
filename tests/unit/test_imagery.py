from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain.config import Normalisation
from raytrain.errors import ConfigError
from raytrain.imagery.normalisation import check_bands, normalise, scale_of
from raytrain.imagery.rasters import valid_pixels
from raytrain.imagery.windows import axis_weights, reflect_up, round_up, window_starts

BANDS = ("B02", "B03", "B04", "B08")
KINDS = [Normalisation(), Normalisation(kind="minmax"), Normalisation(kind="fixed-maximum", maximum=20000)]


def normalised(pixels: np.ndarray, valid: np.ndarray, bands: tuple[str, ...], kind: Normalisation) -> np.ndarray:
    return normalise(pixels, valid, scale_of(pixels, valid, bands, kind))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_normalised_values_lie_in_minus_one_to_one_and_no_data_is_minus_one(kind: Normalisation) -> None:
    pixels = np.random.default_rng(0).integers(1, 65535, (4, 9, 7)).astype(np.uint16)
    valid = np.ones((9, 7), bool)
    valid[:2] = False
    values = normalised(pixels, valid, BANDS, kind)
    assert values.dtype == np.float32
    assert values.min() >= -1
    assert values.max() <= 1
    assert (values[:, :2] == -1).all()


def test_band_maximum_divides_each_band_by_its_own() -> None:
    pixels = np.array([22500, 21000, 19500, 8500], np.uint16).reshape(4, 1, 1)
    assert normalised(pixels, np.ones((1, 1), bool), BANDS, KINDS[0]).ravel().tolist() == [1, 1, 1, 0]


def test_minmax_of_a_constant_band_is_finite_and_no_data_enters_no_minimum() -> None:
    pixels = np.full((1, 2, 3), 700, np.uint16)
    valid = np.array([[True, True, True], [True, True, False]])
    assert (normalised(pixels, valid, ("B02",), KINDS[1]) == -1).all()
    pixels[0, 0] = [100, 200, 300]
    pixels[0, 1] = [200, 200, 0]
    found = normalised(pixels, valid, ("B02",), KINDS[1])[0]
    assert found[0].tolist() == [-1, 0, 1]
    assert found[1].tolist() == [0, 0, -1]
    assert (normalised(pixels, np.zeros((2, 3), bool), ("B02",), KINDS[1]) == -1).all()


def test_band_without_a_maximum_is_refused_with_the_remedy() -> None:
    check_bands(KINDS[1], ("B12",))
    with pytest.raises(ConfigError, match=r"B12.*use minmax"):
        check_bands(KINDS[0], ("B02", "B12"))


def test_no_data_is_the_named_value_in_any_band_or_zero_in_all() -> None:
    pixels = np.array([[[0, 0, 5]], [[0, 7, 6]]], np.uint16)
    assert valid_pixels(pixels, [None, None]).tolist() == [[False, True, True]]
    assert valid_pixels(pixels, [0, 0]).tolist() == [[False, False, True]]
    assert valid_pixels(pixels, [6, 6]).tolist() == [[True, True, False]]


@given(st.integers(1, 3000), st.integers(2, 20), st.integers(0, 10))
def test_windows_cover_every_pixel_and_stay_inside(length: int, window_32: int, overlap_32: int) -> None:
    window = window_32 * 32
    overlap = min(overlap_32 * 32, window // 2)
    starts = window_starts(length, window, overlap)
    assert starts == sorted(set(starts))
    covered = np.zeros(length, int)
    for start in starts:
        assert start >= 0
        assert start + window <= length or length <= window
        covered[start : start + window] += 1
    assert covered.min() >= 1
    for left, right in itertools.pairwise(starts):
        assert right - left <= window - overlap


def test_blending_weights_are_positive_symmetric_and_1_where_one_window_is_alone() -> None:
    weights = axis_weights(160, window_starts(160, 64, 16), 64, 16)
    assert (weights > 0).all()
    assert (weights[1] == weights[1, ::-1]).all()
    assert (weights[1, 24:40] == 1).all()
    assert (np.diff(weights[1, :17]) > 0).all()
    assert (axis_weights(64, [0], 64, 0) == 1).all()


@given(st.integers(1, 70), st.integers(1, 70))
def test_reflection_keeps_the_array_and_fills_up_to_any_size(height: int, width: int) -> None:
    array = np.arange(height * width).reshape(1, height, width)
    up = reflect_up(array, round_up(height), round_up(width))
    assert up.shape == (1, round_up(height), round_up(width))
    assert round_up(height) % 32 == 0
    assert (up[:, :height, :width] == array).all()
    if 1 < height < round_up(height):
        assert (up[0, height] == up[0, height - 2]).all()
