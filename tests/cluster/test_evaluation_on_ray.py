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

from raytrain import cli
from raytrain.evaluation.tables import TABLES

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
    arguments = [str(masks), str(chips / "train_labels"), "--metadata", str(chips / "train_metadata.csv")]
    return cli.main(["evaluate", *arguments, "--out", str(out), "--resamples", "500", *more])


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
