"""Ingest goes on where it was cut off, to the same bytes; a changed source is seen; the list of chips is small."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio

from raytrain import storage
from raytrain.config import ShardSettings
from raytrain.errors import ConfigError, DataError, WorkNotFinished
from raytrain.imagery.baseline import doubt, is_dark, to_reflectance
from raytrain.tiles import parts
from raytrain.tiles.archive import open_archive
from raytrain.tiles.folds import assign_folds
from raytrain.tiles.ingest import ShardWork, read_tile, write_shard
from raytrain.tiles.parts import remove_parts, standing_at
from raytrain.tiles.reader import TileReader
from raytrain.tiles.verify import unknown_files, verify_index, verify_shard
from tests.dying import dies_after
from tests.making import BANDS, finish, make_tile, plan_chips, shard_chips, write_tiles

SETTINGS = ShardSettings(folds="3", tiles_per_shard=4)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "shards"
    shard_chips(chips, folder, SETTINGS)
    return folder


@pytest.mark.parametrize("cut", range(1, 9))
def test_ingest_cut_off_after_any_write_goes_on_and_ends_with_the_same_bytes(
    chips: Path, whole: Path, tmp_path: Path, cut: int
) -> None:
    """Three shards, three parts, the index and the manifest are eight writes."""
    folder = tmp_path / "shards"
    with dies_after(cut):
        shard_chips(chips, folder, SETTINGS)
    assert (folder / "manifest.json").exists() == (cut == 8), "a half-written set looks whole"
    if cut == 8:  # whole, but for the parts; the next run takes them away
        remove_parts(str(folder))
        assert bytes_of(folder) == bytes_of(whole)
    else:
        times = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*.parquet")}
        shard_chips(chips, folder, SETTINGS)
        again = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*.parquet")}
        assert sum(again[path] == times.get(path) for path in again) == min(cut // 2, 3), (
            "a whole shard was written again"
        )
        assert bytes_of(folder) == bytes_of(whole)


def test_shard_that_lost_its_file_or_whose_part_is_damaged_is_written_again(
    chips: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    parts = [write_shard(work) for work in plan_chips(chips, folder, SETTINGS)]
    (folder / parts[0].name).unlink()
    (folder / parts[1].uri_name).write_bytes(b"PAR1")
    (folder / parts[2].name).write_bytes(b"torn")
    for name in ("shard-00009.parquet", "manifest.json", "unfinished/shard-00001.parquet"):
        half = folder / name
        half = half.with_name(f".{half.name}.0123456789abcdef0123456789abcdef.partial")
        half.write_bytes(b"half")
        os.utime(half, (1, 1))
    shard_chips(chips, folder, SETTINGS)
    assert bytes_of(folder) == bytes_of(whole)


def test_chip_that_changed_meanwhile_is_read_again_and_the_others_are_not(own_chips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    first = [write_shard(work) for work in plan_chips(own_chips, folder, SETTINGS)]
    chip = open_archive(str(own_chips), BANDS[:4]).chips[5]
    with rasterio.open(chip.bands["B03"]) as source:
        pixels, profile = source.read(1), source.profile
    with rasterio.open(chip.bands["B03"], "w", **profile) as target:
        target.write(pixels + np.uint16(7), 1)
    times = [(folder / part.name).stat().st_mtime_ns for part in first]
    second = [write_shard(work) for work in plan_chips(own_chips, folder, SETTINGS)]
    changed = [(folder / part.name).stat().st_mtime_ns != time for part, time in zip(first, times, strict=True)]
    assert changed == [False, True, False]
    finish(folder, SETTINGS, second)
    reader = TileReader(str(folder), ("B03",))
    found = reader.read(reader.tile_ids.index(chip.chip_id))[0][0]
    assert (found == (pixels + 7) * (found != 0)).all()
    assert (found != 0).any()


def test_shard_of_other_work_that_was_cut_off_before_its_part_is_not_taken_for_the_first_ones(
    chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raw cells: shards of the same tiles with other values have the same size."""
    first = ShardSettings(folds="3", cell_encoding="raw")
    write_shard(plan_chips(chips, tmp_path, first)[0])
    whole = (tmp_path / "shard-00000.parquet").read_bytes()
    other = plan_chips(chips, tmp_path, ShardSettings(folds="3", cell_encoding="raw", baseline="from-04.00"))[0]
    monkeypatch.setattr(parts, "_write_part", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_shard(other)
    monkeypatch.undo()
    between = (tmp_path / "shard-00000.parquet").read_bytes()
    assert (len(between), between == whole) == (len(whole), False)
    write_shard(plan_chips(chips, tmp_path, first)[0])
    assert (tmp_path / "shard-00000.parquet").read_bytes() == whole


def test_files_of_others_are_neither_taken_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "shard-00000.parquet").write_bytes(b"a table of somebody else")
    with pytest.raises(ConfigError, match=r"holds a shard-00000\.parquet that raytrain did not write"):
        standing_at(str(tmp_path))
    assert (tmp_path / "shard-00000.parquet").exists()


def test_what_others_have_in_a_folder_of_the_parts_name_stays(chips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    (folder / "unfinished").mkdir(parents=True)
    (folder / "unfinished" / "thesis.docx").write_bytes(b"years of work")
    with pytest.raises(ConfigError, match=r"what is no shards', among it unfinished/thesis\.docx"):
        shard_chips(chips, folder, SETTINGS)
    assert bytes_of(folder) == {"unfinished/thesis.docx": b"years of work"}


def test_parts_of_another_run_at_the_same_place_are_not_taken_for_this_ones(chips: Path, tmp_path: Path) -> None:
    other = ShardSettings(folds="3", tiles_per_shard=4, baseline="from-04.00")
    parts = [write_shard(work) for work in plan_chips(chips, tmp_path, SETTINGS)]
    write_shard(plan_chips(chips, tmp_path, other)[1])
    with pytest.raises(WorkNotFinished, match="another raytrain works here"):
        finish(tmp_path, SETTINGS, parts)
    assert not (tmp_path / "manifest.json").exists()


def test_list_of_chips_takes_less_than_500_bytes_a_tile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All that the driver holds while shards are written, and what it took to get there: 50,000 chips of five files."""
    count = 50_000
    table = "chip_id,location,datetime,cloudpath\n" + "".join(
        f"c{i:07d},Place {i % 81},2020-04-29T08:{i % 60:02d}:47Z,az://./train_features/c{i:07d}\n" for i in range(count)
    )
    (tmp_path / "train_metadata.csv").write_text(table)

    def walk(uri: str) -> Iterator[tuple[str, dict[str, object]]]:
        for i in range(count):
            for band in BANDS[:4]:
                yield f"train_features/c{i:07d}/{band}.tif", {"size": 1000 + i, "mtime": i}
        for i in range(count):
            yield f"train_labels/c{i:07d}.tif", {"size": 1000 + i, "mtime": i}

    monkeypatch.setattr(storage, "walk", walk)
    tracemalloc.start()
    archive = open_archive(str(tmp_path), BANDS[:4])
    ids = [chip.chip_id for chip in archive.chips]
    folds = assign_folds("4", ids, [chip.row.location for chip in archive.chips], 0)
    del ids
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(archive.chips) == len(folds) == count
    assert held / count < 350
    assert peak / count < 500
    assert archive.chips[7].bands["B08"] == f"{tmp_path}/train_features/c0000007/B08.tif"


def test_index_of_many_parts_is_that_of_one(
    tmp_path: Path, whole: Path, chips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROWS_AT_ONCE", 5)
    shard_chips(chips, tmp_path / "shards", SETTINGS)
    one, other = (pq.read_table(folder / "index.parquet") for folder in (whole, tmp_path / "shards"))
    assert one.equals(other)
    manifest = json.loads((whole / "manifest.json").read_text())
    assert (manifest["num_tiles"], manifest["num_labelled"], manifest["num_locations"]) == (12, 12, 6)


# The baseline


def test_shift_is_taken_off_and_valid_pixels_stay_valid() -> None:
    pixels = np.array([[[0, 500, 1000, 1001, 9000, 0]], [[0, 400, 1500, 1000, 65535, 900]]], np.uint16)
    valid = np.array([[False, True, True, True, True, True]])
    found = to_reflectance(pixels, valid, "from-04.00")
    assert found.tolist() == [[[0, 1, 1, 1, 8000, 1]], [[0, 1, 500, 1, 64535, 1]]]
    assert (np.any(found != 0, axis=0) == valid).all()
    found = to_reflectance(pixels, valid, "before-04.00")
    assert found.tolist() == [[[0, 500, 1000, 1001, 9000, 1]], [[0, 400, 1500, 1000, 65535, 900]]]


@pytest.mark.parametrize("shift", [0, 1000])
def test_values_that_do_not_look_like_their_baseline_raise_a_doubt(chips: Path, shift: int) -> None:
    dark = 0
    for chip in (archive := open_archive(str(chips), BANDS[:4])).chips:
        pixels = np.stack([rasterio.open(uri).read(1) for uri in chip.bands.values()])
        valid = np.any(pixels != 0, axis=0)
        dark += is_dark((pixels + np.uint16(shift)) * valid, valid)
    count = len(archive.chips)
    right, wrong = ("before-04.00", "from-04.00") if shift == 0 else ("from-04.00", "before-04.00")
    assert doubt(dark, count, right) is None  # type: ignore[arg-type]
    assert "shifted by 1000" in (doubt(dark, count, wrong) or "")  # type: ignore[arg-type]
    assert doubt(0, 9, "before-04.00") is None, "too few to tell"


@pytest.mark.parametrize("folder", ["labelled", "unlabelled"])
def test_real_chips_look_like_what_they_are(real_imagery: Path, folder: str) -> None:
    for shift, right, wrong in ((0, "before-04.00", "from-04.00"), (1000, "from-04.00", "before-04.00")):
        dark = 0
        chips = open_archive(str(real_imagery / folder), BANDS[:4], for_training=False).chips
        for chip in chips:
            pixels = np.stack([rasterio.open(uri).read(1) for uri in chip.bands.values()])
            valid = np.any(pixels != 0, axis=0)
            dark += is_dark((pixels + np.uint16(shift)) * valid, valid)
        assert doubt(dark, len(chips), right) is None  # type: ignore[arg-type]
        assert doubt(dark, len(chips), wrong) is not None  # type: ignore[arg-type]


def test_baseline_is_taken_into_the_shards_and_changes_their_work(chips: Path, tmp_path: Path) -> None:
    shifted = ShardSettings(folds="3", baseline="from-04.00")
    (plain,), (other,) = plan_chips(chips, tmp_path, ShardSettings(folds="3")), plan_chips(chips, tmp_path, shifted)
    assert isinstance(plain, ShardWork)
    assert plain.digest() != other.digest()
    write_shard(other)
    table = pq.read_table(tmp_path / "shard-00000.parquet")
    assert table.schema.metadata is not None
    finish(tmp_path, shifted, [write_shard(other)])
    pixels, _ = TileReader(str(tmp_path), BANDS[:4]).read(0)
    raw = np.stack([rasterio.open(uri).read(1) for uri in plain.chips[0].bands.values()])
    assert (pixels == to_reflectance(raw, np.any(raw != 0, axis=0), "from-04.00")).all()


# Verification


def test_shards_as_written_have_no_difference(whole: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    assert verify_index(str(whole), manifest["index"]) == []
    assert [verify_shard(str(whole), record) for record in manifest["shards"]] == [[], [], []]
    assert unknown_files(str(whole), [record["name"] for record in manifest["shards"]]) == []


def test_every_kind_of_difference_is_named_down_to_the_tile(tmp_path: Path) -> None:
    write_tiles(tmp_path, [make_tile(i, (16, 16)) for i in range(6)], "blosc2-bitshuffle-lz4", tiles_per_shard=2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    index = pq.read_table(tmp_path / "index.parquet").to_pylist()
    path = tmp_path / "shard-00000.parquet"
    data = bytearray(path.read_bytes())
    data[index[1]["B03_offset"] + 3] ^= 255
    data[index[1]["label_offset"]] ^= 1
    path.write_bytes(data)
    between = tmp_path / "shard-00001.parquet"
    between.write_bytes(between.read_bytes() + b"x")
    (tmp_path / "shard-00002.parquet").unlink()
    (tmp_path / "shard-00003.parquet").write_bytes(b"PAR1")
    found = [str(each) for record in manifest["shards"] for each in verify_shard(str(tmp_path), record)]
    assert found[0].startswith(f"{path}: sha256 is ")
    assert found[1] == f"tile tile1 in {path}: damaged: label, B03"
    size = manifest["shards"][1]["bytes"]
    assert found[2] == f"{between}: {size + 1} bytes, where the manifest says {size}"
    assert found[3] == f"{between}: every tile is whole; what differs lies between them"
    assert found[4:] == [f"{tmp_path / 'shard-00002.parquet'}: missing, but the manifest names it"]
    names = [record["name"] for record in manifest["shards"]]
    assert [str(each) for each in unknown_files(str(tmp_path), names)] == [
        f"{tmp_path / 'shard-00003.parquet'}: not in the manifest"
    ]
    (tmp_path / "index.parquet").write_bytes(b"PAR1")
    assert "bytes, where the manifest says" in str(verify_index(str(tmp_path), manifest["index"])[0])
    assert "which tiles are damaged can't be told" in str(verify_shard(str(tmp_path), manifest["shards"][0])[1])


def test_label_that_vanishes_after_the_listing_costs_its_chip_only(own_chips: Path) -> None:
    chip = open_archive(str(own_chips), ("B02",)).chips[0]
    assert chip.label is not None
    Path(chip.label).unlink()
    with pytest.raises(DataError, match=f"{chip.chip_id}: the label vanished"):
        read_tile(chip, "before-04.00")


def test_tile_of_a_chip_has_zero_and_ignore_where_there_is_no_data(own_chips: Path) -> None:
    chip = open_archive(str(own_chips), ("B02", "B03", "B04", "B08")).chips[0]
    for uri in chip.bands.values():
        with rasterio.open(uri) as source:
            pixels, profile = source.read(1), source.profile
        pixels[:8] = 0
        with rasterio.open(uri, "w", **profile) as target:
            target.write(pixels, 1)
    tile, _ = read_tile(chip, "before-04.00")
    assert tile.label is not None
    assert (tile.label[:8] == 255).all()
    assert (tile.label[8:] != 255).any()
    assert tile.valid_fraction <= 56 / 64
