"""The model card: every net and every place in it, the same text each time, and code in it that works."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytrain.cluster.runs import RunSettings
from raytrain.cluster.train_report import write_card
from raytrain.errors import ConfigError
from raytrain.evaluation.card import model_card
from raytrain.evaluation.card_scores import CardEvaluation, CardLocation, CardScore, MadeBy
from raytrain.evaluation.trained_on import FoldContent, TrainedOn, describe_shards
from raytrain.evaluation.training_results import TrainingRun
from raytrain.scoring.manifest import EnsembleManifest, read_manifest, write_manifest
from raytrain.tiles.reader import read_manifest as read_shards
from raytrain.tiles.reader import shards_digest
from raytrain.training.metrics import LocationScore
from tests.making import make_ensemble, make_tile, write_tiles

VERSIONS = [("raytrain", "1.2.3"), ("torch", "2")]
SHARDS = TrainedOn(
    shards="s3://b/shards",
    digest="d1935t",
    source="s3://b/chips",
    bands=("B02", "B03", "B04", "B08"),
    baseline="before-04.00",
    num_unlabelled=0,
    first=datetime(2019, 3, 1, tzinfo=UTC),
    last=datetime(2021, 11, 30, tzinfo=UTC),
    num_undated=2,
    pixel_sizes=(10.0,),
    folds={0: FoldContent(7, ("lake", "de|sert")), 1: FoldContent(5, ("forest", "coast"))},
)
EVALUATION = CardEvaluation(
    labels="labels of places never seen",
    made_by="all",
    where=("split=test", "sensor=S2"),
    threshold=0.37,
    allowed=("missing-label",),
    num_left_out=3,
    empty_union_rule="zero",
    num_chips=12,
    scores=(CardScore(name="Pooled", value=0.8765, low=0.81, high=0.93), CardScore(name="By chip", value=0.7)),
    locations=(CardLocation(name="tundra", iou=0.6543, num_chips=12),),
)


def runs_of(manifest: EnsembleManifest) -> list[TrainingRun]:
    places = {"lake": LocationScore(0.7123, 0.7, 71, 100, 4), "de|sert": LocationScore(0.4321, 0.4, 43, 100, 3)}
    return [
        TrainingRun(name=f"{net.name}-fold0", member=net.settings, fold=net.fold, state="done", locations=places)
        for net in manifest.members
    ]


@pytest.fixture
def manifest(tmp_path: Path) -> EnsembleManifest:
    return read_manifest(make_ensemble(tmp_path / "ensemble"))


def test_card_names_every_net_every_place_and_what_they_learnt_from(manifest: EnsembleManifest) -> None:
    text = model_card("clouds", manifest, runs_of(manifest), SHARDS, versions=VERSIONS)
    assert text.startswith("# clouds\n")
    assert manifest.nets_digest() in text
    for net in manifest.members:
        (row,) = re.findall(rf"^\| {net.name} \| .*$", text, re.MULTILINE)
        for part in (net.settings.encoder, "random weights", " ".join(net.settings.bands), net.sha256[:12]):
            assert part in row
        assert f"| {net.name}, fold 0 | lake | 0.7123 | 4 |" in text
        assert f"| {net.name}, fold 0 | de\\|sert | 0.4321 | 3 |" in text, "a bar in a name ends no cell"
    assert "| Labelled tiles | 12 at 4 locations |" in text
    assert "2019-03-01 to 2021-11-30 (2 tiles without a date)" in text
    assert "without the shift of Sentinel-2's processing baseline 04.00" in text
    assert "Nets of fold 0 learnt from 5 tiles at 2 locations." in text
    assert "Locations that no net learnt from: de|sert, lake." in text
    assert "d1935t" in text
    assert "fewer than 20" in text
    assert "raytrain evaluate MASKS LABELS" in text, "it was not evaluated, and the card says how"
    assert "Of the weights: unknown." in text
    assert "| torch | 2 |" in text


def test_names_begin_no_tag_link_or_image(manifest: EnsembleManifest) -> None:
    text = model_card("a ![x](http://h/a.png) <img>", manifest, runs_of(manifest), SHARDS, versions=VERSIONS)
    assert text.startswith("# a !\\[x\\](http://h/a.png) &lt;img>\n")


def test_card_of_the_same_ensemble_is_the_same_text_whatever_the_order_of_its_runs(manifest: EnsembleManifest) -> None:
    runs = runs_of(manifest)
    first = model_card("clouds", manifest, runs, SHARDS, EVALUATION, versions=VERSIONS)
    assert model_card("clouds", manifest, runs[::-1], SHARDS, EVALUATION, versions=VERSIONS) == first
    assert model_card("clouds", manifest, runs, SHARDS, EVALUATION) == model_card(
        "clouds", manifest, runs, SHARDS, EVALUATION
    )


def test_scores_of_the_whole_ensemble_stand_with_their_intervals(manifest: EnsembleManifest) -> None:
    text = model_card("clouds", manifest, runs_of(manifest), SHARDS, EVALUATION, licence="CC BY 4.0", versions=VERSIONS)
    assert "| Pooled | 0.8765 | 0.8100 to 0.9300 |" in text
    assert "| By chip | 0.7000 | - |" in text
    assert "| tundra | 0.6543 | 12 | new |" in text
    assert "All locations are new to these nets." in text
    count = len(manifest.members)
    for row in (
        "| Labels | labels of places never seen |",
        f"| Masks by | the whole ensemble: {count} of {count} nets |",
        "| Rows of the metadata | split=test and sensor=S2 |",
        "| Chips | 12 at 1 location |",
        "| Left out | 3; allowed: missing-label |",
        "| Threshold | 0.37 |",
        "the IoU is 0, as in the original solution. |",
    ):
        assert row in text
    assert "not evaluated yet" not in text
    assert "Of the weights: CC BY 4.0." in text


@pytest.mark.parametrize(
    ("made_by", "title", "words"),
    [
        ("all", "the whole ensemble", {"lake": "learnt from", "forest": "learnt from", "tundra": "new"}),
        (0, "the nets of fold 0", {"lake": "validated on", "forest": "learnt from", "tundra": "new"}),
        (1, "the nets of fold 1", {"lake": "learnt from", "forest": "validated on", "tundra": "new"}),
    ],
)
def test_places_that_the_nets_learnt_from_are_told_from_new_ones(
    manifest: EnsembleManifest, made_by: MadeBy, title: str, words: dict[str, str]
) -> None:
    second = [net.model_copy(update={"fold": 1}) for net in manifest.members]
    both = manifest.model_copy(update={"members": (*manifest.members, *second)})
    places = tuple(CardLocation(name=name, iou=0.5, num_chips=2) for name in words)
    evaluation = EVALUATION.model_copy(update={"made_by": made_by, "locations": places})
    text = model_card("clouds", both, runs_of(manifest), SHARDS, evaluation, versions=VERSIONS)
    assert f"## Scores of {title}\n" in text
    num_nets = len(both.of_fold(made_by).members)
    assert f"| Masks by | {title}: {num_nets} of {len(both.members)} nets |" in text
    for name, word in words.items():
        assert f"| {name} | 0.5000 | 2 | {word} |" in text
    found = list(words.values())
    assert f"learnt from {found.count('learnt from')} of the 3 locations: scores there say nothing of new" in text
    assert ("chosen by their validation on 1 of the 3 locations" in text) == ("validated on" in found)
    assert "All locations are new" not in text


def test_what_is_not_known_is_said_and_nets_of_all_folds_leave_no_place_unseen(manifest: EnsembleManifest) -> None:
    second = [net.model_copy(update={"fold": 1}) for net in manifest.members]
    both = manifest.model_copy(update={"members": (*manifest.members, *second)})
    bare = replace(SHARDS, first=None, last=None, num_undated=0, pixel_sizes=(), baseline=None, source=None)
    text = model_card("clouds", both, runs_of(manifest), bare, versions=VERSIONS)
    assert "Locations that no net learnt from: none" in text
    assert f"Not known by location: {second[0].name}, fold 1" in text
    assert text.count("| unknown |") == 4
    assert "unless `--fold` says otherwise" in text
    blind = manifest.model_copy(
        update={"members": tuple(net.model_copy(update={"fold": None}) for net in manifest.members)}
    )
    text = model_card("clouds", blind, [], SHARDS, versions=VERSIONS)
    assert "Nets of fold none were not validated." in text
    assert "Nets of fold none learnt from 12 tiles at 4 locations." in text


def test_code_in_the_card_loads_the_ensemble_and_finds_clouds(manifest: EnsembleManifest, tmp_path: Path) -> None:
    text = model_card("clouds", manifest, runs_of(manifest), SHARDS, versions=VERSIONS)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    pixels = np.full((4, 64, 96), 3000, np.uint16)
    pixels[:, :8] = 0
    names: dict[str, Any] = {"FOLDER": str(tmp_path / "ensemble"), "pixels": pixels}
    exec(code, names)
    cloud, nets = names["cloud"], names["nets"]
    assert isinstance(cloud, np.ndarray)
    assert (cloud.shape, cloud.dtype) == ((64, 96), np.bool_)
    assert not cloud[:8].any(), "no cloud where there is no data"
    assert ", ".join(f'"{band}"' for band in nets.bands) in text


def shards_of(folder: Path) -> tuple[str, str]:
    """Write shards of six tiles, of which one has no label; return their URI and digest."""
    tiles = [make_tile(i, (32, 32), labelled=i != 5) for i in range(6)]
    write_tiles(folder, tiles, "raw")
    return str(folder), shards_digest(read_shards(str(folder)))


def test_shards_are_described_by_their_labelled_tiles(tmp_path: Path) -> None:
    uri, digest = shards_of(tmp_path / "shards")
    found = describe_shards(uri, digest)
    assert (found.num_tiles, found.num_unlabelled, found.num_undated) == (5, 1, 3)
    assert found.folds == {0: FoldContent(3, ("place0",)), 1: FoldContent(2, ("place1",))}
    assert (found.learnt(0), found.num_learnt(0), found.learnt(None)) == ({"place1"}, 2, {"place0", "place1"})
    assert found.first == found.last == datetime(2020, 4, 29, tzinfo=UTC)
    assert (found.pixel_sizes, found.baseline, found.source) == ((10.0,), None, None)
    with pytest.raises(ConfigError, match="not those that were trained on"):
        describe_shards(uri, "another digest")


def test_an_evaluation_stays_in_the_card_of_the_same_nets_and_leaves_it_with_others(tmp_path: Path) -> None:
    uri, digest = shards_of(tmp_path / "shards")
    folder = make_ensemble(tmp_path / "ensemble")
    manifest = read_manifest(folder).model_copy(update={"shards": uri, "shards_digest": digest})
    write_manifest(folder, manifest)
    for net in manifest.members:
        run = RunSettings(member=net.settings, shards=uri, shards_digest=digest, fold=net.fold)
        (tmp_path / "ensemble" / run.name / "run.json").write_text(run.model_dump_json())
    card = Path(write_card(folder, EVALUATION))
    assert card.name == "model-card.md"
    evaluated = card.read_text()
    assert "0.8765" in evaluated
    write_card(folder)
    assert card.read_text() == evaluated
    for run_file in (tmp_path / "ensemble").glob("*/run.json"):
        run_file.unlink()
    write_card(folder)
    assert "0.8765" in card.read_text(), "an ensemble may be moved without what its runs have left"
    write_manifest(folder, manifest.model_copy(update={"members": manifest.members[:1]}))
    write_card(folder)
    assert "It was not evaluated yet" in card.read_text()
