"""The rasters of a scene: valid COGs, whose bytes follow from the pixels and the georeference alone."""

from __future__ import annotations

import contextlib
import math
import resource
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from pydantic import ValidationError
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.windows import Window
from rio_cogeo.cogeo import cog_validate

from raytrain.scoring.layers import BLOCK_PX, Layer, Layers, create_striped, encode, finish_cog

UTM_SOUTH = CRS.from_epsg(32701)
NO_CODE = CRS.from_proj4("+proj=laea +lat_0=10 +lon_0=170 +datum=WGS84 +units=m")
NORTH_UP = Affine(10, 0, 300000, 0, -10, 5000000)
UINT8, FLOAT32 = (
    Layers(probability=name, disagreement=name, members=name, member_names=("a-b", "c"))
    for name in ("uint8", "float32")
)
EVERY_LAYER = [UINT8.layer(kind) for kind in UINT8.kinds[:4]] + [FLOAT32.layer(kind) for kind in FLOAT32.kinds[1:4]]
IDS = [f"{layer.kind}-{layer.dtype}" for layer in EVERY_LAYER]
every_layer = pytest.mark.parametrize("layer", EVERY_LAYER, ids=IDS)


def pixels_of(layer: Layer, height: int, width: int) -> NDArray[Any]:
    """Return what a layer stores for smooth values with noise, the first 40 rows without data."""
    generator = np.random.default_rng(0)
    smooth = np.add.outer(np.sin(np.arange(height) / 50), np.cos(np.arange(width) / 70)) / 4 + 0.5
    values = np.clip(smooth + generator.normal(0, 0.05, (height, width)), 0, 1).astype(np.float32) * layer.largest
    valid = np.ones((height, width), bool)
    valid[:40] = False
    return encode(layer, values, valid, 0.5)


def write(
    folder: Path,
    layer: Layer,
    pixels: NDArray[Any],
    windows: Sequence[Window] | None = None,
    threads: int = 1,
    place: tuple[CRS | None, Affine | None] = (UTM_SOUTH, NORTH_UP),
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with create_striped(folder / "striped.tif", layer, *pixels.shape, *place) as target:
        for window in windows or [Window(0, 0, pixels.shape[1], pixels.shape[0])]:
            rows, columns = window.toslices()
            target.write(pixels[rows, columns], 1, window=window)
    finish_cog(folder / "striped.tif", folder / "cog.tif", layer, threads)
    return folder / "cog.tif"


def blocks(height: int, width: int) -> list[Window]:
    corners = [(row, column) for row in range(0, height, BLOCK_PX) for column in range(0, width, BLOCK_PX)]
    return [Window(column, row, min(BLOCK_PX, width - column), min(BLOCK_PX, height - row)) for row, column in corners]


@every_layer
@pytest.mark.parametrize("shape", [(70, 90), (512, 513), (1300, 2100)])
def test_cog_is_valid_and_holds_the_pixels(layer: Layer, shape: tuple[int, int], tmp_path: Path) -> None:
    pixels = pixels_of(layer, *shape)
    path = write(tmp_path, layer, pixels)
    assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cog.tif", "striped.tif"], "no sidecars"
    with rasterio.open(path) as source:
        np.testing.assert_array_equal(source.read(1), pixels)
        assert source.dtypes == (layer.dtype,)
        assert source.nodata == layer.nodata or (math.isnan(source.nodata) and math.isnan(layer.nodata))
        assert source.descriptions == (layer.description,)
        assert source.scales == (layer.scale,)
        assert source.compression.name == "deflate"
        assert source.block_shapes == [(BLOCK_PX, BLOCK_PX)]
        assert max(source.shape) // max([1, *source.overviews(1)]) <= BLOCK_PX


@every_layer
def test_bytes_depend_on_neither_order_nor_division_of_writes_nor_threads(layer: Layer, tmp_path: Path) -> None:
    pixels = pixels_of(layer, 1100, 1300)
    rows = [Window(0, row, 1300, min(100, 1100 - row)) for row in range(0, 1100, 100)]
    whole = write(tmp_path / "whole", layer, pixels).read_bytes()
    shuffled = [blocks(1100, 1300)[i] for i in np.random.default_rng(1).permutation(9)]
    assert write(tmp_path / "blocks", layer, pixels, shuffled).read_bytes() == whole
    assert write(tmp_path / "rows", layer, pixels, rows).read_bytes() == whole, "not aligned to blocks"
    assert write(tmp_path / "twice", layer, pixels, [*shuffled, *rows], threads=3).read_bytes() == whole
    other = pixels.copy()
    other[700, 700] = 0 if other[700, 700] else 1
    assert write(tmp_path / "other", layer, other).read_bytes() != whole


@pytest.mark.parametrize(
    "place",
    [
        (UTM_SOUTH, NORTH_UP),
        (CRS.from_epsg(4326), Affine(1e-4, 0, 170.123456789, 0, -1e-4, -12.3456789)),
        (NO_CODE, Affine(8, 1.5, -1e5, 1.5, -8, 2e5)),
        (CRS.from_string("ESRI:54009"), NORTH_UP),
        (None, NORTH_UP),
    ],
    ids=["southern-utm", "geographic", "no-code-rotated", "esri", "no-crs"],
)
def test_crs_and_transform_are_those_of_the_source(place: tuple[CRS | None, Affine], tmp_path: Path) -> None:
    layer = UINT8.layer("mask")
    with rasterio.open(write(tmp_path, layer, pixels_of(layer, 60, 60), place=place)) as source:
        assert source.crs == place[0]
        assert tuple(source.transform)[:6] == tuple(place[1])[:6]


@pytest.mark.parametrize("transform", [None, Affine.identity()])
def test_source_without_a_place_gives_a_mask_without_one(transform: Affine | None, tmp_path: Path) -> None:
    layer = UINT8.layer("mask")
    with rasterio.open(write(tmp_path, layer, pixels_of(layer, 60, 60), place=(None, transform))) as source:
        assert source.crs is None
        assert source.transform == Affine.identity()


def test_mask_has_a_palette_and_keeps_the_commoner_class_in_overviews(tmp_path: Path) -> None:
    layer = UINT8.layer("mask")
    pixels = np.zeros((1024, 1024), np.uint8)
    pixels[::2, ::2] = pixels[1::2, ::2] = pixels[::2, 1::2] = 1  # three of four are cloud
    pixels[:512, :512] = 255
    pixels[1:512:2, 1:512:2] = 1  # of a block's four pixels one has data
    with rasterio.open(write(tmp_path, layer, pixels)) as source:
        assert source.colorinterp == (ColorInterp.palette,)
        colours = source.colormap(1)
        assert [colours[value][:3] for value in (0, 1, 255)] == [(0, 0, 0), (255, 255, 255), (128, 128, 128)]
        assert colours[255][3] == 0, "no data is transparent"
        np.testing.assert_array_equal(source.read(1, out_shape=(512, 512)), 1)


def test_overviews_of_probabilities_are_means_over_what_has_data(tmp_path: Path) -> None:
    for layers in (UINT8, FLOAT32):
        layer = layers.layer("probability")
        values = np.tile(np.float32([[0, 1], [1, 0]]), (512, 512))
        valid = np.ones(values.shape, bool)
        valid[:512:2, ::2] = valid[1:512:2, 1::2] = False  # above, only the ones have data
        path = write(tmp_path / layer.dtype, layer, encode(layer, values, valid, 0.5))
        with rasterio.open(path) as source:
            found = source.read(1, out_shape=(512, 512)) * layer.scale
        np.testing.assert_allclose(found[:256], 1)
        np.testing.assert_allclose(found[256:], 0.5)


@every_layer
def test_what_is_never_written_and_what_has_no_data_read_as_no_data(layer: Layer, tmp_path: Path) -> None:
    nothing = encode(layer, np.zeros((600, 600), np.float32), np.zeros((600, 600), bool), 0.5)
    explicit = write(tmp_path / "explicit", layer, nothing)
    untouched = write(tmp_path / "untouched", layer, nothing, [Window(0, 0, 1, 1)])
    for path in (explicit, untouched):
        with rasterio.open(path) as source:
            assert not source.read_masks(1).any()
    assert cog_validate(explicit, strict=True, quiet=True) == (True, [], [])
    assert untouched.read_bytes() == explicit.read_bytes()


def test_mask_is_cloud_where_the_probability_reaches_the_threshold() -> None:
    values = np.float32([[0.3, 0.4, 0.5, 1.0, 0.9]])
    valid = np.array([[True, True, True, True, False]])
    np.testing.assert_array_equal(encode(UINT8.layer("mask"), values, valid, 0.4), [[0, 1, 1, 1, 255]])
    assert encode(UINT8.layer("mask"), values, valid, 0.4).dtype == np.uint8


@pytest.mark.parametrize("kind", ["probability", "disagreement"])
def test_uint8_is_within_half_a_step_and_never_says_no_data_of_data(kind: Any) -> None:
    layer = UINT8.layer(kind)
    values = np.linspace(0, layer.largest, 10001, dtype=np.float32)[None]
    stored = encode(layer, values, np.ones(values.shape, bool), 0.5)
    assert stored.max() == 254
    assert np.abs(stored * layer.scale - values).max() <= layer.scale / 2 * 1.0001
    gone = encode(layer, values, np.zeros(values.shape, bool), 0.5)
    assert (gone == 255).all()


@pytest.mark.parametrize("kind", ["probability", "disagreement"])
def test_float32_keeps_every_bit(kind: Any) -> None:
    layer = FLOAT32.layer(kind)
    values = np.random.default_rng(0).random((50, 50), np.float32) * np.float32(layer.largest)
    valid = values > 0.1
    stored = encode(layer, values, valid, 0.5)
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, np.where(valid, values, np.float32(np.nan)))


@every_layer
@pytest.mark.parametrize("wrong", [-0.1, 1.2, math.nan])
def test_value_that_is_no_probability_is_refused_where_it_counts(layer: Layer, wrong: float) -> None:
    values = np.full((4, 4), layer.largest / 2, np.float32)
    values[1, 1] = wrong
    valid = np.ones((4, 4), bool)
    with pytest.raises(ValueError, match=f"{layer.kind} between .* expected 0 to"):
        encode(layer, values, valid, 0.5)
    valid[1, 1] = False
    encode(layer, values, valid, 0.5)


def test_kinds_are_those_asked_for_and_their_keys_do_not_meet() -> None:
    assert Layers().kinds == ("mask",)
    assert Layers(disagreement="uint8").kinds == ("mask", "disagreement")
    assert Layers(member_names=("c",)).kinds == ("mask",)
    keys = [UINT8.layer(kind).key("S2A") for kind in UINT8.kinds]
    assert keys == ["S2A.tif", *(f"{folder}/S2A.tif" for folder in FOLDERS)]
    for kind in ("probability", "member-c"):
        with pytest.raises(AssertionError):
            Layers().layer(kind)
    with pytest.raises(ValidationError, match="member_names"):
        Layers(members="uint8", member_names=("../c",))


FOLDERS = ("probability", "disagreement", "members/a-b", "members/c")


def test_map_of_a_member_is_stored_as_the_probability_is() -> None:
    for layers in (UINT8, FLOAT32):
        probability, one = layers.layer("probability"), layers.layer("member-a-b")
        assert replace(one, kind="probability", description=probability.description) == replace(
            probability, nodata=one.nodata
        )
        assert one.description == "cloud probability of the member a-b"


@pytest.mark.parametrize("encoding", ["none", "uint8", "float32"])
def test_mask_is_computed_from_the_probability_whatever_else_is_asked_for(encoding: Any) -> None:
    names = ("a", "b", "c")
    assert Layers(probability=encoding, member_names=names).num_computed == 1
    assert Layers(probability=encoding, members="uint8", member_names=names).num_computed == 4
    assert Layers(probability=encoding, members="uint8", member_names=names, disagreement="uint8").num_computed == 5


@pytest.mark.parametrize("shape", [(70, 90), (513, 512), (1300, 2100)])
@pytest.mark.parametrize("layers", [Layers(), UINT8, FLOAT32], ids=["mask", "uint8", "float32"])
def test_disk_stated_beforehand_is_enough_and_not_much_more(
    layers: Layers, shape: tuple[int, int], tmp_path: Path
) -> None:
    taken = 0
    for kind in layers.kinds:
        layer = layers.layer(kind)
        write(tmp_path / kind, layer, pixels_of(layer, *shape))
        taken += (tmp_path / kind / "striped.tif").stat().st_size
    stated = layers.temporary_bytes(*shape)
    assert taken <= stated <= taken + 100_000 * len(layers.kinds)


@contextlib.contextmanager
def files_of_at_most(limit_bytes: int) -> Iterator[None]:
    """Make writes beyond `limit_bytes` of any file fail, as those on a full disk do."""
    handler, (soft, hard) = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("layer", EVERY_LAYER[:1] + EVERY_LAYER[-1:], ids=["mask", "float32"])
@pytest.mark.parametrize("step", [512, 100], ids=["blocks", "rows"])
def test_disk_that_is_full_at_any_moment_is_an_error_and_never_a_cog(layer: Layer, step: int, tmp_path: Path) -> None:
    size = 2048
    noise = np.random.default_rng(0).random((size, size), np.float32) * np.float32(layer.largest)
    pixels = encode(layer, noise, np.ones(noise.shape, bool), 0.5)
    windows = [Window(0, row, size, min(step, size - row)) for row in range(0, size, step)]
    whole = write(tmp_path, layer, pixels, windows)
    with_overviews = (tmp_path / "striped.tif").stat().st_size
    for fraction in (0.1, 0.74, 0.76, 0.99):  # of pixels and overviews: the pixels are three quarters
        whole.unlink(missing_ok=True)
        with files_of_at_most(int(with_overviews * fraction)), pytest.raises(OSError, match=r"tif|Write failed"):
            write(tmp_path, layer, pixels, windows)
        assert not whole.exists()
    with create_striped(tmp_path / "striped.tif", layer, size, size, UTM_SOUTH, NORTH_UP) as target:
        target.write(pixels, 1)
    with files_of_at_most(10_000), pytest.raises(OSError, match="perhaps a full disk"):
        finish_cog(tmp_path / "striped.tif", tmp_path / "small.tif", layer)
