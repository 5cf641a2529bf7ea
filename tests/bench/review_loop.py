"""The whole review loop on labels made wrong on purpose: how much of what they cost comes back by looking at a tenth.

A known tenth of the labels is corrupted, nets are trained out-of-fold on them, tiles are ranked, and a scripted
reviewer looks at the top tenth: what is wrong gets its true label back, the rest is accepted. New shards are made of
these decisions and nets trained again, with the same seed, and so on the true labels. All are scored at places that
they never saw, by the true labels. What is finished is kept below `--work`, so the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from raytrain.evaluation.counting import TP, Truth, near_edges
from raytrain.evaluation.intervals import LEVEL
from raytrain.evaluation.scores import Scored, unions
from raytrain.evaluation.tally import Tally, joined
from raytrain.review.effect import FEWEST_SEEDS, RULE, PartEffect, judge
from tests.bench.record import Table, keep_tables
from tests.bench.review_round import LABELS, Labels, Round, make_round
from tests.bench.review_tiles import DataSet, make_tiles
from tests.corruption import CORRUPTIONS

ARCHIVE = Path(__file__).resolve().parents[3] / "shared" / "data" / "labelled"
EDGE_PX = 5
THRESHOLD = 0.5
RESAMPLES = 10_000
LABEL_WORDS: dict[Labels, str] = {"before": "a tenth wrong", "after": "repaired", "perfect": "all true"}
DIFFERENCES: tuple[tuple[Labels, Labels], ...] = (("after", "before"), ("perfect", "before"), ("perfect", "after"))


@dataclass(frozen=True)
class Share:
    """The share of the loss that came back: (after - before) / (perfect - before), with its ends."""

    value: float
    over_places: tuple[float, float]
    over_places_and_seeds: tuple[float, float]


def tallies_of(rounds: Mapping[int, Round], labels: Labels) -> dict[int, Tally]:
    """Return what the nets of each seed that learnt from such labels come to by the true ones."""
    return {seed: _tally(each, each.probability[labels]) for seed, each in rounds.items()}


def _tally(found: Round, probability: NDArray[np.float32]) -> Tally:
    confusions = []
    for truth, each in zip(found.true_labels, probability, strict=True):
        # NaN, where there is no data, is below any threshold.
        confusions.append(Truth.of(truth, near_edges(truth, EDGE_PX)).confusion(each >= THRESHOLD))
    ids = [f"{i}" for i in range(len(confusions))]
    return Tally(ids, list(found.locations), np.stack(confusions), np.zeros(len(ids), np.int64))


def share_of(tallies: Mapping[Labels, Mapping[int, Tally]], seed: int = 0, resamples: int = RESAMPLES) -> Share:
    """Return the share of the loss in IoU by location that came back, counts of all seeds summed by location.

    Intervals are percentiles over resamples of places, and of places and seeds, each drawn anew and independently (the
    pigeonhole bootstrap: Owen 2007, which holds the truth too often rather than too rarely).
    """
    counts_VSL2 = np.stack([[_by_place(tally) for tally in tallies[labels].values()] for labels in LABELS])
    num_seeds, num_places = counts_VSL2.shape[1:3]
    random = np.random.default_rng(seed)
    places_B = random.integers(0, num_places, (resamples, num_places))
    seeds_B = random.integers(0, num_seeds, (resamples, num_seeds))
    every = np.arange(num_seeds)
    fixed = [_share(counts_VSL2, every, places) for places in places_B]
    both = [_share(counts_VSL2, seeds, places) for seeds, places in zip(seeds_B, places_B, strict=True)]
    return Share(_share(counts_VSL2, every, np.arange(num_places)), _ends(fixed), _ends(both))


def _share(counts_VSL2: NDArray[np.int64], seeds: NDArray[np.int64], places: NDArray[np.int64]) -> float:
    sums_VL2 = counts_VSL2[:, seeds].sum(1)[:, places]
    # As everywhere: no cloud and none predicted is 1.
    ious_VL = np.where(sums_VL2[..., 1] > 0, sums_VL2[..., 0] / np.maximum(sums_VL2[..., 1], 1), 1.0)
    before, after, perfect = ious_VL.mean(1)
    return float((after - before) / (perfect - before)) if perfect != before else float("nan")


def _by_place(tally: Tally) -> NDArray[np.int64]:
    """Return intersection and union `[L, 2]` by location."""
    sums = Scored(tally, RULE).by_location
    return np.stack([sums[:, TP], unions(sums)], axis=1)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    if np.isnan(values).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def tables_of(name: str, rounds: Mapping[int, Round]) -> list[Table]:
    """Return what the rounds of one data set came to."""
    tallies = {labels: tallies_of(rounds, labels) for labels in LABELS}
    share = share_of(tallies)
    return [_scores_table(name, tallies, share), _seeds_table(name, rounds, tallies), _kinds_table(name, rounds)]


def _scores_table(name: str, tallies: Mapping[Labels, Mapping[int, Tally]], share: Share) -> Table:
    rows = []
    for labels in LABELS:
        found = Scored(joined(tallies[labels].values()), RULE).ious
        rows.append([LABEL_WORDS[labels], f"{found.iou_location_weighted:.4f}", f"{found.iou_pooled:.4f}", ""])
    loss_words = "can't tell"
    for ours, theirs in DIFFERENCES:
        if len(tallies["before"]) >= FEWEST_SEEDS:
            part = judge("test", tallies[theirs], tallies[ours], resamples=RESAMPLES)
            rows.append([f"{LABEL_WORDS[ours]} less {LABEL_WORDS[theirs]}", *_differences(part)])
            if (ours, theirs) == ("perfect", "before"):
                loss_words = part.deciding.words
    certain = "" if loss_words == "helped" else f", though of the loss itself: {loss_words}"
    rows.append([f"share of the loss that came back{certain}", f"{share.value:.0%}", "", ""])
    rows.append([f"{LEVEL:.0%} over places", _text(share.over_places), "", ""])
    rows.append([f"{LEVEL:.0%} over places and seeds", _text(share.over_places_and_seeds), "", ""])
    scored = Scored(joined(tallies["before"].values()), RULE)
    note = (
        f"At {len(scored.tally.location_names)} places, each unseen by the nets that score it, by the true labels; the "
        f"counts of {len(tallies['before'])} seeds summed by place. Intervals of differences are over places and seeds."
    )
    return Table(f"{name}: scores", ["labels", "IoU by location", "IoU, pooled", "verdict"], rows, note)


def _differences(part: PartEffect) -> list[str]:
    cells = []
    for each in part.scores[:2]:
        ends = "" if each.interval is None else f" ({each.interval.low:+.4f} to {each.interval.high:+.4f})"
        cells.append(f"{each.difference:+.4f}{ends}")
    return [*cells, part.deciding.words]


def _text(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.0%} to {ends[1]:.0%}"


def _seeds_table(name: str, rounds: Mapping[int, Round], tallies: Mapping[Labels, Mapping[int, Tally]]) -> Table:
    rows = []
    for seed, each in rounds.items():
        ious = [Scored(tallies[labels][seed], RULE).ious.iou_location_weighted for labels in LABELS]
        loss = ious[2] - ious[0]
        share = f"{(ious[1] - ious[0]) / loss:.0%}" if loss > 0 else "no loss"
        found = f"{len(each.repaired)} of {len(each.corrupted)}"
        rows.append([str(seed), found, str(len(each.looked_at)), *(f"{iou:.4f}" for iou in ious), share])
    headers = ["seed", "wrong labels among those looked at", "looked at", *(LABEL_WORDS[each] for each in LABELS)]
    return Table(f"{name}: seeds", [*headers, "came back"], rows, "IoU by location; a seed draws what is wrong, too.")


def _kinds_table(name: str, rounds: Mapping[int, Round]) -> Table:
    made = Counter(each.corruption for found in rounds.values() for each in found.corrupted.values())
    found = Counter(each.corrupted[i].corruption for each in rounds.values() for i in each.repaired)
    rows = [
        [kind, str(made[kind]), str(found[kind]), f"{found[kind] / made[kind]:.0%}"]
        for kind in CORRUPTIONS
        if made[kind]
    ]
    return Table(f"{name}: what was repaired", ["error", "made", "repaired", "share"], rows)


def main() -> None:
    """Go round for each data set and seed, print and keep the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=get_args(DataSet), nargs="+", default=["generated"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="what is finished is kept here")
    parser.add_argument("--write", metavar="MACHINE")
    options = parser.parse_args()
    tables = []
    for data_set in options.data:
        shards = make_tiles(data_set, ARCHIVE, options.work)
        rounds = {}
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            rounds[seed] = make_round(data_set, shards, seed, options.work)
            print(f"{data_set}, seed {seed}: {_told(rounds[seed])}", file=sys.stderr, flush=True)
        tables += tables_of(data_set, rounds)
    keep_tables("review-loop", "review_loop", options.write, "The review loop on labels made wrong", tables)


def _told(found: Round) -> str:
    ious = [Scored(_tally(found, found.probability[labels]), RULE).ious.iou_location_weighted for labels in LABELS]
    scores = ", ".join(f"{LABEL_WORDS[labels]} {iou:.4f}" for labels, iou in zip(LABELS, ious, strict=True))
    return f"{len(found.repaired)} of {len(found.corrupted)} repaired; IoU by location: {scores}"


if __name__ == "__main__":
    main()
