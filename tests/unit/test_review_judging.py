"""Labels are judged: each kind of error is found and named, and nothing else makes a label suspicious."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raytrain.review.calibration import BINS, Calibration, Thresholds, label_histogram
from raytrain.review.features import Features, features_of
from raytrain.review.kinds import ERROR_KINDS
from raytrain.review.ranking import FEATURE_NAMES, RANKING_SCHEMA
from raytrain.review.suspicion import Judgement, judge
from tests.bench.ranking_scores import Ranked, measures
from tests.bench.review_ranking import METHODS, outcome, tables
from tests.bench.review_tiles import Predicted
from tests.corruption import CORRUPTIONS, KIND_OF, LEAST_CHANGED_FRACTION, Corruption, corrupt, corrupt_some

SIZE_PX = 96
Label = NDArray[np.uint8]
Probability = NDArray[np.float32]


def field(random: np.random.Generator, smooth_px: float) -> Probability:
    """Return smooth noise of mean 0 and standard deviation 1."""
    noise = cv2.GaussianBlur(random.standard_normal((2 * SIZE_PX, 2 * SIZE_PX)), (0, 0), smooth_px)
    noise = noise[SIZE_PX // 2 : -SIZE_PX // 2, SIZE_PX // 2 : -SIZE_PX // 2]
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def make(seed: int, sharpness: float = 12.0) -> tuple[Label, Probability]:
    """Return a label with some clouds, and what a model with some noise makes of it."""
    random = np.random.default_rng(seed)
    clouds = field(random, SIZE_PX / 10) - 0.7
    noisy = clouds * sharpness + field(random, 2)
    return (clouds > 0).astype(np.uint8), (1 / (1 + np.exp(-noisy))).astype(np.float32)


@dataclass
class Tiles:
    """Tiles to judge; `disagreement` is the same everywhere."""

    labels: list[Label]
    probabilities: list[Probability]
    locations: list[str]
    disagreement: float = 0.02

    def features(self) -> list[Features]:
        histograms = np.stack(list(map(label_histogram, self.labels, self.probabilities)))
        calibration = Calibration.of(self.locations, histograms)
        thresholds = map(calibration.thresholds, self.locations, histograms)
        spread = np.full((SIZE_PX, SIZE_PX), self.disagreement, np.float32)
        spreads = [spread] * len(self.labels)
        return list(map(features_of, self.labels, self.probabilities, spreads, thresholds))

    def judged(self) -> list[Judgement]:
        return judge(self.features(), self.locations)


def make_tiles(count: int = 24, places: int = 4) -> Tiles:
    pairs = [make(seed) for seed in range(count)]
    return Tiles([label for label, _ in pairs], [p for _, p in pairs], [f"place{i % places}" for i in range(count)])


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_label_made_wrong_is_more_suspicious_than_all_others_and_its_error_is_named(corruption: Corruption) -> None:
    tiles = make_tiles()
    random = np.random.default_rng(3)
    wrong = {i: corrupt(tiles.labels, i, corruption, random) for i in range(len(tiles.labels))}
    i, label = next((i, label) for i, label in wrong.items() if label is not None)
    tiles.labels[i] = label
    judgements = tiles.judged()
    others = [each.suspicion for j, each in enumerate(judgements) if j != i]
    assert judgements[i].suspicion > max(others)
    assert judgements[i].kind == KIND_OF[corruption]
    assert judgements[i].suspicion == judgements[i].of_kind[judgements[i].kind]


def test_shift_is_measured_as_far_as_the_label_was_moved() -> None:
    tiles = make_tiles()
    tiles.labels[0] = np.roll(tiles.labels[0], (6, -4), (0, 1))
    features = tiles.features()[0]
    assert (features.shift_row_px, features.shift_column_px) == pytest.approx((6, -4), abs=1)


@pytest.mark.parametrize("radius_px", [-3, 3])
def test_outline_is_measured_as_far_as_the_label_grew(radius_px: int) -> None:
    tiles = make_tiles()
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    change = cv2.dilate if radius_px > 0 else cv2.erode
    tiles.labels[0] = np.asarray(change(tiles.labels[0], disc))
    assert tiles.features()[0].outline_px == pytest.approx(radius_px, abs=1)


def test_judgement_of_a_tile_does_not_depend_on_the_order_of_tiles() -> None:
    tiles = make_tiles()
    tiles.labels[5] = 1 - tiles.labels[5]
    order = np.random.default_rng(0).permutation(len(tiles.labels))
    shuffled = Tiles(*([some[i] for i in order] for some in (tiles.labels, tiles.probabilities, tiles.locations)))
    expected = tiles.judged()
    assert shuffled.judged() == [expected[i] for i in order]


def test_ignored_pixels_and_those_without_data_count_nowhere() -> None:
    tiles = make_tiles()
    for i in range(len(tiles.labels)):
        tiles.labels[i][:20] = 255
        tiles.probabilities[i][:, :15] = np.nan
    expected = tiles.judged()
    for i in range(len(tiles.labels)):
        tiles.probabilities[i][:20, 15:] = 1 - tiles.probabilities[i][:20, 15:]
        tiles.labels[i][20:, :15] = 1 - tiles.labels[i][20:, :15]
    assert tiles.judged() == expected


def test_tile_of_which_nothing_is_known_is_an_error() -> None:
    label = np.full((SIZE_PX, SIZE_PX), 255, np.uint8)
    with pytest.raises(ValueError, match="no pixel has both"):
        features_of(label, make(0)[1], None, uninformed())


def test_clean_label_is_not_suspicious_where_the_model_is_honestly_uncertain() -> None:
    tiles = make_tiles()
    random = np.random.default_rng(8)
    # Half of what is predicted at 1/2 is cloud: whatever the label says there, nothing is said against it.
    uncertain = range(0, len(tiles.labels), 4)
    for i in uncertain:
        tiles.probabilities[i] = (0.5 + 0.02 * field(random, 3)).astype(np.float32)
        tiles.labels[i] = (field(random, 8) > 0).astype(np.uint8)
    assert max(each.iou for each in np.array(tiles.features(), object)[list(uncertain)]) < 0.6
    tiles.labels[1] = np.zeros_like(tiles.labels[1])
    judgements = tiles.judged()
    assert max(judgements[i].suspicion for i in uncertain) < 0.2
    assert judgements[1].suspicion > 0.5


def test_location_where_the_model_is_biased_is_not_suspicious_but_such_a_tile_elsewhere_is() -> None:
    tiles = make_tiles(48, 8)
    snow = (slice(0, SIZE_PX // 3), slice(None))
    biased = [i for i, location in enumerate(tiles.locations) if location == "place1"]
    for i in [*biased, 0]:
        tiles.probabilities[i][snow] = 0.999
        tiles.labels[i][snow] = 0
    judgements = tiles.judged()
    assert max(judgements[i].suspicion for i in biased) < judgements[0].suspicion / 2


def test_members_that_disagree_make_a_label_less_suspicious() -> None:
    tiles = make_tiles()
    tiles.labels[0] = np.zeros_like(tiles.labels[0])
    sure = tiles.judged()[0].suspicion
    tiles.disagreement = 0.3
    assert tiles.judged()[0].suspicion < sure


def test_suspicion_of_a_kind_is_at_most_that_of_any() -> None:
    for each in make_tiles().judged():
        assert set(each.of_kind) == set(ERROR_KINDS)
        assert max(each.of_kind.values()) <= each.suspicion


def test_nothing_to_judge_is_no_error_and_unequal_lengths_are() -> None:
    assert judge([], []) == []
    with pytest.raises(ValueError, match="0 features, but 1 locations"):
        judge([], ["a"])


def test_ranking_has_a_column_for_each_feature_and_kind() -> None:
    assert tuple(asdict(make_tiles(2, 1).features()[0])) == FEATURE_NAMES
    names = RANKING_SCHEMA.names
    assert {*FEATURE_NAMES, *(f"suspicion_{kind}" for kind in ERROR_KINDS)} <= set(names)
    assert len(names) == len(set(names))


def test_histogram_counts_what_is_known_by_label_and_bin() -> None:
    label = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
    probability = np.array([[0.0, 1.0, 0.5], [0.5, np.nan, 0.0]], np.float32)
    expected = np.zeros((2, BINS), np.int64)
    expected[0, 0], expected[1, BINS - 1], expected[1, BINS // 2] = 2, 1, 1
    np.testing.assert_array_equal(label_histogram(label, probability), expected)


def test_thresholds_are_those_of_confident_learning_without_the_tile_itself() -> None:
    label = np.array([[0, 0, 1, 1]], np.uint8)
    tiles = [label_histogram(label, np.array([[0.1, 0.1, 0.8, 0.9]], np.float32)) * 10_000 for _ in range(9)]
    own = label_histogram(label, np.array([[0.4, 0.4, 0.4, 0.4]], np.float32)) * 10_000
    for histograms in ([*tiles, own], [own, *tiles]):
        found = Calibration.of(["a"] * 10, np.stack(histograms)).thresholds("a", own)
        assert (found.clear, found.cloud) == pytest.approx((0.9, 0.85), abs=1 / BINS)


def test_location_with_few_pixels_is_taken_for_what_all_are() -> None:
    odd = label_histogram(np.zeros((SIZE_PX, SIZE_PX), np.uint8), np.full((SIZE_PX, SIZE_PX), 0.99, np.float32))
    usual = [label_histogram(*make(seed)) for seed in range(1, 20)]
    unknown = np.zeros_like(odd)
    few = Calibration.of([*"a" * 19, "odd"], np.stack([*usual, odd // 100])).thresholds("odd", unknown)
    many = Calibration.of([*"a" * 19, *"b" * 60], np.stack([*usual, *[odd] * 60])).thresholds("b", unknown)
    assert few.log_odds[-1] > 2
    assert many.log_odds[-1] < 0


def uninformed() -> Thresholds:
    """Return thresholds of a model that is what it says."""
    middles = (np.arange(BINS) + 0.5) / BINS
    return Thresholds(0.5, 0.5, np.log(middles / (1 - middles)).astype(np.float32))


@st.composite
def drawn_tiles(draw: st.DrawFn) -> tuple[Label, Probability]:
    shape = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    label = random.choice(np.array([0, 1, 255], np.uint8), shape, p=draw(st.sampled_from(SHARES)))
    probability = random.random(shape).astype(np.float32) ** draw(st.sampled_from([0, 0.2, 1, 5]))
    probability[random.random(shape) < draw(st.sampled_from([0, 0.5]))] = np.nan
    return label, np.asarray(probability, np.float32)


SHARES: Sequence[tuple[float, float, float]] = ((1, 0, 0), (0, 1, 0), (0.4, 0.4, 0.2), (0.9, 0.05, 0.05))


@settings(deadline=None, max_examples=60)
@given(st.lists(drawn_tiles(), min_size=1, max_size=4))
def test_all_numbers_of_any_tiles_are_in_their_ranges(tiles: list[tuple[Label, Probability]]) -> None:
    known = [tile for tile in tiles if label_histogram(*tile).sum()]
    locations = [f"place{i % 2}" for i in range(len(known))]
    if not known:
        return
    histograms = np.stack([label_histogram(*tile) for tile in known])
    calibration = Calibration.of(locations, histograms)
    features = []
    for (label, probability), location, own in zip(known, locations, histograms, strict=True):
        thresholds = calibration.thresholds(location, own)
        assert 0 <= thresholds.clear <= 1
        assert 0 <= thresholds.cloud <= 1
        assert (np.diff(thresholds.log_odds) >= 0).all()
        features.append(features_of(label, probability, None, thresholds))
    for each in features:
        values = asdict(each)
        assert all(np.isfinite(value) for name, value in values.items() if name != "boundary_px")
        assert all(0 <= value <= 1 for name, value in values.items() if name.endswith("_fraction") or name == "iou")
        assert all(value >= 0 for name, value in values.items() if name.endswith("_gain"))
        assert -1 <= each.association <= 1
    for judgement in judge(features, locations):
        assert all(0 <= value <= judgement.suspicion <= 1 for value in judgement.of_kind.values())


def test_known_tenth_is_made_wrong_in_equal_shares_and_really() -> None:
    labels = [make(seed)[0] for seed in range(80)]
    for label in labels:
        label[:3] = 255
    found = corrupt_some(labels, 0.2, seed=5)
    kinds = [each.corruption for each in found.values()]
    assert len(found) == 16
    assert {kinds.count(corruption) for corruption in CORRUPTIONS} == {2}
    for i, each in found.items():
        known = labels[i] != 255
        np.testing.assert_array_equal(each.label == 255, ~known)
        assert (each.label != labels[i])[known].mean() >= LEAST_CHANGED_FRACTION
    again = corrupt_some(labels, 0.2, seed=5)
    assert list(again) == list(found)
    assert all(np.array_equal(again[i].label, found[i].label) for i in found)
    assert set(corrupt_some(labels, 0.2, seed=6)) != set(found)


def test_bench_finds_wrong_labels_first_and_tells_a_good_ranking_from_poor_ones() -> None:
    pairs = [make(seed, sharpness=6.0) for seed in range(60)]
    truth = np.stack([label for label, _ in pairs])
    probability = np.stack([p for _, p in pairs])
    # Half of the places have snow that is taken for cloud: what a plain comparison stumbles over.
    probability[::2, :32] = np.maximum(probability[::2, :32], 0.9)
    locations = tuple(f"place{i % 6}" for i in range(len(truth)))
    outcomes = []
    for seed in (0, 1):
        corrupted = corrupt_some(list(truth), 0.2, seed)
        outcomes.append(outcome(Predicted(locations, truth, corrupted, probability, 0 * probability), seed))
    found = {each.title.split(": ")[-1]: each for each in tables("generated", outcomes)}
    of_all = {row[0]: float(row[1].split()[0]) for row in found["average precision"].rows}
    assert list(of_all) == list(METHODS)
    assert of_all["raytrain"] > 0.9
    assert of_all["raytrain"] == max(of_all.values())
    assert of_all["low IoU"] < of_all["raytrain"] - 0.3
    assert of_all["random"] < of_all["differing pixels"] < of_all["raytrain"]
    assert of_all["random"] < 0.4
    differences = {row[0]: float(row[1].split()[0]) for row in found["average precision, raytrain less the other"].rows}
    assert differences == {name: pytest.approx(of_all["raytrain"] - of_all[name], abs=2e-3) for name in METHODS[1:]}
    right = {row[0]: int(row[-1].rstrip("%")) for row in found["the kind that is named"].rows}
    assert min(right[corruption] for corruption in ("empty", "full", "shift")) >= 75


def test_one_false_pixel_of_a_clear_label_is_all_of_its_iou_and_little_of_its_pixels() -> None:
    truth = np.zeros((4, 16, 16), np.uint8)
    truth[1:, :8] = 1
    probability = np.where(truth == 1, np.float32(0.9), np.float32(0.1))
    probability[0, 0, 0], probability[0, 1], truth[0, 2] = 0.9, np.nan, 255
    found = outcome(Predicted(("a", "a", "b", "b"), truth, {}, probability, 0 * probability), seed=0).scores
    assert found["low IoU"].tolist() == [0, -1, -1, -1]
    assert found["differing pixels"].tolist() == [1 / (14 * 16), 0, 0, 0]


def test_measures_are_those_of_the_definition_also_among_ties_and_with_places_drawn_twice() -> None:
    random = np.random.default_rng(0)
    scores, is_wrong = random.integers(0, 6, 40) / 5, random.random(40) < 0.3
    places = random.integers(0, 5, 40)
    weights = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 1, 1]], np.float64)
    found = np.stack(measures(Ranked(scores, is_wrong, places), weights))
    for row, each in enumerate(weights):
        items = np.repeat(np.arange(40), each[places].astype(int))
        np.testing.assert_allclose(found[:, row], reference(scores[items], is_wrong[items]))


def reference(scores: NDArray[np.float64], is_wrong: NDArray[np.bool_]) -> tuple[float, float]:
    steps, recall = 0.0, 0.0
    for score in sorted(set(scores.tolist()), reverse=True):
        above = scores >= score
        now = float(is_wrong[above].sum() / is_wrong.sum())
        steps, recall = steps + (now - recall) * float(is_wrong[above].mean()), now
    pairs = scores[is_wrong][:, None] - scores[~is_wrong][None]
    return steps, float(((pairs > 0) + 0.5 * (pairs == 0)).mean())
