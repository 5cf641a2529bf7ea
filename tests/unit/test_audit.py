"""Leakage between folds is found in each of its four forms, and nothing else is called leakage."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rasterio.warp import transform

from raytrain import cli
from raytrain.config import ShardSettings
from raytrain.tiles import audit
from raytrain.tiles.archive import open_archive
from raytrain.tiles.folds import assign_folds
from raytrain.tiles.ingest import read_tile
from raytrain.tiles.metadata import read_metadata
from tests.making import shard_chips

DAY = datetime(2020, 4, 29, 8, 20, 47, tzinfo=UTC)


def tiles(
    folds: list[int],
    locations: list[str] | None = None,
    taken: list[datetime | None] | None = None,
    footprints: list[audit.Footprint | None] | None = None,
) -> audit.Tiles:
    count = len(folds)
    names = [f"t{i}" for i in range(count)]
    places = locations or [f"place{i}" for i in range(count)]
    return audit.Tiles(names, places, taken or [None] * count, np.array(folds, np.int32), None, footprints)


def box(crs: str, left: float, bottom: float, size: float = 5120) -> audit.Footprint:
    return audit.Footprint(crs, audit.BoundingBox(left, bottom, left + size, bottom + size))


def test_location_in_two_folds_is_leakage_of_all_its_tiles() -> None:
    leak = audit.shared_locations(tiles([0, 0, 1, 1, 2], ["A", "B", "B", "C", "D"]))
    assert leak.tiles == {1, 2}
    assert leak.examples == ["location B: 2 tiles in folds 0, 1"]
    assert leak.tiles_by_fold(np.array([0, 0, 1, 1, 2], np.int32)) == {0: 1, 1: 1}


def test_scene_is_a_location_at_a_time_and_a_blank_time_equals_nothing() -> None:
    places = ["A", "A", "A", "A", "B", "A"]
    times = [None, None, DAY, DAY, DAY, DAY.replace(second=48)]
    leak = audit.shared_scenes(tiles([0, 1, 0, 1, 1, 0], places, times))
    assert leak.tiles == {2, 3}
    assert leak.examples == ["scene A, 2020-04-29T08:20:47Z: 2 tiles in folds 0, 1"]


def test_footprints_overlap_or_only_touch() -> None:
    utm = "EPSG:32636"
    grid = [box(utm, 300_000 + 5120 * column, 5_000_000 + 5120 * row) for row in range(3) for column in range(3)]
    folds = [i % 2 for i in range(9)]
    assert overlaps(folds, list(grid)) == set()
    shifted = [*grid, box(utm, 300_000 + 5120 * 1.5, 5_000_000)]
    assert overlaps([*folds, 0], list(shifted)) == {1, 9}, "of the two that it overlaps, one is in its own fold"
    leak, placeless = audit.overlapping_footprints(tiles([0, 1], footprints=[grid[0], None]))
    assert (leak.tiles, placeless) == (set(), ["t1"])


def test_footprints_in_neighbouring_zones_are_compared_on_the_ground() -> None:
    """Longitude 30 E is where UTM zones 35 and 36 meet."""
    (x,), (y,) = transform("EPSG:4326", "EPSG:32636", [30.0], [45.0])[:2]
    (other_x,), (other_y,) = transform("EPSG:4326", "EPSG:32635", [30.0], [45.0])[:2]
    here, there = box("EPSG:32636", x, y), box("EPSG:32635", other_x, other_y)
    apart = box("EPSG:32635", other_x - 12_000, other_y)
    assert overlaps([0, 1], [here, there]) == {0, 1}
    assert overlaps([0, 0], [here, there]) == set()
    assert overlaps([0, 1], [here, apart]) == set()


@pytest.mark.parametrize("others", [0, 40])
def test_footprints_meet_across_the_antimeridian(others: int) -> None:
    """Longitude 180 is where UTM zones 60 and 1 meet, and where degrees jump."""
    (x,), (y,) = transform("EPSG:4326", "EPSG:32660", [179.99], [-17.0])[:2]
    (other_x,), (other_y,) = transform("EPSG:4326", "EPSG:32701", [-179.99], [-17.0])[:2]
    east, west = box("EPSG:32660", x, y, 9000), box("EPSG:32701", other_x - 4500, other_y, 9000)
    some = [box("EPSG:32636", 300_000 + 5120 * i, 5_000_000) for i in range(others)]
    assert overlaps([0, 1, *[0] * others], [east, west, *some]) == {0, 1}
    assert overlaps([0, 1], [east, east]) == {0, 1}
    plain = [box("EPSG:4326", 179.98, 0, 0.05), box("EPSG:4326", -180.02, 0, 0.05), box("EPSG:4326", -179.9, 0, 0.05)]
    assert overlaps([0, 1, 2], [plain[0], plain[0], plain[2]]) == {0, 1}


def test_tile_without_a_place_on_the_globe_is_named_and_the_others_are_compared() -> None:
    local = 'LOCAL_CS["somewhere",UNIT["metre",1]]'
    utm = box("EPSG:32636", 300_000, 5_000_000)
    footprints = [utm, utm, box(local, 0, 0), box("EPSG:32636", 1e30, 1e30)]
    leak, placeless = audit.overlapping_footprints(tiles([0, 1, 0, 1], footprints=list(footprints)))
    assert leak.tiles == {0, 1}
    assert placeless == ["t2", "t3"]


def test_footprints_come_from_an_index(chips: Path, tmp_path: Path) -> None:
    shard_chips(chips, tmp_path, ShardSettings(folds="3"))
    index = pq.read_table(tmp_path / "index.parquet")
    found = audit.tiles_of_index(index).footprints
    assert found is not None
    for row, footprint in zip(index.to_pylist(), found, strict=True):
        assert footprint is not None
        west, north = row["transform"][2], row["transform"][5]
        assert footprint == box(row["crs"], west, north - 640, 640)
    twice = pa.concat_tables([index, index])
    folds = [0] * len(index) + [1] * len(index)
    assert len(audit.overlapping_footprints(audit.tiles_of_index(twice, folds))[0].tiles) == 2 * len(index)


def overlaps(folds: list[int], footprints: list[audit.Footprint | None]) -> set[int]:
    return audit.overlapping_footprints(tiles(folds, footprints=footprints))[0].tiles


BANDS = ("B02", "B03", "B04", "B08")


def pixels_of(folder: Path) -> list[np.ndarray]:
    chips = open_archive(str(folder), BANDS).chips
    return [np.stack(list(read_tile(chip, "before-04.00")[0].bands.values())) for chip in chips]


def found_alike(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Tell whether two tiles are found to be nearly equal, from afar first, then in all pixels."""
    a, b = audit.look_at(ours), audit.look_at(theirs)
    if a is None or b is None or ours.shape != theirs.shape:
        return False
    if a.digest == b.digest:
        return True
    folds = np.array([0], np.int32)
    near = audit.similar_pairs(a.signature[None], b.signature[None], folds, folds + 1).tolist() == [[0, 0]]
    assert audit.similar_pairs(a.signature[None], b.signature[None], folds, folds).tolist() == [], "one fold may repeat"
    return near and audit.nearly_equal(ours, theirs)


def changed(pixels: np.ndarray, kind: str) -> np.ndarray:
    generator = np.random.default_rng(1)
    if kind == "noise":
        noisy = (pixels * 0.98 + generator.normal(0, 5, pixels.shape)).clip(1, 65535)
        return (noisy * (pixels != 0)).astype(np.uint16)
    if kind == "a border without data":
        cut = pixels.copy()
        cut[:, : pixels.shape[1] // 5] = 0
        return cut
    return pixels.copy()


@pytest.mark.parametrize("kind", ["copy", "noise", "a border without data"])
def test_the_same_ground_is_found_and_different_ground_is_not(chips: Path, kind: str) -> None:
    found = pixels_of(chips)
    some = [i for i, each in enumerate(found) if audit.look_at(each) is not None]
    assert len(some) >= 8
    for i in some:
        assert found_alike(found[i], changed(found[i], kind))
        assert not any(found_alike(found[i], changed(found[j], kind)) for j in some if i != j)


@pytest.mark.parametrize("kind", ["copy", "noise", "a border without data"])
def test_the_same_real_chip_is_found_and_no_two_are_taken_for_one(real_imagery: Path, kind: str) -> None:
    found = pixels_of(real_imagery / "labelled")
    assert all(audit.look_at(each) is not None for each in found)
    for i, each in enumerate(found):
        if kind == "copy" or each.std(axis=(1, 2)).mean() > 50:  # over flat water, noise of 5 is all there is
            assert found_alike(each, changed(each, kind))
        assert not any(found_alike(each, other) for j, other in enumerate(found) if i != j)


def test_band_that_is_constant_in_both_does_not_hide_the_others(chips: Path) -> None:
    (pixels, *_) = (each for each in pixels_of(chips) if audit.look_at(each) is not None and each.std() > 300)
    flat = pixels.copy()
    flat[3] = 700
    other = changed(pixels, "noise")
    other[3] = 700
    assert found_alike(flat, other)


def test_saturated_parts_make_no_duplicates() -> None:
    generator = np.random.default_rng(0)
    one, other = (generator.integers(500, 3000, (4, 60, 70)).astype(np.uint16) for _ in range(2))
    one[:, :, :31] = other[:, :, :31] = 65535
    assert audit.look_at(one) is None
    assert not audit.nearly_equal(one, other)


@pytest.mark.parametrize("kind", ["constant", "saturated", "no data"])
def test_chips_that_could_be_any_are_no_duplicates(kind: str) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(500, 3000, (4, 60, 70)).astype(np.uint16)
    if kind == "constant":
        pixels[:] = 900
    elif kind == "saturated":
        pixels[:, 10:] = 65535
    else:
        pixels[:, 2:] = 0
    assert audit.look_at(pixels) is None


def test_exact_copies_of_tiny_tiles_are_found_by_their_bytes() -> None:
    tile = np.random.default_rng(0).integers(1, 9000, (4, 5, 5)).astype(np.uint16)
    assert found_alike(tile, tile.copy())
    look = audit.look_at(tile)
    assert look is not None
    digests = [look.digest, None, look.digest, b"other", look.digest, None]
    folds = np.array([0, 1, 1, 0, 1, 0], np.int32)
    assert sorted(set(audit.equal_digests(digests, folds))) == [(0, 2), (0, 4)]


def test_summary_counts_chips_places_and_cloud(chips: Path, tmp_path: Path) -> None:
    shard_chips(chips, tmp_path, ShardSettings(folds="3"))
    index = pq.read_table(tmp_path / "index.parquet")
    summaries = audit.summarise(audit.tiles_of_index(index))
    assert [each.fold for each in summaries] == [0, 1, 2]
    for each in summaries:
        rows = [row for row in index.to_pylist() if row["fold"] == each.fold]
        assert each.num_tiles == len(rows)
        assert each.num_locations == len({row["location"] for row in rows})
        clouds = [row["cloud_fraction"] for row in rows]
        assert each.cloud_fraction_mean == pytest.approx(np.mean(clouds))
        assert each.overcast_tiles_fraction == np.mean([cloud > 0.99 for cloud in clouds])
    assert audit.size_spread(summaries) == 0


def test_dealt_folds_of_the_real_metadata_are_even_and_a_random_split_leaks(real_imagery: Path) -> None:
    rows = read_metadata(str(real_imagery / "on_cloud_n_train_metadata.csv")).rows
    ids, places = [row.chip_id for row in rows], [row.location for row in rows]
    dealt = audit.tiles_of_rows(rows, assign_folds("4", ids, places, 0))
    assert (len(rows), len(set(places))) == (11748, 81)
    assert audit.size_spread(audit.summarise(dealt)) < 0.1
    assert not audit.shared_locations(dealt).tiles
    assert not audit.shared_scenes(dealt).tiles
    random = np.random.default_rng(0).permutation(np.arange(11748) < 2144).astype(int)
    split = audit.tiles_of_rows(rows, random.tolist())
    assert audit.shared_locations(split).tiles_by_fold(split.folds)[1] == 2144
    assert audit.shared_scenes(split).tiles_by_fold(split.folds)[1] > 2100


def test_command_passes_dealt_folds_of_the_real_metadata_and_fails_a_random_split(
    real_imagery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(real_imagery / "on_cloud_n_train_metadata.csv")
    assert cli.main(["audit", source, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(fold["num_tiles"] for fold in found["folds"]) == 11748
    assert found["size_spread_fraction"] < 0.1
    ids = [row.chip_id for row in read_metadata(source).rows]
    split = np.random.default_rng(0).permutation(["val"] * 2144 + ["train"] * (11748 - 2144))
    table = tmp_path / "split.csv"
    table.write_text("\n".join(["chip_id,split", *map(",".join, zip(ids, split, strict=True))]))
    assert cli.main(["audit", source, "--folds", str(table), "--json"]) == 1
    captured = capsys.readouterr()
    leaks = json.loads(captured.out)["leaks"]
    assert leaks["same location"]["tiles_by_fold"]["0"] == 2144
    assert leaks["same scene"]["tiles_by_fold"]["0"] > 2100
    assert captured.err.splitlines()[-1] == "raytrain: leakage between the folds: same location, same scene"
