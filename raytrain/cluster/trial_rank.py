"""One rank that trains trial after trial, inside a Ray Train worker: what it takes to start is paid once.

Ranks hear of each trial from rank 0, and after each epoch whether to go on. What diverges ends its trial only; what
ends a process ends the attempt, and the next one goes on with the trial.
"""

from __future__ import annotations

import gc
import logging
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import ray.train.collective
import torch

from raytrain import storage
from raytrain.cluster.desk import Told, TrialWork
from raytrain.cluster.rank import Stopped, ranks_here, train_on_rank
from raytrain.errors import TrainingDiverged, first_line
from raytrain.tiles.reader import TileReader
from raytrain.training.checkpoint_files import CHECKPOINTS_FOLDER, checkpoint_uri, read_checkpoint, read_index
from raytrain.training.checkpoints import TrainingState, load_weights
from raytrain.training.loop import TrainingData, validate, validation_loader
from raytrain.training.ranks import Ranks

IDLE_S = 30.0
"""How long ranks wait for the next trial, or for an answer, before they give their places to others."""
_logger = logging.getLogger(__name__)


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
        is_answered = _serve(work, desk, ranks)
        _forget()
        if not is_answered:
            return


def _is_same_everywhere(mine: bool, ranks: Ranks) -> bool:
    return int(ranks.total(torch.tensor(int(mine)))) == ranks.world_size


def _serve(work: TrialWork, desk: Any, ranks: Ranks) -> bool:
    """Train one trial on this rank to its end, or to where it is stopped; return whether somebody has answered."""
    answers: list[bool | None] = []

    def after_epoch(ranks: Ranks, epoch: int, metrics: dict[str, Any] | None) -> None:
        if epoch < work.known_epochs:
            return
        answer = None
        if ranks.leads:
            told = Told(trial=work.name, what="epoch", metrics=metrics or {})
            answer = ray.get(desk.tell.remote(told, IDLE_S))
        answers.append(ray.train.collective.broadcast_from_rank_zero(answer))
        if not answers[-1]:
            raise Stopped

    judged = None
    try:
        state = train_on_rank(work.work, desk, after_epoch)
        judged = _judge(work, state, ranks) if work.judge else None
        end = Told(trial=work.name, what="end", state="finished", judged=judged)
    except Stopped:
        if ranks.leads:
            _tidy(work, desk)
        return answers[-1] is not None
    except TrainingDiverged as error:  # on every rank at once
        end = Told(trial=work.name, what="end", state="diverged", cause=str(error))
    answer = ray.get(desk.tell.remote(end, IDLE_S)) if ranks.leads else None
    answer = ray.train.collective.broadcast_from_rank_zero(answer)
    if ranks.leads:
        _tidy(work, desk)
    return answer is not None


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


def _tidy(work: TrialWork, desk: Any) -> None:
    """Remove the checkpoints of a trial if it is recorded as ended: nothing goes on from them. Rank 0 only."""
    if not ray.get(desk.is_ended.remote(work.name)):
        return
    folder = storage.join(work.work.folder, CHECKPOINTS_FOLDER)
    try:
        storage.remove_below(folder)
    except Exception as error:
        if not (storage.is_out_of_reach(error) or storage.is_passing(error)):
            raise
        _logger.warning("%s: can't be removed: %s", folder, first_line(error))


def _forget() -> None:
    """Free the memory of the trial before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
