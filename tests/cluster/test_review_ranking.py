"""Labels ranked on Ray: the wrong ones come first and are named, whatever else is wrong beside them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from raytrain import cli
from raytrain.config import ScoreSettings
from raytrain.errors import ConfigError
from raytrain.review.folder import read_review
from raytrain.review.ranking import RANKING_SCHEMA, UNLABELLED_SCHEMA, read_ranking, read_unlabelled
from raytrain.tiles.format import Tile
from tests.deciding import decide_on
from tests.making import make_ensemble, make_tile, write_tiles
from tests.predicting import LAYERS, predict_tiles

SIDE = 64
COUNT = 16
EMPTY, SHIFTED, BLANK = "tile3", "tile6", "tile9"
pytestmark = pytest.mark.usefixtures("local_ray")


def cloud_of(tile_id: str) -> NDArray[np.uint8]:
    """Return where there is cloud in a tile: two discs."""
    draw = np.random.default_rng(int(tile_id.removeprefix("tile")))
    cloud = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(2):
        cv2.circle(cloud, tuple(map(int, draw.integers(14, 50, 2))), int(draw.integers(6, 12)), 1, -1)
    return cloud


def label_of(tile_id: str) -> NDArray[np.uint8]:
    """Return the label of a tile: what there is, but for two that are wrong and one that is ignored as a whole."""
    cloud = cloud_of(tile_id)
    if tile_id == EMPTY:
        return np.zeros_like(cloud)
    if tile_id == BLANK:
        return np.full_like(cloud, 255)
    return np.roll(cloud, (6, -5), (0, 1)) if tile_id == SHIFTED else cloud


def predict(tile_id: str, label: NDArray[np.uint8] | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what an ensemble sees that knows where the cloud is, but not its edge."""
    soft = cv2.GaussianBlur(cloud_of(tile_id).astype(np.float32), (0, 0), 1.0) * 0.9 + 0.05
    certain = 0.01 if label is not None else 0.3 - int(tile_id.removeprefix("tile")) / 100
    return soft, np.full((SIDE, SIDE), certain, np.float32)


def tile(i: int) -> Tile:
    made = make_tile(i, (SIDE, SIDE))
    return replace(made, label=label_of(made.tile_id) if i < COUNT - 2 else None, location=f"place{i % 3}")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("ranking") / "shards")
    write_tiles(uri, [tile(i) for i in range(COUNT)], "raw")
    return uri


@pytest.fixture(scope="module")
def predictions(shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("predictions"))
    predict_tiles(uri, shards, predict)
    return uri


def rank(*arguments: str) -> int:
    return cli.main(["review", "rank", *arguments])


def test_wrong_labels_come_first_and_are_named(
    shards: str, predictions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rank(shards, predictions, str(tmp_path), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    table = read_ranking(str(tmp_path))
    assert table.schema.equals(RANKING_SCHEMA)
    kinds = dict(zip(table["tile_id"].to_pylist(), table["kind"].to_pylist(), strict=True))
    assert set(list(kinds)[:2]) == {EMPTY, SHIFTED}
    assert (kinds[EMPTY], kinds[SHIFTED]) == ("empty", "shifted")
    suspicion = table["suspicion"].to_pylist()
    assert suspicion == sorted(suspicion, reverse=True)
    assert suspicion[1] > 2 * suspicion[2], "right labels are far from wrong ones"
    assert table["rank"].to_pylist() == list(range(1, len(table) + 1))
    assert BLANK not in kinds, "a label that is ignored as a whole can't be wrong"
    assert len(table) == COUNT - 3
    (shift,) = (row for row in table.to_pylist() if row["tile_id"] == SHIFTED)
    assert (round(shift["shift_row_px"]), round(shift["shift_column_px"])) == (6, -5)
    assert told["num_labelled"] == COUNT - 3
    assert told["top"][0]["tile_id"] == EMPTY
    review = read_review(str(tmp_path))
    assert (review.shards, review.num_labelled, review.num_unlabelled) == (shards, COUNT - 3, 2)


def test_what_has_no_label_is_ranked_by_disagreement(shards: str, predictions: str, tmp_path: Path) -> None:
    others = str(tmp_path / "others")
    predict_tiles(others, shards, lambda name, label: (predict(name, label)[0], np.full((SIDE, SIDE), 0.25, "f4")))
    assert rank(shards, predictions, str(tmp_path / "review"), "--unlabelled", others) == 0
    table = read_unlabelled(str(tmp_path / "review"))
    assert table.schema.equals(UNLABELLED_SCHEMA)
    assert table["item_id"].to_pylist() == ["tile14", "tile15"] * 2, "what has a label is worth none"
    assert table["disagreement_mean"].to_pylist() == sorted(table["disagreement_mean"].to_pylist(), reverse=True)
    assert table["location"].to_pylist() == ["place2", "place0"] * 2


def test_a_tile_without_a_prediction_is_named_and_the_others_are_ranked(
    shards: str, predictions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(predictions, copy)
    (copy / "probability" / "tile0.tif").unlink()
    (copy / "disagreement" / "tile1.tif").write_bytes(b"no raster")
    assert rank(shards, str(copy), str(tmp_path / "review"), "--json") == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert len(problems) == 2
    assert problems[0]["subject"].endswith("probability/tile0.tif")
    assert "gone" in problems[0]["found"]
    assert problems[1]["subject"].endswith("disagreement/tile1.tif")
    ids = read_ranking(str(tmp_path / "review"))["tile_id"].to_pylist()
    assert {"tile0", "tile1"}.isdisjoint(ids)
    assert set(ids[:2]) == {EMPTY, SHIFTED}
    assert len(ids) == COUNT - 5


def test_ranked_again_the_decisions_stay(shards: str, predictions: str, tmp_path: Path) -> None:
    assert rank(shards, predictions, str(tmp_path)) == 0
    decide_on(str(tmp_path), shards, EMPTY, 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert rank(shards, predictions, str(tmp_path)) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_shards_that_a_review_made_are_ranked_by_the_predictions_of_their_parent(
    shards: str, predictions: str, tmp_path: Path
) -> None:
    review, cleaned, again = (str(tmp_path / name) for name in ("review", "cleaned", "again"))
    assert rank(shards, predictions, review) == 0
    decide_on(review, shards, EMPTY, 1, verdict="drop")
    assert cli.main(["review", "apply", review, cleaned]) == 0
    assert rank(cleaned, predictions, again) == 0
    ids = read_ranking(again)["tile_id"].to_pylist()
    assert EMPTY not in ids
    assert ids[0] == SHIFTED


def test_the_review_of_other_shards_is_left_alone(
    shards: str, predictions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others, theirs, review = (str(tmp_path / name) for name in ("shards", "predictions", "review"))
    write_tiles(others, [tile(i) for i in range(4)], "raw")
    predict_tiles(theirs, others, predict)
    assert rank(others, theirs, review) == 0
    before = (tmp_path / "review" / "ranking.parquet").read_bytes()
    assert rank(shards, predictions, review) == 2
    assert "the review of other shards" in capsys.readouterr().err
    assert (tmp_path / "review" / "ranking.parquet").read_bytes() == before


def test_predictions_of_other_pixels_judge_no_label(
    shards: str, predictions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anew, review = str(tmp_path / "shards"), str(tmp_path / "review")
    tiles = [tile(i) for i in range(COUNT)]
    tiles[2] = replace(tiles[2], bands=tile(40).bands)
    tiles[4] = replace(tiles[4], transform=(30.0, 0.0, 3e5, 0.0, -30.0, 5e6))
    tiles[5] = replace(tiles[5], tile_id="new")
    tiles[8] = replace(tiles[8], tile_id="tile0", bands=tiles[0].bands)
    write_tiles(anew, tiles, "raw")
    assert rank(anew, predictions, review, "--json") == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [each["subject"] for each in problems] == ["tile2", "tile4", "new", "tile0"]
    assert "of other pixels" in problems[0]["found"]
    assert "of another place" in problems[1]["found"]
    assert "no prediction" in problems[2]["found"]
    assert "the first counts" in problems[3]["found"]
    assert {"tile2", "tile4", "new"}.isdisjoint(read_ranking(review)["tile_id"].to_pylist())


def test_nothing_is_ranked_where_no_tile_can_be_looked_at(
    shards: str, predictions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for lacking in ("probability", "disagreement"):
        copy = tmp_path / lacking
        shutil.copytree(predictions, copy)
        shutil.rmtree(copy / lacking)
        assert rank(shards, str(copy), str(tmp_path / "review")) == 2
        assert f"gone, the {lacking} predicted for tile0" in capsys.readouterr().err
    assert not (tmp_path / "review").exists()


def test_what_is_predicted_cloud_is_by_the_threshold_of_the_scoring(shards: str, tmp_path: Path) -> None:
    predicted = []
    for threshold in (0.5, 0.8):
        uri, review = str(tmp_path / f"at{threshold}"), str(tmp_path / f"review{threshold}")
        predict_tiles(uri, shards, predict, settings=LAYERS.model_copy(update={"threshold": threshold}))
        assert rank(shards, uri, review) == 0
        table = read_ranking(review).sort_by("tile_id")
        predicted.append(table["predicted_fraction"].to_numpy())
        assert read_review(review).threshold == threshold
    assert (predicted[1] < predicted[0]).all()


def test_nothing_of_others_is_overwritten(
    shards: str, predictions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "review.json").write_text('{"format_version": 2}')
    for dst, text in (
        (str(newer), "format version 2"),
        (shards, f"here the shards at {shards}"),
        (f"{predictions}/review", f"here the predictions at {predictions}"),
    ):
        assert rank(shards, predictions, dst) == 2
        assert text in capsys.readouterr().err
    assert [path.name for path in newer.iterdir()] == ["review.json"]


def test_a_ranking_that_is_cut_off_is_not_taken_for_a_whole_one(
    shards: str, predictions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rank(shards, predictions, str(tmp_path)) == 0

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("raytrain.cluster.review_rank.write_table", full)
        assert rank(shards, predictions, str(tmp_path)) == 3
    with pytest.raises(ConfigError, match="no finished ranking"):
        read_review(str(tmp_path))
    assert rank(shards, predictions, str(tmp_path)) == 0
    assert read_review(str(tmp_path)).num_labelled == COUNT - 3


def test_predictions_that_say_nothing_of_the_labels_are_refused(
    shards: str, predictions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, bare = str(tmp_path / "seen"), str(tmp_path / "bare")
    predict_tiles(seen, shards, predict, out_of_fold=False)
    predict_tiles(bare, shards, predict, settings=LAYERS.model_copy(update={"disagreement": "none"}))
    plain = str(tmp_path / "plain")  # what `score` writes by itself
    predict_tiles(plain, shards, predict, out_of_fold=False, settings=ScoreSettings())
    for given, text in (
        (seen, "may have seen the labels"),
        (bare, "without disagreement; score anew, into another folder: raytrain score SHARDS"),
        (plain, "may have seen the labels"),
        (str(tmp_path / "nowhere"), "--ensemble ENSEMBLE --out-of-fold"),
    ):
        assert rank(shards, given, str(tmp_path / "review")) == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "review").exists()


def test_no_ranking_is_written_among_other_things(
    shards: str, predictions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chips" / "train_features").mkdir(parents=True)
    (tmp_path / "chips" / "train_features" / "B02.tif").write_bytes(b"a chip of an archive")
    assert rank(shards, predictions, str(tmp_path / "chips")) == 2
    assert "holds what is no review's, among it train_features/B02.tif" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "chips").iterdir()] == ["train_features"]


def test_what_has_no_label_needs_no_map_of_probability(shards: str, predictions: str, tmp_path: Path) -> None:
    others = str(tmp_path / "others")
    predict_tiles(others, shards, predict, settings=LAYERS.model_copy(update={"probability": "none"}))
    assert rank(shards, predictions, str(tmp_path / "review"), "--unlabelled", others) == 0
    assert len(read_unlabelled(str(tmp_path / "review"))) == 2 + 2


def test_what_score_writes_out_of_fold_is_what_rank_reads(shards: str, tmp_path: Path) -> None:
    from raytrain.tiles.format import FIRST_BANDS

    own = str(tmp_path / "shards")
    write_tiles(own, [replace(tile(i), location=f"place{i % 2}") for i in range(4)], "raw", bands=FIRST_BANDS)
    ensemble = make_ensemble(tmp_path / "ensemble", ("small-effnet-4b-20k",), folds=(0, 1), shards=own)
    scored, review = str(tmp_path / "scored"), str(tmp_path / "review")
    options = ["--ensemble", ensemble, "--out-of-fold", "--set", "window_px=64", "overlap_px=16", "threads=1"]
    assert cli.main(["score", own, scored, *options]) == 0
    assert rank(own, scored, review) == 0
    assert sorted(read_ranking(review)["tile_id"].to_pylist()) == ["tile0", "tile1", "tile2", "tile3"]
