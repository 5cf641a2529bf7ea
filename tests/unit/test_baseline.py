"""The shift of baseline 04.00 is taken off once, by one rule, for what the large catalogues say of their values."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain.errors import DataError
from raytrain.imagery.baseline import (
    Conversion,
    Evidence,
    baseline_in_name,
    baseline_number,
    conversion_of,
    decide,
    to_reflectance,
)

FLAG_AND_OFFSET = {"item_scale": 0.0001, "item_offset": -0.1, "processing_baseline": "05.09"}


@pytest.mark.parametrize(
    ("evidence", "shift", "rule"),
    [
        # Earth Search v1, sentinel-2-l2a: the offset is off, and named all the same.
        (FLAG_AND_OFFSET | {"offset_applied": True}, 0, "applied to the values already"),
        (FLAG_AND_OFFSET | {"offset_applied": False}, 1000, "offset -0.1 of the item"),
        # Earth Search's JPEG 2000 twins are ESA's files: the flag is not about them.
        (FLAG_AND_OFFSET | {"offset_applied": True, "is_jp2": True}, 1000, "offset -0.1 of the item"),
        # Earth Search v0: no offsets.
        ({"offset_applied": True, "processing_baseline": "04.00"}, 0, "applied to the values already"),
        ({"processing_baseline": "02.14"}, 0, "processing baseline 02.14"),
        # Earth Search c1: the item and the file name the offset.
        (
            {**FLAG_AND_OFFSET, "offset_applied": False, "file_scale": 0.0001, "file_offset": -0.1},
            1000,
            "offset -0.1 of the item",
        ),
        # Planetary Computer: nothing but the baseline.
        ({"processing_baseline": "05.10"}, 1000, "processing baseline 05.10"),
        ({"processing_baseline": "03.01"}, 0, "processing baseline 03.01"),
        ({"processing_baseline": "04.00"}, 1000, "processing baseline 04.00"),
        ({"processing_baseline": "04.00", "offset_applied": False}, 1000, "processing baseline 04.00"),
        # CDSE: JPEG 2000 with scale and offset.
        (FLAG_AND_OFFSET | {"is_jp2": True}, 1000, "offset -0.1 of the item"),
        # Our own, and GDAL's tags.
        ({"item_scale": 0.0001, "item_offset": 0.0}, 0, "offset 0 of the item"),
        ({"file_scale": 0.0001, "file_offset": 0.0}, 0, "offset 0 of the file"),
        ({"file_scale": 0.0001, "file_offset": -0.1}, 1000, "offset -0.1 of the file"),
        ({"file_scale": float(np.float32(0.0001)), "file_offset": float(np.float32(-0.1))}, 1000, "of the file"),
        # No product before 04.00 has the shift, whatever a catalogue writes into all of its items.
        ({"item_scale": 0.0001, "item_offset": -0.1, "processing_baseline": "02.14"}, 0, "which has no shift"),
        # Offset 0 for a product that had the shift, and somebody says that it was left on.
        (
            {"item_scale": 0.0001, "item_offset": 0, "processing_baseline": "05.10", "offset_applied": False},
            1000,
            "05.10",
        ),
        ({"item_scale": 0.0001, "item_offset": 0, "processing_baseline": "05.10", "is_jp2": True}, 1000, "against"),
        # A scale alone: the product's baseline gives the offset.
        ({"item_scale": 0.0001, "processing_baseline": "05.10"}, 1000, "no offset of the item"),
        ({"item_scale": 0.0001}, 0, "no offset of the item"),
        ({"item_scale": 0.0001, "file_scale": 0.0001, "file_offset": -0.1}, 1000, "of the file"),
        # What a format has where nobody set it says nothing.
        ({"file_scale": 1.0, "file_offset": 0.0, "processing_baseline": "05.10"}, 1000, "processing baseline 05.10"),
    ],
)
def test_the_shift_is_taken_off_once(evidence: dict[str, Any], shift: int, rule: str) -> None:
    found = decide("scene", Evidence(**evidence), None)
    assert (found.scale, found.offset, found.shift) == (1, -shift, shift)
    assert rule in found.rule


@pytest.mark.parametrize(
    ("evidence", "says"),
    [
        ({}, "nothing says whether"),
        ({"offset_applied": False}, "nothing says whether"),
        ({"file_scale": 1.0, "file_offset": 0.0}, "nothing says whether"),
        ({"offset_applied": True, "is_jp2": True}, "nothing says whether"),
        (
            {"item_scale": 0.0001, "item_offset": 0, "processing_baseline": "05.10"},
            "processing baseline 05.10 that they",
        ),
        (
            {"file_scale": 0.0001, "file_offset": 0, "processing_baseline": "04.00"},
            "processing baseline 04.00 that they",
        ),
        (
            {"item_scale": 0.0001, "item_offset": -0.1, "file_scale": 0.0001, "file_offset": 0.0},
            "offset -0.1 of the item differ from scale 0.0001 and offset 0 of the file",
        ),
        ({"item_scale": 1.0, "item_offset": -1000.0}, "scale 1.0 and offset -1000.0 of the item"),
        ({"item_offset": -0.1}, "scale None and offset -0.1"),
        ({"item_scale": -0.0001, "item_offset": 0}, "scale -0.0001"),
        # An offset in stored values, or of the wrong sign.
        ({"item_scale": 0.0001, "item_offset": -1000.0, "processing_baseline": "05.10"}, "offset -1000.0 of the item"),
        ({"item_scale": 0.0001, "item_offset": 1000.0, "processing_baseline": "05.10"}, "offset 1000.0 of the item"),
        ({"item_scale": 0.0001, "item_offset": 0.1, "processing_baseline": "05.10"}, "offset 0.1 of the item"),
        ({"file_scale": 0.0001, "file_offset": -1.0}, "scale 0.0001 and offset -1.0 of the file"),
        # Percent, and next to nothing.
        ({"item_scale": 0.01, "item_offset": 0.0}, "scale 0.01"),
        ({"item_scale": 0.01, "processing_baseline": "02.14"}, "scale 0.01"),
        ({"file_scale": 1e-6, "file_offset": 0.0}, "scale 1e-06"),
        # No numbers.
        ({"file_scale": 0.0001, "file_offset": math.nan}, "offset nan of the file"),
        ({"file_scale": 1.0, "file_offset": math.nan, "processing_baseline": "05.10"}, "offset nan of the file"),
        ({"file_scale": 0.0001, "file_offset": -math.inf}, "offset -inf of the file"),
        ({"item_scale": math.nan, "item_offset": 0.0}, "scale nan"),
        ({"item_scale": math.inf, "item_offset": -0.1}, "scale inf"),
    ],
)
def test_what_cannot_be_decided_names_the_scene_and_the_setting(evidence: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=r"--set baseline=before-04\.00") as caught:
        decide("a scene", Evidence(**evidence), None)
    assert caught.value.subject == "a scene"
    assert says in caught.value.found
    assert decide("a scene", Evidence(**evidence), "from-04.00").shift == 1000, "who says it is believed"


def test_a_setting_is_believed_against_all_evidence() -> None:
    values: dict[str, list[Any]] = {
        "item_scale": [None, 0.0001, 1.0],
        "item_offset": [None, 0.0, -0.1],
        "offset_applied": [None, True, False],
        "processing_baseline": [None, "02.14", "05.10"],
        "is_jp2": [True, False],
    }
    for combination in product(*values.values()):
        evidence = Evidence(**dict(zip(values, combination, strict=True)))
        assert decide("x", evidence, "from-04.00") == conversion_of("from-04.00")
        assert decide("x", evidence, "before-04.00").shift == 0
        try:
            found = decide("x", evidence, None)
        except DataError:
            continue
        assert found.shift in (0, 1000)
        assert found.rule


@given(
    pixels=st.lists(st.integers(0, 65535), min_size=1, max_size=50),
    valid=st.lists(st.booleans(), min_size=50, max_size=50),
    shift=st.sampled_from([0, 1000]),
)
def test_values_are_those_of_training_tiles_whatever_says_so(pixels: list[int], valid: list[bool], shift: int) -> None:
    stored = np.array(pixels, np.uint16)[None, None]
    mask = np.array(valid[: len(pixels)])[None]
    tile = to_reflectance(stored, mask, "from-04.00" if shift else "before-04.00")
    expected = np.where(mask, np.maximum(stored.astype(int) - shift, 1), 0)
    assert tile.dtype == np.uint16
    np.testing.assert_array_equal(tile, expected)
    evidence = Evidence(item_scale=0.0001, item_offset=-shift / 10000)
    np.testing.assert_array_equal(decide("x", evidence, None).apply(stored, mask), tile)


def test_other_scales_round_half_to_even_and_are_clipped() -> None:
    # Landsat's Collection 2: reflectance is 2.75e-5 x value - 0.2.
    found = decide("x", Evidence(item_scale=2.75e-5, item_offset=-0.2), None)
    assert found.shift == 7273
    assert decide("x", Evidence(item_scale=1 / 65535, item_offset=0), None).scale == pytest.approx(10000 / 65535)
    assert decide("x", Evidence(item_scale=0.001, item_offset=0), None).scale == 10
    stored = np.array([[[0, 1, 7273, 20000, 65535]]], np.uint16)
    reflectance = found.apply(stored, np.array([[False, True, True, True, True]]))
    np.testing.assert_array_equal(reflectance, [[[0, 1, 1, 3500, 16022]]])
    half = Conversion(0.5, 0, "")
    np.testing.assert_array_equal(half.apply(np.array([[[3, 5, 7]]], np.uint16), np.ones((1, 3), bool)), [[[2, 2, 4]]])
    large = Conversion(10, 0, "").apply(np.array([[[6553, 6554]]], np.uint16), np.ones((1, 2), bool))
    np.testing.assert_array_equal(large, [[[65530, 65535]]])


def test_negative_stored_values_become_one() -> None:
    stored = np.array([[[-9, 0, 1, 32767]]], np.int16)
    found = conversion_of("before-04.00").apply(stored, np.ones((1, 4), bool))
    np.testing.assert_array_equal(found, [[[1, 1, 1, 32767]]])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("05.10", "05.10"),
        ("N0400", "04.00"),
        ("02.14", "02.14"),
        ("1.2.0", None),
        ("5.1", None),
        ("99.99", None),
        ("00.01", "00.01"),
        ("09.99", "09.99"),
        ("10.00", None),
        ("2023", None),
        ("0510", None),
        ("N2023", None),
        ("", None),
    ],
)
def test_only_ESAs_numbers_are_processing_baselines(text: str, number: str | None) -> None:
    assert baseline_number(text) == number


def test_a_baseline_is_read_from_the_name_of_a_product_only() -> None:
    product_name = "S2B_MSIL2A_20220413T150759_N0400_R025_T33XWJ_20220414T082126"
    assert baseline_in_name(f"s3://eodata/{product_name}.SAFE/GRANULE/L2A/IMG_DATA/R10m/T33XWJ_B02_10m.jp2") == "04.00"
    assert baseline_in_name("s3://bucket/my_N0400_scene/B02.tif") is None
    assert baseline_in_name(product_name.replace("N0400", "N9999")) is None
