"""What checkpoints cost the steps of a training: the pause for the copy, and steps that are slower while it is written.

In one process bound to one core, as where every core has its rank: the thread that writes takes its time from the
steps. The net, the loop, the copy and the writer are those of a run; so is the size of the state.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from raytrain.config import LoaderSettings, MemberSettings
from raytrain.tiles.reader import TileReader
from raytrain.training.checkpoint_files import KeptCheckpoint
from raytrain.training.checkpoint_store import BackgroundWriter, CheckpointStore
from raytrain.training.checkpoints import TrainingState, take_snapshot
from raytrain.training.loop import EpochReport, TrainingData, train_member
from raytrain.training.ranks import Ranks

FIRST_STEPS = 3
"""Steps that allocate what the later ones have."""
QUIET_STEPS = 3
"""Steps between a checkpoint that is written and the next one, for comparison."""


@dataclass
class Pauses:
    """What was found: seconds of each pause and write, of each step beside a write and beside none, the bytes."""

    pauses: list[float] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)
    quiet: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    num_bytes: int = 0

    @property
    def slower_s(self) -> float:
        """Seconds that one checkpoint adds to the steps beside its write, over all of them."""
        if not self.beside:
            return 0.0
        return (sum(self.beside) - len(self.beside) * statistics.median(self.quiet)) / len(self.writes)

    def share(self, interval_s: float) -> float:
        """Return the share of an interval that its checkpoint takes from the steps; noise may make it negative."""
        return (statistics.median(self.pauses) + self.slower_s) / interval_s


def measure(settings: MemberSettings, shards: Path, folder: Path, num_checkpoints: int) -> Pauses:
    """Train on all tiles of `shards`, on one core, until so many checkpoints lie in `folder`, one after another."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    try:
        return _measure(settings, shards, folder, num_checkpoints)
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


class _Enough(Exception):
    pass


def _measure(settings: MemberSettings, shards: Path, folder: Path, num_checkpoints: int) -> Pauses:
    reader = TileReader(str(shards), settings.bands)
    data = TrainingData(reader, np.arange(len(reader.locations)), np.arange(0), LoaderSettings(threads=1))
    found = Pauses()

    def on_saved(kept: KeptCheckpoint) -> None:
        found.writes.append(kept.write_s)
        found.num_bytes = kept.num_bytes

    store = CheckpointStore(str(folder), keep_last=2)
    store.begin()
    writer = BackgroundWriter(store, 600, on_saved)
    begun, num_steps, num_quiet = time.monotonic(), 0, 0
    was_idle = True

    def on_step(state: TrainingState) -> None:
        nonlocal begun, num_steps, num_quiet, was_idle
        took_s = time.monotonic() - begun
        num_steps += 1
        is_idle = writer.is_idle
        if num_steps > FIRST_STEPS:
            (found.quiet if was_idle else found.beside).append(took_s)
            num_quiet = num_quiet + 1 if was_idle else 0
        if is_idle and num_quiet >= QUIET_STEPS:
            if len(found.pauses) == num_checkpoints:
                raise _Enough
            start = time.monotonic()
            snapshot = take_snapshot(state, settings)
            found.pauses.append(time.monotonic() - start)
            writer.submit(snapshot, pause_s=found.pauses[-1])
            num_quiet = 0
        was_idle = writer.is_idle
        begun = time.monotonic()

    def on_epoch(report: EpochReport, state: TrainingState) -> None:
        nonlocal begun
        begun = time.monotonic()

    many = settings.model_copy(update={"epochs": 1000})
    try:
        train_member(many, data, Ranks(), on_epoch, on_step=on_step)
    except _Enough:
        writer.close()
    return found
