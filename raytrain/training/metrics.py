"""The four IoUs of the recipe, from counts: sum, count, divide once. Must not know where the counts come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raytrain.config import EmptyUnionRule
from raytrain.imagery.rasters import LABEL_CLOUD, LABEL_IGNORE


@dataclass(frozen=True)
class LocationScore:
    """One location: its IoU over all its chips, the mean of its chips' IoUs, and the counts behind it (pixels)."""

    iou: float
    iou_mean: float
    intersection: int
    union: int
    num_chips: int


@dataclass(frozen=True)
class Scores:
    """The four IoUs, each in [0, 1], and the locations they come from."""

    iou_pooled: float
    iou_mean: float
    iou_location_weighted: float
    iou_mean_location_weighted: float
    empty_union_rule: EmptyUnionRule
    num_chips: int
    locations: dict[str, LocationScore]


@dataclass(frozen=True)
class TileScore:
    """The IoU of one tile, and what it is an example of among all tiles that were validated on."""

    tile_id: str
    iou: float
    group: Literal["worst", "median", "best"]


def count_pixels(prediction: NDArray[np.uint8], label: NDArray[np.uint8]) -> tuple[int, int]:
    """Return intersection and union of the cloud (1) of two masks of one shape, where the label is not 255.

    A prediction of 255 (no data) on a valid label counts as clear: what was not found is missed.
    """
    valid = label != LABEL_IGNORE
    cloud, predicted = (label == LABEL_CLOUD) & valid, (prediction == LABEL_CLOUD) & valid
    return int(np.count_nonzero(cloud & predicted)), int(np.count_nonzero(cloud | predicted))


def scores(
    intersections: Sequence[int] | NDArray[np.int64],
    unions: Sequence[int] | NDArray[np.int64],
    locations: Sequence[str],
    rule: EmptyUnionRule,
) -> Scores:
    """Return the four IoUs of chips with the given counts, each chip in the location of the same position.

    An empty union (no cloud, none predicted) has IoU 1 or 0, by `rule`. Raises `ValueError` without any chip.
    """
    if not len(intersections):
        raise ValueError("no chips to score")
    intersection, union = np.asarray(intersections, np.int64), np.asarray(unions, np.int64)
    chip_ious = _iou(intersection, union, rule)
    names, of_chip = np.unique(np.asarray(locations), return_inverse=True)
    num_chips = np.bincount(of_chip)
    # np.bincount adds weights in float64: exact below 2^53 pixels.
    intersection_L = np.bincount(of_chip, weights=intersection).astype(np.int64)
    union_L = np.bincount(of_chip, weights=union).astype(np.int64)
    iou_L = _iou(intersection_L, union_L, rule)
    mean_L = np.bincount(of_chip, weights=chip_ious) / num_chips
    by_location = {
        str(name): LocationScore(
            float(iou_L[i]), float(mean_L[i]), int(intersection_L[i]), int(union_L[i]), int(num_chips[i])
        )
        for i, name in enumerate(names)
    }
    return Scores(
        iou_pooled=float(_iou(intersection.sum()[None], union.sum()[None], rule)[0]),
        iou_mean=float(chip_ious.mean()),
        iou_location_weighted=float(iou_L.mean()),
        iou_mean_location_weighted=float(mean_L.mean()),
        empty_union_rule=rule,
        num_chips=len(intersection),
        locations=by_location,
    )


def extreme_tiles(
    tile_ids: Sequence[str], intersections: Sequence[int], unions: Sequence[int], each: int = 3
) -> tuple[TileScore, ...]:
    """Return up to `each` of the worst, median and best tiles, from the worst to the best, none twice.

    Tiles with an empty union (no cloud, none predicted) have nothing to show and are not among them. Of fewer tiles
    than three times `each` every one is there, in thirds. Equal IoUs are in the order of the ids.
    """
    pairs = zip(tile_ids, intersections, unions, strict=True)
    ordered = sorted((int(intersection) / int(union), name) for name, intersection, union in pairs if union)
    each = min(each, -(-len(ordered) // 3))
    worst, rest = ordered[:each], ordered[each:]
    best = rest[max(len(rest) - each, 0) :]
    between = rest[: len(rest) - len(best)]
    start = max(len(between) - each, 0) // 2
    middle = between[start : start + each]
    groups: tuple[tuple[Literal["worst", "median", "best"], list[tuple[float, str]]], ...]
    groups = (("worst", worst), ("median", middle), ("best", best))
    return tuple(TileScore(name, iou, group) for group, tiles in groups for iou, name in tiles)


def _iou(intersection: NDArray[np.int64], union: NDArray[np.int64], rule: EmptyUnionRule) -> NDArray[np.float64]:
    empty = 1.0 if rule == "one" else 0.0
    return np.where(union > 0, intersection / np.maximum(union, 1), empty)
