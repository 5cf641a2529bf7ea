"""One rank of a run, inside a Ray Train worker: the loop with Ray Train's checkpoints, and news for the driver."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch

from raytrain.cluster.board import Post
from raytrain.cluster.runs import BEST, METRICS, SCORE, RunSettings
from raytrain.config import LoaderSettings, MemberSettings
from raytrain.errors import RaytrainError, StoreOutOfReach
from raytrain.tiles.reader import TileReader, select_tiles
from raytrain.training.checkpoints import TrainingState, restore_state, save_state
from raytrain.training.encoder_files import EncoderFile
from raytrain.training.loop import EpochReport, TrainingData, train_member
from raytrain.training.ranks import Ranks


def train_on_rank(run: RunSettings, loader: LoaderSettings, encoder_file: EncoderFile | None, board: Any) -> None:
    """Train on this rank (called by Ray Train on every worker); rank 0 reports checkpoints and posts the news.

    Each rank of a fresh run fetches `encoder_file` and holds it against its hash; None stands for random weights.
    What a retry can't mend (wrong settings, a damaged tile, a diverged loss, no way to the hub) condemns the run: its
    ranks are ended, and those that Ray starts in their place end at once.
    """
    if ray.get(board.verdict.remote()) is not None:
        return
    try:
        _train(run, loader, encoder_file, board)
    except StoreOutOfReach:
        raise  # another attempt may find it
    except RaytrainError as error:
        ray.get(board.condemn.remote(error))
        raise


def _train(run: RunSettings, loader: LoaderSettings, encoder_file: EncoderFile | None, board: Any) -> None:
    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    reader = TileReader(run.shards, run.member.bands, loader)
    train, validation = (select_tiles(reader, run.fold, part) for part in ("train", "validation"))
    data = TrainingData(reader, train, validation, loader)

    def on_epoch(report: EpochReport, state: TrainingState) -> None:
        metrics = _metrics(report)
        if not ranks.leads:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "checkpoint"
            save_state(folder, state, run.member)
            (folder / METRICS).write_text(json.dumps(metrics))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        board.post.remote(Post(run.name, run.member.epochs, metrics))

    checkpoint = ray.train.get_checkpoint()
    restore = partial(_restore, checkpoint, run.member) if checkpoint else None
    train_member(run.member, data, ranks, on_epoch, restore, encoder_file=encoder_file)


def _restore(checkpoint: ray.train.Checkpoint, member: MemberSettings, state: TrainingState) -> None:
    with checkpoint.as_directory() as folder:
        restore_state(Path(folder), state, member)


def _metrics(report: EpochReport) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "epoch": report.epoch,
        BEST: report.epoch + 1 if report.is_best else 0,
        "loss": report.loss,
        "epoch_s": report.epoch_s,
        "wait_s": report.wait_s,
        "learning_rate": report.learning_rate,
        "images_per_s": report.images_per_s,
        "skipped_steps": report.skipped_steps,
    }
    if report.scores is not None:
        found = asdict(report.scores)
        metrics |= {name: found[name] for name in ("iou_pooled", "iou_mean", SCORE, "iou_mean_location_weighted")}
        metrics["empty_union_rule"] = report.scores.empty_union_rule
    return metrics
