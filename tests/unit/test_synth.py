from __future__ import annotations

import csv
import json
import tracemalloc
from datetime import datetime
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.coords import BoundingBox, disjoint_bounds
from rio_cogeo.cogeo import cog_validate

from raytrain.errors import ConfigError
from raytrain.imagery.noise import Box, fbm
from raytrain.imagery.synth import generate_window, make_places, write_chips, write_scenes
from raytrain.imagery.synth_places import make_acquisition, make_swath_edge

BANDS = ("B02", "B03", "B04", "B08")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(metadata: Path) -> list[dict[str, str]]:
    with metadata.open(newline="") as file:
        return list(csv.DictReader(file))


class Stop(BaseException):
    """Raised in the middle of a run, as Ctrl-C is."""


def stop_after(calls: int):
    def on_progress(done: int, total: int) -> None:
        if done >= calls:
            raise Stop

    return on_progress


@pytest.mark.parametrize("write", ["chips", "scenes"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path, write: str) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        if write == "chips":
            write_chips(tmp_path / name, count=4, size_px=40, seed=seed, num_places=2)
        else:
            write_scenes(tmp_path / name, count=1, size_px=130, seed=seed)
    first, again, other = (files_of(tmp_path / name) for name in "abc")
    assert first == again
    images = [name for name in first if name.endswith(".tif") and "labels" not in name]
    assert images
    assert all(first[name] != other[name] for name in images)


def test_a_rerun_overwrites_and_gives_the_same_bytes(tmp_path: Path) -> None:
    write_chips(tmp_path, count=3, size_px=33, seed=1, num_places=2)
    before = files_of(tmp_path)
    write_chips(tmp_path, count=3, size_px=33, seed=1, num_places=2)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("box", [(0, 0, 70, 90), (-37, 511, 65, 33), (333, 200, 1, 1)])
def test_a_window_equals_the_crop_of_a_larger_one(box: tuple[int, int, int, int]) -> None:
    row, column, height, width = box
    for place in make_places(10, seed=5):
        large, large_label = generate_window(place, 2, row - 19, column - 8, height + 50, width + 41)
        bands, label = generate_window(place, 2, row, column, height, width)
        crop = (slice(19, 19 + height), slice(8, 8 + width))
        assert np.abs(large[(slice(None), *crop)].astype(int) - bands).max() <= 1
        np.testing.assert_array_equal(large_label[crop], label)


def test_windows_over_several_blocks_have_no_seams() -> None:
    place = make_places(1, seed=8)[0]
    bands, label = generate_window(place, 1, 0, 0, 600, 560)
    part, part_label = generate_window(place, 1, 480, 490, 64, 64)
    assert np.abs(bands[:, 480:544, 490:554].astype(int) - part).max() <= 1
    np.testing.assert_array_equal(label[480:544, 490:554], part_label)


def test_noise_has_mean_zero_and_variance_one() -> None:
    field = fbm(7, Box(-300, 40, 512, 512), coarsest=5, gain=0.6)
    assert abs(float(field.mean())) < 0.1
    assert 0.85 < float(field.var()) < 1.15


def test_chips_are_whole_and_in_the_layout_of_the_challenge(tmp_path: Path) -> None:
    metadata = write_chips(tmp_path, count=7, size_px=45, seed=2, num_places=3, first_place=4, split="test")
    assert metadata == tmp_path / "test_metadata.csv"
    rows = rows_of(metadata)
    assert list(rows[0]) == ["chip_id", "location", "datetime", "cloudpath"]
    assert len({row["chip_id"] for row in rows}) == 7
    per_place = [sum(row["location"] == name for row in rows) for name in {row["location"] for row in rows}]
    assert sorted(per_place) == [2, 2, 3]
    for row in rows:
        assert datetime.fromisoformat(row["datetime"]).utcoffset() is not None
        assert row["datetime"].endswith("Z")
        bands = []
        for band in BANDS:
            with rasterio.open(tmp_path / "test_features" / row["chip_id"] / f"{band}.tif") as image:
                assert (image.count, image.dtypes[0], image.shape, image.res) == (1, "uint16", (45, 45), (10, 10))
                assert image.crs.is_projected
                assert image.compression.name == "deflate"
                bands.append(image.read(1))
        with rasterio.open(tmp_path / "test_labels" / f"{row['chip_id']}.tif") as image:
            assert image.dtypes[0] == "uint8"
            assert image.transform.e == -10
            label = image.read(1)
        assert set(np.unique(label)) <= {0, 1, 255}
        assert all(((band == 0) == (label == 255)).all() for band in bands)
    assert len(files_of(tmp_path)) == 7 * 5 + 1


def test_chips_of_a_place_lie_apart_in_one_zone(tmp_path: Path) -> None:
    write_chips(tmp_path, count=11, size_px=24, seed=0, num_places=1)
    bounds: list[BoundingBox] = []
    zones = set()
    for path in sorted(tmp_path.glob("train_labels/*.tif")):
        with rasterio.open(path) as image:
            bounds.append(image.bounds)
            zones.add(image.crs.to_epsg())
    assert len(bounds) == 11
    assert len(zones) == 1
    assert all(disjoint_bounds(one, other) for one, other in combinations(bounds, 2))


def test_a_chip_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    write_chips(tmp_path / "few", count=2, size_px=32, seed=0, num_places=2)
    write_chips(tmp_path / "more", count=6, size_px=32, seed=0, num_places=2)
    few, more = files_of(tmp_path / "few"), files_of(tmp_path / "more")
    assert all(more[name] == content for name, content in few.items() if name.endswith(".tif"))


def test_places_of_another_first_share_no_name_and_no_chip_id(tmp_path: Path) -> None:
    names = [place.name for place in make_places(60, seed=9) + make_places(60, seed=9, first=60)]
    assert len(set(names)) == 120
    assert make_places(5, seed=9, first=3) == make_places(8, seed=9)[3:]
    first = rows_of(write_chips(tmp_path, count=2, size_px=8, seed=9, num_places=2))
    held_out = write_chips(tmp_path, count=2, size_px=8, seed=9, num_places=2, first_place=2, split="test")
    assert not {row["chip_id"] for row in first} & {row["chip_id"] for row in rows_of(held_out)}


def test_a_place_lies_in_its_zone_and_has_its_sun_above_the_horizon() -> None:
    for place in make_places(40, seed=6):
        zone = place.epsg % 100
        assert place.epsg // 100 == (326 if place.latitude >= 0 else 327)
        assert abs(place.longitude - (6 * zone - 183)) < 3
        day = make_acquisition(place, 0)
        assert 22 <= day.sun_elevation_deg <= 90
        assert 0 <= day.sun_azimuth_deg < 360


def test_scenes_are_cogs_with_labels_metadata_and_items(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    path = write_scenes(tmp_path, count=2, size_px=700, seed=1, on_progress=lambda *call: calls.append(call))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    collection = json.loads(path.read_text())
    assert collection["type"] == "FeatureCollection"
    rows = {row["chip_id"]: row for row in rows_of(tmp_path / "scenes_metadata.csv")}
    for item in collection["features"]:
        assert item["stac_version"] == "1.0.0"
        assert item["links"] == []
        image_path = tmp_path / item["assets"]["image"]["href"]
        assert cog_validate(str(image_path), strict=True)[0]
        with rasterio.open(image_path) as image:
            assert image.descriptions == BANDS
            assert image.nodata == 0
            assert image.shape == (700, 700)
            assert image.crs.to_epsg() == item["properties"]["proj:epsg"]
            assert list(image.transform)[:6] == item["properties"]["proj:transform"]
            assert image.tags()["TIFFTAG_DATETIME"].replace(":", "") == "".join(
                sign if sign.isdigit() else " " * (sign == "T") for sign in item["properties"]["datetime"]
            )
            bands, bounds = image.read(), image.bounds
        with rasterio.open(tmp_path / "scene_labels" / f"{item['id']}.tif") as mask:
            assert mask.nodata == 255
            assert mask.bounds == bounds
            assert mask.profile["tiled"]
            label = mask.read(1)
        assert set(np.unique(label)) <= {0, 1, 255}
        np.testing.assert_array_equal((bands == 0).all(0), label == 255)
        np.testing.assert_array_equal((bands == 0).any(0), label == 255)
        west, south, east, north = item["bbox"]
        assert -180 <= west < east <= 180
        assert -90 <= south < north <= 90
        assert item["geometry"]["coordinates"][0][0] == item["geometry"]["coordinates"][0][-1]
        assert rows[item["id"]]["location"] == item["properties"]["location"]
        assert rows[item["id"]]["datetime"] == item["properties"]["datetime"]
    assert len(rows) == 2


def test_a_scene_is_the_window_of_its_place(tmp_path: Path) -> None:
    write_scenes(tmp_path, count=1, size_px=520, seed=1)
    with rasterio.open(tmp_path / "scenes" / "p00s00.tif") as image:
        bands = image.read()
    expected, _ = generate_window(make_places(1, seed=1)[0], 1 << 32, 0, 0, 520, 520)
    recorded = bands.min(0) > 0
    assert recorded.mean() > 0.5
    np.testing.assert_array_equal(bands[:, recorded], expected[:, recorded])


def test_a_swath_edge_leaves_no_data_on_one_side() -> None:
    edge = make_swath_edge(1, 200)
    bands, label = generate_window(make_places(1, seed=0)[0], 0, 0, 0, 200, 200, edge)
    assert 0.05 < (label == 255).mean() < 0.5
    np.testing.assert_array_equal((bands == 0).all(0), label == 255)
    assert (bands[:, label != 255] >= 1).all()


def test_an_interrupted_run_leaves_no_metadata_and_nothing_half_written(tmp_path: Path) -> None:
    write_chips(tmp_path, count=4, size_px=16, seed=0, num_places=2)
    with pytest.raises(Stop):
        write_chips(tmp_path, count=4, size_px=16, seed=0, num_places=2, on_progress=stop_after(2))
    assert not list(tmp_path.glob("*.csv"))
    write_scenes(tmp_path, count=1, size_px=20, seed=0)
    with pytest.raises(Stop):
        write_scenes(tmp_path, count=2, size_px=600, seed=0, on_progress=stop_after(3))
    assert not (tmp_path / "scenes").exists(), "one scene of two would be taken for all"
    assert not (tmp_path / "scenes.json").exists()
    assert not (tmp_path / "scenes_metadata.csv").exists()
    assert not list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob(".*"))
    for path in tmp_path.rglob("*.tif"):
        with rasterio.open(path) as image:
            image.read()


def test_images_of_another_run_are_not_mixed_in(tmp_path: Path) -> None:
    write_scenes(tmp_path, count=2, size_px=32, seed=0)
    write_chips(tmp_path, count=2, size_px=32, seed=0, num_places=2)
    before = files_of(tmp_path)
    with pytest.raises(ConfigError, match="holds images of another run"):
        write_scenes(tmp_path, count=1, size_px=32, seed=0)
    with pytest.raises(ConfigError, match="holds images of another run"):
        write_chips(tmp_path, count=1, size_px=32, seed=0, num_places=1)
    assert files_of(tmp_path) == before


def test_memory_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    # The bands of the whole scene, as the float32 that they are made in, would alone take 67 MB.
    size_px = 2048
    tracemalloc.start()
    write_scenes(tmp_path, count=1, size_px=size_px, seed=4)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 0.75 * size_px * size_px * 4 * 4


def pixels_of(first: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return B02 and the mask of six chips of each place, on two days, as `write_chips` lays them."""
    windows = [
        generate_window(place, number // 3, 0, 160 * number, 96, 96)
        for place in make_places(count, seed, first)
        for number in range(6)
    ]
    return np.stack([bands[0] for bands, _ in windows]), np.stack([label == 1 for _, label in windows])


def iou(guess: np.ndarray, truth: np.ndarray) -> float:
    return float((guess & truth).sum() / (guess | truth).sum())


@pytest.mark.parametrize("seed", range(4))
def test_the_best_threshold_on_blue_stays_poor_on_places_held_out(seed: int) -> None:
    blue, cloud = pixels_of(0, 30, seed)
    best = max(range(1000, 8000, 200), key=lambda threshold: iou(blue > threshold, cloud))
    held_out_blue, held_out_cloud = pixels_of(30, 20, seed)
    assert 0.25 < held_out_cloud.mean() < 0.6
    assert 0.3 < iou(held_out_blue > best, held_out_cloud) < 0.75


def test_some_days_are_cloudless_and_some_nearly_overcast() -> None:
    covers = [make_acquisition(place, day).cover_fraction for place in make_places(20, seed=0) for day in range(10)]
    assert 0.04 < np.mean(np.array(covers) == 0) < 0.2
    assert 0.01 < np.mean(np.array(covers) > 0.92) < 0.1


@pytest.mark.parametrize(
    "bad", [{"count": 0}, {"size_px": 0}, {"num_places": 0}, {"first_place": -1}, {"split": ""}, {"split": "a/b"}]
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path: Path, bad: dict[str, object]) -> None:
    good: dict[str, object] = {"count": 1, "size_px": 8, "seed": 0, "num_places": 1}
    with pytest.raises(ConfigError):
        write_chips(tmp_path / "out", **(good | bad))  # type: ignore[arg-type]
    scene_bad = {name: value for name, value in bad.items() if name not in ("num_places", "split")}
    if scene_bad:
        with pytest.raises(ConfigError):
            write_scenes(tmp_path / "out", **({"count": 1, "size_px": 8, "seed": 0} | scene_bad))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size_px", [1, 31])
def test_any_size_can_be_written(tmp_path: Path, size_px: int) -> None:
    write_chips(tmp_path, count=1, size_px=size_px, seed=0, num_places=3)
    write_scenes(tmp_path, count=1, size_px=size_px, seed=0)
    with rasterio.open(tmp_path / "scenes" / "p00s00.tif") as image:
        assert image.shape == (size_px, size_px)
