"""What a run survives on one machine, and that its weights are those of a run that nothing happened to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from raytrain.cluster.board import Begun, News, Post, Stepped
from raytrain.cluster.deaths import Kind
from raytrain.cluster.history import read_history
from raytrain.cluster.runs import Checkpointing, TrainJob
from raytrain.cluster.session import Cluster
from raytrain.cluster.shard import ShardJob, shard
from raytrain.cluster.train import TrainReport, train
from raytrain.config import ShardSettings
from raytrain.recipes import members
from raytrain.tiles.order import Position
from raytrain.tiles.reader import read_index as read_tiles
from raytrain.training.checkpoint_files import read_index
from tests.cluster.processes import ranks

pytestmark = pytest.mark.usefixtures("local_ray")
MEMBER, RUN = "small-byob-3b", "small-byob-3b-fold0"
IMAGES = 8 * 60
"""Samples of an epoch: long enough that a fault hits within one."""
CHANGES = {
    "epochs": 3,
    "crop_px": 32,
    "crops_per_tile": 60,
    "global_batch": 8,
    "decoder_channels": [8, 8, 8, 4, 4],
}
OFTEN = Checkpointing(interval_s=0.5)


@pytest.fixture(scope="module")
def shards(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "here"
    shard(ShardJob(src=str(chips), dst=str(folder), settings=ShardSettings(folds="3")), Cluster())
    return folder


@dataclass
class Trained:
    """A training that a test watched: its report, the news of it, the folder of its run."""

    report: TrainReport
    news: list[News]
    run: Path

    @property
    def weights(self) -> bytes:
        return (self.run / "weights.safetensors").read_bytes()

    def images_at(self, position: Position) -> int:
        return position.epoch * IMAGES + position.samples_done


def run_job(job: TrainJob, on_step: Callable[[Stepped], None] | None = None) -> Trained:
    news: list[News] = []

    def on_news(each: News) -> None:
        news.append(each)
        if on_step is not None and isinstance(each, Stepped):
            on_step(each)

    return Trained(train(job, Cluster(), on_news), news, Path(job.out) / job.experiment / RUN)


def job_of(shards: Path, out: Path, workers: int = 2, **changes: object) -> TrainJob:
    return TrainJob(
        shards=str(shards),
        out=str(out),
        members=(MEMBER,),
        workers=workers,
        changes={**CHANGES, **changes},
        checkpointing=OFTEN,
    )


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    trained = run_job(job_of(shards, tmp_path_factory.mktemp("undisturbed")))
    assert not trained.report.failed
    return trained


@pytest.mark.parametrize("which", [0, -1])
def test_killed_rank_costs_at_most_an_interval_and_changes_no_bit(
    shards: Path, undisturbed: Trained, tmp_path: Path, which: int
) -> None:
    killed: list[int] = []
    run = tmp_path / "runs" / "main" / RUN

    def kill(step: Stepped) -> None:
        if killed or step.position.epoch != 1 or step.position.samples_done == IMAGES:
            return
        kept = read_index(str(run)).kept
        if kept and kept[-1].position > Position(1):  # of a busy machine the first steps may come before it
            killed.append(ranks()[which])
            os.kill(killed[0], signal.SIGKILL)

    told = tmp_path / "mlflow"
    trained = run_job(job_of(shards, tmp_path / "runs").model_copy(update={"mlflow": str(told)}), kill)
    assert killed, "nothing was killed"
    assert not trained.report.failed
    (restart,) = trained.report.runs[0].restarts
    assert restart.kind == Kind.WORKER_KILLED
    assert restart.resumed.epoch == 1
    assert restart.resumed.samples_done > 0, "it went on at the beginning of the epoch"
    assert restart.lost_images is not None
    speeds = [each.progress.images_per_s for each in trained.news if isinstance(each, Stepped)]
    assert restart.lost_images <= (OFTEN.interval_s + 1.5) * max(speeds)
    assert trained.weights == undisturbed.weights
    assert trained.report.trained[0].score == undisturbed.report.trained[0].score
    client = MlflowClient(tracking_uri=told.as_uri())
    (there,) = client.search_runs([each.experiment_id for each in client.search_experiments() if each.name == "main"])
    assert (there.info.status, there.data.tags["raytrain.restarts"]) == ("FINISHED", "1")
    assert len(client.get_metric_history(there.info.run_id, "loss")) == CHANGES["epochs"]
    assert len(list((trained.run / "tensorboard").glob("events.out.tfevents.*"))) == 2


def test_damaged_last_checkpoint_is_left_for_the_one_before(shards: Path, undisturbed: Trained, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.run.parents[1], tmp_path / "runs")
    run = tmp_path / "runs" / "main" / RUN
    for name in ("result.json", "weights.safetensors", "../ensemble.json"):
        (run / name).unlink()
    last, before = list(reversed(read_index(str(run)).kept))[:2]
    momentum = run / "checkpoints" / last.name / "momentum.safetensors"
    momentum.write_bytes(momentum.read_bytes()[:-1])
    trained = run_job(job_of(shards, tmp_path / "runs"))
    (begun,) = [each for each in trained.news if isinstance(each, Begun)]
    assert begun.position == before.position
    assert [torn.split(":")[0] for torn in begun.torn] == [f"checkpoint {last.name}"]
    assert trained.weights == undisturbed.weights


def test_disk_that_is_full_for_a_while_costs_no_restart_and_changes_no_bit(
    shards: Path, undisturbed: Trained, tmp_path: Path
) -> None:
    """The store is a small disk that another program fills in the middle of a run, and frees some time later."""
    if os.geteuid() != 0:
        pytest.skip("no right to mount a small disk: needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=True)
    try:
        filler = disk / "filler"
        seen: list[Position] = []

        def fill(step: Stepped) -> None:
            run = disk / "main" / RUN
            if not filler.exists() and not seen and step.position.epoch == 0:
                with pytest.raises(OSError, match="No space"), filler.open("wb") as file:  # noqa: PT012
                    while True:
                        file.write(b"\0" * 65536)
                        file.flush()
            elif filler.exists() and step.position.epoch == 1:
                last = read_index(str(run)).last
                seen.append(last.position if last else Position())
                filler.unlink()

        trained = run_job(job_of(shards, disk), fill)
        assert seen, "the disk was never full"
        assert seen[0] < Position(1), "checkpoints were saved on a full disk"
        assert not trained.report.failed
        assert trained.report.runs[0].restarts == ()
        assert trained.weights == undisturbed.weights
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_killed_command_goes_on_with_the_same_command_and_changes_no_bit(
    shards: Path, undisturbed: Trained, tmp_path: Path
) -> None:
    """The command is killed in the middle of an epoch, with the Ray that it started."""
    job = job_of(shards, tmp_path)
    settings = [f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in CHANGES.items()]
    command = [str(Path(sys.executable).with_name("raytrain")), "train", "--shards", job.shards, "--out", job.out]
    command += ["--members", MEMBER, "--workers", "2", "--checkpoint-minutes", str(OFTEN.interval_s / 60)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    run = tmp_path / "main" / RUN
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, "--set", *settings], env=environment, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 200
        while (last := read_index(str(run)).last) is None or not Position(1) < last.position < Position(2):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        process.kill()
        process.wait()
    assert not (run / "result.json").exists()
    trained = run_job(job)
    (restart,) = trained.report.runs[0].restarts
    assert restart.kind == Kind.JOB_ENDED
    assert Position(1) < restart.resumed < Position(2)
    assert trained.weights == undisturbed.weights


def test_runs_train_side_by_side_and_one_with_bad_data_stops_no_other(shards: Path, tmp_path: Path) -> None:
    """One of two members needs a band of which a cell is damaged; the cluster has room for both at once."""
    damaged = Path(shutil.copytree(shards, tmp_path / "shards"))
    row = next(row for row in read_tiles(str(damaged)).to_pylist() if row["fold"] != 0)
    path = damaged / row["shard"]
    content = bytearray(path.read_bytes())
    own, others = (set(member.bands) for member in members(("small-effnet-4b-20k", MEMBER)))
    (band,) = own - others
    content[row[f"{band}_offset"] + row[f"{band}_bytes"] // 2] ^= 1
    path.write_bytes(content)
    job = job_of(damaged, tmp_path / "runs", workers=1, epochs=2, crops_per_tile=30)
    news: list[News] = []
    report = train(job.model_copy(update={"members": ("small-effnet-4b-20k", MEMBER)}), Cluster(), news.append)
    assert list(report.failed) == ["small-effnet-4b-20k-fold0"]
    assert f"tile {row['tile_id']} in" in report.failed["small-effnet-4b-20k-fold0"]
    assert [net.name for net in report.trained] == [MEMBER]
    assert report.ensemble_uri is None
    assert all(run.restarts == () for run in report.runs), "bad data were tried again"
    begun = {each.run: i for i, each in enumerate(news) if isinstance(each, Begun)}
    ended = max(i for i, each in enumerate(news) if isinstance(each, Post))
    assert set(begun) == {"small-effnet-4b-20k-fold0", RUN}
    assert max(begun.values()) < ended, "one began after the other had ended"


def test_history_of_an_undisturbed_run_is_empty(undisturbed: Trained) -> None:
    history = read_history(str(undisturbed.run))
    assert history.restarts == ()
    assert history.seconds > 0
