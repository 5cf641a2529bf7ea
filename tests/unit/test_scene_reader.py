"""Pixels of a window are those of training tiles, whatever the files of a scene are like."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import ColorInterp
from rasterio.env import get_gdal_config

from raytrain import storage
from raytrain.config import Baseline
from raytrain.errors import DataError
from raytrain.imagery import rasters
from raytrain.imagery.baseline import to_reflectance
from raytrain.imagery.scene_files import ALL_BANDS, BandFile, SceneSource
from raytrain.imagery.scene_reader import SceneReader, open_scene
from raytrain.storage import Retries
from raytrain.tiles.archive import read_chip
from tests.webserver import WebServer

CORNER = (300000.0, 5000000.0)


def write(
    path: Path,
    pixels: NDArray[Any],
    *,
    pixel_m: float = 10.0,
    crs: str | None = "EPSG:32633",
    corner: tuple[float, float] | None = CORNER,
    names: Sequence[str] = (),
    tags: dict[str, str] | None = None,
    **profile: Any,
) -> str:
    """Write pixels `[C, H, W]` or `[H, W]` as a GeoTIFF."""
    bands = pixels if pixels.ndim == 3 else pixels[None]
    profile = {"driver": "GTiff", "dtype": bands.dtype.name, "count": len(bands), "crs": crs} | profile
    if corner is not None:
        profile["transform"] = Affine(pixel_m, 0, corner[0], 0, -pixel_m, corner[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", height=bands.shape[1], width=bands.shape[2], **profile) as target:
        target.write(bands)
        if names:
            target.descriptions = tuple(names)
        if tags:
            target.update_tags(**tags)
    return str(path)


def noise(seed: int, *shape: int, dtype: Any = np.uint16, low: int = 0, high: int = 12000) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def scene(files: dict[str, str | BandFile], **facts: Any) -> SceneSource:
    made = {name: file if isinstance(file, BandFile) else BandFile(uri=file) for name, file in files.items()}
    return SceneSource(scene_id="scene", files=made, identity="1", **facts)


@contextmanager
def opened(
    source: SceneSource, bands: Sequence[str] = ("B02", "B03", "B04", "B08"), baseline: Baseline | None = "before-04.00"
) -> Iterator[SceneReader]:
    with open_scene(source, bands, baseline) as reader:
        yield reader


def whole(reader: SceneReader) -> rasters.Raster:
    return reader.read(0, 0, reader.height, reader.width)


def refusal(
    source: SceneSource, bands: Sequence[str] = ("B02", "B08"), baseline: Baseline | None = "before-04.00"
) -> str:
    with pytest.raises(DataError) as caught, open_scene(source, bands, baseline) as reader:
        whole(reader)
    return str(caught.value)


def test_a_scene_has_the_pixels_of_the_chip_with_the_same_bands(tmp_path: Path) -> None:
    pixels = noise(0, 4, 50, 60)
    pixels[:, :10, :20] = 0
    names = ("B02", "B03", "B04", "B08")
    chip = {name: write(tmp_path / f"chip/{name}.tif", band) for name, band in zip(names, pixels, strict=True)}
    raster = read_chip("chip", chip)
    cog = write(tmp_path / "scene.tif", pixels[[3, 0, 1, 2]], names=("B08", "B02", "B03", "B04"))
    for baseline in ("before-04.00", "from-04.00"):
        tile = to_reflectance(raster.pixels, raster.valid, baseline)  # type: ignore[arg-type]
        for source in (scene({ALL_BANDS: cog}), scene(dict(chip))):
            with opened(source, names, baseline) as reader:  # type: ignore[arg-type]
                found = whole(reader)
                assert reader.bands == names
                assert (reader.height, reader.width) == (50, 60)
            np.testing.assert_array_equal(found.pixels, tile)
            np.testing.assert_array_equal(found.valid, raster.valid)
            assert found.georeference == raster.georeference


def test_bands_come_in_the_order_wanted_and_missing_ones_are_left_out(tmp_path: Path) -> None:
    pixels = noise(1, 4, 8, 8, low=1)
    cog = write(tmp_path / "scene.tif", pixels)
    with opened(scene({ALL_BANDS: cog}), ("B08", "B11", "B02")) as reader:
        assert reader.bands == ("B08", "B02")
        np.testing.assert_array_equal(whole(reader).pixels, pixels[[3, 0]])
    files = {"B04": BandFile(uri=cog, index=3), "B02": BandFile(uri=cog, index=1)}
    with opened(scene(dict(files)), ("B02", "B03", "B04")) as reader:
        assert reader.bands == ("B02", "B04")
        np.testing.assert_array_equal(whole(reader).pixels, pixels[[0, 2]])


def test_common_names_in_descriptions_name_bands(tmp_path: Path) -> None:
    pixels = noise(2, 3, 8, 8, low=1)
    cog = write(tmp_path / "scene.tif", pixels, names=("nir", "red", "mask"))
    with opened(scene({ALL_BANDS: cog})) as reader:
        assert reader.bands == ("B04", "B08")
        np.testing.assert_array_equal(whole(reader).pixels, pixels[[1, 0]])
        np.testing.assert_array_equal(whole(reader).pixels, pixels[[1, 0]])


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("B8", "B4", "B3", "B2"), {"B02": 3, "B03": 2, "B04": 1, "B08": 0}),
        (("B2", "B3", "B4", "B8", "QA60"), {"B02": 0, "B03": 1, "B04": 2, "B08": 3}),
        (("B1", "B2", "B8", "B8A", "B11"), {"B02": 1, "B08": 2, "B8A": 3, "B11": 4}),
        (("B4", "B12"), {"B04": 0}),
        # Landsat's B5 is near infrared, its B8 panchromatic.
        (("B2", "B3", "B4", "B5"), None),
        (("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8"), None),
    ],
)
def test_earth_engines_names_count_where_they_can_be_sentinel_2s_only(
    tmp_path: Path, names: tuple[str, ...], found: dict[str, int] | None
) -> None:
    wanted = ("B02", "B03", "B04", "B08", "B8A", "B11")
    pixels = noise(2, len(names), 8, 8, low=1)
    source = scene({ALL_BANDS: write(tmp_path / "scene.tif", pixels, names=names)})
    if found is None:
        assert "none of the bands" in refusal(source, wanted)
        return
    with opened(source, wanted) as reader:
        assert reader.bands == tuple(found)
        np.testing.assert_array_equal(whole(reader).pixels, pixels[list(found.values())])


RED, GREEN, BLUE, NIR, GREY, OTHER, ALPHA = (
    ColorInterp[name] for name in ("red", "green", "blue", "nir", "gray", "undefined", "alpha")
)


@pytest.mark.parametrize(
    ("colours", "names", "found"),
    [
        ((RED, GREEN, BLUE, OTHER), (), {"B02": 2, "B03": 1, "B04": 0, "B08": 3}),
        ((NIR, RED, GREEN, BLUE), (), {"B02": 3, "B03": 2, "B04": 1, "B08": 0}),
        ((OTHER, BLUE, GREEN, RED), (), {"B02": 1, "B03": 2, "B04": 3, "B08": 0}),
        ((RED, GREEN, BLUE, ALPHA), (), {"B02": 2, "B03": 1, "B04": 0}),
        ((RED, GREEN, BLUE), (), {"B02": 2, "B03": 1, "B04": 0}),
        ((GREY, OTHER, OTHER, OTHER), (), {"B02": 0, "B03": 1, "B04": 2, "B08": 3}),
        # A description is surer than a colour.
        ((RED, GREEN, BLUE), ("B08", "B04", "B03"), {"B03": 2, "B04": 1, "B08": 0}),
        ((RED, GREEN, BLUE), ("B08", "B04", ""), {"B02": 2, "B04": 1, "B08": 0}),
        ((RED, RED, BLUE), ("B03", "", ""), {"B02": 2, "B03": 0}),
    ],
)
def test_colours_name_the_bands_that_have_no_descriptions(
    tmp_path: Path, colours: tuple[ColorInterp, ...], names: tuple[str, ...], found: dict[str, int]
) -> None:
    pixels = noise(2, len(colours), 8, 8, low=1)
    path = write(tmp_path / "scene.tif", pixels, names=names, photometric="MINISBLACK")
    with rasterio.open(path, "r+") as target:
        target.colorinterp = colours
    (tmp_path / "scene.tif.aux.xml").unlink(missing_ok=True)
    with rasterio.open(path) as target:
        assert target.colorinterp == colours
    with opened(scene({ALL_BANDS: path})) as reader:
        assert reader.bands == tuple(found)
        np.testing.assert_array_equal(whole(reader).pixels, pixels[list(found.values())])


@functools.cache
def mixed_scene(folder: Path) -> SceneSource:
    """Two bands of 10 m, one of 20 m, one of 60 m, each with pixels of no data."""
    files = {}
    for name, ratio, seed in (("B02", 1, 1), ("B08", 1, 2), ("B11", 2, 3), ("B01", 6, 4)):
        pixels = noise(seed, 60 // ratio, 48 // ratio)
        pixels[: 12 // ratio, : 24 // ratio] = 0
        tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16} if ratio == 1 else {}
        nodata = 0 if ratio == 1 else None
        files[name] = write(folder / f"{name}.tif", pixels, pixel_m=10.0 * ratio, nodata=nodata, **tiles)
    return scene(dict(files))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_window_is_the_crop_of_the_whole(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = mixed_scene(tmp_path_factory.getbasetemp() / "mixed")
    with opened(source, ("B01", "B02", "B11", "B08")) as reader:
        full = whole(reader)
        row, column = data.draw(st.integers(0, 59)), data.draw(st.integers(0, 47))
        height, width = data.draw(st.integers(1, 60 - row)), data.draw(st.integers(1, 48 - column))
        found = reader.read(row, column, height, width)
    box = (slice(row, row + height), slice(column, column + width))
    np.testing.assert_array_equal(found.pixels, full.pixels[:, *box])
    np.testing.assert_array_equal(found.valid, full.valid[box])
    assert found.georeference.transform is not None
    assert found.georeference.transform[2] == CORNER[0] + 10 * column
    assert found.georeference.transform[5] == CORNER[1] - 10 * row


def test_a_coarser_band_is_brought_up_by_repeating_its_pixels(tmp_path: Path) -> None:
    with opened(mixed_scene(tmp_path), ("B01", "B02", "B11")) as reader:
        found = whole(reader)
        assert reader.transform == (10.0, 0.0, CORNER[0], 0.0, -10.0, CORNER[1])
        assert reader.crs == "EPSG:32633"
    for band, ratio, seed in ((0, 6, 4), (2, 2, 3)):
        expected = noise(seed, 60 // ratio, 48 // ratio).repeat(ratio, 0).repeat(ratio, 1)
        np.testing.assert_array_equal(found.pixels[band][found.valid], np.maximum(expected, 1)[found.valid])
    assert not found.valid[:12, :24].any()


def test_the_grid_is_that_of_the_finest_band_that_is_wanted(tmp_path: Path) -> None:
    with opened(mixed_scene(tmp_path), ("B01", "B11")) as reader:
        assert (reader.height, reader.width) == (30, 24)
        assert reader.transform == (20.0, 0.0, CORNER[0], 0.0, -20.0, CORNER[1])


def test_no_data_is_by_the_files_that_name_it(tmp_path: Path) -> None:
    first, second = np.full((4, 4), 5, np.uint16), np.full((4, 4), 7, np.uint16)
    first[0], second[1] = 0, 0
    one = write(tmp_path / "B02.tif", first, nodata=0)
    two = write(tmp_path / "B08.tif", second)
    with opened(scene({"B02": one, "B08": two})) as reader:
        found = whole(reader)
    np.testing.assert_array_equal(found.valid[:, 0], [False, True, True, True])
    np.testing.assert_array_equal(found.pixels[1, :, 0], [0, 1, 7, 7])


def test_no_data_is_what_the_catalogue_says_where_the_file_says_nothing(tmp_path: Path) -> None:
    pixels = np.array([[0, 5, 7]], np.uint16)
    silent, saying = write(tmp_path / "silent.tif", pixels), write(tmp_path / "saying.tif", pixels, nodata=7)

    def valid(uri: str, nodata: float | None) -> list[bool]:
        with opened(scene({"B02": BandFile(uri=uri, nodata=nodata)})) as reader:
            return list(whole(reader).valid[0])

    assert valid(silent, None) == [False, True, True]
    assert valid(silent, 5) == [True, False, True]
    assert valid(saying, 5) == [True, True, False]
    for impossible in (-9999, 65536, 0.5):
        assert valid(silent, impossible) == [False, True, True], "one that uint16 can't hold names none"


def test_zero_in_any_band_of_sentinel_2_is_no_data_where_its_files_name_none(tmp_path: Path) -> None:
    blue, red = np.full((4, 16), 1500, np.uint16), np.full((4, 16), 1500, np.uint16)
    blue[0], red[:2] = 0, 0

    def valid(
        ending: str = "tif", nodata: float | None = None, of_red: float | None = None, **facts: Any
    ) -> list[bool]:
        uris = [str(tmp_path / f"{name}.{ending}") for name in ("B02", "B04")]
        for uri, pixels in zip(uris, (blue, red), strict=True):
            profile = {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES"} if ending == "jp2" else {}
            write(Path(uri), pixels, nodata=nodata, **profile)
        files = {"B02": BandFile(uri=uris[0]), "B04": BandFile(uri=uris[1], nodata=of_red)}
        with opened(scene(dict(files), **facts)) as reader:
            return list(whole(reader).valid[:, 0])

    assert valid() == [False, True, True, True], "of other files all bands have to be 0"
    assert valid(processing_baseline="05.10") == [False, False, True, True]
    assert valid(processing_baseline="02.14") == [False, False, True, True]
    assert valid("jp2") == [False, False, True, True]
    assert valid(processing_baseline="05.10", of_red=-9999) == [False, False, True, True]
    assert valid(processing_baseline="05.10", of_red=7) == [False, True, True, True], "who names a value is believed"
    assert valid(processing_baseline="05.10", nodata=7) == [True, True, True, True]


@pytest.mark.parametrize("nodata", [None, 7])
def test_what_a_mask_or_an_alpha_band_leaves_out_is_no_data(tmp_path: Path, nodata: int | None) -> None:
    fine, coarse = noise(2, 2, 64, 64, low=8), noise(3, 32, 32, low=8)
    fine[:, 60:] = 7
    keeps = np.ones((64, 64), bool)
    keeps[5:20, 30:], keeps[33, 34] = False, False
    blue = write(
        tmp_path / "x.tif", fine, names=("B02", "B08"), nodata=nodata, tiled=True, blockxsize=16, blockysize=16
    )
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(blue, "r+") as target:
        target.write_mask(keeps)
    alpha = np.stack([coarse, np.full((32, 32), 65535, np.uint16)])
    alpha[1, :, :3] = 0
    alpha[1, :, 3] = 1
    swir = write(tmp_path / "y.tif", alpha, pixel_m=20.0, nodata=nodata, alpha="YES", photometric="MINISBLACK")
    keeps[:, :6] = False
    if nodata is not None:
        keeps[60:] = False
    files = {"B02": BandFile(uri=blue, index=1), "B08": BandFile(uri=blue, index=2), "B11": BandFile(uri=swir)}
    with opened(scene(dict(files)), ("B02", "B08", "B11")) as reader:
        assert reader.bands == ("B02", "B08", "B11")
        found = whole(reader)
        np.testing.assert_array_equal(found.valid, keeps)
        np.testing.assert_array_equal(found.pixels[0] != 0, keeps)
        np.testing.assert_array_equal(reader.read(3, 5, 31, 47).valid, keeps[3:34, 5:52])


def test_what_a_mask_leaves_out_of_a_chip_is_no_data(tmp_path: Path) -> None:
    pixels, keeps = noise(2, 2, 16, 16, low=8), np.ones((16, 16), bool)
    keeps[:, 3] = False
    files = {name: write(tmp_path / f"{name}.tif", band) for name, band in zip(("B02", "B08"), pixels, strict=True)}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(files["B08"], "r+") as target:
        target.write_mask(keeps)
    chip = read_chip("chip", files)
    np.testing.assert_array_equal(chip.valid, keeps)
    np.testing.assert_array_equal(chip.pixels, pixels)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_lies_beside_a_local_file_counts(tmp_path: Path) -> None:
    pixels = noise(2, 16, 16, low=10)
    pixels[0] = 9
    keeps = np.ones((16, 16), bool)
    keeps[:, 3] = False
    path = tmp_path / "B02.tif"
    write(path, pixels, crs=None, corner=None)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as target:
        target.write_mask(keeps)
    assert (tmp_path / "B02.tif.msk").exists()
    (tmp_path / "B02.tfw").write_text("10\n0\n0\n-10\n300005\n4999995\n")
    band = '<PAMRasterBand band="1"><NoDataValue>9</NoDataValue></PAMRasterBand>'
    (tmp_path / "B02.tif.aux.xml").write_text(f"<PAMDataset><SRS>EPSG:32633</SRS>{band}</PAMDataset>")
    keeps[0] = False
    with opened(scene({"B02": str(path)})) as reader:
        assert reader.crs == "EPSG:32633"
        assert reader.transform == (10.0, 0.0, *CORNER[:1], 0.0, -10.0, *CORNER[1:])
        np.testing.assert_array_equal(whole(reader).valid, keeps)


def test_a_mask_beside_a_file_is_a_tiff_or_an_error(tmp_path: Path) -> None:
    uri = write(tmp_path / "B02.tif", noise(2, 16, 16))
    (tmp_path / "B02.tif.msk").write_text('<VRTDataset rasterXSize="16" rasterYSize="16"/>')
    assert refusal(scene({"B02": uri})) == f"{uri}.msk: not a GeoTIFF, expected one that is the mask of {uri}"


def test_gdal_asks_for_what_lies_beside_by_name_and_for_nothing_afterwards() -> None:
    with storage.gdal_environment():
        with storage.gdal_finds_beside():
            assert get_gdal_config("GDAL_DISABLE_READDIR_ON_OPEN") == "TRUE", "it would list the folder"
            assert str(get_gdal_config("GDAL_NUM_THREADS")) == "1"
        assert get_gdal_config("GDAL_DISABLE_READDIR_ON_OPEN") == "EMPTY_DIR"
        assert str(get_gdal_config("GDAL_NUM_THREADS")) == "1"


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "B02.tif")
    assert "a device or a pipe" in refusal(scene({"B02": str(tmp_path / "B02.tif")}))


def test_int16_is_read_and_negative_values_become_one(tmp_path: Path) -> None:
    uri = write(tmp_path / "B02.tif", np.array([[-9999, -5, 0, 1, 9000]], np.int16), nodata=-9999)
    with opened(scene({"B02": uri})) as reader:
        np.testing.assert_array_equal(whole(reader).pixels, [[[0, 1, 1, 1, 9000]]])


def test_jpeg_2000_of_esa_is_read(tmp_path: Path) -> None:
    pixels = noise(5, 1, 64, 64, low=1001)
    path = tmp_path / "T33UXP_20240531T100031_B02_10m.JP2"
    write(path, pixels, driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES")
    with opened(scene({"B02": str(path)}, processing_baseline="05.10"), baseline=None) as reader:
        np.testing.assert_array_equal(whole(reader).pixels, pixels - 1000)
        assert reader.conversion.shift == 1000


def test_the_shift_is_decided_by_item_file_and_setting(tmp_path: Path) -> None:
    pixels = noise(6, 1, 8, 8, low=1001)
    plain, tagged = write(tmp_path / "plain.tif", pixels), write(tmp_path / "tagged.tif", pixels)
    with rasterio.open(tagged, "r+") as target:
        target.scales, target.offsets = [0.0001], [-0.1]
    of_item = BandFile(uri=plain, index=1, scale=0.0001, offset=-0.1)
    for source, baseline, shift in (
        (scene({"B02": tagged}), None, 1000),
        (scene({"B02": of_item}), None, 1000),
        (scene({"B02": of_item}, offset_applied=True), None, 0),
        (scene({"B02": tagged}), "before-04.00", 0),
        (scene({"B02": plain}), "from-04.00", 1000),
        (scene({"B02": plain}, processing_baseline="05.10"), None, 1000),
    ):
        with opened(source, baseline=baseline) as reader:  # type: ignore[arg-type]
            np.testing.assert_array_equal(whole(reader).pixels, pixels - shift)
            assert reader.conversion.shift == shift
    text = refusal(scene({"B02": plain}), baseline=None)
    assert "plain.tif" in text
    assert "--set baseline=" in text


def test_bands_whose_shifts_differ_are_refused(tmp_path: Path) -> None:
    uri = write(tmp_path / "two.tif", noise(7, 2, 8, 8))
    files = {
        "B02": BandFile(uri=uri, index=1, scale=0.0001, offset=0),
        "B08": BandFile(uri=uri, index=2, scale=0.0001, offset=-0.1),
    }
    text = refusal(scene(dict(files)), baseline=None)
    assert "B02 is stored by scale 0.0001 and offset 0 of the item, B08 by scale 0.0001 and offset -0.1" in text


def test_the_time_is_that_of_the_catalogue_or_of_the_tags(tmp_path: Path) -> None:
    pixels = noise(8, 1, 4, 4)
    tagged = write(tmp_path / "a.tif", pixels, tags={"TIFFTAG_DATETIME": "2021:06:03 10:20:30"})
    bare = write(tmp_path / "b.tif", pixels)
    odd = write(tmp_path / "c.tif", pixels, tags={"TIFFTAG_DATETIME": "yesterday"})
    acquired = write(
        tmp_path / "d.tif",
        pixels,
        tags={"ACQUISITIONDATETIME": "2021-06-02 09:00:00", "TIFFTAG_DATETIME": "2023:01:01 00:00:00"},
    )
    for source, expected in (
        (scene({"B02": tagged}), "2021-06-03T10:20:30Z"),
        (scene({"B02": tagged}, datetime="2021-06-03T10:20:31Z"), "2021-06-03T10:20:31Z"),
        (scene({"B02": bare}), None),
        (scene({"B02": odd}), None),
        (scene({"B02": acquired}), "2021-06-02T09:00:00Z"),
    ):
        with opened(source) as reader:
            assert reader.datetime == expected


def test_bands_of_different_places_and_sizes_are_refused(tmp_path: Path) -> None:
    fine = write(tmp_path / "B02.tif", noise(1, 60, 60))
    half = noise(2, 30, 30)
    moved = (300001.0, 5000000.0)
    cases = [
        (
            write(tmp_path / "odd.tif", noise(2, 40, 40), pixel_m=15.0),
            "40 x 40 px, B02 60 x 60: expected a whole ratio",
        ),
        (write(tmp_path / "flat.tif", noise(2, 30, 60)), "60 x 30 px, B02 60 x 60: expected a whole ratio"),
        (write(tmp_path / "moved.tif", half, pixel_m=20.0, corner=moved), "expected the same corners, to 0.01 pixels"),
        (write(tmp_path / "large.tif", half, pixel_m=20.01), "pixels of 20.01 by -20.01 and 10 by -10"),
        (write(tmp_path / "zone.tif", half, pixel_m=20.0, crs="EPSG:32634"), "in EPSG:32633: expected one CRS"),
        (write(tmp_path / "nowhere.tif", half, pixel_m=20.0, crs=None), "in an unknown CRS, B02 at"),
    ]
    for uri, expected in cases:
        text = refusal(scene({"B02": fine, "B08": uri}))
        assert Path(uri).name in text
        assert expected in text
    nearly = write(tmp_path / "near.tif", noise(2, 30, 30), pixel_m=20.0, corner=(300000.05, 5000000.0))
    with opened(scene({"B02": fine, "B08": nearly})) as reader:
        assert reader.bands == ("B02", "B08")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_scene_without_a_place_is_read(tmp_path: Path) -> None:
    fine = write(tmp_path / "B02.tif", noise(1, 60, 60), crs=None, corner=None)
    coarse = write(tmp_path / "B11.tif", noise(2, 30, 30), crs=None, corner=None)
    with opened(scene({"B02": fine, "B11": coarse}), ("B02", "B11")) as reader:
        assert reader.transform is None
        assert reader.crs is None
        assert reader.read(3, 5, 7, 9).pixels.shape == (2, 7, 9)


def test_other_types_and_wrong_numbers_of_bands_are_refused(tmp_path: Path) -> None:
    real = write(tmp_path / "real.tif", noise(1, 8, 8, dtype=np.float32))
    assert "real.tif: band B02 is float32, expected uint16 or int16" in refusal(scene({"B02": real}))
    one = write(tmp_path / "one.tif", noise(1, 8, 8))
    assert "band 3 is said to be B02, but the file has 1" in refusal(scene({"B02": BandFile(uri=one, index=3)}))
    two = write(tmp_path / "two.tif", noise(1, 2, 8, 8))
    assert "2 bands, none of them named B02" in refusal(scene({"B02": two}))
    assert "bands found: B11" in refusal(scene({"B11": one}))
    named = write(tmp_path / "named.tif", noise(1, 2, 8, 8), names=("B11", ""))
    assert "none of the bands B02, B08 (bands found: B11, number 2 without a name)" in refusal(
        scene({ALL_BANDS: named})
    )
    assert "bands found: none" in refusal(scene({}))


def test_truncated_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "B02.tif", noise(1, 256, 256)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "B02.tif: scene from row 0 on is not a readable GeoTIFF, perhaps truncated" in refusal(
        scene({"B02": str(path)})
    )
    assert refusal(scene({"B02": str(tmp_path / "none.tif")})) == f"{tmp_path / 'none.tif'}: no such file"
    (tmp_path / "empty.tif").touch()
    assert "empty.tif: scene is not a readable GeoTIFF" in refusal(scene({"B02": str(tmp_path / "empty.tif")}))
    (tmp_path / "text.jp2").write_text("no image")
    assert "text.jp2: scene is not a readable JPEG 2000 file" in refusal(scene({"B02": str(tmp_path / "text.jp2")}))


def test_a_scene_in_a_store_is_read_and_its_missing_file_is_named(s3: str, tmp_path: Path) -> None:
    pixels = noise(9, 2, 64, 64, low=1)
    path = Path(write(tmp_path / "x.tif", pixels, names=("B02", "B08")))
    uri = storage.join(s3, tmp_path.name, "x.tif")
    storage.write_bytes(uri, path.read_bytes())
    with opened(scene({ALL_BANDS: uri})) as reader:
        np.testing.assert_array_equal(reader.read(10, 20, 30, 40).pixels, pixels[:, 10:40, 20:60])
    missing = storage.join(s3, tmp_path.name, "none.tif")
    assert refusal(scene({"B02": missing})) == f"{missing}: no such file"


def test_a_store_that_refuses_names_the_file_without_its_query() -> None:
    with WebServer({}) as web:
        storage.use_stores(storage.Stores(stores={web.origin: storage.StoreSettings(private_address=True)}))
        web.answers["/x.tif"] = [(403, {}, b"")] * 4
        text = refusal(scene({"B02": f"{web.origin}/x.tif?X-Amz-Signature=secret"}))
        absent = refusal(scene({"B02": f"{web.origin}/y.tif?X-Amz-Signature=secret"}))
        storage.use_stores(storage.Stores())
    assert text.startswith(f"{web.origin}/x.tif: ")
    assert "403" in text
    assert absent == f"{web.origin}/y.tif: no such file"
    assert "secret" not in text


def test_a_store_that_does_not_answer_is_no_fault_of_the_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    from raytrain.errors import StoreOutOfReach

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(storage.retries, "RETRIES", Retries(attempts=2, first_wait_s=0.01))
    with pytest.raises(StoreOutOfReach), opened(scene({"B02": "s3://bucket/x.tif"})):
        pass
