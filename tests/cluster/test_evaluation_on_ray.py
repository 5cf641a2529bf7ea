"""`raytrain evaluate` as a user runs it: on a local Ray, with what may be wrong with the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from numpy.typing import NDArray

from raytrain import cli, storage
from raytrain.cluster import evaluate as evaluation
from raytrain.config import ScoreSettings
from raytrain.evaluation.tables import TABLES
from raytrain.scoring.destination import Scoring, claim_destination
from raytrain.scoring.manifest import read_manifest, write_manifest
from raytrain.tiles.reader import read_manifest as read_shards
from raytrain.tiles.reader import shards_digest
from tests.making import make_ensemble, make_tile, write_tiles

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def masks(chips: Path, tmp_path: Path) -> Path:
    """The labels as predictions, with a stripe of false cloud that is wider from chip to chip."""
    folder = Path(shutil.copytree(chips / "train_labels", tmp_path / "masks"))
    for i, path in enumerate(sorted(folder.iterdir())):
        pixels = read(path)
        pixels[: 2 * i] = 1
        write(path, np.where(pixels == 1, np.uint8(1), np.uint8(0)))
    return folder


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as source:
        return source.read(1)


def write(path: Path, pixels: NDArray[Any]) -> None:
    with rasterio.open(path) as source:
        profile = source.profile | {"dtype": pixels.dtype, "height": pixels.shape[0], "width": pixels.shape[1]}
    with rasterio.open(path, "w", **profile) as target:
        target.write(pixels, 1)


def evaluate(masks: Path, chips: Path, out: Path, *more: str) -> int:
    arguments = [str(masks), str(chips / "train_labels")]
    if "--metadata" not in more:
        arguments += ["--metadata", str(chips / "train_metadata.csv")]
    return cli.main(["evaluate", *arguments, "--out", str(out), "--resamples", "500", *more])


def result_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def write_more(path: Path, masks: Path, column: str, values: tuple[str, ...]) -> Path:
    """Write a table of all chips, with `values` of a column in turn."""
    ids = [each.stem for each in sorted(masks.iterdir())]
    rows = [f"{each},{values[i % len(values)]}" for i, each in enumerate(ids)]
    path.write_text("\n".join([f"chip_id,{column}", *rows, ""]))
    return path


def scored(masks: Path, ensemble: str = "e", **settings: Any) -> None:
    """Make a folder one that `raytrain score` wrote."""
    claim_destination(str(masks), Scoring(ensemble=ensemble, members=("m1",), settings=ScoreSettings(**settings)))


def test_everything_is_written_and_the_same_again(masks: Path, chips: Path, tmp_path: Path) -> None:
    out, metrics = tmp_path / "scores", tmp_path / "scores" / "metrics.json"
    assert evaluate(masks, chips, out, "--images", str(chips)) == 0
    found = json.loads(metrics.read_text())
    tp = fp = fn = 0
    for path in masks.iterdir():
        mask, label = read(path), read(chips / "train_labels" / path.name)
        tp += int(((mask == 1) & (label == 1)).sum())
        fp += int(((mask == 1) & (label == 0)).sum())
        fn += int(((mask == 0) & (label == 1)).sum())
    assert found["iou_pooled"] == tp / (tp + fp + fn)
    assert (found["precision"], found["recall"]) == (tp / (tp + fp), 1.0)
    assert found["num_chips"] == pq.read_metadata(out / "chips.parquet").num_rows == 12
    written = {f"{name}.parquet" for name in ("chips", "locations", "scores", "slices")}
    assert {path.name for path in out.iterdir()} == written | {"metrics.json", "report.html"}
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 2
    assert page.count("<img") >= 12
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert evaluate(masks, chips, out, "--images", str(chips)) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_what_is_odd_is_listed_and_an_error_unless_allowed_by_name(
    masks: Path, chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = sorted(masks.iterdir())[:5]
    gone, small, strange, torn, map_ = odd
    gone.unlink()
    write(small, read(small)[:-1])
    write(strange, read(strange) * 3)
    torn.write_bytes(torn.read_bytes()[:100])
    write(map_, read(map_).astype(np.float32))
    out = tmp_path / "scores"
    assert evaluate(masks, chips, out, "--json") == 1
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    kinds = ["missing-prediction", "probabilities", "size", "unreadable", "values"]
    assert result["refused"] == kinds
    assert [each["subject"] for each in result["problems"]] == [path.stem for path in odd]
    assert f"--allow {' '.join(kinds)}" in captured.err
    assert not list(out.glob("*"))
    allowed = [kind for kind in kinds if kind != "size"]
    assert evaluate(masks, chips, out, "--json", "--allow", *allowed) == 1
    assert json.loads(capsys.readouterr().out)["refused"] == ["size"]
    assert evaluate(masks, chips, out, "--json", "--allow", *kinds) == 1, "done, but something was left out"
    result = json.loads(capsys.readouterr().out)
    assert result["num_chips"] == 8
    assert [each["kind"] for each in result["problems"]] == ["missing-prediction", "size", "values", "unreadable"]
    assert result["calibration"]["num_chips"] == 1, "the map was read as such"
    page = (out / "report.html").read_text()
    for path in (gone, small, strange, torn):
        assert path.stem in page
    assert cli.main(["evaluate", "a", "b", "--metadata", "c", "--out", "d", "--allow", "sizes"]) == 2
    assert "unknown kind 'sizes'; known are missing-prediction" in capsys.readouterr().err


def test_two_sets_are_compared_in_pairs_and_in_plain_words(
    masks: Path, chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = Path(shutil.copytree(masks, tmp_path / "worse"))
    for path in worse.iterdir():
        pixels = read(path)
        pixels[-9:] = 1 - pixels[-9:]
        write(path, pixels)
    out = tmp_path / "scores"
    assert evaluate(masks, chips, out, "--against", str(worse)) == 0
    shown = capsys.readouterr().out
    assert "better" in shown
    found = json.loads((out / "metrics.json").read_text())["comparison"]
    by_name = {each["name"]: each for each in found["scores"]}
    assert by_name["accuracy"]["words"] == "better"
    assert by_name["accuracy"]["interval"]["low"] > 0
    assert evaluate(worse, chips, tmp_path / "worse-scores") == 0
    alone = json.loads((tmp_path / "worse-scores" / "metrics.json").read_text())
    for name, each in by_name.items():
        assert each["theirs"] == alone[name], name
    assert evaluate(masks, chips, out, "--against", str(masks)) == 0
    same = json.loads((out / "metrics.json").read_text())["comparison"]["scores"]
    assert {(each["difference"], each["words"]) for each in same} == {(0.0, "can't tell")}
    (worse / sorted(worse.iterdir())[0].name).unlink()
    capsys.readouterr()
    assert evaluate(masks, chips, out, "--against", str(worse)) == 1
    assert f"in {worse} [missing-prediction]" in capsys.readouterr().err


def test_chips_are_parted_by_any_column_of_either_table(
    masks: Path, chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, out = tmp_path / "more.csv", tmp_path / "scores"
    ids = [path.stem for path in sorted(masks.iterdir())]
    more.write_text("\n".join(["chip_id,sensor", *(f"{each},{'S2' if i % 3 else 'L8'}" for i, each in enumerate(ids))]))
    assert evaluate(masks, chips, out, "--by", "sensor", "--where-metadata", str(more)) == 0
    slices = json.loads((out / "metrics.json").read_text())["slices"]
    assert [(each["value"], each["num_chips"]) for each in slices if each["column"] == "sensor"] == [
        ("L8", 4),
        ("S2", 8),
    ]
    assert {"cloud_fraction", "month"} <= {each["column"] for each in slices}
    assert evaluate(masks, chips, out, "--by", "sensors", "--where-metadata", str(more)) == 2
    assert "unknown column 'sensors'" in capsys.readouterr().err


def test_a_threshold_needs_probabilities(
    masks: Path, chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(masks, chips, tmp_path / "scores", "--threshold", "0.4") == 2
    assert "has masks and no probabilities" in capsys.readouterr().err
    assert evaluate(masks, chips, tmp_path / "plain") == 0
    assert json.loads((tmp_path / "plain" / "metrics.json").read_text())["decided_at"] is None
    for path in masks.iterdir():
        write(path, read(path).astype(np.float32) * np.float32(0.45))
    assert evaluate(masks, chips, tmp_path / "half", "--allow", "probabilities") == 0
    assert evaluate(masks, chips, tmp_path / "lower", "--allow", "probabilities", "--threshold", "0.4") == 0
    found = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("half", "lower")]
    assert [each["recall"] for each in found] == [0.0, 1.0]
    assert [each["decided_at"] for each in found] == [0.5, 0.4]
    curve = {each["threshold"]: each["recall"] for each in found[0]["threshold_curve"]}
    assert (curve[0.45], curve[0.46]) == (1.0, 0.0)
    written = {path.name for path in (tmp_path / "half").glob("*.parquet")}
    assert written == set(TABLES) - {"members.parquet", "comparison.parquet"}


def test_a_scale_is_for_bare_maps_of_the_predictions_and_never_makes_a_map_of_a_mask(
    masks: Path, chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps, out = Path(shutil.copytree(masks, tmp_path / "maps")), tmp_path / "scores"
    for path in maps.iterdir():
        write(path, read(path) * np.uint8(150) + np.uint8(40))
    allowed = ("--allow", "probabilities", "--scale", "0.005")
    assert evaluate(maps, chips, out, "--against", str(masks), *allowed) == 0
    assert {each["words"] for each in result_of(out)["comparison"]["scores"]} == {"can't tell"}, (
        "0.95 and 0.2: the same"
    )
    assert evaluate(masks, chips, out, *allowed) == 1
    assert "a mask, or a map by --scale 0.005?" in capsys.readouterr().err
    assert evaluate(masks, chips, out, "--against", str(maps), *allowed) == 1
    assert "--scale, which is for PREDICTIONS" in capsys.readouterr().err
    assert evaluate(maps, chips, out, "--allow", "probabilities", "--scale", "1") == 2
    assert "less than 1" in capsys.readouterr().err
    scored(masks)
    assert evaluate(masks, chips, out, *allowed) == 2
    assert "masks of `raytrain score`, which are no maps" in capsys.readouterr().err
    assert evaluate(maps, chips, out, "--against", str(masks), *allowed) == 0
    assert evaluate(masks, chips, out, "--allow", "probabilities", "--threshold", "0.4") == 2
    assert "score with --set probability=uint8\n" in capsys.readouterr().err


def test_maps_are_compared_by_a_threshold_and_masks_beside_them_are_named(
    masks: Path, chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = Path(shutil.copytree(masks, tmp_path / "maps"))
    for path in maps.iterdir():
        write(path, read(path).astype(np.float32) * np.float32(0.45))
    more, out = ("--threshold", "0.4", "--allow", "probabilities"), tmp_path / "scores"
    assert evaluate(maps, chips, out, "--against", str(maps), "--images", str(chips), *more) == 0
    found = result_of(out)["comparison"]["scores"]
    assert {(each["ours"] is not None, each["difference"]) for each in found} == {(True, 0.0)}
    capsys.readouterr()
    assert evaluate(maps, chips, out, "--against", str(masks), "--json", *more) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["refused"] == ["no-probabilities"], "not what was allowed already"
    assert f"{masks}/" in captured.err
    assert "--allow no-probabilities" in captured.err
    assert not list(out.glob("*")), "the earlier result is gone, now that this one is refused"
    assert evaluate(maps, chips, out, "--against", str(masks), *more, "no-probabilities") == 1
    assert evaluate(masks, chips, out, "--allow", "probabilities", "no-probabilities", "--threshold", "0.4") == 1
    assert "no scores: every pair was left out" in capsys.readouterr().err


def test_settings_that_cannot_work_are_refused_before_anything_is_counted(
    masks: Path, chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    assert evaluate(masks, chips, out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(evaluation, "_count", lambda *_: pytest.fail("counted"))
    monkeypatch.setattr("raytrain.evaluation.slices.MOST_VALUES", 11)
    no_id = tmp_path / "no-id.csv"
    no_id.write_text("chip,sensor\na,S2\n")
    for arguments, found in (
        (("--by", "chip_id"), "column 'chip_id' has 12 different values, which are no numbers"),
        (("--by", "sensor", "--where-metadata", str(no_id)), "no column chip_id (found: chip, sensor)"),
        (("--ensemble", str(tmp_path)), "not made by `raytrain score`"),
        (("--images", str(masks / "none")), "no chips and no scenes"),
        (("--where", "place=x", "--where-metadata", str(no_id)), "unknown column 'place'; known are chip, chip_id,"),
    ):
        assert evaluate(masks, chips, out, *arguments) == 2, arguments
        assert found in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_filters_are_on_the_table_that_has_the_column(
    masks: Path, chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, out = write_more(tmp_path / "more.csv", masks, "sensor", ("S2", "L8")), tmp_path / "scores"
    lines = (chips / "train_metadata.csv").read_text().splitlines()
    place_of = {line.split(",")[0]: line.split(",")[1] for line in lines[1:]}
    assert lines[0].startswith("chip_id,location")
    place = place_of[sorted(place_of)[0]]
    here = sorted(chip_id for chip_id, each in place_of.items() if each == place)
    both = [chip_id for chip_id in here if sorted(place_of).index(chip_id) % 2 == 0]
    for where, chosen in (
        ((f"location={place}",), here),
        (("sensor=S2",), sorted(place_of)[::2]),
        ((f"location={place}", "sensor=S2"), both),
    ):
        assert evaluate(masks, chips, out, "--where", *where, "--where-metadata", str(more), "--by", "sensor") == 0
        assert pq.read_table(out / "chips.parquet")["chip_id"].to_pylist() == chosen
        assert result_of(out)["inputs"]["by"] == ["sensor"]
    first = sorted(place_of)[0]
    more.write_text(more.read_text() + f"{first},L8\nelsewhere,L8\nelsewhere,S2\n")
    capsys.readouterr()
    for where in ((), ("sensor=S2",)):
        filters = ("--where", *where) if where else ()
        arguments = (*filters, "--where-metadata", str(more), "--by", "sensor", "--json")
        assert evaluate(masks, chips, out, *arguments) == 1
        result = json.loads(capsys.readouterr().out)
        assert (result["refused"], [each["subject"] for each in result["problems"]]) == (["metadata"], [first])
        assert f"duplicate chip id: 2 rows of the metadata have it ({more})" in result["problems"][0]["found"]


def test_rows_that_are_all_bad_say_why(
    masks: Path, chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = write_more(tmp_path / "bad.csv", masks, "location,datetime", ("x,noon",))
    assert evaluate(masks, chips, tmp_path / "scores", "--metadata", str(metadata)) == 2
    assert "unreadable datetime 'noon'" in capsys.readouterr().err


def test_images_of_other_chips_are_said_to_be_none_of_these(masks: Path, chips: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    shutil.copy(next(masks.iterdir()), others / "elsewhere.tif")
    assert evaluate(masks, chips, tmp_path / "scores", "--images", str(others)) == 0
    page = (tmp_path / "scores" / "report.html").read_text()
    assert f"{others} has no image of 9 of these 9." in page
    assert result_of(tmp_path / "scores")["inputs"]["images"] == str(others)


def test_what_another_command_left_is_not_overwritten(
    masks: Path, chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("scoring.json", "ensemble.json", "report.json", "epochs.parquet", "best.toml", "trials.parquet")
    for name in (*names, "report.html"):
        out = tmp_path / name.replace(".", "-")
        out.mkdir()
        (out / name).write_text("theirs")
        assert evaluate(masks, chips, out) == 2, name
        assert f"{out} holds" in capsys.readouterr().err
        assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, "theirs")]
    stopped = tmp_path / "stopped"
    assert evaluate(masks, chips, stopped) == 0
    (stopped / "metrics.json").unlink()
    assert evaluate(masks, chips, stopped) == 0, "its own, of which a stopped evaluation has not written the last"


def test_more_chips_than_a_task_has_count_as_in_one(
    masks: Path, chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(masks, chips, tmp_path / "one") == 0
    monkeypatch.setattr(evaluation, "PAIRS_PER_TASK", 5)
    assert evaluate(masks, chips, tmp_path / "three") == 0
    found = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "three")]
    assert found[0] == found[1]
    for path in sorted(masks.iterdir())[3:9:5]:
        path.unlink()
    assert evaluate(masks, chips, tmp_path / "fewer", "--allow", "missing-prediction") == 1
    assert result_of(tmp_path / "fewer")["num_chips"] == 10


def test_the_card_of_the_ensemble_that_made_the_masks_gets_the_scores(
    masks: Path, chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out = tmp_path / "shards", tmp_path / "scores"
    write_tiles(shards, [make_tile(i, (32, 32)) for i in range(4)], "raw")
    folder = make_ensemble(tmp_path / "ensemble")
    digest = shards_digest(read_shards(str(shards)))
    manifest = read_manifest(folder).model_copy(update={"shards": str(shards), "shards_digest": digest})
    write_manifest(folder, manifest)
    scored(masks, ensemble="others")
    assert evaluate(masks, chips, out, "--ensemble", folder) == 2
    assert f"not made by the nets of {folder}, as they are now" in capsys.readouterr().err
    scored(masks, ensemble=manifest.nets_digest())
    assert evaluate(masks, chips, out, "--ensemble", folder) == 0
    card = tmp_path / "ensemble" / "model-card.md"
    assert f"model card: {card}" in capsys.readouterr().out
    assert f"{result_of(out)['iou_pooled']:.4f}" in card.read_text()
    shutil.rmtree(shards)
    later = tmp_path / "later"
    assert evaluate(masks, chips, later, "--ensemble", storage.join(folder, "ensemble.json")) == 2
    assert str(shards) in capsys.readouterr().err
    assert not later.exists(), "found before anything is counted and written"
