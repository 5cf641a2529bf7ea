"""Every kind of bad chip is named, with what was found, and the good ones are there."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from raytrain.errors import ConfigError, DataError
from raytrain.tiles.archive import open_archive, read_chip
from raytrain.tiles.ingest import read_tile
from raytrain.tiles.metadata import read_metadata
from raytrain.tiles.selection import Selection, select_chips

BANDS = ("B02", "B03", "B04", "B08")


def chip_ids(folder: Path) -> list[str]:
    with (folder / "train_metadata.csv").open() as file:
        return [row["chip_id"] for row in csv.DictReader(file)]


def problems_of(folder: Path) -> dict[str, str]:
    return {problem.subject: problem.found for problem in open_archive(str(folder), BANDS).problems}


def test_good_archive_lists_every_chip_in_order(chips: Path) -> None:
    archive = open_archive(str(chips), BANDS)
    assert not archive.problems
    assert [chip.chip_id for chip in archive.chips] == sorted(chip_ids(chips))
    assert all(chip.label is not None for chip in archive.chips)


def test_the_public_datasets_deeper_layout_is_found(chips: Path, tmp_path: Path) -> None:
    shutil.copytree(chips, tmp_path / "train")
    assert len(open_archive(str(tmp_path), BANDS).chips) == 12


def test_missing_band_missing_label_missing_row_and_missing_files_are_named(own_chips: Path) -> None:
    first, second, third, fourth, *_ = chip_ids(own_chips)
    (own_chips / "train_features" / first / "B03.tif").unlink()
    (own_chips / "train_labels" / f"{second}.tif").unlink()
    path = own_chips / "train_metadata.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([line for line in lines if not line.startswith(third + ",")] + ["ghost,Nowhere,,x"]))
    for band in BANDS:
        (own_chips / "train_features" / fourth / f"{band}.tif").rename(own_chips / f"{fourth}-{band}")
    found = problems_of(own_chips)
    assert found[first] == "no band B03 (found: B02, B04, B08)"
    assert found[second] == "no label, where other chips have one"
    assert found[third] == "files without a row in the metadata"
    assert found["ghost"] == "a row in the metadata, but no files"
    assert found[fourth] == "a row in the metadata, but no files"
    assert len(found) == 5
    assert len(open_archive(str(own_chips), BANDS).chips) == 12 - 4


@pytest.mark.parametrize("bad", ["../evil", "a/b", "", ".hidden", "a\\b", "/etc/passwd", "a\n"])
def test_chip_id_with_a_path_in_it_is_refused(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(f'chip_id,location,datetime\n"{bad}",Here,\ngood,Here,\n')
    metadata = read_metadata(str(path))
    problems = metadata.problems
    assert [row.chip_id for row in metadata.rows] == ["good"]
    assert [problem.subject for problem in problems] == [repr(bad)]
    assert "plain file name" in problems[0].found


def test_duplicate_chip_is_named_once_and_never_taken(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("chip_id,location,datetime\na,X,\nb,X,\na,Y,\n")
    metadata = read_metadata(str(path))
    assert [row.chip_id for row in metadata.rows] == ["b"]
    assert [str(problem) for problem in metadata.problems] == ["a: duplicate chip id: 2 rows of the metadata have it"]


def test_blank_datetime_is_fine_and_an_unreadable_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(
        "chip_id,location,datetime\na,X,\nb,X,2020-04-29T08:20:47Z\nc,X,yesterday\nd,,\ne,X,0001-01-01T00:00:00+14:00\n"
    )
    metadata = read_metadata(str(path))
    problems = metadata.problems
    assert [(row.chip_id, row.taken and row.taken.isoformat()) for row in metadata.rows] == [
        ("a", None),
        ("b", "2020-04-29T08:20:47+00:00"),
    ]
    assert [problem.subject for problem in problems] == ["c", "d", "e"]
    assert "'yesterday'" in problems[0].found
    assert "unreadable datetime '0001-01-01T00:00:00+14:00'" in problems[2].found


def test_missing_metadata_or_column_is_the_callers_mistake(own_chips: Path) -> None:
    path = own_chips / "train_metadata.csv"
    path.write_text("chip,place\na,b\n")
    with pytest.raises(ConfigError, match="no column chip_id, location"):
        open_archive(str(own_chips), BANDS)
    path.write_text('chip_id,location\n"' + "x" * 200_000)
    with pytest.raises(ConfigError, match=r"train_metadata\.csv: not a CSV file"):
        open_archive(str(own_chips), BANDS)
    path.unlink()
    with pytest.raises(ConfigError, match="no such metadata file"):
        open_archive(str(own_chips), BANDS)


def test_folder_without_chips_or_with_two_splits_is_refused(own_chips: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no chips found"):
        open_archive(str(tmp_path / "absent"), BANDS)
    (own_chips / "train_features").rename(own_chips / "a_features")
    (own_chips / "b_features" / "x").mkdir(parents=True)
    (own_chips / "b_features" / "x" / "B02.tif").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"several splits \(a, b\)"):
        open_archive(str(own_chips), BANDS)


def test_truncated_band_other_size_and_other_type_are_named_with_the_band(own_chips: Path) -> None:
    archive = open_archive(str(own_chips), BANDS)
    first, second, third, fourth, fifth = (archive.chips[i] for i in range(5))
    path = Path(first.bands["B04"])
    path.write_bytes(path.read_bytes()[:400])
    _rewrite(second.bands["B08"], lambda pixels: pixels[:32])
    _rewrite(third.bands["B03"], lambda pixels: pixels.astype(np.uint8))
    Path(fourth.bands["B02"]).unlink()
    Path(fifth.bands["B02"]).write_bytes(b"")
    for chip, message in (
        (first, rf"{first.chip_id}: B04: not a readable TIFF, perhaps truncated \((?!.*vsimem)"),
        (second, rf"{second.chip_id}: B08: size 64 x 32 differs from the 64 x 64 of B02"),
        (third, rf"{third.chip_id}: B03: expected uint16, found uint8"),
        (fourth, rf"{fourth.chip_id}: a band vanished"),
        (fifth, rf"{fifth.chip_id}: B02: an empty file"),
    ):
        with pytest.raises(DataError, match=message):
            read_chip(chip.chip_id, chip.bands)


def test_band_or_label_of_another_place_is_named_and_one_without_a_place_is_fine(own_chips: Path) -> None:
    first, second, third, *_ = open_archive(str(own_chips), BANDS).chips
    with rasterio.open(first.bands["B02"]) as source:
        crs, transform = source.crs, source.transform
    moved = transform @ rasterio.Affine.translation(1, 0)
    _replace(first.bands["B08"], crs=crs, transform=moved)
    with pytest.raises(DataError, match=rf"{first.chip_id}: B08: lies at \(.*\) in {crs}, but B02 at "):
        read_chip(first.chip_id, first.bands)
    _replace(first.bands["B08"], crs="EPSG:32601", transform=transform)
    with pytest.raises(DataError, match=r"B08: lies at .* in EPSG:32601, but B02 at "):
        read_chip(first.chip_id, first.bands)
    _replace(second.bands["B08"], crs=None, transform=rasterio.Affine.identity())
    assert read_chip(second.chip_id, second.bands).valid.any()
    assert third.label is not None
    _replace(third.label, transform=moved)
    with pytest.raises(DataError, match=rf"{third.chip_id}: label: lies at .*, but the bands at "):
        read_tile(third, "before-04.00")


def test_label_of_nothing_is_named_and_an_odd_name_only_once(own_chips: Path) -> None:
    shutil.copytree(own_chips / "train_features" / chip_ids(own_chips)[0], own_chips / "train_features" / "my chip")
    with (own_chips / "train_metadata.csv").open("a") as file:
        file.write("my chip,Here,,x\n")
    (own_chips / "train_labels" / "ghost.tif").write_bytes(b"x")
    assert problems_of(own_chips) == {
        "'my chip'": "chip id is not a plain file name (letters, digits, '.', '_', '-')",
        "train_labels/ghost.tif": "a label without bands and without a row in the metadata",
    }


def test_archive_to_score_needs_no_labels_and_no_locations(own_chips: Path) -> None:
    shutil.rmtree(own_chips / "train_labels")
    ids = chip_ids(own_chips)
    (own_chips / "train_metadata.csv").write_text("\n".join(["chip_id", *ids]))
    archive = open_archive(str(own_chips), BANDS, for_training=False)
    assert ([chip.chip_id for chip in archive.chips], archive.problems) == (sorted(ids), [])
    with pytest.raises(ConfigError, match="no column location"):
        open_archive(str(own_chips), BANDS)


def test_bad_row_of_the_selection_is_named_if_the_filters_take_it(own_chips: Path) -> None:
    first, second, *_ = chip_ids(own_chips)
    split = own_chips / "split.csv"
    split.write_text(f"chip_id,split\n{first},val\n{second},val\n{second},val\n../x,train\n")
    chosen = select_chips(open_archive(str(own_chips), BANDS), Selection(where=("split=val",), metadata=str(split)))
    assert [chip.chip_id for chip in chosen.chips] == [first]
    assert [str(each) for each in chosen.problems] == [f"{second}: duplicate chip id: 2 rows of the metadata have it"]


def test_selection_keeps_the_chosen_chips_and_their_problems(own_chips: Path) -> None:
    first, second, *_ = chip_ids(own_chips)
    (own_chips / "train_features" / first / "B03.tif").unlink()
    split = own_chips / "split.csv"
    split.write_text(f"chip_id,split\n{first},val\n{second},val\nother,train\n")
    archive = open_archive(str(own_chips), BANDS)
    chosen = select_chips(archive, Selection(where=("split=val",), metadata=str(split)))
    assert [chip.chip_id for chip in chosen.chips] == [second]
    assert [problem.subject for problem in chosen.problems] == [first]
    with pytest.raises(ConfigError, match="none of the"):
        select_chips(archive, Selection(where=("split=train",), metadata=str(split)))


def test_chosen_chip_that_the_archive_does_not_know_is_named(own_chips: Path) -> None:
    first, *_ = chip_ids(own_chips)
    split = own_chips / "split.csv"
    split.write_text(f"chip_id,split\n{first},val\ngone,val\n")
    chosen = select_chips(open_archive(str(own_chips), BANDS), Selection(where=("split=val",), metadata=str(split)))
    assert [chip.chip_id for chip in chosen.chips] == [first]
    assert [str(each) for each in chosen.problems] == [
        f"gone: chosen by the filters on {split}, but not in the archive"
    ]


def test_folders_and_files_behind_links_are_found(chips: Path, tmp_path: Path) -> None:
    for path in chips.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert open_archive(str(tmp_path), BANDS).problems == []
    assert len(open_archive(str(tmp_path), BANDS).chips) == 12


def _replace(path: str, **changes: object) -> None:
    with rasterio.open(path) as source:
        pixels, profile = source.read(), source.profile
    with rasterio.open(path, "w", **{**profile, **changes}) as target:
        target.write(pixels)


def _rewrite(path: str, change) -> None:  # type: ignore[no-untyped-def]
    with rasterio.open(path) as source:
        pixels, profile = source.read(1), source.profile
    pixels = change(pixels)
    profile.update(height=pixels.shape[0], width=pixels.shape[1], dtype=pixels.dtype.name)
    with rasterio.open(path, "w", **profile) as target:
        target.write(pixels, 1)
