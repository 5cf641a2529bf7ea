"""Intervals hold the truth as often as they say: the simulation of `tests.bench.coverage`, made small."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from raytrain.evaluation import resampling
from tests.bench import coverage, populations
from tests.bench.coverage import PERCENTILES, SCORE, SHIPPED, TO_TWIN, TO_WORSE, Design

TYPICAL = populations.POPULATIONS[0]
SIZES = populations.made_up_sizes(81, largest=40)
RESAMPLES = 500


@functools.cache
def truth() -> dict[str, NDArray[np.float64]]:
    return populations.true_scores(TYPICAL, SIZES, 20_000, seed=1)


def held(num_locations: int, num_draws: int, kinds: Sequence[str], *methods: str) -> list[float]:
    """Return how often intervals held the truth by each method, over all scores of some kinds."""
    found = coverage.measure(TYPICAL, Design(num_locations), SIZES, truth(), num_draws, RESAMPLES)
    return [float(np.mean([found.fractions(kind, method) for kind in kinds])) for method in methods]


def test_intervals_over_nine_locations_hold_the_truth_where_percentiles_fall_short() -> None:
    shipped, percentiles = held(9, 150, (SCORE, TO_TWIN, TO_WORSE), SHIPPED, PERCENTILES)
    assert 0.915 < shipped < 0.97
    assert percentiles < 0.90


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_hold_the_truth_as_often_as_their_level_says(monkeypatch: pytest.MonkeyPatch, level: float) -> None:
    monkeypatch.setattr(resampling, "LEVEL", level)
    (shipped,) = held(20, 100, [SCORE], SHIPPED)
    assert shipped == pytest.approx(level, abs=0.03)


def test_true_scores_are_those_of_all_chips_by_their_definitions() -> None:
    """The truth is added up by itself in chunks; here chip by chip, with plain numbers, of the very same draw."""
    found = populations.true_scores(TYPICAL, SIZES, 30, seed=3)
    random = np.random.default_rng(3)
    drawn = populations.draw(TYPICAL, random.choice(SIZES, 30), random)
    by_way: list[dict[str, float]] = []
    for confusions in drawn.confusions:
        by_place: dict[int, list[list[int]]] = {}
        for place, counts in zip(drawn.location_of.tolist(), confusions.tolist(), strict=True):
            by_place.setdefault(place, []).append(counts)
        by_way.append(_scores(list(by_place.values())))
    for name, values in found.items():
        first, twin, worse = (each[name] for each in by_way)
        np.testing.assert_allclose(values, [(first + twin) / 2, (first + twin) / 2, worse], rtol=1e-12)
    assert set(found) == set(by_way[0])


def _scores(places: list[list[list[int]]]) -> dict[str, float]:
    def iou(chips: list[list[int]]) -> float:
        tp, fp, fn, _ = (sum(each) for each in zip(*chips, strict=True))
        return tp / (tp + fp + fn) if tp + fp + fn else 1.0

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    chips = list(itertools.chain(*places))
    tp, fp, fn, tn = (sum(each) for each in zip(*chips, strict=True))
    return {
        "iou_pooled": iou(chips),
        "iou_mean": mean([iou([chip]) for chip in chips]),
        "iou_location_weighted": mean([iou(some) for some in places]),
        "iou_mean_location_weighted": mean([mean([iou([chip]) for chip in some]) for some in places]),
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "accuracy": (tp + tn) / (tp + fp + fn + tn),
    }
