"""What a search costs beside its training, and what stopping trials early saves: `python -m tests.bench.search PART`.

`outside` runs a small search twice, with ranks that live on between trials and with new ones for each, and tells the
share of the trials' time that is not epochs and their validation. `stopping` replays the learning curves of a search
that stopped no trial (`--curves OUT/EXPERIMENT`) in many random orders, as ASHA would have seen them.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from raytrain.cluster import tune as tuning
from raytrain.cluster.judge import named
from raytrain.cluster.runs import SCORE
from raytrain.cluster.search_plan import TuneJob
from raytrain.cluster.session import Cluster
from raytrain.config import ShardSettings
from raytrain.imagery.synth import write_chips
from raytrain.search.budget import Budget
from raytrain.search.finals import Finals
from raytrain.search.records import ORIGINAL, Record, Trial
from tests.bench.record import Table, keep_tables
from tests.making import shard_chips

CHANGES = {"epochs": 4, "crops_per_tile": 4, "global_batch": 24}
SIDE_BY_SIDE = 2


@dataclass(frozen=True)
class Shares:
    """The time of the trials of a search, in seconds: all of it, in epochs, in validation; the wall time; restarts."""

    all_s: float
    train_s: float
    validation_s: float
    wall_s: float
    num_trials: int

    @property
    def outside(self) -> float:
        """The share of the trials' time that is neither."""
        return 1 - (self.train_s + self.validation_s) / self.all_s


def shares_of(trials: Sequence[Trial], wall_s: float) -> Shares:
    """Return what the time of these trials went into."""
    epochs = [each for trial in trials for each in trial.epochs]
    return Shares(
        all_s=sum(trial.seconds for trial in trials),
        train_s=sum(each.train_s for each in epochs),
        validation_s=sum(each.validation_s for each in epochs),
        wall_s=wall_s,
        num_trials=len(trials),
    )


def outside(num_trials: int, repeats: int) -> Table:
    """Run the same search with ranks that live on and with new ones for each trial, in turns."""
    found: dict[bool, list[Shares]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        write_chips(Path(folder) / "chips", count=64, size_px=128, seed=1, num_places=32)
        shards = Path(folder) / "shards"
        shard_chips(Path(folder) / "chips", shards, ShardSettings())
        for i in range(repeats):
            for lives_on in (True, False):
                job = TuneJob(
                    shards=str(shards),
                    out=folder,
                    experiment=f"{i}-{lives_on}",
                    member="small-byob-4b",
                    changes=CHANGES,
                    budget=Budget(trials=num_trials),
                    finals=Finals(finalists=0),
                    stops_early=False,
                    seed=i,
                )
                with mock.patch.object(tuning, "REUSE_ACTORS", lives_on):
                    results = tuning.tune(job, Cluster(), lambda news: None, lambda results, is_over: None)
                found[lives_on].append(shares_of(results.trials, results.seconds))
    rows = [_row("live on between trials", found[True]), _row("new for each trial", found[False])]
    headers = ["ranks", "outside training", "a trial, s", "of it epochs", "of it validation", "the search, s"]
    note = (
        f"{num_trials} trials of {CHANGES['epochs']} short epochs, {SIDE_BY_SIDE} side by side, one rank each; medians "
        f"of {repeats} searches. Start-up of the first ranks is part of the first trials' time; that of Ray is not."
    )
    return Table("Time outside training", headers, rows, note)


def _row(what: str, found: Sequence[Shares]) -> list[str]:
    def middle(values: Sequence[float]) -> float:
        return statistics.median(values)

    return [
        what,
        f"{middle([each.outside for each in found]):.1%}",
        f"{middle([each.all_s / each.num_trials for each in found]):.1f}",
        f"{middle([each.train_s / each.num_trials for each in found]):.1f}",
        f"{middle([each.validation_s / each.num_trials for each in found]):.1f}",
        f"{middle([each.wall_s for each in found]):.0f}",
    ]


@dataclass(frozen=True)
class Replayed:
    """Learning curves as ASHA would have let them go on: the share of epochs trained, the best score, its trial."""

    trained_fraction: float
    best_score: float
    best: int


def replay(trials: Sequence[Trial], grace_epochs: int, reduction: int, slots: int = SIDE_BY_SIDE) -> Replayed:
    """Let trials with whole curves run in this order, so many at once, each stopped when ASHA says so.

    The original, trial 0, is never stopped, as in a search.
    """
    num_epochs = max(len(trial.epochs) for trial in trials)
    scheduler = AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=SCORE,
        mode="max",
        max_t=num_epochs + 1,
        grace_period=grace_epochs,
        reduction_factor=reduction,
    )
    waiting = list(trials)
    running: list[tuple[float, int, int]] = []  # when its next epoch ends, which trial, which epoch
    reached: dict[int, int] = {}
    none: Any = None

    def begin(at: float) -> None:
        if waiting:
            trial = waiting.pop(0)
            scheduler.on_trial_add(none, named(trial.name))
            by_number[trial.number] = trial
            heapq.heappush(running, (at + _epoch_s(trial, 0), trial.number, 0))

    by_number: dict[int, Trial] = {}
    for _ in range(slots):
        begin(0.0)
    while running:
        at, number, i = heapq.heappop(running)
        trial = by_number[number]
        reached[number] = i + 1
        result = {"epoch": i + 1, SCORE: trial.epochs[i].score}
        decision = scheduler.on_trial_result(none, named(trial.name), result)
        is_stopped = decision == TrialScheduler.STOP and number != ORIGINAL
        if is_stopped or i + 1 == len(trial.epochs):
            begin(at)
        else:
            heapq.heappush(running, (at + _epoch_s(trial, i + 1), number, i + 1))
    scores = {number: max(each.score for each in by_number[number].epochs[:n]) for number, n in reached.items()}
    best = max(scores, key=lambda number: (scores[number], -number))
    return Replayed(sum(reached.values()) / sum(len(trial.epochs) for trial in trials), scores[best], best)


def _epoch_s(trial: Trial, i: int) -> float:
    return trial.epochs[i].train_s + trial.epochs[i].validation_s


def stopping(trials: Sequence[Trial], orders: int, slots: int = SIDE_BY_SIDE) -> Table:
    """Replay the curves in so many orders for a few ways to stop; without any all epochs are trained."""
    whole = [trial for trial in trials if trial.kind == "search" and len(trial.epochs) == trial.num_epochs]
    top = max(trial.score or 0.0 for trial in whole)
    rows = []
    for grace, reduction in ((1, 3), (2, 3), (3, 3), (4, 2), (4, 3), (4, 4)):
        found = []
        for seed in range(orders):
            order = whole[1:]
            random.Random(seed).shuffle(order)
            found.append(replay([whole[0], *order], grace, reduction, slots))
        equal = [each for each in found if each.best_score == top]
        rows.append(
            [
                str(grace),
                f"1 of {reduction}",
                f"{1 - statistics.median(each.trained_fraction for each in found):.0%}",
                f"{len(equal) / len(found):.0%}",
                f"{1 - statistics.median(each.trained_fraction for each in equal):.0%}" if equal else "-",
                f"{statistics.mean(top - each.best_score for each in found):.4f}",
            ]
        )
    headers = ["grace, epochs", "goes on", "saved", "equal best score", "saved then", "best score lost, mean"]
    note = (
        f"{len(whole)} curves of {whole[0].num_epochs} epochs, {slots} side by side, the original first and never "
        f"stopped, the others in {orders} random orders; best score of all {top:.4f}. Saved: the share of epochs."
    )
    return Table("Stopping trials early", headers, rows, note)


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["outside", "stopping"])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--curves", help="OUT/EXPERIMENT of a search with --run-to-end")
    parser.add_argument("--orders", type=int, default=500)
    parser.add_argument("--machine", help="write infra/benchmarks/<date>-<machine>-<part>-search.md")
    chosen = parser.parse_args(arguments)
    if chosen.part == "outside":
        table = outside(chosen.trials, chosen.repeats)
    else:
        if not chosen.curves:
            parser.error("stopping needs --curves")
        table = stopping(Record(chosen.curves).trials(), chosen.orders)
    keep_tables(f"{chosen.part}-search", "search", chosen.machine, "What a search costs", [table])


if __name__ == "__main__":
    main(sys.argv[1:])
