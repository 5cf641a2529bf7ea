"""A window has its result whatever goes with it; an ensemble is what its file says; a destination has one kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from raytrain.cluster.score import ScoreJob, scoring_of
from raytrain.config import MemberSettings, ScoreSettings, change
from raytrain.errors import ConfigError
from raytrain.recipes import members
from raytrain.scoring.destination import Scoring, check_destination, check_source, claim_destination, read_scoring
from raytrain.scoring.ensemble import Ensemble
from raytrain.scoring.manifest import (
    EnsembleManifest,
    TrainedMember,
    check_names_differ,
    member_names,
    read_manifest,
    write_manifest,
)
from raytrain.scoring.work import layers_of
from tests.making import make_ensemble

SETTINGS = ScoreSettings(window_px=64, overlap_px=16, windows_per_pass=3, threads=1)
BANDS = ("B02", "B03", "B04", "B08")


def member(**changes: object) -> MemberSettings:
    return change(members(("small-effnet-4b-20k",))[0], {"normalisation.maximum": 10000, **changes})


def test_weights_that_are_gone_or_changed_are_the_callers_mistake(tmp_path: Path) -> None:
    manifest = EnsembleManifest(raytrain_version="1", shards="s", shards_digest="d", members=(trained(0),))
    with pytest.raises(ConfigError, match=r"w: no such file, but the ensemble names it as the weights of m"):
        Ensemble.load(str(tmp_path), manifest, SETTINGS, torch.device("cpu"))
    (tmp_path / "w").write_bytes(b"other weights")
    with pytest.raises(ConfigError, match=r"weights of member .*: sha256 is .*, but the ensemble names 0"):
        Ensemble.load(str(tmp_path), manifest, SETTINGS, torch.device("cpu"))


def trained(fold: int | None) -> TrainedMember:
    return TrainedMember(name="m", fold=fold, weights="w", sha256="0", settings=member(), score=0.5, epoch=1)


def test_ensemble_file_by_folder_or_by_name_and_its_lowest_fold_by_default(tmp_path: Path) -> None:
    manifest = EnsembleManifest(raytrain_version="1", shards="s", shards_digest="d", members=(trained(2), trained(1)))
    write_manifest(str(tmp_path), manifest)
    for uri in (str(tmp_path), str(tmp_path / "ensemble.json")):
        assert read_manifest(uri) == manifest
    assert [each.fold for each in manifest.of_fold(None).members] == [1]
    assert [each.fold for each in manifest.of_fold(2).members] == [2]
    assert manifest.of_fold("all") == manifest
    with pytest.raises(ConfigError, match="no fold 3; it has 1, 2"):
        manifest.of_fold(3)
    (tmp_path / "ensemble.json").write_text(json.dumps({"format_version": 7}))
    with pytest.raises(ConfigError, match="format version 2"):
        read_manifest(str(tmp_path))
    with pytest.raises(ConfigError, match="no ensemble there"):
        read_manifest(str(tmp_path / "absent"))


def net(name: str, fold: int | None) -> TrainedMember:
    return trained(fold).model_copy(update={"name": name})


def test_nets_of_several_folds_are_called_by_member_and_fold_and_others_by_their_member() -> None:
    assert member_names([net("b", 1), net("a", 0)]) == ("b", "a")
    assert member_names([net("b", 0), net("a", 0), net("b", 3), net("b", None)]) == (
        "b-fold0",
        "a",
        "b-fold3",
        "b-foldnone",
    )
    for same in ([net("b", 0), net("b", 0)], [net("b", 0), net("b", 1), net("b-fold1", 0)]):
        with pytest.raises(ConfigError, match=r"has 2 nets that would be called b-fold[01]; choose a fold"):
            check_names_differ(member_names(same))


def test_two_nets_of_one_name_are_refused_only_where_maps_of_each_are_written(tmp_path: Path) -> None:
    uri = make_ensemble(tmp_path)
    first = read_manifest(uri).members[0]
    named = [("a", 0), ("a", 1), ("a-fold0", 0)]
    members = tuple(first.model_copy(update={"name": name, "fold": fold}) for name, fold in named)
    write_manifest(uri, read_manifest(uri).model_copy(update={"members": members}))
    manifest, found = scoring_of(ScoreJob(src="in", dst="out", ensemble=uri, fold="all"))
    assert found.members == ("a-fold0", "a-fold1", "a-fold0")
    nets = Ensemble.load(uri, manifest, SETTINGS, torch.device("cpu"))
    assert nets.usable(BANDS) == (("a-fold0", "a-fold1"), ())
    settings = change(SETTINGS, {"members": "uint8"})
    with pytest.raises(ConfigError, match="has 2 nets that would be called a-fold0; choose a fold"):
        scoring_of(ScoreJob(src="in", dst="out", ensemble=uri, fold="all", settings=settings))


def test_destination_of_all_folds_names_each_net_and_the_nets_are_called_so(tmp_path: Path) -> None:
    uri = make_ensemble(tmp_path)
    one = read_manifest(uri)
    again = [each.model_copy(update={"fold": 1}) for each in one.members]
    write_manifest(uri, one.model_copy(update={"members": (*one.members, again[0])}))
    settings = change(SETTINGS, {"members": "uint8"})
    manifest, found = scoring_of(ScoreJob(src="in", dst="out", ensemble=uri, fold="all", settings=settings))
    assert found.members == ("small-byob-3b-fold0", "small-effnet-4b-20k", "small-byob-3b-fold1")
    assert layers_of(found).kinds == ("mask", *(f"member-{name}" for name in found.members))
    nets = Ensemble.load(uri, manifest, settings, torch.device("cpu"), member_maps=True)
    assert nets.layer_kinds(BANDS) == ("probability", *layers_of(found).member_kinds)
    assert nets.usable(BANDS[1:]) == (found.members[::2], found.members[1:2])
    assert scoring_of(ScoreJob(src="in", dst="out", ensemble=uri))[1].members == (
        "small-byob-3b",
        "small-effnet-4b-20k",
    )


@pytest.mark.parametrize("name", ["../m", "a/b", "", ".", "A"])
def test_name_that_keys_could_escape_by_is_refused_wherever_it_is_read(tmp_path: Path, name: str) -> None:
    manifest = EnsembleManifest(raytrain_version="1", shards="s", shards_digest="d", members=(net(name, 0),))
    write_manifest(str(tmp_path), manifest)
    with pytest.raises(ConfigError, match=r"members\.0\.name"):
        read_manifest(str(tmp_path))
    claim_destination(str(tmp_path), scoring().model_copy(update={"members": (name,)}))
    with pytest.raises(ConfigError, match=r"scoring\.json: members\.0"):
        read_scoring(str(tmp_path))


SETTINGS_OF_BEFORE = {
    "threshold": 0.5,
    "horizontal_flip": True,
    "window_px": 512,
    "overlap_px": 128,
    "windows_per_pass": 4,
    "precision": "float32",
    "compile": False,
    "threads": 2,
    "block_px": 12288,
    "baseline": "before-04.00",
    "missing_bands": "error",
    "probability": "none",
    "disagreement": "none",
    "datetime": None,
}
DIGEST_OF_BEFORE = "4d56bba1010102fb6b6c0d309f940703"
"""Settings and digest as the last version without maps of members (0.1.0 at fa8f8a0) wrote them for two nets `m`."""


def scoring(**changes: object) -> Scoring:
    return Scoring(ensemble="a", members=("m",), settings=change(SETTINGS, changes))


def test_destination_of_another_ensemble_or_other_settings_is_refused(tmp_path: Path) -> None:
    uri, masks = str(tmp_path), ["scene.tif", "stac/scene.json"]
    other = scoring().model_copy(update={"ensemble": "b"})
    claim_destination(uri, other)
    check_destination(uri, scoring(), ["scoring.json"])  # nothing was made yet
    claim_destination(uri, scoring())
    check_destination(uri, scoring(), masks)
    with pytest.raises(ConfigError, match=r"masks of other work \(ensemble: a -> b\), among them scene\.tif"):
        check_destination(uri, other, masks)
    for name, value, found in (
        ("threshold", 0.4, r"settings\.threshold: 0\.5 -> 0\.4"),
        ("threads", 2, r"settings\.threads: 1 -> 2"),
        ("windows_per_pass", 1, r"settings\.windows_per_pass: 3 -> 1"),
        ("probability", "uint8", r"settings\.probability: none -> uint8"),
        ("members", "float32", r"settings\.members: none -> float32"),
    ):
        with pytest.raises(ConfigError, match=found):
            check_destination(uri, scoring(**{name: value}), masks)
        assert scoring(**{name: value}).digest() != scoring().digest()
    check_destination(uri, scoring(block_px=1024), masks)
    assert scoring(block_px=1024).digest() == scoring().digest()


def test_destination_scored_before_maps_of_members_goes_on_also_that_of_several_folds(tmp_path: Path) -> None:
    before = {"ensemble": "a" * 64, "members": ["m", "m"], "settings": SETTINGS_OF_BEFORE, "raytrain_version": "0.1.0"}
    (tmp_path / "scoring.json").write_text(json.dumps(before))
    names, masks = ("m-fold0", "m-fold1"), ["scene.tif", "ledger/records-3.parquet"]
    settings = ScoreSettings(baseline="before-04.00")
    now = Scoring(ensemble="a" * 64, members=names, settings=settings, raytrain_version="0.1.0")
    assert now.digest() == DIGEST_OF_BEFORE
    check_destination(str(tmp_path), now, masks)
    with_maps = now.model_copy(update={"settings": change(settings, {"members": "uint8"})})
    with pytest.raises(ConfigError, match=r"members: \['m', 'm'\] -> .*settings\.members: none -> uint8"):
        check_destination(str(tmp_path), with_maps, masks)
    with pytest.raises(ConfigError, match=r"masks of other work \(ensemble: a+ -> b\)"):
        check_destination(str(tmp_path), now.model_copy(update={"ensemble": "b"}), masks)


def test_members_of_other_names_are_other_work_where_maps_of_each_are_written(tmp_path: Path) -> None:
    claim_destination(str(tmp_path), scoring(members="uint8"))
    other = scoring(members="uint8").model_copy(update={"members": ("n",)})
    with pytest.raises(ConfigError, match=r"\(members: \['m'\] -> \['n'\]\)"):
        check_destination(str(tmp_path), other, ["scene.tif"])


def test_rasters_that_are_no_masks_of_ours_are_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds 2 files that are not ours .*, among them a\.tif"):
        check_destination(str(tmp_path), scoring(), ["a.tif", "b.tif", "x.json"])
    check_destination(str(tmp_path), scoring(), ["scenes/a.tif"])  # rasters in folders below are not in the way


@pytest.mark.parametrize("name", ["plan/x.json", "casualties.csv", "members/m/s.tif", "ledger/new/x", "stac/s.json"])
def test_what_bears_a_name_of_ours_and_came_from_elsewhere_is_never_touched(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"holds 1 files that are not ours .*, among them {name}"):
        check_destination(str(tmp_path), scoring(), [name, "readme.md"])
    claim_destination(str(tmp_path), scoring())
    check_destination(str(tmp_path), scoring(), [name])


def test_records_of_other_settings_count_where_masks_were_removed(tmp_path: Path) -> None:
    claim_destination(str(tmp_path), scoring())
    with pytest.raises(ConfigError, match="masks of other work"):
        check_destination(str(tmp_path), scoring(threshold=0.4), ["ledger/records-3.parquet"])


def test_outputs_never_take_the_place_of_the_source() -> None:
    for source in ("/a/cat", "/a/cat/collection.json", "/a/cat/stac/x.json", "/a/cat/one.tif"):
        with pytest.raises(ConfigError, match="would take the place of the source"):
            check_source(source, "/a/cat")
    for source in ("/a/cat/scenes", "/a/catalogue/collection.json", "/a/cat/in/collection.json", "/a"):
        check_source(source, "/a/cat")


def test_damaged_record_of_a_destination_is_named(tmp_path: Path) -> None:
    (tmp_path / "scoring.json").write_bytes(b"{}")
    with pytest.raises(ConfigError, match=r"scoring\.json: ensemble: Field required"):
        check_destination(str(tmp_path), scoring(), [])
