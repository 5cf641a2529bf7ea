"""What a model's probabilities have meant at a location: thresholds of confident learning, cloud's odds by probability.

A pixel that contradicts its label says something only beyond how often the model is wrong like that where it stands.
All comes from histograms of tiles, so that a million of them are counted in parts and added. Must not know what is
judged by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from raytrain.imagery.rasters import LABEL_CLEAR, LABEL_CLOUD

BINS = 64
"""Of probability; steps of 1/64 lie well below what calibration at a location can tell."""
MIDDLES = (np.arange(BINS) + 0.5) / BINS
PRIOR_TILES = 8.0
"""A location counts as much as all others together when it has the pixels of so many tiles."""
PRIOR_PIXELS = 64.0
"""By which a bin of all tiles is drawn towards what the model says: bins that hold few pixels say little."""
LEAST_FREQUENCY = 0.002
"""Odds end here, 500 to 1: histograms count pixels, which are not independent, and rarer errors are not known."""


@dataclass(frozen=True)
class Thresholds:
    """What one tile is judged by.

    `clear` and `cloud` are the thresholds of confident learning: the mean predicted probability of a class over the
    pixels that are labelled so. `log_odds` `[BINS] float32` are those of the label cloud by bin of the predicted
    probability of cloud, never falling.
    """

    clear: float
    cloud: float
    log_odds: NDArray[np.float32]


def bins_of(probability: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the bin of each probability in [0, 1]."""
    return np.minimum((probability * BINS).astype(np.intp), BINS - 1)


def label_histogram(label: NDArray[np.uint8], probability: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return how many pixels lie in each bin of probability, `[2, BINS] int64`: labelled clear, labelled cloud.

    `label` and `probability` are `[H, W]`. Ignored pixels and those without data (NaN) are not counted.
    """
    counts = np.zeros((2, BINS), np.int64)
    has_data = ~np.isnan(probability)
    for row, value in enumerate((LABEL_CLEAR, LABEL_CLOUD)):
        counts[row] = np.bincount(bins_of(probability[has_data & (label == value)]), minlength=BINS)
    return counts


@dataclass(frozen=True)
class Calibration:
    """The histograms of all tiles added up, of each location and over all: `[2, BINS] float64`, whole numbers.

    `tile_pixels` is how many pixels a tile has on average.
    """

    of_location: dict[str, NDArray[np.float64]]
    overall: NDArray[np.float64]
    tile_pixels: float

    @classmethod
    def of(cls, locations: Sequence[str], histograms: NDArray[np.integer[Any]]) -> Calibration:
        """Return the calibration of tiles at `locations` with `histograms` `[N, 2, BINS]`, in any order.

        Raises `ValueError` where there are not as many of both.
        """
        if len(locations) != len(histograms):
            raise ValueError(f"{len(locations)} locations, but {len(histograms)} histograms")
        names, numbers = np.unique(np.asarray(locations, dtype=np.str_), return_inverse=True)
        sums = np.zeros((len(names), 2, BINS), np.int64)
        np.add.at(sums, numbers, histograms)
        return cls(
            of_location={str(name): each for name, each in zip(names, sums.astype(np.float64), strict=True)},
            overall=sums.sum(0).astype(np.float64),
            tile_pixels=float(sums.sum() / max(len(locations), 1)),
        )

    def thresholds(self, location: str, own: NDArray[np.integer[Any]]) -> Thresholds:
        """Return what a tile at `location` is judged by; its `own` histogram `[2, BINS]` is left out of all sums.

        What its location says is drawn towards what all locations say, the more the fewer pixels the location has.
        """
        elsewhere, here = self.overall - own, self.of_location[location] - own
        prior_pixels = PRIOR_TILES * self.tile_pixels
        # In each bin as much as all tiles have there: a location's full bins count, its empty ones say nothing.
        prior_by_bin = prior_pixels * elsewhere.sum(0) / max(elsewhere.sum(), 1.0)
        frequency = _frequency(here, _frequency(elsewhere, MIDDLES, PRIOR_PIXELS), prior_by_bin)
        log_frequency = _log_frequency(isotonic_regression(frequency, weights=here.sum(0) + prior_by_bin + 1).x)
        clear, cloud = (
            _mean(here[row], means, _mean(elsewhere[row], means, 0.5, 1.0), prior_pixels / 2)
            for row, means in ((0, 1 - MIDDLES), (1, MIDDLES))
        )
        return Thresholds(clear, cloud, (log_frequency[1] - log_frequency[0]).astype(np.float32))


def _log_frequency(frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithms of how often pixels of each bin are clear, and cloud, `[2, BINS]`."""
    cut = np.clip(frequency, LEAST_FREQUENCY, 1 - LEAST_FREQUENCY)
    return np.log(np.stack([1 - cut, cut]))


def _frequency(
    counts: NDArray[np.float64], prior: NDArray[np.float64], prior_pixels: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how often pixels of each bin are labelled cloud, drawn towards `prior` by `prior_pixels`."""
    total = counts.sum(0) + prior_pixels
    return np.where(total > 0, (counts[1] + prior * prior_pixels) / np.where(total > 0, total, 1), prior)


def _mean(counts: NDArray[np.float64], values: NDArray[np.float64], prior: float, prior_pixels: float) -> float:
    """Return the mean of `values` by bin over the pixels `counts`, drawn towards `prior`."""
    return float((counts @ values + prior * prior_pixels) / (counts.sum() + prior_pixels))
