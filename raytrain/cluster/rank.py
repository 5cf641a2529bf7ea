"""One rank of a run, inside a Ray Train worker: the loop, its checkpoints, and news for the driver.

All ranks restore the checkpoint that rank 0 chose. From there on only rank 0 saves and posts, and no rank waits for it:
nothing here makes ranks meet.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import ray
import ray.exceptions
import ray.train
import ray.train.collective
import ray.train.torch

from raytrain import logs
from raytrain.cluster import requests
from raytrain.cluster.board import Begun, Post, Stepped, Validated
from raytrain.cluster.metrics import stores_watched
from raytrain.cluster.plan import tiles_of
from raytrain.cluster.runs import SCORE, RankWork, RunSettings, run_tags
from raytrain.cluster.tracking import EventFile, RunMetrics
from raytrain.errors import DataError, StoreOutOfReach, TrainingDiverged
from raytrain.tiles.order import Position
from raytrain.tiles.reader import TileReader
from raytrain.training.checkpoint_files import KeptCheckpoint, checkpoint_uri, read_checkpoint
from raytrain.training.checkpoint_store import BackgroundWriter, CheckpointStore, Start
from raytrain.training.checkpoints import StepsTaken, TrainingState, restore_state, take_snapshot
from raytrain.training.loop import EpochReport, TrainingData, train_member
from raytrain.training.progress import Meter
from raytrain.training.ranks import Ranks

NOTICE_INTERVAL_S = 10
"""How often the state is saved once a node is known to be taken away."""
GIVE_UP_INTERVALS, GIVE_UP_S = 3, 600
"""How many intervals, and how long at least, training goes on while nothing can be saved."""
CURVES = ("loss", "learning_rate", "images_per_s", "iou_pooled", "iou_mean", SCORE, "iou_mean_location_weighted")
"""What TensorBoard shows of each epoch."""
TELL_S = 30
CURVE_S = 5.0
"""How far the points within an epoch are apart there."""
_logger = logging.getLogger(__name__)


class Stopped(Exception):  # no error: raised on every rank alike, it ends a training after an epoch
    """A training ends before its last epoch, since more of it is not wanted."""


AfterEpoch = Callable[[Ranks, int, "dict[str, Any] | None"], None]
"""Called on every rank after an epoch (from 0) with the metrics, which rank 0 alone has; it may raise `Stopped`."""


def ranks_here() -> Ranks:
    """Return this process among the ranks of its run."""
    context = ray.train.get_context()
    return Ranks(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())


def train_on_rank(work: RankWork, board: Any, after_epoch: AfterEpoch | None = None) -> TrainingState:
    """Train on this rank (every worker of Ray Train calls it), from where the last attempt was saved.

    Returns the state at the end of the last epoch. Each rank of a fresh run fetches `encoder_file` and holds it against
    its hash; None stands for random weights. `after_epoch` hears of the last epoch before this attempt, too.
    """
    with stores_watched():
        return _train_on_rank(work, board, after_epoch)


def _train_on_rank(work: RankWork, board: Any, after_epoch: AfterEpoch | None) -> TrainingState:
    run, folder = work.run, work.folder
    ranks = ranks_here()
    subject = {"run": run.name, "member": run.member.name, "fold": run.fold, "rank": ranks.rank}
    logs.begin_worker(**subject)
    place = {"ranks": ranks.world_size, "device": str(ranks.device)}
    _logger.info(
        "rank %d of %d begins on %s", ranks.rank, *place.values(), extra=logs.fields(event="rank begins", **place)
    )
    reader = TileReader(run.shards, run.member.bands, work.loader)
    train, validation = (tiles_of(reader, run, part) for part in ("train", "validation"))
    data = TrainingData(reader, train, validation, work.loader)
    if not ranks.leads:
        name, last, attempt = ray.train.collective.broadcast_from_rank_zero(None)
        logs.be_about(**subject, attempt=attempt)
        restore = None if name is None else partial(_restore, checkpoint_uri(folder, name), run)
        if after_epoch is not None and last is not None:
            after_epoch(ranks, last, None)
        on_epoch = _nothing if after_epoch is None else partial(_tell_others, after_epoch, ranks)
        return train_member(run.member, data, ranks, on_epoch, restore, encoder_file=work.encoder_file)
    store = CheckpointStore(folder, work.checkpointing.keep_last)
    start = store.begin()
    last = None if start.metrics is None else start.metrics["epoch"]
    ray.train.collective.broadcast_from_rank_zero((start.checkpoint and start.checkpoint.name, last, start.attempt))
    logs.be_about(**subject, attempt=start.attempt)
    restore = partial(_apply, start.files, run) if start.checkpoint else None
    num_samples = len(train) * run.member.crops_per_tile
    begun = start.checkpoint.position if start.checkpoint else Position()
    events = EventFile(folder, start.attempt, begun.epoch * num_samples + begun.samples_done)
    told = None if after_epoch is None else partial(after_epoch, ranks)
    with _Leader(work, num_samples, store, events, board, start, told) as leader:
        leader.tell_begin(begun, ranks.world_size)
        if told is not None and start.metrics is not None:
            told(start.metrics["epoch"], start.metrics)
        return train_member(run.member, data, ranks, leader.on_epoch, restore, leader.on_step, work.encoder_file)


def _nothing(report: EpochReport, state: TrainingState) -> None:
    """Be what ranks behind the first do after an epoch."""


def _tell_others(after_epoch: AfterEpoch, ranks: Ranks, report: EpochReport, state: TrainingState) -> None:
    """Be what they do where all of them hear of it."""
    after_epoch(ranks, report.epoch, None)


def _restore(uri: str, run: RunSettings, state: TrainingState) -> None:
    try:
        files = read_checkpoint(uri)
    except DataError as error:  # rank 0 has just read it whole
        raise StoreOutOfReach(f"{error}; rank 0 could read it") from error
    restore_state(files, state, run.member)


def _apply(files: dict[str, bytes], run: RunSettings, state: TrainingState) -> None:
    restore_state(files, state, run.member)
    files.clear()  # as large as the net and its momentum


class _Leader:
    """What rank 0 does beside training: it saves and posts. As a context it ends once everything is saved."""

    def __init__(
        self,
        work: RankWork,
        num_samples: int,
        store: CheckpointStore,
        events: EventFile,
        board: Any,
        start: Start,
        after_epoch: Callable[[int, dict[str, Any]], None] | None,
    ) -> None:
        self._run = run = work.run
        self._after_epoch = after_epoch
        self._attempt = start.attempt
        self._torn = tuple(map(str, start.torn))
        self._events = events
        self._metrics = RunMetrics(run_tags(work.experiment, run))
        self._num_samples = num_samples
        self._interval_s = work.checkpointing.interval_s
        self._board = board
        give_up_s = max(GIVE_UP_INTERVALS * self._interval_s, GIVE_UP_S)
        self._writer = BackgroundWriter(store, give_up_s, self._on_saved)
        score = start.metrics.get(SCORE) if start.metrics else None
        self._meter = Meter(run.name, run.member.epochs, num_samples, score)
        self._taken_at = time.monotonic()
        self._is_noticed = False
        self._asked: Position | None = None
        self._seen: StepsTaken | None = None
        self._drawn_at = -CURVE_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.end()
        if error is None:
            self._writer.close()
            self._events.publish()
        elif isinstance(error, (Stopped, TrainingDiverged)):  # this process may go on with another training
            self._writer.abandon()
            self._events.publish()

    def tell_begin(self, position: Position, num_ranks: int) -> None:
        """Tell where this attempt begins."""
        for torn in self._torn:
            _logger.warning("run %s: %s; going on from the checkpoint before", self._run.name, torn)
        _logger.info(
            "attempt %d begins in epoch %d of %d behind image %d, on %d ranks",
            self._attempt,
            position.epoch + 1,
            self._run.member.epochs,
            position.samples_done,
            num_ranks,
            extra=logs.fields(event="attempt begins", epoch=position.epoch + 1, ranks=num_ranks),
        )
        self._metrics.begin(num_ranks, position.epoch * self._num_samples + position.samples_done)
        begun = Begun(self._run.name, self._attempt, position, num_ranks, self._torn)
        with contextlib.suppress(ray.exceptions.RayError):  # news; they are not worth a run
            ray.get(self._board.post.remote(begun), timeout=TELL_S)

    def on_step(self, state: TrainingState) -> None:
        """Save the state if that is due, and tell how the run goes on."""
        self._writer.check()
        if self._is_due(state):
            self._save(state)
        self._tell(state)

    def on_epoch(self, report: EpochReport, state: TrainingState) -> None:
        """Save the state and tell what the epoch came to."""
        metrics = _metrics(report)
        progress = self._meter.end_epoch(report.epoch, report.loss, metrics.get(SCORE))
        self._metrics.set(progress)
        _logger.info(
            "epoch %d of %d is done",
            report.epoch + 1,
            self._run.member.epochs,
            extra=logs.fields(event="epoch done", **metrics | {"epoch": report.epoch + 1}),
        )
        self._events.add(progress.images_done, {f"epoch/{name}": metrics[name] for name in CURVES if name in metrics})
        self._save(state, metrics=metrics, is_best=report.is_best)
        self._board.post.remote(Post(self._run.name, self._run.member.epochs, metrics, _best(report)))
        if self._after_epoch is not None:
            self._after_epoch(report.epoch, metrics)
        self._meter.begin_epoch()

    def _tell(self, state: TrainingState) -> None:
        """Tell how the run goes on, now and then; the first step here began before this process could measure it."""
        before, self._seen = self._seen, replace(state.taken)
        if before is None:
            self._meter.begin_epoch()
            return
        if state.taken.num_images <= before.num_images:  # the first step of another epoch
            before = StepsTaken()
        num_images, wait_s = state.taken.num_images - before.num_images, state.taken.wait_s - before.wait_s
        progress = self._meter.step(state.position, num_images, wait_s, state.mean_loss)
        if progress is None:
            return
        self._board.post.remote(Stepped(self._run.name, self._attempt, state.position, progress))
        self._metrics.set(progress)
        if time.monotonic() - self._drawn_at < CURVE_S:
            return
        self._drawn_at = time.monotonic()
        points = {"loss": progress.loss, "images_per_s": progress.images_per_s, "wait_fraction": progress.wait_fraction}
        points["learning_rate"] = state.optimiser.param_groups[0]["lr"]
        self._events.add(progress.images_done, {f"step/{name}": x for name, x in points.items() if x is not None})

    def _is_due(self, state: TrainingState) -> bool:
        """Tell whether to save within an epoch: the interval is over, somebody asks for it, or a node is to go.

        Also behind an epoch's last step: validation follows, which may be long, and nothing is saved in it.
        """
        if not self._is_noticed and requests.is_preempted():
            self._is_noticed = True
            self._interval_s = min(self._interval_s, NOTICE_INTERVAL_S)
            _logger.warning(
                "run %s: a node will be taken away; the state is saved now",
                self._run.name,
                extra=logs.fields(event="drain notice"),
            )
            return True
        if requests.is_asked() and self._asked is None:
            return True
        is_over = time.monotonic() - self._taken_at >= self._interval_s
        return self._writer.is_idle and (is_over or state.position.samples_done == state.num_samples)

    def _save(self, state: TrainingState, *, metrics: dict[str, Any] | None = None, is_best: bool = False) -> None:
        start = time.monotonic()
        snapshot = take_snapshot(state, self._run.member)
        self._taken_at = time.monotonic()
        if requests.is_asked():
            self._asked = state.position
        self._writer.submit(snapshot, metrics=metrics, is_best=is_best, pause_s=self._taken_at - start)

    def _on_saved(self, kept: KeptCheckpoint) -> None:
        took = {"write_s": round(kept.write_s, 3), "pause_s": round(kept.pause_s, 3), "bytes": kept.num_bytes}
        about = logs.fields(event="checkpoint saved", checkpoint=kept.name, is_best=kept.is_best, **took)
        _logger.info(
            "checkpoint %s saved: %.1f MB in %.1f s", kept.name, kept.num_bytes / 1e6, kept.write_s, extra=about
        )
        self._metrics.saved(kept)
        if self._asked is not None and kept.position >= self._asked:
            self._asked = None
            requests.set_saved()
        self._board.add_save.remote(self._run.name)
        self._events.publish()


def _best(report: EpochReport) -> Validated | None:
    """Return what is kept of the best epoch so far: not among the metrics, which are numbers for whoever draws them."""
    if report.scores is None or not report.is_best:
        return None
    return Validated(report.scores.locations, report.tiles)


def _metrics(report: EpochReport) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "epoch": report.epoch,
        "loss": report.loss,
        "epoch_s": report.epoch_s,
        "validation_s": report.validation_s,
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
