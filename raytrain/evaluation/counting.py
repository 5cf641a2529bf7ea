"""What a prediction and a label come to, in pixels: confusion near cloud edges and away from them, and more of maps.

Everything is a count, so that parts add up to the whole in any order. Must not know files, chips or locations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from raytrain.imagery.rasters import LABEL_CLEAR, LABEL_CLOUD

NUM_BINS = 100
"""Probabilities are counted in so many bins of one width; their lower ends are the thresholds of curves."""
EDGES = (np.arange(NUM_BINS + 1) / NUM_BINS).astype(np.float32)
"""The ends of the bins: bin `k` holds `EDGES[k] <= p < EDGES[k + 1]`, the last one 1.0, too."""

TP, FP, FN, TN = range(4)
NEAR, AWAY = range(2)
"""Zones: within some pixels of an edge of a labelled cloud, and all else."""


@dataclass
class MapCounts:
    """Counts of probabilities `[label, bin]` and their sums, over pixels with a label and a probability."""

    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, NUM_BINS), np.int64))
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, NUM_BINS)))
    unpredicted: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))
    """Pixels by label that have no probability: clear at any threshold."""

    def add(self, other: MapCounts) -> None:
        """Add the counts of other pixels."""
        self.pixels += other.pixels
        self.sums += other.sums
        self.unpredicted += other.unpredicted

    @classmethod
    def sum(cls, *parts: MapCounts | None) -> MapCounts | None:
        """Return the counts of all parts that there are, None of none."""
        total = None
        for part in parts:
            if part is not None:
                total = total or cls()
                total.add(part)
        return total


@dataclass
class MemberCounts:
    """How M members and their mean do: confusions `[4]` and `[M, 4]`, and where members part, over labelled pixels.

    `together` is the mean of all maps, `alone` each member, `without` the mean of all others. `differ` `[M, M]` counts
    pixels that two members call differently, `votes` `[M + 1, label]` those that so many members call cloud.
    """

    together: NDArray[np.int64]
    alone: NDArray[np.int64]
    without: NDArray[np.int64]
    differ: NDArray[np.int64]
    votes: NDArray[np.int64]

    @classmethod
    def of(cls, num_members: int) -> MemberCounts:
        """Return counts of nothing."""
        shapes = (4,), (num_members, 4), (num_members, 4), (num_members, num_members), (num_members + 1, 2)
        return cls(*(np.zeros(shape, np.int64) for shape in shapes))

    def add(self, other: MemberCounts) -> None:
        """Add the counts of other pixels."""
        self.together += other.together
        self.alone += other.alone
        self.without += other.without
        self.differ += other.differ
        self.votes += other.votes

    @classmethod
    def sum(cls, *parts: MemberCounts | None) -> MemberCounts | None:
        """Return the counts of all parts that there are, None of none."""
        total = None
        for part in parts:
            if part is not None:
                total = total or cls.of(len(part.alone))
                total.add(part)
        return total


def near_edges(label_HW: NDArray[np.uint8], edge_px: int) -> NDArray[np.bool_]:
    """Return `[H, W] bool`: pixels with cloud and clear sky, by the label, within `edge_px` of them (Chebyshev).

    What is ignored makes no edge, nor does the border of the label. The distance is that of Boundary IoU (Cheng et al.
    2021), on both sides of the edge.
    """
    kernel = np.ones((2 * edge_px + 1, 2 * edge_px + 1), np.uint8)
    cloud, clear = (
        np.asarray(cv2.dilate((label_HW == value).view(np.uint8), kernel), np.bool_)
        for value in (LABEL_CLOUD, LABEL_CLEAR)
    )
    return cloud & clear


def confusion(
    predicted: NDArray[np.bool_], cloud: NDArray[np.bool_], valid: NDArray[np.bool_], num_valid: int, num_cloud: int
) -> NDArray[np.int64]:
    """Return `[tp, fp, fn, tn]` of `predicted`, which is false outside `valid`, as is `cloud`; these were counted."""
    num_predicted, both = int(np.count_nonzero(predicted)), int(np.count_nonzero(predicted & cloud))
    missed, false = num_cloud - both, num_predicted - both
    return np.array([both, false, missed, num_valid - both - false - missed], np.int64)


@dataclass(frozen=True)
class Truth:
    """A label, ready to be held against any number of predictions."""

    cloud: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    near: NDArray[np.bool_]

    @classmethod
    def of(cls, label_HW: NDArray[np.uint8], near: NDArray[np.bool_]) -> Truth:
        """Return the truth of a label of 0, 1 and 255; `near` is its part of `near_edges`."""
        cloud = label_HW == LABEL_CLOUD
        return cls(cloud, cloud | (label_HW == LABEL_CLEAR), near)

    def confusion(self, predicted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return `[2, 4] int64`: the confusion near edges and away from them."""
        found = np.empty((2, 4), np.int64)
        whole = self.confusion_of_all(predicted)
        near = self.near & self.valid
        cloud = self.cloud & near
        counts = int(np.count_nonzero(near)), int(np.count_nonzero(cloud))
        found[NEAR] = confusion(predicted & near, cloud, near, *counts)
        found[AWAY] = whole - found[NEAR]
        return found

    def confusion_of_all(self, predicted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the confusion `[4] int64` over all labelled pixels."""
        counts = int(np.count_nonzero(self.valid)), int(np.count_nonzero(self.cloud))
        return confusion(predicted & self.valid, self.cloud, self.valid, *counts)

    def map_counts(self, probability: NDArray[np.float32], given: NDArray[np.bool_]) -> MapCounts:
        """Return the counts of a map of probabilities, each in [0, 1] where it is `given`."""
        found = MapCounts()
        counted = self.valid & given
        values, clouds = probability[counted], self.cloud[counted]
        places = bins(values) + NUM_BINS * clouds.astype(np.intp)
        found.pixels += np.bincount(places, minlength=2 * NUM_BINS).reshape(2, NUM_BINS)
        found.sums += np.bincount(places, weights=values, minlength=2 * NUM_BINS).reshape(2, NUM_BINS)
        absent = self.valid & ~given
        num_cloud = int(np.count_nonzero(absent & self.cloud))
        found.unpredicted += np.array([int(np.count_nonzero(absent)) - num_cloud, num_cloud])
        return found

    def member_counts(
        self, maps: Sequence[NDArray[np.float32]], given: NDArray[np.bool_], threshold: float
    ) -> MemberCounts:
        """Return the counts of the maps of two members or more; where none is `given`, all say clear."""
        found, limit, count = MemberCounts.of(len(maps)), np.float32(threshold), len(maps)
        # In float64 a sum of float32 is exact, whatever its order.
        total = np.sum(maps, axis=0, dtype=np.float64)
        says = [(each >= limit) & given for each in maps]
        found.together += self.confusion_of_all((total / count >= limit) & given)
        for i, each in enumerate(maps):
            found.alone[i] += self.confusion_of_all(says[i])
            found.without[i] += self.confusion_of_all(((total - each) / (count - 1) >= limit) & given)
            for j in range(i):
                found.differ[i, j] += int(np.count_nonzero((says[i] ^ says[j]) & self.valid))
                found.differ[j, i] = found.differ[i, j]
        votes = np.stack(says).sum(0, dtype=np.intp)
        for label, where in enumerate((self.valid & ~self.cloud, self.cloud)):
            found.votes[:, label] += np.bincount(votes[where], minlength=count + 1)
        return found


def bins(values: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the bin of each value in [0, 1]: exactly the one whose ends it lies between, both as float32."""
    places: NDArray[np.intp] = np.minimum(values * np.float32(NUM_BINS), NUM_BINS - 1).astype(np.intp)
    # The product may be rounded across an end.
    places -= values < EDGES[places]
    places += (values >= EDGES[places + 1]) & (places < NUM_BINS - 1)
    return places
