"""How well a ranking finds what is wrong: average precision and AUC, with intervals over places and seeds.

Must not know what is ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytrain.evaluation.intervals import LEVEL, Interval

RESAMPLES = 1_000


@dataclass(frozen=True)
class Ranked:
    """One ranking: a score of each item, the highest first, whether it is wrong, and the number of its place."""

    scores: NDArray[np.float64]
    is_wrong: NDArray[np.bool_]
    places: NDArray[np.intp]

    def of(self, chosen: NDArray[np.bool_]) -> Ranked:
        """Return the ranking of the `chosen` items."""
        return Ranked(self.scores[chosen], self.is_wrong[chosen], self.places[chosen])


def measures(ranked: Ranked, weights_BP: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return average precision and AUC `[B]` each with each place counted as often as `weights_BP` `[B, P]` says.

    Items of one score are one step of the ranking. NaN where nothing, or all, is wrong.
    """
    order = np.argsort(-ranked.scores, kind="stable")
    scores = ranked.scores[order]
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # of runs of equal scores
    weights_BN = weights_BP[:, ranked.places[order]]
    wrong_BN = np.cumsum(weights_BN * ranked.is_wrong[order], axis=1)[:, ends]
    all_BN = np.cumsum(weights_BN, axis=1)[:, ends]
    right_BN = all_BN - wrong_BN
    new_wrong_BN, new_right_BN = np.diff(wrong_BN, prepend=0.0), np.diff(right_BN, prepend=0.0)
    wrong_B, right_B = wrong_BN[:, -1], right_BN[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision_BN = np.where(all_BN > 0, wrong_BN / all_BN, 0)
        average_precision = (new_wrong_BN * precision_BN).sum(1) / wrong_B
        # Pairs in which the wrong one stands above the right one, and half of those that stand together.
        pairs = (new_right_BN * (wrong_BN - new_wrong_BN / 2)).sum(1)
        auc = pairs / (wrong_B * right_B)
    average_precision[right_B == 0] = np.nan
    return average_precision, auc


def resampled_places(num_places: int, seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Return how often each place counts `[1 + resamples, P]`: each once, then drawn with replacement."""
    random = np.random.default_rng(seed)
    drawn = random.multinomial(num_places, np.full(num_places, 1 / num_places), resamples)
    return np.concatenate([np.ones((1, num_places)), drawn])


def interval_over_seeds(values_SB: NDArray[np.float64], seed: int) -> Interval:
    """Return the mean over seeds with its interval, from values of each seed `[S, 1 + B]`, of resamples of places.

    A resample draws the seeds, too: what differs by the corruption drawn counts as well as what differs by place. The
    first column is of all places as they are. Percentiles; seeds in which a resample is not defined are left out of it.
    """
    random = np.random.default_rng(seed)
    num_seeds, num_columns = values_SB.shape
    drawn = random.integers(0, num_seeds, (num_columns - 1, num_seeds))
    values = values_SB[drawn, np.arange(1, num_columns)[:, None]]
    is_defined = ~np.isnan(values)
    counted = is_defined.any(1)  # of few tiles, a resample of places may have none that is wrong
    means = np.where(is_defined, values, 0).sum(1)[counted] / is_defined.sum(1)[counted]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(np.nanmean(values_SB[:, 0])), float(low), float(high))


def precision_at(ranked: Ranked, fraction: float) -> float:
    """Return how much of the first `fraction` of the ranking is wrong; order among equal scores is that of items."""
    count = max(1, round(fraction * len(ranked.scores)))
    return float(ranked.is_wrong[np.argsort(-ranked.scores, kind="stable")[:count]].mean())


def mean_interval_text(interval: Interval, digits: int = 3) -> str:
    """Return a value with its interval, for a table."""
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def confusion(pairs: Sequence[tuple[str, str]], rows: Sequence[str], columns: Sequence[str]) -> NDArray[np.int64]:
    """Return how often each (row, column) stands in `pairs`, `[R, C]`."""
    counts = np.zeros((len(rows), len(columns)), np.int64)
    for row, column in pairs:
        counts[rows.index(row), columns.index(column)] += 1
    return counts
