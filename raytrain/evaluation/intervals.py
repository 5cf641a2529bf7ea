"""Intervals for scores: what else could have come out with other locations, and with other seeds.

Must not know what is compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 10_000
FEW_LOCATIONS = 20
"""Below so many locations intervals are known to be too short; reports say so."""
_CHUNK = 1000


@dataclass(frozen=True)
class Interval:
    """A value, and the ends of the interval that holds the truth in `LEVEL` of all samples."""

    value: float
    low: float
    high: float


def mean_over_seeds_and_locations(values_SL: NDArray[np.float64], seed: int, resamples: int = RESAMPLES) -> Interval:
    """Return the mean of `values_SL` `[S, L]` (seeds, locations) with its interval.

    Seeds and locations are drawn anew, each on their own (the pigeonhole bootstrap, Owen 2007), and the interval goes
    between percentiles of the means. What differs between locations and what differs between seeds both widen it; what
    differs in single cells counts more than once, so that it is rather too wide than too short. One seed alone shows
    nothing of how seeds differ. Raises `ValueError` without any value.
    """
    num_seeds, num_locations = values_SL.shape
    if not values_SL.size:
        raise ValueError("no values")
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        of_seeds_RS = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=count)
        of_locations_RL = generator.multinomial(num_locations, np.full(num_locations, 1 / num_locations), size=count)
        means.append(((of_seeds_RS @ values_SL) * of_locations_RL).sum(1) / values_SL.size)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(values_SL.mean()), float(low), float(high))
