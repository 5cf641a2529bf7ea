"""Decisions make new shards, below Ray: labels change as decided, all else stays, and what was cut off goes on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raytrain import storage
from raytrain.cluster import review_apply, session
from raytrain.cluster.review_apply import ApplyJob, ApplyReport, apply
from raytrain.errors import ConfigError
from raytrain.review.exchange import export
from raytrain.review.log import DecisionLog
from raytrain.review.regions import decode_png, encode_mask
from raytrain.tiles.format import Tile
from raytrain.tiles.reader import TileReader, select_tiles
from raytrain.tiles.verify import unknown_files, verify_beside, verify_index, verify_shard
from tests.deciding import decide, decide_on, make_review
from tests.dying import dies_after
from tests.making import BANDS, make_tile, write_tiles

SHAPE = (16, 24)
TWO_ROWS = np.zeros(SHAPE, np.uint8)
TWO_ROWS[:2] = 1


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are done here, one after the other, in the order of the work."""

    def in_turn(function: Callable[[Any], Any], work: Iterable[Any], total: int, on_done: Any) -> Iterator[Any]:
        for i, each in enumerate(work):
            yield function(each)
            if on_done is not None:
                on_done(i + 1, total)

    monkeypatch.setattr(review_apply, "run_tasks", in_turn)
    monkeypatch.setattr(session, "joined", lambda *_: contextlib.nullcontext())


def tiles() -> list[Tile]:
    """Seven tiles: tile1 has two columns without data, tile6 no label."""
    found = [make_tile(i, SHAPE, labelled=i != 6) for i in range(7)]
    for band in found[1].bands.values():
        band[:, :2] = 0
    assert found[1].label is not None
    found[1].label[:, :2] = 255
    return found


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Shards of two tiles: 0 and 1, 2 and 3, 4 and 5, 6."""
    write_tiles(tmp_path / "shards", tiles(), "blosc2-bitshuffle-zstd", tiles_per_shard=2)
    return tmp_path / "shards"


@pytest.fixture
def review(tmp_path: Path, shards: Path) -> str:
    return make_review(tmp_path / "review", shards)


def run(review: str, dst: Path, **options: Any) -> ApplyReport:
    return apply(ApplyJob(review=review, dst=str(dst), **options), session.Cluster())


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["tile_id"]: row for row in pq.read_table(folder / "index.parquet").to_pylist()}


def labels_of(folder: Path) -> dict[str, Any]:
    reader = TileReader(str(folder), ())
    return {name: reader.read(i)[1] for i, name in enumerate(reader.tile_ids)}


def check_as_written(folder: Path) -> None:
    """All that `raytrain verify` looks at, and that every hash in the index is that of its tile."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert verify_index(str(folder), manifest["index"]) == []
    assert [each for record in manifest["shards"] for each in verify_shard(str(folder), record)] == []
    assert [each for record in manifest["beside"] for each in verify_beside(str(folder), record)] == []
    assert unknown_files(str(folder), [each["name"] for each in [*manifest["shards"], *manifest["beside"]]]) == []
    reader, rows = TileReader(str(folder), BANDS), rows_of(folder)
    for i, name in enumerate(reader.tile_ids):
        pixels, label = reader.read(i)
        tile = replace(make_tile(0, SHAPE), bands=dict(zip(BANDS, pixels, strict=True)), label=label)
        assert rows[name]["sha256"] == tile.sha256()


def test_labels_become_what_was_decided_and_all_else_stays(tmp_path: Path, shards: Path, review: str) -> None:
    before, dst = bytes_of(shards), tmp_path / "new"
    decide_on(review, shards, "tile0", 1, verdict="ignore", mask=encode_mask(TWO_ROWS))
    decide_on(review, shards, "tile1", 2, verdict="fix", mask=encode_mask(TWO_ROWS), reason="moved", kind="shifted")
    decide_on(review, shards, "tile2", 3)
    decide_on(review, shards, "tile3", 4, verdict="unsure")
    decide_on(review, shards, "tile5", 5, verdict="drop")
    report = run(review, dst)
    assert (report.problems, report.was_done) == ([], False)
    assert bytes_of(shards) == before, "the parent was changed"
    check_as_written(dst)

    old, new = labels_of(shards), labels_of(dst)
    assert list(new) == ["tile0", "tile1", "tile2", "tile3", "tile4", "tile6"]
    assert (new["tile0"][:2] == 255).all()
    assert (new["tile0"][2:] == old["tile0"][2:]).all()
    assert (new["tile1"][:, :2] == 255).all(), "there is no data"
    assert (new["tile1"][:, 2:] == TWO_ROWS[:, 2:]).all()
    assert all(np.array_equal(new[name], old[name]) for name in ("tile2", "tile3", "tile4"))
    assert new["tile6"] is None

    assert (dst / "shard-00001.parquet").read_bytes() == (shards / "shard-00001.parquet").read_bytes()
    assert (dst / "shard-00003.parquet").read_bytes() == (shards / "shard-00003.parquet").read_bytes()
    parent_rows, rows = rows_of(shards), rows_of(dst)
    places = {f"{cell}_{part}" for cell in ("label", *BANDS) for part in ("offset", "bytes", "crc32")}
    for name, row in rows.items():
        differs = {column for column in row if row[column] != parent_rows[name][column]}
        assert differs <= places | {"sha256", "cloud_fraction", "row_group"}
        for band in BANDS:  # as it was encoded: its bytes, wherever they lie
            assert row[f"{band}_crc32"] == parent_rows[name][f"{band}_crc32"]
        if name in ("tile2", "tile3", "tile6"):
            assert differs == set()
    assert rows["tile1"]["cloud_fraction"] == 2 / 16
    assert rows["tile0"]["cloud_fraction"] == np.float32((old["tile0"][2:] == 1).mean())
    for name in ("tile0", "tile1"):
        assert rows[name]["sha256"] != parent_rows[name]["sha256"]


def test_manifest_names_parent_and_decisions_which_lie_beside(tmp_path: Path, shards: Path, review: str) -> None:
    dst = tmp_path / "new"
    decide_on(review, shards, "tile0", 1, verdict="fix", mask=encode_mask(TWO_ROWS))
    decide_on(review, shards, "tile1", 2, verdict="unsure")
    decide_on(review, shards, "tile2", 3, verdict="drop", reviewer="bob")
    manifest = run(review, dst).manifest
    parent = json.loads((shards / "manifest.json").read_text())
    assert manifest["parent"]["uri"] == str(shards)
    assert manifest["parent"]["manifest_sha256"] == storage.sha256_of((shards / "manifest.json").read_bytes())
    assert {name: manifest[name] for name in ("num_tiles", "num_labelled", "num_locations")} == {
        "num_tiles": 6,
        "num_labelled": 5,
        "num_locations": 2,
    }
    assert manifest["bytes"] == sum(path.stat().st_size for path in dst.glob("shard-*.parquet"))
    found = manifest["review"]
    assert (found["uri"], found["num_decisions"]) == (review, 3)
    assert found["outcomes"] == {"applied": 2, "agrees": 0, "unsure": 1, "overruled": 0, "left": 0}
    assert (found["applied"], found["reviewers"]) == ({"drop": 1, "fix": 1}, ["ann", "bob"])
    assert (found["contested"], found["problems"]) == ([], [])
    assert [manifest[name] == parent[name] for name in ("bands", "source", "settings", "left_out")] == [True] * 4
    table = pq.read_table(dst / "decisions.parquet")
    assert table["outcome"].to_pylist() == ["applied", "unsure", "applied"]
    assert table["tile_id"].to_pylist() == ["tile0", "tile1", "tile2"]
    assert (decode_png(table["mask"][0].as_py(), SHAPE, (0, 1)) == TWO_ROWS).all()
    assert len(select_tiles(TileReader(str(dst), BANDS), 0, "train")) == 3


def test_export_leaves_the_decisions_beside_new_shards_alone(tmp_path: Path, shards: Path, review: str) -> None:
    decide_on(review, shards, "tile0", 1, verdict="drop")
    run(review, tmp_path / "new")
    before = bytes_of(tmp_path / "new")
    with pytest.raises(ConfigError, match=r"decisions\.parquet holds something that raytrain review export did not"):
        export(review, str(tmp_path / "new" / "decisions.parquet"))
    assert bytes_of(tmp_path / "new") == before
    check_as_written(tmp_path / "new")


@pytest.mark.parametrize("encoding", ["raw", "blosc2-bitshuffle-lz4"])
def test_every_encoding_is_kept(tmp_path: Path, encoding: Any) -> None:
    write_tiles(tmp_path / "shards", tiles(), encoding, tiles_per_shard=4)
    review = make_review(tmp_path / "review", tmp_path / "shards")
    decide_on(review, tmp_path / "shards", "tile3", 1, verdict="fix", mask=encode_mask(TWO_ROWS))
    run(review, tmp_path / "new")
    check_as_written(tmp_path / "new")
    assert (labels_of(tmp_path / "new")["tile3"] == TWO_ROWS).all()


def decide_much(review: str, shards: Path) -> None:
    for i, verdict in enumerate(["fix", "accept", "drop", "drop", "ignore"]):
        mask = encode_mask(TWO_ROWS) if verdict in ("fix", "ignore") else None
        decide_on(review, shards, f"tile{i}", i + 1, verdict=verdict, mask=mask)


def test_shard_without_a_tile_left_is_not_written(tmp_path: Path, shards: Path, review: str) -> None:
    decide_much(review, shards)
    report = run(review, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").glob("shard-*")) == [
        "shard-00000.parquet",
        "shard-00002.parquet",
        "shard-00003.parquet",
    ]
    assert report.manifest["num_tiles"] == 5
    check_as_written(tmp_path / "new")


@pytest.mark.parametrize("cut", range(1, 11))
def test_work_that_was_cut_off_after_any_write_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, shards: Path, review: str, cut: int
) -> None:
    """Three shards, four parts, the index, the decisions and the manifest are ten writes."""
    decide_much(review, shards)
    run(review, tmp_path / "whole")
    dst = tmp_path / "new"
    with dies_after(cut):
        run(review, dst)
    assert (dst / "manifest.json").exists() == (cut == 10), "a half-written set looks whole"
    parts = {path.name for path in dst.glob("unfinished/*")}
    times = {path: path.stat().st_mtime_ns for path in dst.glob("shard-*.parquet") if path.name in parts}
    assert run(review, dst).was_done == (cut == 10)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items()), "a whole shard was written again"
    assert bytes_of(dst) == bytes_of(tmp_path / "whole")


def test_decision_that_came_after_a_cut_counts(
    tmp_path: Path, shards: Path, review: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dst = tmp_path / "new"
    decide_on(review, shards, "tile0", 1, verdict="drop")
    with monkeypatch.context() as patched:
        patched.setattr("raytrain.tiles.parts.write_index", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(review, dst)
    assert len(list(dst.glob("unfinished/*"))) == 4
    decide_on(review, shards, "tile4", 2, verdict="fix", mask=encode_mask(TWO_ROWS))
    run(review, dst)
    assert (labels_of(dst)["tile4"] == TWO_ROWS).all()
    check_as_written(dst)


def test_index_in_any_order_serves(tmp_path: Path, shards: Path, review: str) -> None:
    table = pq.read_table(shards / "index.parquet")
    pq.write_table(table.take([6, 3, 0, 5, 2, 1, 4]), shards / "index.parquet")
    manifest, data = json.loads((shards / "manifest.json").read_text()), (shards / "index.parquet").read_bytes()
    manifest["index"] = {"bytes": len(data), "sha256": storage.sha256_of(data)}
    (shards / "manifest.json").write_text(json.dumps(manifest))
    decide_on(review, shards, "tile1", 1, verdict="fix", mask=encode_mask(TWO_ROWS))
    decide_on(review, shards, "tile4", 2, verdict="drop")
    run(review, tmp_path / "new")
    check_as_written(tmp_path / "new")
    assert list(labels_of(tmp_path / "new")) == [f"tile{i}" for i in (0, 1, 2, 3, 5, 6)]


def test_rerun_writes_nothing_and_says_the_same(tmp_path: Path, shards: Path, review: str) -> None:
    dst = tmp_path / "new"
    decide_much(review, shards)
    decide_on(review, shards, "tile5", 9, tile_sha256="1" * 64)
    first = run(review, dst)
    times = {path: path.stat().st_mtime_ns for path in dst.rglob("*")}
    second = run(review, dst)
    assert (second.was_done, second.manifest) == (True, first.manifest)
    assert [str(each) for each in second.problems] == [str(each) for each in first.problems] != []
    assert {path: path.stat().st_mtime_ns for path in dst.rglob("*")} == times


def test_other_work_at_the_destination_is_refused(tmp_path: Path, shards: Path, review: str) -> None:
    dst = tmp_path / "new"
    decide_on(review, shards, "tile0", 1, verdict="drop")
    run(review, dst)
    whole = bytes_of(dst)
    with pytest.raises(ConfigError, match=r"other decisions .conflicts: leave -> latest.; choose another destination"):
        run(review, dst, conflicts="latest")
    decide_on(review, shards, "tile1", 2, verdict="drop")
    with pytest.raises(ConfigError, match="decisions_sha256"):
        run(review, dst)
    assert bytes_of(dst) == whole
    write_tiles(tmp_path / "others", tiles(), "raw")
    with pytest.raises(ConfigError, match="made from chips; choose another destination"):
        run(review, tmp_path / "others")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "decisions.parquet").write_bytes(b"a table of somebody else")
    with pytest.raises(ConfigError, match=r"holds a decisions\.parquet that raytrain did not write"):
        run(review, tmp_path / "strange")
    (tmp_path / "chips" / "train_features").mkdir(parents=True)
    (tmp_path / "chips" / "train_features" / "B02.tif").write_bytes(b"a chip of an archive")
    (tmp_path / "chips" / ".DS_Store").write_bytes(b"of a file manager")
    with pytest.raises(ConfigError, match=r"what is no shards', among it train_features/B02\.tif"):
        run(review, tmp_path / "chips")
    assert len(list((tmp_path / "chips").rglob("*"))) == 3
    (tmp_path / "chips" / "train_features" / "B02.tif").unlink()
    run(review, tmp_path / "chips")


@pytest.mark.parametrize("place", ["shards", "shards/new", ".", "review", "review/new", "link", "shards-predictions"])
def test_nothing_is_written_over_or_into_what_is_read(tmp_path: Path, shards: Path, review: str, place: str) -> None:
    (tmp_path / "link").symlink_to(shards)
    decide_on(review, shards, "tile0", 1, verdict="drop")
    before = bytes_of(tmp_path)
    with pytest.raises(ConfigError, match="nothing is written over or into what is read"):
        run(review, tmp_path / place)
    assert bytes_of(tmp_path) == before


def test_shards_that_are_not_those_of_the_review_are_refused(tmp_path: Path, shards: Path, review: str) -> None:
    decide_on(review, shards, "tile0", 1, verdict="drop")
    write_tiles(shards, tiles()[::-1], "raw")
    with pytest.raises(ConfigError, match=f"other shards than .* rank again .* raytrain review merge NEW {review}$"):
        run(review, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_all_tiles_dropped_is_an_error_that_leaves_nothing(tmp_path: Path, shards: Path, review: str) -> None:
    for i in range(7):
        decide_on(review, shards, f"tile{i}", i + 1, verdict="drop")
    with pytest.raises(ConfigError, match=r"every tile of .* is dropped"):
        run(review, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_damaged_parent_is_named_and_nothing_made_of_it(tmp_path: Path, shards: Path, review: str) -> None:
    decide_on(review, shards, "tile0", 1, verdict="drop")
    path = shards / "shard-00001.parquet"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"shard-00001\.parquet: sha256 is .* raytrain verify"):
        run(review, tmp_path / "new")
    path.unlink()
    with pytest.raises(ConfigError, match=r"shard-00001\.parquet: no such file"):
        run(review, tmp_path / "new")
    assert not (tmp_path / "new" / "manifest.json").exists()


def test_index_that_is_not_the_one_of_the_manifest_is_named_and_nothing_made_of_it(
    tmp_path: Path, shards: Path, review: str
) -> None:
    decide_on(review, shards, "tile0", 1, verdict="drop")
    table = pq.read_table(shards / "index.parquet")
    moved = table.set_column(table.schema.get_field_index("location"), "location", table["location"].take([6] * 7))
    pq.write_table(moved, shards / "index.parquet")
    with pytest.raises(ConfigError, match=r"index\.parquet: .* where the manifest says .* raytrain verify"):
        run(review, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_decisions_that_can_not_be_applied_are_named_and_their_tiles_stay(
    tmp_path: Path, shards: Path, review: str
) -> None:
    decide_on(review, shards, "tile0", 1, verdict="drop", tile_sha256="1" * 64)
    DecisionLog(review).append(decide(2, tile_id="tile9", verdict="drop"))
    decide_on(review, shards, "tile1", 3, verdict="fix", mask=encode_mask(TWO_ROWS[:3]))
    decide_on(review, shards, "tile2", 4, verdict="ignore", mask=encode_mask(TWO_ROWS * np.uint8(9)))
    decide_on(review, shards, "tile3", 5, verdict="fix", mask="AAAA")
    decide_on(review, shards, "tile6", 6, verdict="ignore", mask=encode_mask(TWO_ROWS))
    decide_on(review, shards, "tile4", 7, verdict="drop", tile_sha256="1" * 64)
    decide_on(review, shards, "tile4", 8, verdict="fix", mask=encode_mask(TWO_ROWS), reviewer="bob")
    storage.write_bytes(storage.join(review, "decisions", "ann", "junk"), b"")
    report = run(review, tmp_path / "new")
    found = "\n".join(sorted(map(str, report.problems)))
    assert len(report.problems) == 8, found
    for text in (
        r"drop of tile tile0 by ann (00000000000000000000000000000001): the tile that was looked at had the sha256 111",
        "drop of tile tile9 by ann",
        "has no such tile",
        "its mask can't be used: has 24 x 3 px, where the tile has 24 x 16",
        "its mask can't be used: has the values 9, expected 0, 1",
        "its mask can't be used: not a PNG",
        "the tile has no label to ignore a part of",
        "junk: no entry of the log",
    ):
        assert text in found
    old, new = labels_of(shards), labels_of(tmp_path / "new")
    assert (new["tile4"] == TWO_ROWS).all(), "the other reviewer looked at the tile as it is"
    assert [name for name in old if name != "tile4" and not np.array_equal(old[name], new[name])] == []
    check_as_written(tmp_path / "new")


def test_label_is_given_to_a_tile_without_one(tmp_path: Path, shards: Path, review: str) -> None:
    decide_on(review, shards, "tile6", 1, verdict="fix", mask=encode_mask(TWO_ROWS))
    report = run(review, tmp_path / "new")
    assert report.manifest["num_labelled"] == 7
    assert (labels_of(tmp_path / "new")["tile6"] == TWO_ROWS).all()
    check_as_written(tmp_path / "new")


def test_fix_that_is_the_label_changes_no_byte(tmp_path: Path, shards: Path, review: str) -> None:
    decide_on(review, shards, "tile0", 1, verdict="fix", mask=encode_mask(labels_of(shards)["tile0"]))
    report = run(review, tmp_path / "new")
    assert report.manifest["review"]["applied"] == {"fix": 1}
    for path in shards.glob("shard-*"):
        assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes()


def test_contradicting_reviewers_leave_a_tile_as_it_is_or_the_latest_decides(
    tmp_path: Path, shards: Path, review: str
) -> None:
    fixed, late = {"verdict": "fix", "mask": encode_mask(TWO_ROWS)}, {"time": "2026-11-28T10:00:00.000Z"}
    decide_on(review, shards, "tile0", 1, verdict="drop", **late)
    decide_on(review, shards, "tile0", 2, reviewer="bob", **fixed)
    decide_on(review, shards, "tile1", 3, **fixed)
    decide_on(review, shards, "tile1", 4, verdict="unsure", reviewer="bob", **late)
    decide_on(review, shards, "tile2", 5, **fixed)
    decide_on(review, shards, "tile2", 6, verdict="fix", mask=encode_mask(1 - TWO_ROWS), reviewer="bob", **late)
    decide_on(review, shards, "tile3", 7, verdict="drop")
    decide_on(review, shards, "tile3", 8, verdict="drop", reviewer="bob")
    left = run(review, tmp_path / "left")
    assert [str(each) for each in left.problems] == [
        "tile tile0: reviewers contradict each other (ann drop, bob fix); it stays as it is",
        "tile tile2: reviewers contradict each other (ann fix, bob fix); it stays as it is",
    ]
    old, new = labels_of(shards), labels_of(tmp_path / "left")
    assert set(old) - set(new) == {"tile3"}
    assert np.array_equal(new["tile0"], old["tile0"])
    assert np.array_equal(new["tile2"], old["tile2"])
    assert (new["tile1"][:, 2:] == TWO_ROWS[:, 2:]).all(), "who is unsure contradicts nobody"
    taken = run(review, tmp_path / "latest", conflicts="latest")
    assert taken.problems == []
    assert taken.manifest["review"]["contested"] == left.manifest["review"]["contested"] == ["tile0", "tile2"]
    new = labels_of(tmp_path / "latest")
    assert set(old) - set(new) == {"tile0", "tile3"}
    assert (new["tile2"] == 1 - TWO_ROWS).all()
    only = run(review, tmp_path / "only", reviewers=("bob",))
    assert only.problems == []
    assert only.manifest["review"]["reviewers"] == ["bob"]
    assert (labels_of(tmp_path / "only")["tile0"] == TWO_ROWS).all()
    with pytest.raises(ConfigError, match="unknown reviewer 'eve'; known are ann, bob"):
        run(review, tmp_path / "none", reviewers=("eve",))


def outcomes_of(folder: Path) -> dict[tuple[str, str], str]:
    rows = pq.read_table(folder / "decisions.parquet").to_pylist()
    return {(row["tile_id"], row["reviewer"]): row["outcome"] for row in rows}


def test_what_comes_of_each_decision_is_told(tmp_path: Path, shards: Path, review: str) -> None:
    late, three_rows = {"time": "2026-11-28T10:00:00.000Z"}, np.zeros(SHAPE, np.uint8)
    three_rows[:3] = 1
    for i, (reviewer, verdict) in enumerate([("ann", "drop"), ("bob", "drop"), ("eve", "unsure")]):
        decide_on(review, shards, "tile0", i + 1, verdict=verdict, reviewer=reviewer)
    decide_on(review, shards, "tile2", 4, verdict="fix", mask=encode_mask(three_rows))
    decide_on(review, shards, "tile2", 5, verdict="fix", mask=encode_mask(three_rows), reviewer="bob", **late)
    decide_on(review, shards, "tile2", 6, verdict="unsure", reviewer="eve", tile_sha256="1" * 64)
    decide_on(review, shards, "tile3", 7, verdict="fix", mask="AAAA")
    decide_on(review, shards, "tile3", 8, verdict="fix", mask=encode_mask(three_rows), reviewer="bob")
    decide_on(review, shards, "tile4", 9, verdict="drop", **late)
    decide_on(review, shards, "tile4", 10, verdict="drop", reviewer="bob")
    decide_on(review, shards, "tile4", 11, reviewer="eve")
    DecisionLog(review).append(decide(12, tile_id="tile9", verdict="drop"))
    same = {
        ("tile0", "ann"): "agrees",
        ("tile0", "bob"): "applied",
        ("tile0", "eve"): "unsure",
        ("tile2", "ann"): "agrees",
        ("tile2", "bob"): "applied",
        ("tile2", "eve"): "left",
        ("tile3", "ann"): "left",
        ("tile3", "bob"): "left",
        ("tile9", "ann"): "left",
    }
    of_tile4 = {"leave": ("left", "left", "left"), "latest": ("applied", "agrees", "overruled")}
    for conflicts, found in of_tile4.items():
        report = run(review, tmp_path / conflicts, conflicts=conflicts)
        wanted = same | {("tile4", name): each for name, each in zip(("ann", "bob", "eve"), found, strict=True)}
        assert outcomes_of(tmp_path / conflicts) == wanted
        assert report.manifest["review"]["outcomes"] == {
            name: list(wanted.values()).count(name) for name in ("applied", "agrees", "unsure", "overruled", "left")
        }
        told = sorted(map(str, report.problems))
        assert len(told) == 4 + (conflicts == "leave"), "each decision that was left out has its reason"
        assert any(
            "tile3 by bob" in text and "another decision can't be used: fix of tile tile3" in text for text in told
        )


def test_without_decisions_there_is_nothing_to_apply(tmp_path: Path, shards: Path, review: str) -> None:
    with pytest.raises(ConfigError, match="no decision stands"):
        run(review, tmp_path / "new")
    decide_on(review, shards, "tile0", 1, verdict="drop")
    decide_on(review, shards, "tile0", 2, verdict="undo", undoes=f"{1:032x}")
    with pytest.raises(ConfigError, match="no decision stands"):
        run(review, tmp_path / "new")


def test_new_shards_may_be_reviewed_again(tmp_path: Path, shards: Path, review: str) -> None:
    decide_on(review, shards, "tile0", 1, verdict="drop")
    run(review, tmp_path / "second")
    again = make_review(tmp_path / "review-2", tmp_path / "second")
    decide_on(again, tmp_path / "second", "tile1", 1, verdict="drop")
    manifest = run(again, tmp_path / "third").manifest
    assert manifest["parent"]["uri"] == str(tmp_path / "second")
    assert manifest["review"]["num_decisions"] == 1
    check_as_written(tmp_path / "third")
    assert pq.read_table(tmp_path / "third" / "decisions.parquet")["tile_id"].to_pylist() == ["tile1"]
