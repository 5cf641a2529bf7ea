"""`raytrain review effect` as a user runs it: nets of both versions, masks, counts, and a rerun that trains nothing.

Twelve trainings by Ray Train take minutes on two CPUs, nearly all of it starts of processes: here each net is trained
in this process, and all else is as it is. One test has a version and a seed trained by Ray Train.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from raytrain import cli, storage
from raytrain.cluster import review_effect
from raytrain.cluster.plan import plan_runs
from raytrain.cluster.plan import tiles_of as tiles_of_run
from raytrain.cluster.review_effect import EffectJob
from raytrain.cluster.runs import TrainJob
from raytrain.cluster.score import ScoreJob, ScoreReport
from raytrain.cluster.session import Cluster, joined
from raytrain.cluster.train import TrainReport
from raytrain.config import parse_changes
from raytrain.errors import DataError
from raytrain.review.effect_parts import Trained
from raytrain.scoring.manifest import EnsembleManifest, TrainedMember
from raytrain.scoring.manifest import read_manifest as read_ensemble
from raytrain.scoring.manifest import write_manifest as write_ensemble
from raytrain.tiles.format import Tile
from raytrain.tiles.reader import TileReader, read_manifest, shards_digest
from raytrain.training.loop import TrainingData, train_member
from raytrain.training.ranks import Ranks
from tests.making import make_tile, write_tiles
from tests.unit.test_review_effect import write_mask

pytestmark = pytest.mark.usefixtures("local_ray")
MEMBER = "small-byob-3b"
TINY = ("epochs=1", "crop_px=32", "crops_per_tile=1", "global_batch=4", "decoder_channels=[8,8,8,4,4]")
PLACES = 4


def write(folder: Path, tiles: list[Tile]) -> str:
    write_tiles(folder, tiles, "raw")
    return str(folder)


def tiles_of(kind: str) -> list[Tile]:
    """Return 16 tiles of 32 px, of 4 places in 2 folds, with clouds where a band is bright."""
    tiles = []
    for i in range(16):
        tile = make_tile(i, (32, 32))
        label = np.zeros((32, 32), np.uint8)
        label[:, : 4 + i] = 1
        bands = {name: (1000 + 9000 * label.astype(np.uint16) + pixels % 500) for name, pixels in tile.bands.items()}
        tiles.append(replace(tile, tile_id=f"{kind}{i}", location=f"{kind}-{i % PLACES}", bands=bands, label=label))
    return tiles


@pytest.fixture
def versions(tmp_path: Path) -> tuple[str, str]:
    """Shards of which two labels are turned over at one place, and the same with them put right and one tile less."""
    right = tiles_of("tile")
    wrong = list(right)
    for i in (0, 4):
        label = right[i].label
        assert label is not None
        wrong[i] = replace(right[i], label=1 - label)
    return write(tmp_path / "before", wrong), write(tmp_path / "after", right[:-1])


@dataclass
class Trainer:
    """Does what `train` does, in this process: nets that stand there are not trained again. Counts those it trains."""

    trained: list[str] = field(default_factory=list)

    def train(self, job: TrainJob, cluster: Cluster, on_news: Any) -> TrainReport:
        """Train the runs of `job` and write its ensemble."""
        folder = Path(job.out) / job.experiment
        runs = plan_runs(job)
        nets = []
        for run in runs:
            key = f"{run.name}/weights.safetensors"
            if not (folder / key).exists():
                self.trained.append(f"{job.experiment}/{run.name}")
                reader = TileReader(run.shards, run.member.bands)
                data = TrainingData(reader, tiles_of_run(reader, run, "train"), np.zeros(0, np.int64))
                state = train_member(run.member, data, Ranks(), lambda report, state: None)
                (folder / key).parent.mkdir(parents=True)
                save_file({name: value.contiguous() for name, value in state.net.state_dict().items()}, folder / key)
            sha256 = storage.sha256_of((folder / key).read_bytes())
            about = {"name": run.member.name, "fold": run.fold, "weights": key, "sha256": sha256}
            nets.append(TrainedMember(**about, settings=run.member, score=None, epoch=run.member.epochs))
        digest = runs[0].shards_digest
        manifest = EnsembleManifest(raytrain_version="0", shards=job.shards, shards_digest=digest, members=tuple(nets))
        write_ensemble(str(folder), manifest)
        return TrainReport(str(folder), len(nets))


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Who trains instead of Ray Train."""
    trainer = Trainer()
    monkeypatch.setattr(review_effect, "train", trainer.train)
    return trainer


def effect(versions: tuple[str, str], out: Path, *more: str, changes: tuple[str, ...] = ()) -> int:
    arguments = [*versions, str(out), "--members", MEMBER, "--resamples", "200"]
    return cli.main(["review", "effect", *arguments, "--set", *TINY, *changes, *more])


def test_effect_is_found_and_the_same_command_trains_nothing_again(
    versions: tuple[str, str], tmp_path: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "effect"
    assert effect(versions, out) == 0
    told = capsys.readouterr().out
    assert "Of 16 tiles the labels of 2 differ and 1 was dropped, at 2 places; 2 places were not touched." in told
    assert f"report: {out}/effect.html" in told
    first = (out / "effect.json").read_bytes()
    found = json.loads(first)
    sizes = {part["name"]: (part["num_tiles"], len(part["locations"])) for part in found["parts"]}
    assert sizes == {"untouched": (8, 2), "unchanged": (5, 2), "new-labels": (7, 2), "old-labels": (7, 2)}
    assert found["decided_by"] == "untouched"
    assert found["compared"]["seeds"] == [0, 1, 2]
    assert found["parts"][2]["locations"]["tile-0"]["num_changed"] == 2
    assert found["words"] in (out / "effect.html").read_text().lower()
    ensembles = [f"{version}-seed{seed}" for seed in range(3) for version in ("before", "after")]
    assert trainer.trained == [f"{name}/{MEMBER}-fold{fold}" for name in ensembles for fold in (0, 1)]
    nets = [path.read_bytes() for path in out.rglob("weights.safetensors")]
    assert len(set(nets)) == len(nets) == 12, "each version, seed and fold has nets of its own"

    trainer.trained.clear()
    masks = {path: path.stat().st_mtime_ns for path in (out / "masks").rglob("*.tif")}
    assert effect(versions, out, "--json") == 0
    assert trainer.trained == []
    assert {path: path.stat().st_mtime_ns for path in (out / "masks").rglob("*.tif")} == masks
    assert (out / "effect.json").read_bytes() == first
    assert json.loads(capsys.readouterr().out)["parts"] == found["parts"]

    assert effect(versions, out, changes=("optimiser.lr=0.5",)) == 2
    assert "begun for another comparison (changes.optimiser.lr" in capsys.readouterr().err
    assert trainer.trained == []


@dataclass
class Masks:
    """Does what `score` does: the mask of a tile is its label, none of what is `bad` for some. Knows what was asked."""

    bad: dict[str, str] = field(default_factory=dict)
    asked: list[ScoreJob] = field(default_factory=list)

    def score(self, job: ScoreJob, cluster: Cluster, on_progress: Any) -> ScoreReport:
        """Write the masks."""
        self.asked.append(job)
        reader = TileReader(job.src, ())
        problems = []
        for i, name in enumerate(reader.tile_ids):
            label = reader.read(i)[1]
            if job.dst.endswith(self.bad.get(name, "-")):
                problems.append(DataError(name, "can't be read"))
            else:
                write_mask(Path(job.dst) / f"{name}.tif", np.zeros((32, 32), np.uint8) if label is None else label)
        return ScoreReport(len(reader), 0, problems, {})


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> Masks:
    """Who scores; what comes of real masks is its own test."""
    masks = Masks()
    monkeypatch.setattr(review_effect, "score", masks.score)
    return masks


def test_masks_are_of_nets_that_never_saw_the_place_and_a_test_set_is_scored_by_all(
    versions: tuple[str, str], tmp_path: Path, trainer: Trainer, masks: Masks
) -> None:
    """What `score` is asked for."""
    masks.bad = {"tile0": "before-seed1"}
    test = write(tmp_path / "test", tiles_of("test"))
    assert effect(versions, tmp_path / "effect", "--test", test) == 1, "a tile is left out"
    of_shards, of_test = masks.asked[:6], masks.asked[6:]
    assert {job.src for job in of_shards} == {versions[1]}
    assert {(job.out_of_fold, job.fold) for job in of_shards} == {(True, None)}
    assert [job.ensemble.rsplit("/")[-1] for job in of_shards] == [job.dst.rsplit("/")[-1] for job in of_shards]
    assert len(of_test) == 6
    assert {(job.src, job.out_of_fold, job.fold) for job in of_test} == {(test, False, "all")}
    found = json.loads((tmp_path / "effect" / "effect.json").read_bytes())
    assert found["decided_by"] == "test"
    assert found["words"] == "no difference shown"
    assert found["compared"]["test_digest"] == shards_digest(read_manifest(test))
    sizes = {part["name"]: (part["num_tiles"], len(part["locations"])) for part in found["parts"]}
    assert sizes["test"] == (16, 4)
    assert sizes["new-labels"] == (6, 2), "without the tile that one ensemble could not score"
    assert found["problems"] == [{"subject": "tile0", "found": "can't be read", "kind": ""}]

    # Another threshold, asked for later, needs masks of its own, and no training.
    trainer.trained.clear()
    masks.bad = {}
    assert effect(versions, tmp_path / "effect", "--score-set", "threshold=0.4") == 0
    assert trainer.trained == []
    assert len(masks.asked) == 18
    assert not {job.dst for job in masks.asked[12:]} & {job.dst for job in masks.asked[:12]}


def test_an_unlabelled_tile_that_can_not_be_scored_is_no_fault_of_the_comparison(
    tmp_path: Path, trainer: Trainer, masks: Masks, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiles_of("tile")
    before[15] = replace(before[15], label=None)
    after = [replace(before[0], label=np.ones((32, 32), np.uint8)), *before[1:]]
    versions = write(tmp_path / "before", before), write(tmp_path / "after", after)
    masks.bad = {"tile15": "before-seed1"}
    assert effect(versions, tmp_path / "effect") == 0
    # Where not one labelled tile can be scored, it is the data's fault.
    masks.bad = {f"tile{i}": "before-seed1" for i in range(15)}
    assert effect(versions, tmp_path / "effect") == 1
    assert "not one tile could be counted: tile0: can't be read (15 tiles in all)" in capsys.readouterr().err


def test_an_ensemble_is_trained_by_ray_train_on_its_version_with_its_seed(
    versions: tuple[str, str], tmp_path: Path
) -> None:
    job = EffectJob(
        before=versions[0], after=versions[1], out=str(tmp_path), members=(MEMBER,), changes=parse_changes(TINY)
    )
    trained = [Trained("after", 7)]
    with joined(Cluster(), []):
        review_effect._train(job, Cluster(), trained, Silent())
    ensemble = read_ensemble(str(tmp_path / "after-seed7"))
    assert ensemble.shards == versions[1]
    assert [(net.fold, net.settings.seed) for net in ensemble.members] == [(0, 7), (1, 7)]


class Silent:
    """Tells nobody of runs and steps."""

    def step(self, title: str) -> Any:
        return contextlib.nullcontext(lambda *arguments: None)

    def training(self, name: str) -> Any:
        return contextlib.nullcontext(lambda news: None)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--seeds", "2"), "seeds: Input should be greater than or equal to 3"),
        (("--set", "seed=4"), "seed is no setting to change"),
        (("--set", "epoch=4"), "unknown setting 'epoch'"),
        (("--score-set", "treshold=0.4"), "unknown setting 'treshold'"),
        (
            ("--score-set", "baseline=from-04.00"),
            "--score-set baseline=... says what the values of chips and scenes are",
        ),
        (("--members", "nobody"), "unknown member 'nobody'"),
    ],
)
def test_what_can_not_be_compared_is_refused_before_anything_is_written(
    versions: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], told: str
) -> None:
    assert effect(versions, tmp_path / "effect", *more) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "effect").exists()


def test_a_folder_of_others_and_a_test_set_of_known_places_are_refused(
    versions: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    assert effect(versions, tmp_path / "taken") == 2
    assert "no effect-work.json), among it notes.txt" in capsys.readouterr().err
    poor = tmp_path / "poor"
    few = [replace(tile, bands={"B02": tile.bands["B02"]}) for tile in tiles_of("test")]
    write_tiles(poor, few, "raw", bands=("B02",))
    assert effect(versions, tmp_path / "effect", "--test", str(poor)) == 2
    assert f"{poor}: member {MEMBER} needs " in capsys.readouterr().err
    assert effect(versions, tmp_path / "effect", "--test", versions[0]) == 2
    assert "4 of its places are in" in capsys.readouterr().err
    assert not (tmp_path / "effect").exists()
