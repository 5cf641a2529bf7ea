"""Intervals for scores: what else could have come out with other locations, and with other seeds.

Must not know what is compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

LEVEL = 0.95
FEW_LOCATIONS = 20
"""Below so many locations reports say that an interval is a rough one."""
HELD_FRACTION = {9: 0.93, 20: 0.94}
"""How often intervals of scores over so many locations held the truth, on average: `tests.bench.coverage`."""


@dataclass(frozen=True)
class Interval:
    """A value, and the ends of the interval that holds the truth in `LEVEL` of all samples."""

    value: float
    low: float
    high: float


def trust_text(num_locations: int) -> str:
    """Return how far intervals over so many locations can be trusted; nothing to say of `FEW_LOCATIONS` or more."""
    if num_locations >= FEW_LOCATIONS:
        return ""
    held = "; ".join(f"over {count} in {fraction:.0%}" for count, fraction in HELD_FRACTION.items())
    return (
        f"With fewer than {FEW_LOCATIONS} locations intervals are rough: in a simulation those of {LEVEL:.0%} held the "
        f"truth {held} of the draws, and over fewer they may be wrong."
    )


def mean_over_seeds_and_locations(values_SL: NDArray[np.float64]) -> Interval:
    """Return the mean of `values_SL` `[S, L]` (two seeds and two locations at least) with its interval.

    Seeds and locations both count as drawn at random (a two-way layout, each with an effect of its own). Each gives an
    interval by Student's t, of the seeds' means and of the locations' means; the root of the sum of their squared
    widths is that of both (MOVER, Zou and Donner 2008). What differs in single cells is in both, so that the interval
    is rather too wide than too short; three seeds that differ much make it wide. Raises `ValueError` for fewer than two
    of either.
    """
    num_seeds, num_locations = values_SL.shape
    if num_seeds < 2 or num_locations < 2:
        raise ValueError(f"an interval needs two seeds and two locations, found {num_seeds} and {num_locations}")
    mean = float(values_SL.mean())
    half = math.hypot(_half_width(values_SL.mean(1)), _half_width(values_SL.mean(0)))
    return Interval(mean, mean - half, mean + half)


def widened_by_seeds(over_places: Interval, by_seed: NDArray[np.float64]) -> Interval:
    """Return the interval `over_places` of a mean over seeds, widened by how far its seeds `[S]` (two at least) part.

    Places and seeds count as drawn at random and independent of each other. Each end is as far from the value as the
    root of the sum of the squares of two distances: that of the end over places, and half the width of the interval of
    the seeds' mean by Student's t (MOVER: Zou and Donner 2008, whose limits of a sum may lie unlike far from it). What
    differs in single cells is in both, so that the interval is rather too wide than too short. Ends are cut to what
    differences of scores can be. Raises `ValueError` for fewer than two seeds.
    """
    if len(by_seed) < 2:
        raise ValueError(f"how far seeds part needs two of them, found {len(by_seed)}")
    value, half = over_places.value, _half_width(by_seed)
    low = value - math.hypot(value - over_places.low, half)
    high = value + math.hypot(over_places.high - value, half)
    return Interval(value, max(-1.0, low), min(1.0, high))


def over_seeds(by_seed: NDArray[np.float64]) -> Interval:
    """Return the mean of the values of some seeds `[S]` (two at least) with its interval by Student's t."""
    if len(by_seed) < 2:
        raise ValueError(f"how far seeds part needs two of them, found {len(by_seed)}")
    mean, half = float(by_seed.mean()), _half_width(by_seed)
    return Interval(mean, mean - half, mean + half)


def _half_width(values: NDArray[np.float64]) -> float:
    """Return half the width of the interval of the mean of `values` by Student's t."""
    return float(stdtrit(len(values) - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / math.sqrt(len(values)))
