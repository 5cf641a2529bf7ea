"""Scores of counted pairs: sum, divide once, with intervals over locations. Must not know files or pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raytrain.config import EmptyUnionRule
from raytrain.evaluation.counting import AWAY, FN, FP, NEAR, TN, TP
from raytrain.evaluation.intervals import Interval
from raytrain.evaluation.resampling import Difference, Ratio, Statistic, intervals
from raytrain.evaluation.results import Compared, Comparison, Ends, LocationResult, Pixels, PixelScores, Words
from raytrain.evaluation.tally import Tally
from raytrain.training import metrics

IOUS = ("iou_pooled", "iou_mean", "iou_location_weighted", "iou_mean_location_weighted")
PIXEL_SCORES = ("precision", "recall", "f1", "accuracy")
NAMES = (*IOUS, *PIXEL_SCORES)
"""Every score, by the name that `metrics.json` has for it."""


@dataclass(frozen=True)
class Scored:
    """A tally with its scores."""

    tally: Tally
    rule: EmptyUnionRule

    @cached_property
    def ious(self) -> metrics.Scores:
        """The four IoUs."""
        totals = self.tally.totals
        return metrics.scores(totals[:, TP], unions(totals), self.tally.locations, self.rule)

    @cached_property
    def by_location(self) -> NDArray[np.int64]:
        """The confusions `[L, 4]` of locations, in the order of their names."""
        return sums_by_location(self.tally, self.tally.totals)

    @cached_property
    def values(self) -> dict[str, float | None]:
        """Every score, by name."""
        total = self.tally.totals.sum(0)
        found: dict[str, float | None] = {name: getattr(self.ious, name) for name in IOUS}
        return found | pixel_values(total)

    @cached_property
    def ratios(self) -> dict[str, Ratio]:
        """Every score as a ratio of sums over locations, by name."""
        locations = list(self.ious.locations.values())
        num_chips = np.array([each.num_chips for each in locations])
        means = np.array([each.iou_mean for each in locations])
        found = {
            "iou_pooled": Ratio.of(self.by_location[:, TP], unions(self.by_location)),
            "iou_mean": Ratio.of(means * num_chips, num_chips),
            "iou_location_weighted": Ratio.mean(np.array([each.iou for each in locations])),
            "iou_mean_location_weighted": Ratio.mean(means),
        }
        return found | pixel_ratios(self.by_location)

    @cached_property
    def locations(self) -> dict[str, LocationResult]:
        """What each location came to, by name."""
        found = {}
        for i, (name, each) in enumerate(self.ious.locations.items()):
            found[name] = LocationResult.model_validate(vars(each) | pixel_values(self.by_location[i]))
        return found

    def zone(self, zone: int) -> tuple[PixelScores, Ratio]:
        """Return the scores of the pixels of a zone, and their IoU as a ratio."""
        by_location = sums_by_location(self.tally, self.tally.confusions[:, zone])
        return pixel_scores(by_location.sum(0), self.rule), Ratio.of(by_location[:, TP], unions(by_location))


def unions(confusions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pixels `[...]` of the union of cloud, predicted and true, of confusions `[..., 4]`."""
    return np.asarray(confusions[..., TP] + confusions[..., FP] + confusions[..., FN])


def sums_by_location(tally: Tally, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sums `[L, 4]` over the chips of each location of `values` `[N, 4]`."""
    found = np.zeros((len(tally.location_names), values.shape[1]), np.int64)
    np.add.at(found, tally.location_of, values)
    return found


def pixel_ratios(confusions_L4: NDArray[np.int64]) -> dict[str, Ratio]:
    """Return the scores of pixels as ratios of sums over locations."""
    tp, fp, fn, tn = (confusions_L4[:, i] for i in (TP, FP, FN, TN))
    return {
        "precision": Ratio.of(tp, tp + fp),
        "recall": Ratio.of(tp, tp + fn),
        "f1": Ratio.of(2 * tp, 2 * tp + fp + fn),
        "accuracy": Ratio.of(tp + tn, tp + fp + fn + tn),
    }


def pixel_values(confusion: NDArray[np.int64]) -> dict[str, float | None]:
    """Return precision, recall, F1 and accuracy of a confusion `[4]`; None where one is not defined."""
    return {name: ratio.value for name, ratio in pixel_ratios(confusion[None]).items()}


def iou_of(confusion: NDArray[np.int64], rule: EmptyUnionRule) -> float:
    """Return the IoU of a confusion `[4]`; of an empty union by `rule`."""
    union = int(unions(confusion))
    return int(confusion[TP]) / union if union else float(rule == "one")


def pixels_of(confusion: NDArray[np.int64]) -> Pixels:
    """Return a confusion `[4]` by its names."""
    tp, fp, fn, tn = (int(confusion[i]) for i in (TP, FP, FN, TN))
    return Pixels(true_positive=tp, false_positive=fp, false_negative=fn, true_negative=tn)


def pixel_scores(confusion: NDArray[np.int64], rule: EmptyUnionRule) -> PixelScores:
    """Return all scores of pixels taken together."""
    return PixelScores(iou=iou_of(confusion, rule), pixels=pixels_of(confusion), **pixel_values(confusion))


def ends_of(interval: Interval | None) -> Ends | None:
    """Return the ends of an interval, None where there is none."""
    return None if interval is None else Ends(low=interval.low, high=interval.high)


def intervals_by_name(ratios: Mapping[str, Statistic], seed: int, resamples: int) -> dict[str, Ends | None]:
    """Return the ends of the interval of each statistic."""
    found = intervals(list(ratios.values()), seed, resamples)
    return {name: ends_of(each) for name, each in zip(ratios, found, strict=True)}


def zones(scored: Scored, seed: int, resamples: int) -> tuple[PixelScores, PixelScores, dict[str, Ends | None]]:
    """Return the scores near cloud edges and away from them, and the intervals of the two IoUs."""
    (near, near_ratio), (away, away_ratio) = scored.zone(NEAR), scored.zone(AWAY)
    ratios = {"near_edges": near_ratio, "away_from_edges": away_ratio}
    return near, away, intervals_by_name(ratios, seed, resamples)


def compare(ours: Scored, theirs: Scored, against: str, seed: int, resamples: int) -> Comparison:
    """Return what can be said of two tallies of the same chips, every resample having the same locations of both."""
    assert ours.tally.chip_ids == theirs.tally.chip_ids, "pairs are of the same chips"
    found = intervals([Difference(ours.ratios[name], theirs.ratios[name]) for name in NAMES], seed, resamples)
    scores = tuple(_compared(name, ours, theirs, each) for name, each in zip(NAMES, found, strict=True))
    locations = {name: each.iou - theirs.locations[name].iou for name, each in ours.locations.items()}
    return Comparison(
        against=against,
        num_chips=len(ours.tally),
        num_locations=len(locations),
        scores=scores,
        locations=locations,
    )


def _compared(name: str, ours: Scored, theirs: Scored, interval: Interval | None) -> Compared:
    a, b = ours.values[name], theirs.values[name]
    words: Words = "can't tell"
    if interval is not None and (interval.low > 0 or interval.high < 0):
        words = "better" if interval.low > 0 else "worse"
    difference = None if a is None or b is None else a - b
    return Compared(name=name, ours=a, theirs=b, difference=difference, interval=ends_of(interval), words=words)
