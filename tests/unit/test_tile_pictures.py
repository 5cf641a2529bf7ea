"""Pictures of validation tiles: drawn from shards by the run's own net, few on the page, and none of other weights."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raytrain.cluster import tile_pictures
from raytrain.cluster.tile_pictures import (
    NOT_MADE,
    PICTURES_FILE,
    RunPictures,
    TilePicture,
    draw,
    draw_missing,
    picture_work,
    read_pictures,
)
from raytrain.config import ShardSettings
from raytrain.errors import ConfigError
from raytrain.evaluation.training_results import TrainingResults, TrainingRun
from raytrain.scoring.manifest import read_manifest
from raytrain.tiles.reader import TileReader, read_index, shards_digest
from raytrain.tiles.reader import read_manifest as read_shards
from raytrain.training.metrics import TileScore
from tests.making import make_ensemble, shard_chips


@pytest.fixture(scope="module")
def shards(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictured") / "shards"
    shard_chips(chips, folder, ShardSettings(folds="3"))
    return folder


def results_of(ensemble: str, shards: Path, tiles: tuple[TileScore, ...]) -> TrainingResults:
    runs = tuple(
        TrainingRun(
            name=f"{net.name}-fold0",
            member=net.settings,
            fold=0,
            state="done",
            weights_sha256=net.sha256,
            best_epoch=1,
            score=0.5,
            tiles=tiles,
        )
        for net in read_manifest(ensemble).members
    )
    return TrainingResults("main", str(shards), shards_digest(read_shards(str(shards))), runs)


def test_tiles_are_drawn_and_one_that_is_gone_costs_its_picture(shards: Path, tmp_path: Path) -> None:
    fractions = read_index(str(shards))["cloud_fraction"].to_numpy()
    ids = [TileReader(str(shards), ()).tile_ids[i] for i in np.flatnonzero((fractions > 0.1) & (fractions < 0.9))]
    tiles = (TileScore(ids[0], 0.1, "worst"), TileScore("gone", 0.5, "median"), TileScore(ids[1], 0.9, "best"))
    folder = make_ensemble(tmp_path)
    results = results_of(folder, shards, tiles)
    found = draw(picture_work(folder, results, results.runs[0], use_gpu=False))
    assert [each.tile for each in found.pictures] == [tiles[0], tiles[2]]
    assert found.problems == (("tile gone", f"not among the shards at {shards} any more"),)
    for each in found.pictures:
        names = [name for name, _ in each.panels]
        assert names == ["True colour", "Label", "Prediction", "Where they differ"]
        sizes = {Image.open(io.BytesIO(base64.b64decode(image))).size for _, image in each.panels}
        assert len(sizes) == 1, "panels of one size"
        label = np.array(Image.open(io.BytesIO(base64.b64decode(each.panels[1][1]))).convert("RGB"))
        assert len(np.unique(label.reshape(-1, 3), axis=0)) >= 2, "cloud and clear"
    assert found.weights_sha256 == results.runs[0].weights_sha256


def test_shards_without_the_visible_bands_have_pictures_of_the_masks(chips: Path, tmp_path: Path) -> None:
    shard_chips(chips, tmp_path / "shards", ShardSettings(bands=("B04", "B08"), folds="3"))
    folder = make_ensemble(
        tmp_path / "ensemble", ("small-byob-3b",), bands=["B04", "B08"], **{"first_convolution": "adapted"}
    )
    ids = TileReader(str(tmp_path / "shards"), ()).tile_ids
    results = results_of(folder, tmp_path / "shards", (TileScore(ids[0], 0.1, "worst"),))
    found = draw(picture_work(folder, results, results.runs[0], use_gpu=False))
    assert len(found.pictures) == 1
    keep(tmp_path / "ensemble", results.runs[0], found)
    (picture,) = read_pictures(folder, results.runs).pictures
    assert [panel.caption for panel in picture.panels] == ["Label", "Prediction", "Where they differ"]


def test_weights_that_are_not_those_of_the_run_are_refused(shards: Path, tmp_path: Path) -> None:
    folder = make_ensemble(tmp_path)
    run = replace(results_of(folder, shards, ()).runs[0], weights_sha256="0" * 64)
    results = replace(results_of(folder, shards, ()), runs=(run,))
    with pytest.raises(ConfigError):
        draw(picture_work(folder, results, run, use_gpu=False))


def test_shards_that_are_not_those_of_the_training_are_refused(shards: Path, tmp_path: Path) -> None:
    folder = make_ensemble(tmp_path)
    results = replace(results_of(folder, shards, ()), shards_digest="of others")
    with pytest.raises(ConfigError, match="not those that were trained on"):
        draw(picture_work(folder, results, results.runs[0], use_gpu=False))


def keep(folder: Path, run: TrainingRun, pictures: RunPictures) -> None:
    (folder / run.name).mkdir(parents=True, exist_ok=True)
    (folder / run.name / PICTURES_FILE).write_text(pictures.model_dump_json())


def many(run: TrainingRun) -> RunPictures:
    """Return three pictures of each group, without anything in them."""
    pictures = tuple(
        TilePicture(tile=TileScore(f"{group}{i}", 0.1 * i, group), location="lake", panels=())
        for group in ("worst", "median", "best")
        for i in range(3)
    )
    sha256 = run.weights_sha256 or ""
    return RunPictures(weights_sha256=sha256, pictures=pictures, problems=())


def failed(run: TrainingRun, why: str) -> RunPictures:
    return RunPictures(weights_sha256=run.weights_sha256 or "", pictures=(), problems=(), failed=why)


class Tasks:
    """Ray as far as pictures need it: each task runs where it is asked for, and gives or raises what `draw` does."""

    def __init__(self, draw: Callable[[str], dict[str, Any]]) -> None:
        self.ran: list[str] = []
        self._draw = draw

    def remote(self, **options: Any) -> Any:
        return lambda function: SimpleNamespace(options=lambda **resources: SimpleNamespace(remote=self._begin))

    def get(self, name: str, timeout: float) -> dict[str, Any]:
        return self._draw(name)

    def _begin(self, work: dict[str, Any]) -> str:
        self.ran.append(work["net"]["weights"].split("/")[0])
        return self.ran[-1]


def test_why_there_are_no_pictures_is_kept_and_they_are_drawn_when_there_is_another_chance(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> dict[str, Any]:
        raise ConfigError("no such weights")

    ensemble = make_ensemble(tmp_path / "ensemble")
    results = results_of(ensemble, shards, (TileScore("t", 0.1, "worst"),))
    run = results.runs[0]
    results = replace(results, runs=(run,))
    for draw_there, expected in ((refuse, 0), (lambda name: many(run).model_dump(mode="json"), 9)):
        tasks = Tasks(draw_there)
        monkeypatch.setattr(tile_pictures.ray, "remote", tasks.remote)
        monkeypatch.setattr(tile_pictures.ray, "get", tasks.get)
        draw_missing(str(tmp_path), results, use_gpu=False)
        found = read_pictures(str(tmp_path), results.runs)
        assert (tasks.ran, len(found.pictures)) == ([run.name], expected)
        assert ("no such weights" in found.why_none) == (not expected)
    draw_missing(str(tmp_path), results, use_gpu=False)
    assert tasks.ran == [run.name], "what is kept is not drawn again"


def test_a_page_has_few_pictures_of_the_first_runs(shards: Path, tmp_path: Path) -> None:
    ensemble = make_ensemble(tmp_path / "ensemble")
    one = results_of(ensemble, shards, (TileScore("t", 0.1, "worst"),)).runs[0]
    runs = [replace(one, name=f"run{i}") for i in range(5)]
    for run in runs:
        keep(tmp_path, run, many(run))
    alone = read_pictures(str(tmp_path), runs[:1])
    assert len(alone.pictures) == 9
    found = read_pictures(str(tmp_path), runs)
    assert [picture.caption.split(",")[0] for picture in found.pictures] == [
        "worst: worst0",
        "median: median1",
        "best: best2",
    ] * 3
    assert {picture.caption.rpartition("(")[2] for picture in found.pictures} == {"run0)", "run1)", "run2)"}


def test_pictures_of_other_weights_or_of_none_are_not_shown_and_the_page_says_why(shards: Path, tmp_path: Path) -> None:
    ensemble = make_ensemble(tmp_path / "ensemble")
    run = results_of(ensemble, shards, (TileScore("t", 0.1, "worst"),)).runs[0]
    other = replace(run, name="other")
    keep(tmp_path, run, many(replace(run, weights_sha256="of an earlier net")))
    assert NOT_MADE in read_pictures(str(tmp_path), [run]).why_none
    keep(tmp_path, run, failed(run, "no place on the cluster"))
    found = read_pictures(str(tmp_path), [run])
    assert not found.pictures
    assert found.why_none == "There are no pictures of validation tiles: no place on the cluster."
    keep(tmp_path, other, many(other))
    found = read_pictures(str(tmp_path), [run, other])
    assert len(found.pictures) == 3
    assert [(each.subject, each.found) for each in found.problems] == [(run.name, "no place on the cluster")]
    begun = replace(run, name="begun", state="not finished", weights_sha256=None)
    assert NOT_MADE in read_pictures(str(tmp_path), [begun]).why_none
    blind = replace(run, name="blind", fold=None, tiles=())
    assert read_pictures(str(tmp_path), [blind]).why_none == "", "without validation there is nothing to draw"
