"""What probabilities come to: the scores at every threshold, calibration, and members beside their ensemble.

Must not know files or pages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raytrain.config import EmptyUnionRule
from raytrain.evaluation.counting import EDGES, FN, FP, NUM_BINS, TN, TP, MapCounts, MemberCounts
from raytrain.evaluation.resampling import Difference, Ratio, intervals
from raytrain.evaluation.results import Calibration, CurvePoint, MemberResult, Members, ReliabilityBin, Votes
from raytrain.evaluation.scores import ends_of, iou_of, pixel_values, unions
from raytrain.evaluation.tally import Summed, Tally

RELIABILITY_BINS = 10
CLEAR, CLOUD = 0, 1


def threshold_curve(tally: Tally, rule: EmptyUnionRule) -> tuple[CurvePoint, ...] | None:
    """Return the scores at the thresholds 0.01 to 0.99 over the chips with a map; None without any."""
    found = [each.maps for each in _in_order(tally) if each.maps is not None]
    if not found:
        return None
    confusions = np.stack([_confusions(each) for each in found])  # [L, threshold, 4]
    total = confusions.sum(0)
    points = []
    for k in range(1, NUM_BINS):
        values = pixel_values(total[k])
        by_location = [iou_of(each, rule) for each in confusions[:, k]]
        points.append(
            CurvePoint(
                threshold=k / NUM_BINS,
                iou_pooled=iou_of(total[k], rule),
                iou_location_weighted=float(np.mean(by_location)),
                **{name: values[name] for name in ("precision", "recall", "f1")},
            )
        )
    return tuple(points)


def _confusions(maps: MapCounts) -> NDArray[np.int64]:
    """Return the confusion `[NUM_BINS, 4]` at the lower end of every bin."""
    reached = np.cumsum(maps.pixels[:, ::-1], axis=1)[:, ::-1]
    found = np.empty((NUM_BINS, 4), np.int64)
    found[:, TP], found[:, FP] = reached[CLOUD], reached[CLEAR]
    found[:, FN] = maps.pixels[CLOUD].sum() + maps.unpredicted[CLOUD] - reached[CLOUD]
    found[:, TN] = maps.pixels[CLEAR].sum() + maps.unpredicted[CLEAR] - reached[CLEAR]
    return found


def calibration(tally: Tally) -> Calibration | None:
    """Return how far the probabilities of all chips with a map are what they say; None without any.

    Expected calibration error over bins of one width, weighed by pixels (Naeini et al. 2015), here of the probability
    of cloud: it has no interval, since it is not a ratio of sums.
    """
    total = MapCounts.sum(*(each.maps for each in _in_order(tally)))
    if total is None or not total.pixels.sum():
        return None
    width = NUM_BINS // RELIABILITY_BINS
    pixels = total.pixels.reshape(2, RELIABILITY_BINS, width).sum(2)
    sums = total.sums.reshape(2, RELIABILITY_BINS, width).sum((0, 2))
    counts, num_px = pixels.sum(0), int(pixels.sum())
    found = []
    for i in range(RELIABILITY_BINS):
        count = int(counts[i])
        found.append(
            ReliabilityBin(
                low=round(float(EDGES[i * width]), 6),
                high=round(float(EDGES[(i + 1) * width]), 6),
                num_px=count,
                mean_probability=float(sums[i]) / count if count else None,
                cloud_fraction=int(pixels[CLOUD, i]) / count if count else None,
            )
        )
    error = float(np.abs(sums - pixels[CLOUD]).sum()) / num_px
    num_chips = sum(each.num_maps for each in tally.by_location.values())
    return Calibration(expected_calibration_error=error, num_px=num_px, num_chips=num_chips, bins=tuple(found))


def member_results(
    tally: Tally, names: Sequence[str], rule: EmptyUnionRule, seed: int, resamples: int
) -> Members | None:
    """Return how members do over the chips that have the maps of all of them; None without any.

    What a member adds has an interval over locations, in pairs: with and without it on the same ones.
    """
    found = [each.members for each in _in_order(tally) if each.members is not None]
    total = MemberCounts.sum(*found)
    if total is None:
        return None
    together = _location_ratio(np.stack([each.together for each in found]), rule)
    without = [_location_ratio(np.stack([each.without[i] for each in found]), rule) for i in range(len(names))]
    added = intervals([Difference(together, each) for each in without], seed, resamples)
    members = []
    for i, name in enumerate(names):
        values = pixel_values(total.alone[i])
        alone = _location_ratio(np.stack([each.alone[i] for each in found]), rule)
        members.append(
            MemberResult(
                name=name,
                iou_pooled=iou_of(total.alone[i], rule),
                iou_location_weighted=alone.value or 0.0,
                precision=values["precision"],
                recall=values["recall"],
                without_iou_pooled=iou_of(total.without[i], rule),
                without_iou_location_weighted=without[i].value or 0.0,
                adds=(together.value or 0.0) - (without[i].value or 0.0),
                adds_interval=ends_of(added[i]),
            )
        )
    votes = total.votes.sum(1)
    num_px = max(1, int(votes.sum()))
    return Members(
        num_chips=sum(each.num_members for each in tally.by_location.values()),
        together_iou_pooled=iou_of(total.together, rule),
        together_iou_location_weighted=together.value or 0.0,
        members=tuple(members),
        differ_fraction=tuple(tuple(float(value) for value in row) for row in total.differ / num_px),
        votes=tuple(
            Votes(
                num_members=count,
                num_px=int(votes[count]),
                cloud_fraction=int(total.votes[count, CLOUD]) / int(votes[count]) if votes[count] else None,
            )
            for count in range(len(names) + 1)
        ),
        unanimous_fraction=float(votes[0] + votes[-1]) / num_px,
    )


def _location_ratio(confusions_L4: NDArray[np.int64], rule: EmptyUnionRule) -> Ratio:
    """Return the mean over locations of their IoUs."""
    union = unions(confusions_L4)
    empty = float(rule == "one")
    return Ratio.mean(np.where(union > 0, confusions_L4[:, TP] / np.maximum(union, 1), empty))


def _in_order(tally: Tally) -> list[Summed]:
    return [tally.by_location[name] for name in sorted(tally.by_location)]
