"""Leakage between folds is found in each of its four forms, and nothing else is called leakage."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
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
    assert audit.overlapping_footprints(tiles(folds, footprints=list(grid))).tiles == set()
    shifted = [*grid, box(utm, 300_000 + 5120 * 1.5, 5_000_000)]
    leak = audit.overlapping_footprints(tiles([*folds, 0], footprints=list(shifted)))
    assert leak.tiles == {1, 9}, "of the two that it overlaps, one is in its own fold"
    assert audit.overlapping_footprints(tiles([0, 1], footprints=[grid[0], None])).tiles == set()


def test_footprints_in_neighbouring_zones_are_compared_on_the_ground() -> None:
    """Longitude 30 E is where UTM zones 35 and 36 meet."""
    (x,), (y,) = transform("EPSG:4326", "EPSG:32636", [30.0], [45.0])[:2]
    (other_x,), (other_y,) = transform("EPSG:4326", "EPSG:32635", [30.0], [45.0])[:2]
    here, there = box("EPSG:32636", x, y), box("EPSG:32635", other_x, other_y)
    apart = box("EPSG:32635", other_x - 12_000, other_y)
    assert audit.overlapping_footprints(tiles([0, 1], footprints=[here, there])).tiles == {0, 1}
    assert audit.overlapping_footprints(tiles([0, 0], footprints=[here, there])).tiles == set()
    assert audit.overlapping_footprints(tiles([0, 1], footprints=[here, apart])).tiles == set()


def test_pixels_of_the_same_ground_are_nearly_equal_and_those_of_different_ground_are_not(chips: Path) -> None:
    bands = ("B02", "B03", "B04", "B08")
    found = [
        np.stack(list(read_tile(chip, "before-04.00")[0].bands.values()))
        for chip in open_archive(str(chips), bands).chips
    ]
    signatures = [audit.signature(each) for each in found]
    some = [i for i, each in enumerate(signatures) if each is not None]
    assert len(some) >= 6
    generator = np.random.default_rng(1)
    for i in some:
        noisy = (found[i] * 0.98 + generator.normal(0, 5, found[i].shape)).clip(1, 65535) * (found[i] != 0)
        again = noisy.astype(np.uint16)
        ours, theirs = signatures[i], audit.signature(again)
        assert ours is not None
        assert theirs is not None
        folds = np.array([0], np.int32)
        assert audit.similar_pairs(ours[None], theirs[None], folds, folds + 1).tolist() == [[0, 0]]
        assert audit.similar_pairs(ours[None], theirs[None], folds, folds).tolist() == [], "one fold may repeat itself"
        assert audit.nearly_equal(found[i], again)
    for i in some:
        for j in some:
            assert i == j or not audit.nearly_equal(found[i], found[j])


@pytest.mark.parametrize("kind", ["constant", "saturated", "no data", "nearly constant"])
def test_chips_that_could_be_any_have_no_signature(kind: str) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(500, 3000, (4, 60, 70)).astype(np.uint16)
    if kind == "constant":
        pixels[:] = 900
    elif kind == "saturated":
        pixels[:, 10:] = 65535
    elif kind == "no data":
        pixels[:, 2:] = 0
    else:
        pixels = (900 + generator.integers(-3, 3, (4, 60, 70))).astype(np.uint16)
    assert audit.signature(pixels) is None


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
