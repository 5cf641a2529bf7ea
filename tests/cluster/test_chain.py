"""The whole chain on a real local Ray: chips to shards, two members on two workers, masks, scores; then again."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import timm
import torch
from rio_cogeo.cogeo import cog_validate
from safetensors.torch import load_file, save_file

from raytrain import storage
from raytrain.cluster.board import News, Post
from raytrain.cluster.evaluate import EvaluateJob, EvaluateReport, evaluate
from raytrain.cluster.runs import TrainJob
from raytrain.cluster.score import ScoreJob, score
from raytrain.cluster.session import Cluster, joined, uses_gpus
from raytrain.cluster.shard import ShardJob, shard
from raytrain.cluster.train import TrainReport, train
from raytrain.config import LoaderSettings, ScoreSettings, ShardSettings
from raytrain.errors import ConfigError
from raytrain.recipes import members
from raytrain.scoring.manifest import read_manifest
from raytrain.tiles.selection import Selection
from raytrain.training.mirror import write_mirror

BEFORE_RAY = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
pytestmark = pytest.mark.usefixtures("local_ray")
TINY = {"epochs": 2, "crop_px": 32, "crops_per_tile": 2, "global_batch": 8, "decoder_channels": [8, 8, 8, 4, 4]}
SCORE = ScoreSettings(window_px=96, overlap_px=32, windows_per_pass=2)


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return the bytes and the time of change of every file."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.fixture(scope="module")
def shards(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "here"
    settings = ShardSettings(folds="3", tiles_per_shard=5)
    report = shard(ShardJob(src=str(chips), dst=str(folder), settings=settings), Cluster())
    assert not report.problems
    return folder


@pytest.fixture(scope="module")
def posts() -> list[News]:
    """All news of the training, in their order."""
    return []


@pytest.fixture(scope="module")
def trained(shards: Path, posts: list[News], tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainJob, TrainReport]:
    out = tmp_path_factory.mktemp("runs")
    job = TrainJob(
        shards=str(shards), out=str(out), members=("small-effnet-4b-20k", "small-byob-3b"), workers=2, changes=TINY
    )
    return job, train(job, Cluster(), posts.append)


def test_shards_do_not_depend_on_who_writes_them_and_a_rerun_writes_nothing(
    chips: Path, shards: Path, tmp_path: Path
) -> None:
    settings = ShardSettings(folds="3", tiles_per_shard=5)
    before = files_of(shards)
    assert sorted(before) == ["index.parquet", "manifest.json", *(f"shard-0000{i}.parquet" for i in range(3))]
    assert shard(ShardJob(src=str(chips), dst=str(shards), settings=settings), Cluster()).was_done
    assert files_of(shards) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "shard-00007.parquet").write_bytes(b"a table of somebody else")
    with pytest.raises(ConfigError, match=r"holds a shard-00007\.parquet that raytrain did not write"):
        shard(ShardJob(src=str(chips), dst=str(other), settings=settings), Cluster())
    assert [path.name for path in other.iterdir()] == ["shard-00007.parquet"]
    shutil.copy(shards / "shard-00000.parquet", other / "shard-00007.parquet")  # a remain of an unfinished run
    shutil.copy(shards / "index.parquet", other / "index.parquet")
    shard(ShardJob(src=str(chips), dst=str(other), settings=settings), Cluster())
    assert {name: data for name, (data, _) in files_of(other).items()} == {n: data for n, (data, _) in before.items()}
    job = ShardJob(src=str(chips), dst=str(shards), settings=settings.model_copy(update={"seed": 1}))
    with pytest.raises(ConfigError, match="seed: 0 -> 1"):
        shard(job, Cluster())


def test_bad_chips_are_listed_and_left_out_or_nothing_is_written(own_chips: Path, tmp_path: Path) -> None:
    ids = sorted(path.name for path in (own_chips / "train_features").iterdir())
    (own_chips / "train_features" / ids[0] / "B02.tif").unlink()
    truncated = own_chips / "train_features" / ids[1] / "B08.tif"
    truncated.write_bytes(truncated.read_bytes()[:300])
    label = own_chips / "train_labels" / f"{ids[2]}.tif"
    with rasterio.open(label) as source:
        profile = source.profile
    with rasterio.open(label, "w", **profile) as target:
        target.write(np.full((64, 64), 7, np.uint8), 1)
    profile.update(height=32)
    with rasterio.open(own_chips / "train_labels" / f"{ids[3]}.tif", "w", **profile) as target:
        target.write(np.zeros((32, 64), np.uint8), 1)
    strict = ShardJob(src=str(own_chips), dst=str(tmp_path / "strict"), strict=True)
    report = shard(strict, Cluster())
    assert report.manifest is None
    assert not (tmp_path / "strict").exists()
    lenient = shard(ShardJob(src=str(own_chips), dst=str(tmp_path / "out")), Cluster())
    assert sorted(map(str, lenient.problems)) == sorted(map(str, report.problems))
    found = {problem.subject: problem.found for problem in lenient.problems}
    assert list(found) == ids[:4]
    assert found[ids[0]].startswith("no band B02")
    assert found[ids[1]].startswith("B08: not a readable TIFF")
    assert found[ids[2]] == "label: label values other than 0, 1 and 255: 7"
    assert found[ids[3]] == "label: label of 64 x 32 px for bands of 64 x 64 px"
    assert lenient.manifest is not None
    assert lenient.manifest["num_tiles"] == 8
    again = shard(ShardJob(src=str(own_chips), dst=str(tmp_path / "out")), Cluster())
    assert again.was_done
    assert sorted(map(str, again.problems)) == sorted(map(str, lenient.problems))


def test_two_members_on_two_workers_make_an_ensemble(trained: tuple[TrainJob, TrainReport], posts: list[News]) -> None:
    job, report = trained
    assert not report.failed
    assert report.num_members == 2
    assert report.ensemble_uri == f"{job.out}/main"
    manifest = read_manifest(report.ensemble_uri)
    assert [member.name for member in manifest.members] == ["small-effnet-4b-20k", "small-byob-3b"]
    assert all(member.score is not None and 0 <= member.score <= 1 for member in manifest.members)
    epochs = [news for news in posts if isinstance(news, Post)]
    assert [(post.run, post.metrics["epoch"]) for post in epochs] == [
        (f"{name}-fold0", epoch) for name in ("small-effnet-4b-20k", "small-byob-3b") for epoch in (0, 1)
    ]
    for member in manifest.members:
        assert not (Path(report.ensemble_uri) / member.weights).read_bytes().startswith(b"\x80")
    scores = [post.metrics["iou_location_weighted"] for post in epochs]
    assert [member.score for member in manifest.members] == [max(scores[:2]), max(scores[2:])]
    assert [post.best is not None for post in epochs][::2] == [True, True], "the first epoch is the best so far"


def test_training_leaves_a_page_its_figures_and_a_card(
    trained: tuple[TrainJob, TrainReport], posts: list[News]
) -> None:
    job, report = trained
    folder = Path(job.out) / "main"
    assert (report.report_uri, report.card_uri) == (str(folder / "report.html"), str(folder / "model-card.md"))
    found = json.loads((folder / "report.json").read_text())
    assert (found["figures"]["num_done"], found["figures"]["num_runs"]) == (2, 2)
    epochs = [news for news in posts if isinstance(news, Post)]
    rows = pq.read_table(folder / "epochs.parquet").to_pylist()
    told = [{**post.metrics, "run": post.run, "epoch": post.metrics["epoch"] + 1} for post in epochs]
    assert [{name: row[name] for name in each} for row, each in zip(rows, told, strict=True)] == told
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows[:2]) + sorted(
        row["seconds"] for row in rows[2:]
    )
    for run, net in zip(found["runs"], read_manifest(str(folder)).members, strict=True):
        best = next(post for post in epochs[::-1] if post.run == run["name"] and post.best is not None)
        assert best.best is not None
        assert run["best_epoch"] == best.metrics["epoch"] + 1 == net.epoch
        assert run["locations"] == {name: asdict(each) for name, each in best.best.locations.items()}
        assert sum(place["num_chips"] for place in run["locations"].values()) == 4
        assert 1 <= len(run["tiles"]) <= 4, "a third of the chips is validated on, those with cloud"
    text = (folder / "report.html").read_text()
    groups = [len({tile["group"] for tile in run["tiles"]}) for run in found["runs"]]
    assert text.count(">True colour<") == sum(groups) > 0, "of two runs one picture of each group"
    assert "Pictures that could not be made" not in text
    card = (folder / "model-card.md").read_text()
    assert all(net.sha256[:12] in card for net in read_manifest(str(folder)).members)
    assert "Labelled tiles | 12 at 6 locations" in card


def test_signals_are_answered_by_this_process_after_a_training(trained: tuple[TrainJob, TrainReport]) -> None:
    """Ray sets answers of its own: to SIGTERM as it starts, to Ctrl-C with each training."""
    assert {number: signal.getsignal(number) for number in BEFORE_RAY} == BEFORE_RAY


def test_training_some_members_again_keeps_the_others_in_the_ensemble(trained: tuple[TrainJob, TrainReport]) -> None:
    job, _ = trained
    before = read_manifest(f"{job.out}/main")
    one = job.model_copy(update={"members": ("small-byob-3b",)})
    again = train(one, Cluster(), lambda post: pytest.fail("an epoch was trained again"))
    assert ([member.name for member in again.trained], again.num_members) == (["small-byob-3b"], 2)
    assert read_manifest(f"{job.out}/main") == before
    with pytest.raises(ConfigError, match="holds an ensemble trained on"):
        train(job.model_copy(update={"shards": f"{job.shards}/../here"}), Cluster(), lambda post: None)


def test_training_again_does_nothing_and_changed_settings_are_refused(trained: tuple[TrainJob, TrainReport]) -> None:
    job, report = trained
    before = files_of(Path(job.out))
    again = train(job, Cluster(), lambda post: pytest.fail("an epoch was trained again"))
    assert again == report
    after = files_of(Path(job.out))
    assert {name for name in after if after[name] != before[name]} <= {"main/ensemble.json"}
    changed = job.model_copy(update={"changes": {**TINY, "optimiser.lr": 0.2}})
    with pytest.raises(ConfigError, match=r"optimiser\.lr: 0\.07 -> 0\.2.*name another --experiment"):
        train(changed, Cluster(), lambda post: None)


def test_ranks_start_from_the_weights_of_a_mirror_in_a_store(shards: Path, s3: str, tmp_path: Path) -> None:
    encoder = members(("small-effnet-4b-20k",))[0].encoder
    file, mirror = tmp_path / "encoder.safetensors", f"{s3}/mirror-for-ranks"
    save_file(timm.create_model(encoder).state_dict(), file)
    write_mirror(mirror, [encoder], {encoder: str(file)}, lambda done, total: None)
    still = {**TINY, "epochs": 1, "encoder_weights": "timm", "optimiser.lr": 1e-30}
    job = TrainJob(
        shards=str(shards),
        out=str(tmp_path),
        members=("small-effnet-4b-20k",),
        workers=2,
        changes=still,
        weights=mirror,
    )
    report = train(job, Cluster(), lambda post: None)
    assert not report.failed
    (run,) = (tmp_path / "main").glob("*/run.json")
    assert json.loads(run.read_text())["encoder_weights_sha256"] == storage.sha256_of(file.read_bytes())
    learnt = load_file(run.parent / "weights.safetensors")
    name = "blocks.0.0.conv.weight"
    assert torch.equal(learnt[f"encoder.model.{name}"], load_file(file)[name])


def test_run_that_was_cut_off_continues_from_its_last_checkpoint(
    trained: tuple[TrainJob, TrainReport], tmp_path: Path
) -> None:
    job, report = trained
    shutil.copytree(Path(job.out), tmp_path / "runs")
    run = tmp_path / "runs" / "main" / "small-effnet-4b-20k-fold0"
    (run / "result.json").unlink()
    (run / "weights.safetensors").unlink()
    (tmp_path / "runs" / "main" / "ensemble.json").unlink()
    moved = job.model_copy(update={"out": str(tmp_path / "runs")})
    epochs: list[int] = []
    again = train(
        moved, Cluster(), lambda news: epochs.append(news.metrics["epoch"]) if isinstance(news, Post) else None
    )
    assert epochs == [], "both epochs are in the checkpoint"
    assert again.trained == report.trained


@pytest.fixture(scope="module")
def evaluated(
    chips: Path, trained: tuple[TrainJob, TrainReport], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, EvaluateReport]:
    out = tmp_path_factory.mktemp("masks")
    job = ScoreJob(src=str(chips), dst=str(out / "masks"), ensemble=f"{trained[0].out}/main", settings=SCORE)
    first = score(job, Cluster())
    assert (first.num_masks, first.num_skipped, first.problems) == (12, 0, [])
    before = files_of(out / "masks")
    second = score(job, Cluster())
    assert (second.num_masks, second.num_skipped) == (12, 12)
    assert files_of(out / "masks") == before
    report = evaluate(
        EvaluateJob(
            predictions=str(out / "masks"),
            labels=str(chips / "train_labels"),
            metadata=str(chips / "train_metadata.csv"),
            out=str(out / "scores"),
            images=str(chips),
        ),
        Cluster(),
    )
    return out, report


def test_scores_are_those_of_an_independent_count_over_tiff_pairs(
    chips: Path, evaluated: tuple[Path, EvaluateReport]
) -> None:
    out, report = evaluated
    intersection = union = 0
    for path in sorted((out / "masks").glob("*.tif")):
        with rasterio.open(path) as mask, rasterio.open(chips / "train_labels" / path.name) as truth:
            predicted, label = mask.read(1), truth.read(1)
        known = label != 255
        intersection += int(((predicted == 1) & (label == 1) & known).sum())
        union += int((((predicted == 1) | (label == 1)) & known).sum())
    metrics = json.loads((out / "scores" / "metrics.json").read_text())
    assert metrics["iou_pooled"] == intersection / union
    assert metrics["num_chips"] == 12
    assert metrics["empty_union_rule"] == "one"
    assert sum(place["num_chips"] for place in metrics["locations"].values()) == 12
    assert report.evaluation.iou_pooled == metrics["iou_pooled"]
    assert "<img" in (out / "scores" / "report.html").read_text()


def test_scenes_become_cogs_and_their_labels_are_never_read(
    scenes: Path, trained: tuple[TrainJob, TrainReport], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(scenes, tmp_path / "scenes"))
    (source / "scene_labels").rename(tmp_path / "labels")
    job = ScoreJob(src=str(source), dst=str(tmp_path / "out"), ensemble=f"{trained[0].out}/main", settings=SCORE)
    report = score(job, Cluster())
    assert (report.num_masks, report.problems) == (2, [])
    for path in sorted((source / "scenes").glob("*.tif")):
        mask = tmp_path / "out" / path.name
        assert cog_validate(mask)[0]
        with rasterio.open(mask) as ours, rasterio.open(path) as theirs:
            assert (ours.crs, ours.transform, ours.shape) == (theirs.crs, theirs.transform, theirs.shape)
    evaluation = evaluate(
        EvaluateJob(
            predictions=str(tmp_path / "out"),
            labels=str(tmp_path / "labels"),
            metadata=str(source / "scenes_metadata.csv"),
            out=str(tmp_path / "scores"),
        ),
        Cluster(),
    ).evaluation
    assert evaluation.num_chips == 2


def test_masks_of_another_ensemble_are_not_mixed_in(
    chips: Path, trained: tuple[TrainJob, TrainReport], evaluated: tuple[Path, EvaluateReport]
) -> None:
    out, _ = evaluated
    other = ScoreSettings(**{**SCORE.model_dump(), "threshold": 0.3})
    job = ScoreJob(src=str(chips), dst=str(out / "masks"), ensemble=f"{trained[0].out}/main", settings=other)
    with pytest.raises(ConfigError, match=r"of other work \(settings\.threshold: 0\.5 -> 0\.3\)"):
        score(job, Cluster())


def test_local_paths_and_ray_client_are_refused_where_they_cannot_work() -> None:
    with pytest.raises(ConfigError, match="raytrain submit"), joined(Cluster(address="ray://head:10001"), []):
        pass
    with pytest.raises(ConfigError, match="500 workers need as many CPUs"):
        uses_gpus(TrainJob(shards="s", out="o", workers=500).fewest_workers)


def test_real_chips_from_shards_to_scores(real_imagery: Path, tmp_path: Path) -> None:
    labelled, provenance = real_imagery / "labelled", str(real_imagery / "labelled" / "provenance.csv")
    metadata = str(labelled / "train_metadata.csv")
    report = shard(
        ShardJob(src=str(labelled), dst=str(tmp_path / "shards"), settings=ShardSettings(folds=provenance)), Cluster()
    )
    assert report.manifest is not None
    assert (report.manifest["num_tiles"], report.problems) == (27, [])
    job = TrainJob(
        shards=str(tmp_path / "shards"),
        out=str(tmp_path / "runs"),
        members=("small-byob-3b",),
        workers=2,
        changes={**TINY, "epochs": 1, "crop_px": 64, "crops_per_tile": 1},
    )
    assert not train(job, Cluster(), lambda post: None).failed
    ensemble = str(tmp_path / "runs" / "main")
    where = Selection(where=("split=val",), metadata=provenance)
    masks = ScoreJob(src=str(labelled), dst=str(tmp_path / "masks"), ensemble=ensemble, selection=where)
    assert score(masks, Cluster()).num_masks == 9
    found = evaluate(
        EvaluateJob(
            predictions=str(tmp_path / "masks"),
            labels=str(labelled / "train_labels"),
            metadata=metadata,
            where=("split=val",),
            where_metadata=provenance,
            out=str(tmp_path / "scores"),
        ),
        Cluster(),
    ).evaluation
    assert found.num_chips == 9
    assert not found.problems
    unlabelled = ScoreJob(src=str(real_imagery / "unlabelled"), dst=str(tmp_path / "more"), ensemble=ensemble)
    assert score(unlabelled, Cluster()).num_masks == 10


def test_chain_runs_in_an_object_store(s3: str, chips: Path, scenes: Path, tmp_path: Path) -> None:
    for folder, name in ((chips, "chips"), (scenes, "scenes")):
        for path in folder.rglob("*"):
            if path.is_file():
                uri = storage.join(s3, "chain", name, *path.relative_to(folder).parts)
                storage.write_bytes(uri, path.read_bytes())
    root = storage.join(s3, "chain")
    settings = ShardSettings(folds="3", tiles_per_shard=5)
    report = shard(ShardJob(src=f"{root}/chips", dst=f"{root}/shards", settings=settings), Cluster())
    assert report.manifest is not None
    assert report.manifest["num_tiles"] == 12
    changes = {**TINY, "epochs": 1}
    loader = LoaderSettings(processes=1, threads=3, cache_folder=str(tmp_path / "cache"))
    job = TrainJob(
        shards=f"{root}/shards",
        out=f"{root}/runs",
        members=("small-byob-3b",),
        workers=2,
        changes=changes,
        loader=loader,
    )
    assert not train(job, Cluster(), lambda post: None).failed
    assert len(list((tmp_path / "cache").rglob("shard-*.parquet"))) == 3, "the tiles were not kept"
    other_loader = job.model_copy(update={"loader": LoaderSettings()})
    assert not train(other_loader, Cluster(), lambda post: pytest.fail("trained again for another loader")).failed
    for name, count in (("chips", 12), ("scenes", 2)):
        work = ScoreJob(src=f"{root}/{name}", dst=f"{root}/{name}-masks", ensemble=f"{root}/runs/main", settings=SCORE)
        found = score(work, Cluster())
        assert (found.num_masks, found.problems) == (count, [])
    evaluation = evaluate(
        EvaluateJob(
            predictions=f"{root}/chips-masks",
            labels=f"{root}/chips/train_labels",
            metadata=f"{root}/chips/train_metadata.csv",
            images=f"{root}/chips",
            out=f"{root}/scores",
        ),
        Cluster(),
    ).evaluation
    assert evaluation.num_chips == 12
    assert storage.exists(f"{root}/scores/report.html")
