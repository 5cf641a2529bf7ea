"""Made-up locations with chips and three ways of predicting, of which every true score is known.

A location is drawn, with its cloudiness and how hard it is, and then its chips: those of one place are alike. Must not
know how scores or intervals are made.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CHIP_PX = 512 * 512
FIRST, TWIN, WORSE = range(3)
"""Ways of predicting: the second is as good as the first, but has errors of its own; the third errs more often."""
NAMES = (
    "iou_pooled",
    "iou_mean",
    "iou_location_weighted",
    "iou_mean_location_weighted",
    "precision",
    "recall",
    "f1",
    "accuracy",
)
WORSE_LOG_ODDS = 0.3
OWN_VARIANCE = 0.25
"""Of the variance of errors, what a way of predicting has to itself; the rest is common to all."""
THIN_CLOUD, THIN_LOG_ODDS = 0.1, 0.7
"""Below so much cloud in a chip its cloud is missed more often."""
SILENT_FRACTION = 0.6
"""Of the chips without cloud, those where none is predicted: their union is empty."""
_CHUNK = 2_000


@dataclass(frozen=True)
class Population:
    """What all locations come from. `missed` of the cloud and `false` of the clear sky are the medians over chips.

    Spreads are standard deviations of the log odds of both, over locations and over the chips of one. `cloudiness` are
    the two parameters of the beta distribution of a location's mean cloud fraction; `clear` is the mean share of a
    location's chips that have no cloud.
    """

    name: str
    missed: float
    false: float
    location_spread: float
    chip_spread: float
    cloudiness: tuple[float, float]
    clear: float


POPULATIONS = (
    Population("typical", 0.06, 0.04, 0.7, 0.9, (1.2, 1.2), 0.12),
    Population("mild", 0.06, 0.04, 0.2, 0.5, (3.0, 3.0), 0.05),
    Population("hard", 0.1, 0.02, 1.4, 1.2, (0.5, 1.5), 0.4),
)


@dataclass(frozen=True)
class Drawn:
    """Chips: the location of each `[N]`, and the confusions `[way of predicting, N, 4]` (tp, fp, fn, tn), pixels."""

    location_of: NDArray[np.intp]
    confusions: NDArray[np.int64]


def read_sizes(metadata: Path) -> NDArray[np.int64]:
    """Return how many chips each location of a table has, ascending."""
    with metadata.open() as file:
        counts = Counter(row["location"] for row in csv.DictReader(file))
    return np.array(sorted(counts.values()))


def made_up_sizes(num_locations: int, largest: int = 340) -> NDArray[np.int64]:
    """Return sizes from 2 to `largest`, evenly."""
    return np.linspace(2, largest, num_locations).astype(np.int64)


def draw(population: Population, sizes: NDArray[np.int64], random: np.random.Generator) -> Drawn:
    """Return locations of the given `sizes`, drawn anew, with their chips."""
    location_of = np.repeat(np.arange(len(sizes)), sizes)
    cloud_px = _cloud(population, location_of, len(sizes), random)
    clear_px = CHIP_PX - cloud_px
    thin = np.where(cloud_px < THIN_CLOUD * CHIP_PX, THIN_LOG_ODDS, 0.0)
    missed = _errors(population, population.missed, location_of, len(sizes), thin, random)
    false = _errors(population, population.false, location_of, len(sizes), np.zeros_like(thin), random)
    silent = (random.random(false.shape) < SILENT_FRACTION) & (cloud_px == 0)
    fn = np.rint(missed * cloud_px).astype(np.int64)
    fp = np.where(silent, 0, np.rint(false * clear_px)).astype(np.int64)
    return Drawn(location_of, np.stack([cloud_px - fn, fp, fn, clear_px - fp], axis=-1))


def _cloud(
    population: Population, location_of: NDArray[np.intp], num_locations: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Return the pixels of cloud of each chip `[N]`: a location's chips lie around its mean, some are clear."""
    mean = random.beta(*population.cloudiness, num_locations)[location_of]
    fraction = random.beta(np.maximum(1.5 * mean, 0.05), np.maximum(1.5 * (1 - mean), 0.05))
    share_clear = random.beta(2 * population.clear, 2 * (1 - population.clear), num_locations)[location_of]
    clear = random.random(len(location_of)) < share_clear
    return np.where(clear, 0, np.rint(fraction * CHIP_PX)).astype(np.int64)


def _errors(
    population: Population,
    median: float,
    location_of: NDArray[np.intp],
    num_locations: int,
    harder: NDArray[np.float64],
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the share of pixels that each way of predicting gets wrong, `[way, N]`; `harder` `[N]` are log odds."""
    of_location = population.location_spread * _common_and_own(num_locations, random)[:, location_of]
    of_chip = population.chip_spread * _common_and_own(len(location_of), random)
    base = np.log(median / (1 - median)) + np.array([0, 0, WORSE_LOG_ODDS])[:, None]
    return np.asarray(1 / (1 + np.exp(-(base + of_location + of_chip + harder))))


def _common_and_own(count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Return normal numbers `[way, count]` of variance 1 that the three ways have in common for the most part."""
    common, own = random.standard_normal(count), random.standard_normal((3, count))
    return np.asarray(np.sqrt(1 - OWN_VARIANCE) * common + np.sqrt(OWN_VARIANCE) * own)


def true_scores(
    population: Population, sizes: NDArray[np.int64], num_locations: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Return every score of the whole population, `[way]` by name, from `num_locations` with sizes from `sizes`.

    Twin ways of predicting are as good as one another: both get the mean of the two.
    """
    random = np.random.default_rng(seed)
    pixels, chip_ious, num_chips = np.zeros((3, 4)), np.zeros(3), 0
    by_location: list[NDArray[np.float64]] = []
    for start in range(0, num_locations, _CHUNK):
        some = random.choice(sizes, min(_CHUNK, num_locations - start))
        drawn = draw(population, some, random)
        starts = np.cumsum(some) - some
        of_location = np.add.reduceat(drawn.confusions, starts, axis=1)
        ious = _iou(drawn.confusions)
        pixels += of_location.sum(1)
        chip_ious += ious.sum(1)
        num_chips += int(some.sum())
        by_location.append(np.stack([_iou(of_location), np.add.reduceat(ious, starts, axis=1) / some]))
    pooled, mean = np.concatenate(by_location, axis=2).mean(2)
    tp, fp, fn, tn = pixels.T
    scores = (
        tp / (tp + fp + fn),
        chip_ious / num_chips,
        pooled,
        mean,
        tp / (tp + fp),
        tp / (tp + fn),
        2 * tp / (2 * tp + fp + fn),
        (tp + tn) / (tp + fp + fn + tn),
    )
    return {name: _twins_alike(values) for name, values in zip(NAMES, scores, strict=True)}


def _iou(confusions: NDArray[np.int64]) -> NDArray[np.float64]:
    tp, fp, fn, _ = np.moveaxis(confusions, -1, 0)
    union = tp + fp + fn
    return np.where(union > 0, tp / np.maximum(union, 1), 1.0)


def _twins_alike(values: NDArray[np.float64]) -> NDArray[np.float64]:
    alike = values[[FIRST, TWIN]].mean()
    return np.array([alike, alike, values[WORSE]])
