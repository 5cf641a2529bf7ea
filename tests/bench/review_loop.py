"""The whole review loop on labels made wrong on purpose: how much of what they cost comes back by looking at a tenth.

A known tenth of the labels is corrupted, nets are trained out-of-fold on them, tiles are ranked, and a scripted
reviewer looks at the top tenth: what is wrong gets its true label back, the rest is accepted. New shards are made of
these decisions and nets trained again, with the same seed, and so on the true labels. All are scored at places that
they never saw, by the true labels. What is finished is kept below `--work`, so the same command goes on.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from raytrain.evaluation.counting import Truth, near_edges
from raytrain.evaluation.intervals import LEVEL, over_seeds
from raytrain.evaluation.resampling import MOST_UNDEFINED_FRACTION, ROUNDING
from raytrain.evaluation.scores import Scored
from raytrain.evaluation.tally import Tally, joined
from raytrain.review.effect import FEWEST_SEEDS, RULE, PartEffect, Words, judge
from tests.bench.record import Table, keep_tables
from tests.bench.review_round import LABELS, Labels, Round, make_round
from tests.bench.review_tiles import DataSet, make_tiles
from tests.corruption import CORRUPTIONS

ARCHIVE = Path(__file__).resolve().parents[3] / "shared" / "data" / "labelled"
EDGE_PX = 5
THRESHOLD = 0.5
RESAMPLES = 10_000
NOT_DEFINED = (math.nan, math.nan)
LABEL_WORDS: dict[Labels, str] = {"before": "a tenth wrong", "after": "repaired", "perfect": "all true"}
DIFFERENCES: tuple[tuple[Labels, Labels], ...] = (("after", "before"), ("perfect", "before"), ("perfect", "after"))


@dataclass(frozen=True)
class Share:
    """The share of the loss that came back: (after - before) / (perfect - before), with its ends.

    NaN where there is no loss, or where so many resamples have none that a share means nothing.
    """

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
    """Return the share of the loss in IoU by location that came back; a location's IoU is its mean over seeds.

    The interval over places is of percentiles over resamples of them. That over seeds is Student's t of what each seed
    adds to the share by linearisation (of a ratio: Cochran 1977, section 6.4), since few seeds drawn with replacement
    differ less than seeds do; both are put together as `widened_by_seeds` does for a difference. A resample without a
    loss has no share, and with more than `MOST_UNDEFINED_FRACTION` of them there is no interval.
    """
    ious_VSL = np.stack([[_by_place(tally) for tally in tallies[labels].values()] for labels in LABELS])
    num_places = ious_VSL.shape[2]
    places_B = np.random.default_rng(seed).integers(0, num_places, (resamples, num_places))
    before, after, perfect = ious_VSL.mean(2)
    value = _share(before.mean(), after.mean(), perfect.mean())
    if np.isnan(value):
        return Share(value, NOT_DEFINED, NOT_DEFINED)
    means_VL = ious_VSL.mean(1)
    low, high = _ends([_share(*means_VL[:, places].mean(1)) for places in places_B])
    added_S = ((after - before) - value * (perfect - before)) / (perfect - before).mean()
    around = over_seeds(added_S)
    half = around.high - around.value
    both = value - math.hypot(value - low, half), value + math.hypot(high - value, half)
    return Share(value, (low, high), both)


def _share(before: float, after: float, perfect: float) -> float:
    return float((after - before) / (perfect - before)) if perfect - before > ROUNDING else float("nan")


def _by_place(tally: Tally) -> NDArray[np.float64]:
    """Return the IoU `[L]` of each location."""
    return np.array([each.iou for each in Scored(tally, RULE).locations.values()])


def _ends(values: Sequence[float]) -> tuple[float, float]:
    if np.isnan(values).mean() > MOST_UNDEFINED_FRACTION:
        return NOT_DEFINED
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def tables_of(name: str, rounds: Mapping[int, Round]) -> list[Table]:
    """Return what the rounds of one data set came to."""
    tallies = {labels: tallies_of(rounds, labels) for labels in LABELS}
    return [_scores_table(name, tallies), _seeds_table(name, rounds, tallies), _kinds_table(name, rounds)]


def _scores_table(name: str, tallies: Mapping[Labels, Mapping[int, Tally]]) -> Table:
    rows = []
    num_seeds = len(tallies["before"])
    for labels in LABELS:
        iou = np.mean([_by_place(tally).mean() for tally in tallies[labels].values()])
        pooled = Scored(joined(tallies[labels].values()), RULE).ious.iou_pooled
        rows.append([LABEL_WORDS[labels], f"{iou:.4f}", f"{pooled:.4f}", ""])
    if num_seeds >= FEWEST_SEEDS:
        parts = {pair: judge("test", tallies[pair[1]], tallies[pair[0]], resamples=RESAMPLES) for pair in DIFFERENCES}
        for (ours, theirs), part in parts.items():
            rows.append([f"{LABEL_WORDS[ours]} less {LABEL_WORDS[theirs]}", *_differences(part)])
        rows += share_rows(tallies, parts["perfect", "before"].deciding.words)
    scored = Scored(next(iter(tallies["before"].values())), RULE)
    note = (
        f"At {len(scored.tally.location_names)} places, each unseen by the nets that score it, by the true labels. IoU "
        f"by location is the mean of {num_seeds} seeds, pooled IoU of their counts together. Intervals of differences "
        "are over places and seeds."
    )
    return Table(f"{name}: scores", ["labels", "IoU by location", "IoU, pooled", "verdict"], rows, note)


def share_rows(tallies: Mapping[Labels, Mapping[int, Tally]], loss: Words) -> list[list[str]]:
    """Return the share of the loss that came back, as rows; none of it where the `loss` itself is not shown."""
    if loss != "helped":
        return [["share of the loss that came back", "none: no loss is shown", "", ""]]
    share = share_of(tallies)
    return [
        ["share of the loss that came back", f"{share.value:.0%}", "", ""],
        [f"{LEVEL:.0%} over places", _text(share.over_places), "", ""],
        [f"{LEVEL:.0%} over places and seeds", _text(share.over_places_and_seeds), "", ""],
    ]


def _differences(part: PartEffect) -> list[str]:
    cells = []
    for each in part.scores[:2]:
        ends = "" if each.interval is None else f" ({each.interval.low:+.4f} to {each.interval.high:+.4f})"
        cells.append(f"{each.difference:+.4f}{ends}")
    return [*cells, part.deciding.words]


def _text(ends: tuple[float, float]) -> str:
    return "not defined" if math.isnan(ends[0]) else f"{ends[0]:.0%} to {ends[1]:.0%}"


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
    name = "-".join(["review-loop", *options.data])
    keep_tables(name, "review_loop", options.write, "The review loop on labels made wrong", tables)


def _told(found: Round) -> str:
    ious = [Scored(_tally(found, found.probability[labels]), RULE).ious.iou_location_weighted for labels in LABELS]
    scores = ", ".join(f"{LABEL_WORDS[labels]} {iou:.4f}" for labels, iou in zip(LABELS, ious, strict=True))
    return f"{len(found.repaired)} of {len(found.corrupted)} repaired; IoU by location: {scores}"


if __name__ == "__main__":
    main()
