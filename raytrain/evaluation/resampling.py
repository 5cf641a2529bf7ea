"""Intervals for scores by resampling locations: chips of one place are not independent, so places are drawn, not chips.

Only sums by location are resampled, never pixels. Must not know what the sums are of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytrain.evaluation.intervals import LEVEL, Interval

RESAMPLES = 10_000
MOST_UNDEFINED_FRACTION = 0.05
"""Of the resamples, in which a score is not defined; with more there is no interval."""
LEAST_ERROR_FRACTION = 0.1
"""Of the standard error of all locations; that of a resample of few or like ones, down to 0, counts as that much."""
ROUNDING = 1e-12
"""A standard error below it is one of rounding: scores are fractions."""
_CELLS = 2**16
"""Numbers held for each array of a chunk of resamples: 512 KiB, which stay in the cache (2 to 3 times as fast)."""


@dataclass(frozen=True)
class Ratio:
    """A score as the ratio of two sums over locations: `above` and `below`, each `[L]`, the second not negative."""

    above: NDArray[np.float64]
    below: NDArray[np.float64]

    @classmethod
    def of(cls, above: NDArray[np.generic], below: NDArray[np.generic]) -> Ratio:
        """Return the ratio of two sums of any numbers."""
        return cls(above.astype(np.float64), below.astype(np.float64))

    @classmethod
    def mean(cls, values: NDArray[np.float64]) -> Ratio:
        """Return the mean over locations of `values` `[L]`."""
        return cls(values, np.ones(len(values)))

    @property
    def value(self) -> float | None:
        """The score; None where the sum below is 0."""
        below = float(self.below.sum())
        return float(self.above.sum()) / below if below else None


@dataclass(frozen=True)
class Difference:
    """The difference of two scores of the same locations, resampled in pairs: `ours` less `theirs`."""

    ours: Ratio
    theirs: Ratio

    @property
    def value(self) -> float | None:
        """The difference; None where one of the two is not defined."""
        ours, theirs = self.ours.value, self.theirs.value
        return None if ours is None or theirs is None else ours - theirs


Statistic = Ratio | Difference
_Drawn = tuple[NDArray[np.float64], NDArray[np.float64]]
"""A statistic and its standard error in each of some resamples."""


def intervals(statistics: Sequence[Statistic], seed: int = 0, resamples: int = RESAMPLES) -> list[Interval | None]:
    """Return the interval of each statistic, all of the same locations: None where these don't suffice for one.

    By the studentised bootstrap (Efron and Tibshirani 1993, section 12.5): each resample of locations gives the
    statistic less its value, over its standard error by linearisation (of a ratio: Cochran 1977, section 6.4); the
    quantiles of that, times the standard error of all locations, are the ends. Simple percentiles hold the truth too
    rarely where locations are few or of unlike size (`tests.bench.coverage`). Of a difference the ends are the outer
    ones of that and of the percentiles: where most locations differ little, either alone says "better" too often. Ends
    are cut to what scores can be. One location is none to draw from, over a few intervals are wide, and a score that is
    the same at all of them (all cloud found everywhere) has none: they say nothing of how it varies.
    """
    if not statistics:
        return []
    num_locations = len(_terms(statistics[0])[0][1].above)
    found: list[Interval | None] = [None] * len(statistics)
    if num_locations < 2:
        return found
    # Equal weights: the standard error of all locations, and what is resampled is measured against it.
    once = np.ones((1, num_locations))
    errors = [float(_estimates(each, once)[1][0]) for each in statistics]
    drawn: list[list[_Drawn]] = [[] for _ in statistics]
    for weights in _resamples(num_locations, seed, resamples):
        for i, each in enumerate(statistics):
            drawn[i].append(_estimates(each, weights))
    for i, each in enumerate(statistics):
        estimates, of_each = (np.concatenate(parts) for parts in zip(*drawn[i], strict=True))
        found[i] = _interval(each, errors[i], estimates, of_each)
    return found


def _resamples(num_locations: int, seed: int, resamples: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each location is drawn `[chunk, L]`, in chunks; the same seed gives the same."""
    draw = np.random.default_rng(seed)
    rows = max(1, _CELLS // num_locations)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        # Draws counted are seven times as fast as numpy's multinomial, and as likely.
        places = draw.integers(0, num_locations, (size, num_locations)) + num_locations * np.arange(size)[:, None]
        counts = np.bincount(places.ravel(), minlength=size * num_locations)
        yield counts.reshape(size, num_locations).astype(np.float64)


def _terms(statistic: Statistic) -> list[tuple[float, Ratio]]:
    return [(1.0, statistic)] if isinstance(statistic, Ratio) else [(1.0, statistic.ours), (-1.0, statistic.theirs)]


def _estimates(statistic: Statistic, weights: NDArray[np.float64]) -> _Drawn:
    """Return the statistic and its standard error in each resample of `weights` `[B, L]`; NaN where not defined."""
    num_locations = weights.shape[1]
    value = np.zeros(len(weights))
    influence = np.zeros_like(weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        for sign, ratio in _terms(statistic):
            above, below = weights @ ratio.above, weights @ ratio.below
            found = above / below
            value += sign * found
            influence += (sign * num_locations / below)[:, None] * (ratio.above - found[:, None] * ratio.below)
        squares = (weights * influence**2).sum(1)
    return value, np.sqrt(squares / (num_locations * (num_locations - 1)))


def _interval(
    statistic: Statistic, error: float, estimates: NDArray[np.float64], errors: NDArray[np.float64]
) -> Interval | None:
    """Return the interval of a statistic with the standard error `error`, of what it and that are in each resample."""
    value = statistic.value
    if value is None:
        return None
    if error < ROUNDING:  # alike at all locations: nothing says how others would differ
        return None
    is_defined = np.isfinite(estimates) & np.isfinite(errors)
    if is_defined.mean() < 1 - MOST_UNDEFINED_FRACTION:
        return None
    estimates, errors = estimates[is_defined], errors[is_defined]
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    studentised = (estimates - value) / np.maximum(errors, LEAST_ERROR_FRACTION * error)
    below, above = np.quantile(studentised, tails)
    low, high = value - float(above) * error, value - float(below) * error
    if isinstance(statistic, Ratio):
        return Interval(value, max(0.0, low), min(1.0, high))
    lower, upper = np.quantile(estimates, tails)
    return Interval(value, max(-1.0, min(low, float(lower))), min(1.0, max(high, float(upper))))
