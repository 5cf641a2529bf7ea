"""What the program on the review loop makes of counts: the share of a loss that came back, and its intervals."""

from __future__ import annotations

import numpy as np
import pytest

from raytrain.evaluation.tally import Tally
from tests.bench.review_loop import Share, _tally, share_of, share_rows, tables_of
from tests.bench.review_round import LABELS, Labels, Round, most_suspicious
from tests.bench.review_tiles import Predicted
from tests.corruption import Corrupted

PLACES = 20
SIDE = 16


def tallies(
    gains: dict[Labels, float], seeds: int = 4, noise: float = 0.0, of_seeds: float = 0.0, draw: int = 0
) -> dict[Labels, dict[int, Tally]]:
    """Return tallies of one tile a place: an IoU of 0.6, what these labels add, and noise of each and of each seed."""
    random = np.random.default_rng(draw)
    found: dict[Labels, dict[int, Tally]] = {}
    for labels in LABELS:
        found[labels] = {}
        for seed in range(seeds):
            ious = 0.6 + gains[labels] + random.normal(0, of_seeds) + random.normal(0, noise, PLACES)
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
    assert 0 < widths[0] < widths[1] < 2


def test_intervals_over_three_seeds_hold_the_share_as_often_as_they_say() -> None:
    held, held_over_places = [], []
    for draw in range(80):
        gains: dict[Labels, float] = {"before": 0.0, "after": 0.024, "perfect": 0.04}
        found = share_of(tallies(gains, seeds=3, noise=0.005, of_seeds=0.008, draw=draw), resamples=100)
        held.append(found.over_places_and_seeds[0] <= 0.6 <= found.over_places_and_seeds[1])
        held_over_places.append(found.over_places[0] <= 0.6 <= found.over_places[1])
    assert np.mean(held) >= 0.9
    assert np.mean(held_over_places) < 0.5, "places alone say nothing of seeds"


@pytest.mark.parametrize(("after", "perfect"), [(0.1, 0.0), (-0.08, -0.1), (0.02, -0.01)])
def test_without_a_loss_there_is_no_share(after: float, perfect: float) -> None:
    found = share({"before": 0.0, "after": after, "perfect": perfect})
    assert np.isnan([found.value, *found.over_places, *found.over_places_and_seeds]).all()


def test_where_resamples_have_no_loss_there_is_no_interval() -> None:
    found = share({"before": 0.0, "after": 0.001, "perfect": 0.002}, noise=0.1)
    assert np.isnan([*found.over_places, *found.over_places_and_seeds]).all()


def test_no_share_is_told_of_a_loss_that_is_not_shown() -> None:
    some = tallies({"before": 0.0, "after": 0.05, "perfect": 0.1})
    assert [row[1] for row in share_rows(some, "no difference shown")] == ["none: no loss is shown"]
    assert [row[1] for row in share_rows(some, "helped")] == ["50%", "50% to 50%", "50% to 50%"]


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


def test_tables_tell_the_scores_and_the_share_where_a_loss_is_shown() -> None:
    truth = np.zeros((8, SIDE, SIDE), np.uint8)
    truth[:, :8] = 1
    rounds = {}
    for seed in range(3):
        random = np.random.default_rng(seed)
        maps: dict[Labels, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
        for labels, fraction in (("before", 0.2), ("after", 0.1), ("perfect", 0.02)):
            wrong = random.random(truth.shape) < fraction
            maps[labels] = np.where(wrong, 1 - truth, truth).astype(np.float32)
        corrupted = {0: Corrupted("empty", np.zeros((SIDE, SIDE), np.uint8))}
        rounds[seed] = Round(tuple(f"place{i}" for i in range(8)), truth, corrupted, (0,), (0,), maps)
    scores, seeds, kinds = tables_of("generated", rounds)
    found = {row[0]: row[1:] for row in scores.rows}
    assert found["all true less a tenth wrong"][2] == "helped"
    assert 30 < int(found["share of the loss that came back"][0].rstrip("%")) < 80
    means = [np.mean([float(row[3 + i]) for row in seeds.rows]) for i in range(3)]
    ious = [float(found[words][0]) for words in ("a tenth wrong", "repaired", "all true")]
    assert ious == pytest.approx(means, abs=1e-4)
    assert kinds.rows == [["empty", "3", "3", "100%"]]
