"""What goes wrong in the middle of a job: named with its cause, good work beside it stays, and the job can go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from raytrain import cli
from raytrain.cluster import demo
from raytrain.cluster.runs import RESULT_FILE, RUN_FILE, TrainJob
from raytrain.cluster.score import ScoreJob, score
from raytrain.cluster.session import Cluster
from raytrain.cluster.shard import ShardJob, shard
from raytrain.cluster.train import train
from raytrain.config import ScoreSettings, ShardSettings
from raytrain.errors import ConfigError
from raytrain.scoring.destination import Scoring, claim_destination
from raytrain.scoring.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("local_ray")
TINY = {"epochs": 1, "crop_px": 32, "crops_per_tile": 1, "global_batch": 4, "decoder_channels": [8, 8, 8, 4, 4]}
SCORE = ScoreSettings(window_px=96, overlap_px=32, windows_per_pass=2)


@pytest.fixture(scope="module")
def shards(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "here"
    shard(ShardJob(src=str(chips), dst=str(folder), settings=ShardSettings(folds="3")), Cluster())
    return folder


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with an ensemble of one net, which was asked for with an unknown encoder first."""
    out = tmp_path_factory.mktemp("runs")
    job = TrainJob(shards=str(shards), out=str(out), members=("small-byob-3b",), changes=TINY)
    wrong = job.model_copy(update={"changes": {**TINY, "encoder": "resnet35"}})
    with pytest.raises(ConfigError, match="member small-byob-3b: can't build encoder 'resnet35'"):
        train(wrong, Cluster(), lambda post: None)
    assert not list(out.rglob(RESULT_FILE))
    report = train(job, Cluster(), lambda post: None)
    assert (report.failed, report.num_members) == ({}, 1)
    return out


def test_wrong_setting_that_only_a_rank_sees_claims_nothing(runs: Path) -> None:
    claim = json.loads((runs / "main" / "small-byob-3b-fold0" / RUN_FILE).read_text())
    assert claim["member"]["encoder"] == "test_byobnet.r160_in1k"


def test_damaged_tile_ends_its_run_with_the_tiles_name(shards: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(shards, tmp_path / "shards"))
    path = damaged / "shard-00000.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
    job = TrainJob(shards=str(damaged), out=str(tmp_path / "runs"), members=("small-byob-3b",), workers=2, changes=TINY)
    report = train(job, Cluster(), lambda post: None)
    assert report.ensemble_uri is None
    assert list(report.failed) == ["small-byob-3b-fold0"]
    reason = report.failed["small-byob-3b-fold0"]
    assert reason.startswith("tile p")
    assert "shard-00000.parquet: can't be read" in reason
    assert not (tmp_path / "runs" / "main" / "ensemble.json").exists()


def test_unit_whose_mask_cannot_be_written_is_unfinished_and_the_other_is_done(
    runs: Path, scenes: Path, tmp_path: Path
) -> None:
    first, second = sorted(path.name for path in (scenes / "scenes").glob("*.tif"))
    in_the_way = tmp_path / "masks" / first / "folder"
    in_the_way.mkdir(parents=True)
    job = ScoreJob(src=str(scenes), dst=str(tmp_path / "masks"), ensemble=str(runs / "main"), settings=SCORE)
    report = score(job, Cluster())
    assert (report.num_masks, report.problems) == (1, [])
    assert list(report.unfinished) == [first.removesuffix(".tif")]
    assert "IsADirectoryError" in report.unfinished[first.removesuffix(".tif")]
    assert (tmp_path / "masks" / second).is_file()
    arguments = ["score", job.src, job.dst, "--ensemble", job.ensemble, "--set", "window_px=96", "overlap_px=32"]
    assert cli.main([*arguments, "windows_per_pass=2", "block_px=512"]) == 3
    shutil.rmtree(tmp_path / "masks" / first)
    again = score(job, Cluster())
    assert (again.num_masks, again.num_skipped, again.unfinished) == (2, 1, {})


def test_weights_that_are_gone_are_the_callers_mistake(runs: Path, scenes: Path, tmp_path: Path) -> None:
    ensemble = Path(shutil.copytree(runs, tmp_path / "runs")) / "main"
    (weights,) = ensemble.rglob("small-byob-3b-fold0/weights.safetensors")
    weights.unlink()
    job = ScoreJob(src=str(scenes), dst=str(tmp_path / "masks"), ensemble=str(ensemble), settings=SCORE)
    with pytest.raises(ConfigError, match=r"weights\.safetensors: no such file, but the ensemble names it"):
        score(job, Cluster())
    assert not list((tmp_path / "masks").glob("*.tif"))


def test_chip_that_lost_a_band_is_a_casualty_and_keeps_the_mask_of_before(
    runs: Path, own_chips: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(str(runs / "main"))
    job = ScoreJob(src=str(own_chips), dst=str(tmp_path / "masks"), ensemble=str(runs / "main"), settings=SCORE)
    names = tuple(member.name for member in manifest.members)
    claim_destination(job.dst, Scoring(ensemble=manifest.nets_digest(), members=names, settings=SCORE))
    bad = sorted(path.name for path in (own_chips / "train_features").iterdir())[2]
    (own_chips / "train_features" / bad / "B03.tif").unlink()
    (tmp_path / "masks" / f"{bad}.tif").write_bytes(b"its mask when it was whole")
    report = score(job, Cluster())
    assert [problem.subject for problem in report.problems] == [bad]
    assert report.num_masks == 11
    assert len(list((tmp_path / "masks").glob("*.tif"))) == 12
    assert (tmp_path / "masks" / f"{bad}.tif").read_bytes() == b"its mask when it was whole"


def test_when_all_is_bad_all_of_it_is_listed_and_nothing_is_written(
    own_chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = sorted(path.name for path in (own_chips / "train_features").iterdir())
    for chip in ids:
        (own_chips / "train_features" / chip / "B02.tif").write_bytes(b"")
    assert cli.main(["shard", str(own_chips), str(tmp_path / "shards"), "--json"]) == 1
    captured = capsys.readouterr()
    assert [each["subject"] for each in json.loads(captured.out)["left_out"]] == ids
    assert all(f"  {chip}: B02: an empty file" in captured.err for chip in ids)
    labels, metadata = own_chips / "train_labels", own_chips / "train_metadata.csv"
    masks = Path(shutil.copytree(labels, tmp_path / "masks"))
    for path in masks.iterdir():
        path.write_bytes(b"")
    out = tmp_path / "scores"
    out.mkdir()
    for name in ("metrics.json", "report.html"):
        (out / name).write_text("an earlier result")
    arguments = ["evaluate", str(masks), str(labels), "--metadata", str(metadata), "--out", str(out)]
    assert cli.main([*arguments, "--json"]) == 1
    captured = capsys.readouterr()
    assert sorted(each["subject"] for each in json.loads(captured.out)["problems"]) == ids
    assert "12 bad in the data, nothing was written" in captured.err
    for chip in ids:
        (own_chips / "train_features" / chip / "B02.tif").unlink()
    assert cli.main(["shard", str(own_chips), str(tmp_path / "shards")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith("no chip has a band B02 (found: B03, B04, B08)")
    assert not list(out.iterdir())
    assert not (tmp_path / "shards").exists()


def test_edited_folds_are_noticed(chips: Path, tmp_path: Path) -> None:
    folds = tmp_path / "folds.csv"
    ids = sorted(path.name for path in (chips / "train_features").iterdir())
    folds.write_text("\n".join(["chip_id,fold", *(f"{chip},{i % 2}" for i, chip in enumerate(ids))]))
    job = ShardJob(src=str(chips), dst=str(tmp_path / "shards"), settings=ShardSettings(folds=str(folds)))
    shard(job, Cluster())
    assert shard(job, Cluster()).was_done
    folds.write_text(folds.read_text().replace(f"{ids[0]},0", f"{ids[0]},1"))
    with pytest.raises(ConfigError, match=r"the folds in .*folds\.csv are not those of the shards"):
        shard(job, Cluster())


def test_demo_goes_on_where_it_stopped_and_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"CHIP_PX": 64, "SCENE_PX": 300, "TRAIN_CHIPS": 12, "TRAIN_PLACES": 8, "UNSEEN_CHIPS": 8}
    for name, value in {**sizes, "UNSEEN_PLACES": 4}.items():
        monkeypatch.setattr(demo, name, value)
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for name in ("report.html", "scene.png", "scores/metrics.json", "runs/main/ensemble.json"):
        assert (out / name).is_file()
        assert str(out / name) in shown.replace("\n", "")
    assert json.loads((out / "scores" / "metrics.json").read_text())["num_chips"] == 8
    weights = {path: path.stat().st_mtime_ns for path in out.rglob("weights.safetensors")}
    assert len(weights) >= 2
    bad = next(iter(sorted((out / "unseen" / "test_features").iterdir())))
    (bad / "B03.tif").write_bytes(b"")
    assert cli.main(["demo", "--out", str(out), "--json"]) == 1
    captured = capsys.readouterr()
    assert f"{bad.name}: B03: an empty file (0 bytes)" in captured.err
    assert json.loads(captured.out)["metrics"]["num_chips"] == 7
    assert {path: path.stat().st_mtime_ns for path in weights} == weights, "a member was trained again"
