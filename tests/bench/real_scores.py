"""The scores of the run on real chips: each net, the ensembles, and the threshold on blue beside them.

An ensemble is the mean of its nets' probabilities, added in the order of the members as the product does. Counts are
added over all folds and divided once. Must not know how nets are trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from raytrain.config import EmptyUnionRule
from raytrain.imagery.rasters import LABEL_CLOUD, LABEL_IGNORE
from raytrain.training.metrics import count_pixels, scores
from tests.bench import blue
from tests.bench.real_data import Fold, RealChip

RULE: EmptyUnionRule = "one"
"""A chip without cloud in which none is found counts as 1."""
THRESHOLD = 0.5
METRICS = {"iou_pooled": "pooled IoU", "iou_location_weighted": "IoU by place", "iou_mean": "mean IoU of chips"}
Maps = Mapping[int, NDArray[np.float32]]
"""The probability of cloud `[H, W]` of chips, by position."""


@dataclass(frozen=True)
class Scored:
    """Something that made masks: its name, its seed (`all` for the mean over seeds), intersection and union by chip."""

    name: str
    seed: str
    counts: dict[int, tuple[int, int]]


def score_nets(maps: Mapping[tuple[str, int], Maps], labels: Sequence[NDArray[np.uint8]]) -> list[Scored]:
    """Return the scores of each member with each seed, of the ensemble of each seed, and of the means over seeds.

    `maps` has what the nets of (member, seed) predicted, over all folds, members in their order in the ensemble;
    `labels` are by position. An ensemble of one net is no row of its own.
    """
    members, seeds = (list(dict.fromkeys(each)) for each in zip(*maps, strict=True))
    groups = [(member, str(seed), [maps[member, seed]]) for seed in seeds for member in members]
    if len(members) > 1:
        groups += [("ensemble", str(seed), [maps[member, seed] for member in members]) for seed in seeds]
    if len(seeds) > 1:
        groups += [(member, "all", [maps[member, seed] for seed in seeds]) for member in members]
        if len(members) > 1:
            every = [maps[member, seed] for seed, member in itertools.product(seeds, members)]
            groups.append(("ensemble", "all", every))
    return [Scored(name, seed, _counts(mean_maps(found), labels)) for name, seed, found in groups]


def mean_maps(found: Sequence[Maps]) -> dict[int, NDArray[np.float32]]:
    """Return the mean of several nets' maps, chip by chip, in float32 and in the order given."""
    return {i: np.asarray(sum(maps[i] for maps in found) / np.float32(len(found)), np.float32) for i in found[0]}


def _counts(maps: Maps, labels: Sequence[NDArray[np.uint8]]) -> dict[int, tuple[int, int]]:
    return {i: count_pixels((maps[i] >= THRESHOLD).astype(np.uint8), labels[i]) for i in sorted(maps)}


def score_blue(folds: Iterable[Fold], chips: Sequence[blue.BlueChip]) -> Scored:
    """Return the scores of the threshold on B02, fitted for each fold on the chips that its nets are trained on."""
    counts: dict[int, tuple[int, int]] = {}
    thresholds = []
    for fold in folds:
        threshold = blue.fit(chips[i] for i in fold.train)
        thresholds.append(threshold)
        for i in fold.test:
            b02, label = chips[i]
            counts[i] = count_pixels(blue.predict(b02, threshold), label)
    found = sorted(set(thresholds))
    shown = str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
    return Scored(f"threshold on B02 ({shown})", "", counts)


def score_table(scored: Sequence[Scored], chips: Sequence[RealChip]) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows: a row for each of `scored`, the scores of each sensor apart and of all together."""
    tested = [chip for chip in chips if chip.position in scored[0].counts]
    sensors = sorted({chip.sensor for chip in tested}, reverse=True)
    groups = {f"{sensor} ({_number(tested, sensor)})": sensor for sensor in sensors}
    groups[f"all ({len(tested)})"] = ""
    headers = ["what", "seed", *(f"{text}, {group}" for text in METRICS.values() for group in groups)]
    rows = []
    for each in scored:
        values = [_scores(each, tested, sensor) for sensor in groups.values()]
        rows.append([each.name, each.seed, *(f"{value[name]:.4f}" for name in METRICS for value in values)])
    return headers, rows


def chip_table(
    scored: Sequence[Scored], chips: Sequence[RealChip], labels: Sequence[NDArray[np.uint8]]
) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows: a row for each tested chip, the IoU of each of `scored` on it."""
    headers = ["chip", "sensor", "place", "split", "cloud"]
    headers += [f"{each.name}{each.seed and f', seed {each.seed}'}" for each in scored]
    rows = []
    for chip in chips:
        if chip.position in scored[0].counts:
            known = labels[chip.position][labels[chip.position] != LABEL_IGNORE]
            cloud = f"{np.mean(known == LABEL_CLOUD):.3f}"
            ious = [f"{_scores(each, [chip], '')['iou_pooled']:.4f}" for each in scored]
            rows.append([chip.chip_id, chip.sensor, chip.location, chip.split, cloud, *ious])
    return headers, rows


def _number(chips: Sequence[RealChip], sensor: str) -> int:
    return sum(chip.sensor == sensor for chip in chips)


def _scores(each: Scored, chips: Sequence[RealChip], sensor: str) -> dict[str, float]:
    """Return the IoUs over those of `chips` that are of `sensor`; of all for ''."""
    chosen = [chip for chip in chips if sensor in ("", chip.sensor)]
    intersections, unions = zip(*(each.counts[chip.position] for chip in chosen), strict=True)
    found = asdict(scores(intersections, unions, [chip.location for chip in chosen], RULE))
    return {name: found[name] for name in METRICS}
