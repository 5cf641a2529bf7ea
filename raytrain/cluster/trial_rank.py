"""One rank that trains trial after trial, inside a Ray Train worker: what it takes to start is paid once.

Ranks hear of each trial from rank 0, and after each epoch whether to go on. What diverges ends its trial only; what
ends a process ends the attempt, and the next one goes on with the trial.
"""

from __future__ import annotations

import contextlib
import gc
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import ray.train.collective
import torch

from raytrain.cluster.desk import Told, TrialWork
from raytrain.cluster.rank import Stopped, ranks_here, train_on_rank
from raytrain.errors import TrainingDiverged
from raytrain.tiles.reader import TileReader
from raytrain.training.checkpoint_files import checkpoint_uri, read_checkpoint, read_index, remove_checkpoints
from raytrain.training.checkpoints import TrainingState, load_weights
from raytrain.training.loop import TrainingData, validate, validation_loader
from raytrain.training.ranks import Ranks

IDLE_S = 30.0
"""How long ranks wait for the next trial before they give their places to others."""


def serve_trials(desk: Any) -> None:
    """Train the trials that the desk has, one after the other, until it has none for a while. Every rank."""
    ranks = ranks_here()
    while True:
        found = ray.get(desk.next_work.remote(IDLE_S)) if ranks.leads else None
        name = ray.train.collective.broadcast_from_rank_zero(None if found is None else found.name)
        if name is None:
            return
        work: TrialWork | None = found if ranks.leads else ray.get(desk.next_work.remote(0))
        if not _is_same_everywhere(work is not None and work.name == name, ranks):
            continue  # taken off the desk in between
        assert work is not None
        _serve(work, desk, ranks)
        gc.collect()  # the memory of the trial before
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _is_same_everywhere(mine: bool, ranks: Ranks) -> bool:
    return int(ranks.total(torch.tensor(int(mine)))) == ranks.world_size


def _serve(work: TrialWork, desk: Any, ranks: Ranks) -> None:
    """Train one trial on this rank to its end, or to where it is stopped."""

    def tell(told: Told) -> bool:
        answer = bool(ray.get(desk.tell.remote(told))) if ranks.leads else None
        return bool(ray.train.collective.broadcast_from_rank_zero(answer))

    def after_epoch(ranks: Ranks, epoch: int, metrics: dict[str, Any] | None) -> None:
        if epoch >= work.known_epochs and not tell(Told(trial=work.name, what="epoch", metrics=metrics or {})):
            raise Stopped

    with contextlib.suppress(Stopped):
        judged = None
        try:
            state = train_on_rank(work.work, desk, after_epoch)
            judged = _judge(work, state, ranks) if work.judge else None
            tell(Told(trial=work.name, what="end", state="finished", judged=judged))
        except TrainingDiverged as error:  # on every rank at once
            tell(Told(trial=work.name, what="end", state="diverged", cause=str(error)))
    if ranks.leads and ray.get(desk.is_ended.remote(work.name)):  # nothing goes on from its checkpoints
        remove_checkpoints(work.work.folder)


def _judge(work: TrialWork, state: TrainingState, ranks: Ranks) -> dict[str, dict[str, Any]]:
    """Return what the best weights make of the tiles kept back, by location. Every rank; all have the result."""
    run, folder = work.work.run, work.work.folder
    best = read_index(folder).best if ranks.leads else None
    name = ray.train.collective.broadcast_from_rank_zero(None if best is None else best.name)
    load_weights(read_checkpoint(checkpoint_uri(folder, name)), state.net)
    reader = TileReader(run.shards, run.member.bands, work.work.loader)
    tiles = np.flatnonzero((reader.folds == run.kept_back) & reader.labelled())
    data = TrainingData(reader, tiles[:0], tiles, work.work.loader)
    with validation_loader(run.member, data) as samples:
        found = validate(state.net, run.member, data, ranks, samples)
    names = ("intersection", "union", "iou", "num_chips")
    return {place: {each: asdict(counts)[each] for each in names} for place, counts in found.locations.items()}
