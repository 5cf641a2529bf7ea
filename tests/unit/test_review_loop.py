"""What the program on the review loop makes of counts: the share of a loss that came back, and its intervals."""

from __future__ import annotations

import numpy as np
import pytest

from raytrain.evaluation.tally import Tally
from tests.bench.review_loop import Share, _tally, share_of
from tests.bench.review_round import LABELS, Labels, Round, most_suspicious
from tests.bench.review_tiles import Predicted
from tests.corruption import Corrupted

PLACES = 20
SIDE = 16


def tallies(gains: dict[Labels, float], seeds: int = 4, noise: float = 0.0) -> dict[Labels, dict[int, Tally]]:
    """Return tallies of one tile a place: an IoU of 0.6 and what these labels add, and noise of each."""
    random = np.random.default_rng(0)
    found: dict[Labels, dict[int, Tally]] = {}
    for labels in LABELS:
        found[labels] = {}
        for seed in range(seeds):
            ious = 0.6 + gains[labels] + random.normal(0, noise, PLACES)
            counts = [[[0, 0, 0, 0], [round(1000 * iou), 1000 - round(1000 * iou), 0, 500]] for iou in ious]
            names = [f"place{i}" for i in range(PLACES)]
            found[labels][seed] = Tally(names, names, np.array(counts, np.int64), np.zeros(PLACES, np.int64))
    return found


def share(gains: dict[Labels, float], noise: float = 0.0) -> Share:
    return share_of(tallies(gains, noise=noise), resamples=500)


@pytest.mark.parametrize(("after", "expected"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (-0.05, -0.5)])
def test_share_is_how_much_of_the_loss_came_back(after: float, expected: float) -> None:
    found = share({"before": 0.0, "after": after, "perfect": 0.1})
    assert found.value == pytest.approx(expected)
    assert found.over_places == pytest.approx((expected, expected))


def test_intervals_hold_the_share_and_seeds_widen_them() -> None:
    found = share({"before": 0.0, "after": 0.06, "perfect": 0.1}, noise=0.05)
    assert found.over_places[0] < 0.6 < found.over_places[1]
    widths = [high - low for low, high in (found.over_places, found.over_places_and_seeds)]
    assert 0 < widths[0] < widths[1] < 1


def test_no_loss_has_no_share() -> None:
    assert np.isnan(share_of(tallies({"before": 0.0, "after": 0.1, "perfect": 0.0}), resamples=100).value)


def test_predictions_are_counted_by_the_true_labels_and_no_data_is_clear() -> None:
    truth = np.zeros((1, SIDE, SIDE), np.uint8)
    truth[0, :8], truth[0, 15] = 1, 255
    probability = np.zeros((1, SIDE, SIDE), np.float32)
    probability[0, 4:10], probability[0, 4] = 0.5, np.nan
    maps: dict[Labels, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {labels: probability for labels in LABELS}
    found = _tally(Round(("a",), truth, {}, (), (), maps), probability)
    assert found.totals[0].tolist() == [3 * SIDE, 2 * SIDE, 5 * SIDE, 5 * SIDE]


def test_reviewer_looks_at_as_many_tiles_as_are_wrong_and_at_those_that_contradict_their_labels() -> None:
    truth = np.zeros((20, SIDE, SIDE), np.uint8)
    truth[:, :8] = 1
    probability = np.where(truth == 1, np.float32(0.95), np.float32(0.05))
    corrupted = {i: Corrupted("full", np.ones((SIDE, SIDE), np.uint8)) for i in (3, 17)}
    places = tuple(f"place{i % 4}" for i in range(20))
    found = most_suspicious(Predicted(places, truth, corrupted, probability, 0 * probability))
    assert sorted(found) == [3, 17]
