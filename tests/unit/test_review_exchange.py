"""Logs exported, merged and held against each other, and what the commands print of it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raytrain import cli, storage
from raytrain.review.log import DecisionLog
from raytrain.review.regions import decode_png, encode_mask
from raytrain.review.standing import standing_of
from tests.deciding import decide, decide_on, make_review
from tests.making import make_tile, write_tiles

SHAPE = (16, 16)
TWO_ROWS = np.zeros(SHAPE, np.uint8)
TWO_ROWS[:2] = 1


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_tiles(tmp_path / "shards", [make_tile(i, SHAPE) for i in range(4)], "raw")
    return tmp_path / "shards"


@pytest.fixture
def review(tmp_path: Path, shards: Path) -> str:
    return make_review(tmp_path / "review", shards)


@pytest.fixture
def other(tmp_path: Path, shards: Path) -> str:
    return make_review(tmp_path / "other", shards)


def ran(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """Run `raytrain review` with --json and return what it printed."""
    assert cli.main(["review", *arguments, "--json"]) == code, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["review", *arguments]) == 2
    return capsys.readouterr().err.replace("\n", " ")


def test_export_has_all_entries_typed_and_says_which_stand(
    tmp_path: Path, shards: Path, review: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "decisions.parquet"
    decide_on(review, shards, "tile0", 1, verdict="fix", mask=encode_mask(TWO_ROWS), reason="größer", kind="shifted")
    decide_on(review, shards, "tile0", 2, verdict="drop")
    decide_on(review, shards, "tile0", 3, verdict="undo", undoes=f"{2:032x}")
    decide_on(review, shards, "tile1", 1, reviewer="bob")
    found = ran(capsys, "export", review, str(out))
    assert (found["num_entries"], found["num_standing"], found["problems"]) == (4, 2, [])
    assert [(each["reviewer"], each["num_tiles"]) for each in found["reviewers"]] == [("ann", 1), ("bob", 1)]
    table = pq.read_table(out)
    rows = table.to_pylist()
    assert [(row["reviewer"], row["number"], row["stands"]) for row in rows] == [
        ("ann", 1, True),
        ("ann", 2, False),
        ("ann", 3, False),
        ("bob", 1, True),
    ]
    assert (decode_png(rows[0]["mask"], SHAPE, (0, 1)) == TWO_ROWS).all()
    assert (rows[0]["reason"], rows[0]["kind"], rows[1]["mask"]) == ("größer", "shifted", None)
    assert rows[2]["undoes"] == f"{2:032x}"
    assert rows[0]["time"] == datetime(2026, 11, 27, 10, tzinfo=UTC)
    assert str(table.schema.field("time").type) == "timestamp[ms, tz=UTC]"
    assert ran(capsys, "export", review, str(out))["num_entries"] == 4, "an older export is replaced"
    assert cli.main(["review", "export", review, str(out)]) == 0
    printed = capsys.readouterr().out
    assert "4 entries, 2 of which stand" in printed
    assert "fix 1" in printed


def test_export_takes_the_place_of_nothing_else(
    tmp_path: Path, shards: Path, review: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.parquet").write_bytes((shards / "index.parquet").read_bytes())
    assert "did not write" in failed(capsys, "export", review, str(tmp_path / "mine.parquet"))
    assert (tmp_path / "mine.parquet").read_bytes() == (shards / "index.parquet").read_bytes()
    for place in (f"{review}/ranking.parquet", str(shards / "index.parquet"), f"{review}/new.parquet", review):
        assert "lies in the folder of the" in failed(capsys, "export", review, place)
    assert "make it with raytrain review rank" in failed(capsys, "export", str(shards), str(tmp_path / "x.parquet"))


def test_export_names_masks_that_are_none_and_entries_that_are_damaged(
    tmp_path: Path, shards: Path, review: str, capsys: pytest.CaptureFixture[str]
) -> None:
    decide_on(review, shards, "tile0", 1, verdict="fix", mask="no base64")
    storage.write_bytes(storage.join(review, "decisions", "junk"), b"")
    found = ran(capsys, "export", review, str(tmp_path / "x.parquet"), code=1)
    assert len(found["problems"]) == 2
    assert pq.read_table(tmp_path / "x.parquet")["mask"].to_pylist() == [None]


def test_merge_copies_what_is_new_and_overwrites_nothing(
    shards: Path, review: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    same = decide_on(review, shards, "tile0", 1)
    clashes = decide_on(review, shards, "tile0", 2, verdict="drop")
    DecisionLog(other).append(same)
    decide_on(other, shards, "tile1", 2)
    news = [decide_on(other, shards, f"tile{i}", i + 1, reviewer="bob") for i in range(3)]
    storage.write_bytes(storage.join(other, "decisions", "junk"), b"")
    found = ran(capsys, "merge", review, other, code=1)
    assert (found["num_new"], found["num_known"]) == (3, 1)
    assert len(found["problems"]) == 2
    assert any("another decision has this id" in each["found"] for each in found["problems"])
    assert DecisionLog(review).read_all() == [same, clashes, *news]
    again = ran(capsys, "merge", review, other, code=1)
    assert (again["num_new"], again["num_known"]) == (0, 4)


def test_later_decision_of_a_reviewer_stands_after_a_merge_whatever_its_number(
    shards: Path, review: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each folder numbers the entries of a reviewer on its own."""
    decide_on(review, shards, "tile0", 7, verdict="drop")
    late = decide_on(other, shards, "tile0", 1, time="2026-11-28T10:00:00.000Z")
    for target, source in ((review, other), (other, review)):
        ran(capsys, "merge", target, source)
        assert standing_of(DecisionLog(target).read_all())["tile0"]["ann"] == late


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """The shards with another label of tile1, without tile2."""
    tiles = [make_tile(i, SHAPE) for i in range(4)]
    tiles[1] = replace(tiles[1], label=TWO_ROWS)
    write_tiles(tmp_path / "changed", [*tiles[:2], tiles[3]], "raw")
    return tmp_path / "changed"


def test_decisions_about_tiles_that_are_the_same_go_into_a_review_of_other_shards(
    tmp_path: Path, shards: Path, review: str, changed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = make_review(tmp_path / "new-review", changed)
    held = [
        decide_on(review, shards, "tile0", 1, verdict="fix", mask=encode_mask(TWO_ROWS)),
        decide_on(review, shards, "tile3", 4, verdict="drop"),
        decide_on(review, shards, "tile3", 5, verdict="undo", undoes=f"{4:032x}", tile_sha256="1" * 64),
        decide_on(review, shards, "tile3", 6, verdict="undo", undoes=f"{5:032x}"),
    ]
    decide_on(review, shards, "tile1", 2, verdict="drop")
    decide_on(review, shards, "tile2", 3, verdict="drop")
    decide_on(review, changed, "tile1", 7, verdict="undo", undoes=f"{2:032x}")
    found = ran(capsys, "merge", new, review, code=1)
    assert (found["num_new"], found["num_known"]) == (4, 0)
    assert DecisionLog(new).read_all() == held
    told = {each["subject"].partition(" by")[0]: each["found"] for each in found["problems"]}
    assert list(told) == ["drop of tile tile1", "drop of tile tile2", "undo of tile tile1"]
    assert told["drop of tile tile1"].endswith("look again")
    assert told["drop of tile tile2"].endswith("has no such tile")
    assert told["undo of tile tile1"].startswith("it goes with what it takes back: ")
    late = decide_on(review, shards, "tile3", 8, verdict="undo", undoes=f"{4:032x}", tile_sha256="2" * 64)
    assert ran(capsys, "merge", new, review, code=1)["num_new"] == 1
    assert DecisionLog(new).read_all() == [*held, late]
    write_tiles(changed, [make_tile(9, SHAPE)], "raw")
    assert "rank again into a new folder" in failed(capsys, "merge", new, review)


def test_shards_of_which_a_tile_changes_do_not_strand_the_decisions_about_the_others(
    tmp_path: Path, shards: Path, review: str, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    decide_on(review, shards, "tile0", 1, verdict="drop")
    decide_on(review, shards, "tile1", 2, verdict="drop")
    tiles = [make_tile(i, SHAPE) for i in range(4)]
    write_tiles(shards, [tiles[0], replace(tiles[1], label=TWO_ROWS), *tiles[2:]], "raw")
    assert f"raytrain review merge NEW {review}" in failed(capsys, "apply", review, str(tmp_path / "out"))
    new = make_review(tmp_path / "new-review", shards)
    assert ran(capsys, "merge", new, review, code=1)["num_new"] == 1
    assert ran(capsys, "apply", new, str(tmp_path / "out"))["num_tiles"] == 3


def test_diff_of_reviews_of_other_shards_is_about_tiles_that_are_the_same(
    tmp_path: Path, shards: Path, review: str, changed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = make_review(tmp_path / "new-review", changed)
    masks = TWO_ROWS, np.zeros(SHAPE, np.uint8)
    for i, mask in enumerate(masks):
        where = ((review, shards), (new, changed))[i]
        decide_on(*where, "tile0", i + 1, verdict="fix", mask=encode_mask(mask))
        decide_on(*where, "tile1", i + 3, verdict="drop")
        decide_on(*where, "tile3", i + 5, verdict="drop")
        decide_on(*where, "tile3", i + 7, verdict="drop", reviewer="bob")
    decide_on(review, shards, "tile2", 9, verdict="ignore", mask=encode_mask(TWO_ROWS), reviewer="bob")
    decide_on(review, shards, "tile2", 10, verdict="ignore", mask=encode_mask(1 - TWO_ROWS))
    for pair in ((review, new), (new, review)):
        found = ran(capsys, "diff", *pair, code=1)
        assert [each["tile_id"] for each in found["differences"]] == ["tile0", "tile1", "tile2", "tile2"]
        assert found["differences"][0]["iou"] is not None
        (problem,) = found["problems"]
        assert problem["subject"] == "tile tile1"
        assert "can't be compared" in problem["found"]
    found = ran(capsys, "diff", review, new, "--reviewer", "ann", "--against", "ann", code=1)
    assert (found["agreement"]["num_tiles"], found["agreement"]["num_same"]) == (2, 2)
    assert found["tiles_of_one"] == {"only_first": 2, "only_second": 1}
    found = ran(capsys, "diff", new, review, "--reviewer", "ann", "--against", "bob")
    assert found["agreement"]["num_tiles"] == 1


def test_diff_of_two_logs_names_what_stands_differently(
    shards: Path, review: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    label = make_tile(0, SHAPE).label
    assert label is not None
    flipped = np.where(np.arange(16)[:, None] < 4, 1 - label, label).astype(np.uint8)
    less = np.where(np.arange(16)[:, None] < 1, 1 - label, label).astype(np.uint8)
    both = decide_on(review, shards, "tile1", 1)
    DecisionLog(other).append(both)
    decide_on(review, shards, "tile0", 2, verdict="fix", mask=encode_mask(flipped))
    decide_on(other, shards, "tile0", 3, verdict="fix", mask=encode_mask(less))
    decide_on(review, shards, "tile2", 4, verdict="drop")
    decide_on(other, shards, "tile2", 5, reason="for another reason, and the same verdict", verdict="drop")
    decide_on(other, shards, "tile3", 1, reviewer="bob")
    found = ran(capsys, "diff", review, other)
    assert [(each["tile_id"], each["reviewer"], each["iou"]) for each in found["differences"]] == [
        ("tile0", "ann", 1 / 4),
        ("tile3", "bob", None),
    ]
    assert found["differences"][1]["first"] is None
    assert found["differences"][1]["second"]["verdict"] == "accept"
    assert found["entries"] == {"only_first": 2, "only_second": 3, "both": 1}
    assert found["tiles_of_one"] is None
    assert ran(capsys, "diff", review, review)["differences"] == []
    assert cli.main(["review", "diff", review, other]) == 0
    printed = capsys.readouterr().out
    assert "0.25" in printed
    assert "1 in both, 2 in the first only, 3 in the second only" in printed


def test_diff_of_two_reviewers_is_of_the_tiles_that_both_decided(
    shards: Path, review: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, verdict in enumerate(["accept", "drop", "drop"]):
        decide_on(review, shards, f"tile{i}", i + 1, verdict=verdict)
    for i, verdict in enumerate(["accept", "accept"]):
        decide_on(review, shards, f"tile{i}", i + 1, verdict=verdict, reviewer="bob")
    found = ran(capsys, "diff", review, "--reviewer", "ann", "--against", "bob")
    assert [
        (each["tile_id"], each["first"]["verdict"], each["second"]["verdict"]) for each in found["differences"]
    ] == [("tile1", "drop", "accept")]
    assert found["agreement"]["same_fraction"] == 0.5
    assert found["agreement"]["kappa"] == 0
    assert found["tiles_of_one"] == {"only_first": 1, "only_second": 0}
    assert cli.main(["review", "diff", review, "--reviewer", "ann", "--against", "bob"]) == 0
    printed = capsys.readouterr().out
    assert "ann and bob decided 2 tiles both, the same for 50% of them (Cohen's kappa 0.00); 1 and 0 alone" in printed


def test_diff_says_what_it_needs(review: str, shards: Path, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    decide_on(review, shards, "tile0", 1)
    assert "go together" in failed(capsys, "diff", review, other, "--reviewer", "ann")
    assert "name OTHER" in failed(capsys, "diff", review)
    assert failed(capsys, "diff", "--bogus").rstrip().endswith("see raytrain review --help")
    assert "unknown reviewer 'bob'" in failed(capsys, "diff", review, other, "--reviewer", "ann", "--against", "bob")


def test_tile_that_the_shards_have_not_is_a_problem_of_a_diff(
    review: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for uri, i, mask in ((review, 1, TWO_ROWS), (other, 2, 1 - TWO_ROWS)):
        DecisionLog(uri).append(decide(i, tile_id="gone", verdict="ignore", mask=encode_mask(mask)))
    found = ran(capsys, "diff", review, other, code=1)
    assert "no such tile" in found["problems"][0]["found"]
    assert [each["tile_id"] for each in found["differences"]] == ["gone"]


def test_decisions_that_shards_were_made_by_are_settled_when_their_review_is_merged(
    tmp_path: Path, shards: Path, review: str, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    decide_on(review, shards, "tile0", 1)
    decide_on(review, shards, "tile0", 2, verdict="fix", mask=encode_mask(TWO_ROWS))
    decide_on(review, shards, "tile1", 3, verdict="drop")
    decide_on(review, shards, "tile1", 3, verdict="unsure", reviewer="bob")
    decide_on(review, shards, "tile2", 4)
    ran(capsys, "apply", review, str(tmp_path / "cleaned"))
    new = make_review(tmp_path / "new", tmp_path / "cleaned")
    counts = ("num_new", "num_known", "num_settled")
    for expected in ((1, 0, 4), (0, 1, 4)):
        found = ran(capsys, "merge", new, review)
        assert tuple(found[name] for name in counts) == expected
        assert not found["problems"]
    assert [each.tile_id for each in DecisionLog(new).read_all()] == ["tile2"]

    decide_on(review, shards, "tile0", 5, verdict="undo", undoes=f"{2:032x}")
    decide_on(review, shards, "tile1", 6, reviewer="eve")
    found = ran(capsys, "merge", new, review, code=1)
    said = sorted(each["subject"].split(" (")[0] for each in found["problems"])
    assert said == ["accept of tile tile0 by ann", "accept of tile tile1 by eve", "undo of tile tile0 by ann"]


def test_what_would_do_nothing_or_something_else_is_refused(
    tmp_path: Path, review: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "given as both folders" in failed(capsys, "merge", review, f"{review}/")
    assert "a name that ends in .parquet" in failed(capsys, "export", review, str(tmp_path / "decisions.csv"))
    assert not (tmp_path / "decisions.csv").exists()
