"""The four IoUs against brute force, and the rules at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from raytrain.config import EmptyUnionRule
from raytrain.training.metrics import count_pixels, extreme_tiles, scores

RULES: list[tuple[EmptyUnionRule, float]] = [("one", 1.0), ("zero", 0.0)]


def random_mask(draw: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.uint8]:
    return draw.choice(np.array([0, 1, 255], np.uint8), shape, p=[0.5, 0.4, 0.1])


def count_by_hand(prediction: NDArray[np.uint8], label: NDArray[np.uint8]) -> tuple[int, int]:
    intersection = union = 0
    for predicted, labelled in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
        if labelled == 255:
            continue
        intersection += predicted == 1 and labelled == 1
        union += predicted == 1 or labelled == 1
    return intersection, union


@pytest.mark.parametrize("seed", range(5))
def test_counts_equal_a_loop_over_pixels(seed: int) -> None:
    draw = np.random.default_rng(seed)
    shape = (int(draw.integers(1, 40)), int(draw.integers(1, 40)))
    prediction, label = random_mask(draw, shape), random_mask(draw, shape)
    assert count_pixels(prediction, label) == count_by_hand(prediction, label)


def test_ignored_pixels_count_nowhere() -> None:
    prediction = np.array([[1, 1, 0]], np.uint8)
    label = np.array([[255, 1, 255]], np.uint8)
    assert count_pixels(prediction, label) == (1, 1)


def test_a_prediction_without_data_counts_as_clear() -> None:
    label = np.array([[1, 0, 1]], np.uint8)
    assert count_pixels(np.array([[255, 255, 1]], np.uint8), label) == (1, 2)
    assert count_pixels(np.array([[0, 0, 1]], np.uint8), label) == (1, 2)


@pytest.mark.parametrize(("rule", "empty"), RULES)
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_brute_force_on_random_counts(seed: int, rule: EmptyUnionRule, empty: float) -> None:
    draw = np.random.default_rng(seed)
    num_chips = int(draw.integers(1, 30))
    unions = draw.integers(0, 6, num_chips).tolist()
    intersections = [int(draw.integers(0, union + 1)) for union in unions]
    places = draw.choice(["Lodwar", "Jinja", "Launceston"], num_chips).tolist()

    def iou(chips: list[int]) -> float:
        union = sum(unions[chip] for chip in chips)
        return sum(intersections[chip] for chip in chips) / union if union else empty

    groups = [[chip for chip in range(num_chips) if places[chip] == name] for name in sorted(set(places))]
    means = [sum(iou([chip]) for chip in group) / len(group) for group in groups]
    found = scores(intersections, unions, places, rule)
    assert found.iou_pooled == pytest.approx(iou(list(range(num_chips))))
    assert found.iou_mean == pytest.approx(sum(iou([chip]) for chip in range(num_chips)) / num_chips)
    assert found.iou_location_weighted == pytest.approx(sum(iou(group) for group in groups) / len(groups))
    assert found.iou_mean_location_weighted == pytest.approx(sum(means) / len(groups))
    assert [found.locations[name].num_chips for name in sorted(set(places))] == [len(group) for group in groups]
    assert [found.locations[name].iou for name in sorted(set(places))] == pytest.approx([iou(each) for each in groups])
    assert [found.locations[name].iou_mean for name in sorted(set(places))] == pytest.approx(means)


def test_the_four_ious_weigh_pixels_chips_and_locations_differently() -> None:
    # Jinja: a large chip found well and a small one missed; Lodwar: one small chip, half found.
    found = scores([900, 0, 5], [1000, 10, 10], ["Jinja", "Jinja", "Lodwar"], "one")
    assert found.iou_pooled == pytest.approx(905 / 1020)
    assert found.iou_mean == pytest.approx((0.9 + 0.0 + 0.5) / 3)
    assert found.iou_location_weighted == pytest.approx((900 / 1010 + 0.5) / 2)
    assert found.iou_mean_location_weighted == pytest.approx(((0.9 + 0.0) / 2 + 0.5) / 2)


@pytest.mark.parametrize(("rule", "empty"), RULES)
def test_an_empty_union_counts_by_the_rule_and_the_rule_is_named(rule: EmptyUnionRule, empty: float) -> None:
    found = scores([0, 4], [0, 8], ["Lodwar", "Jinja"], rule)
    assert found.empty_union_rule == rule
    assert found.locations["Lodwar"].iou == empty
    assert found.iou_mean == found.iou_location_weighted == (empty + 0.5) / 2
    assert found.iou_pooled == 0.5
    assert scores([0], [0], ["Lodwar"], rule).iou_pooled == empty


def test_scores_do_not_depend_on_the_order_of_chips() -> None:
    draw = np.random.default_rng(0)
    unions = draw.integers(0, 2**40, 50)
    intersections = draw.integers(0, unions + 1)
    places = draw.choice(["a", "b", "c"], 50)
    order = draw.permutation(50)
    one = scores(intersections.tolist(), unions.tolist(), places.tolist(), "one")
    other = scores(intersections[order].tolist(), unions[order].tolist(), places[order].tolist(), "one")
    assert one.locations.keys() == other.locations.keys()
    assert one.iou_pooled == other.iou_pooled
    assert one.iou_location_weighted == other.iou_location_weighted
    assert one.iou_mean == pytest.approx(other.iou_mean, abs=1e-12)


def test_no_chips_is_an_error_and_not_a_score() -> None:
    with pytest.raises(ValueError, match="no chips"):
        scores([], [], [], "one")


def test_extreme_tiles_are_the_worst_the_median_and_the_best_and_none_is_there_twice() -> None:
    ids = [f"t{i:02d}" for i in range(12)]
    found = extreme_tiles(ids[::-1], [i for i in range(11, -1, -1)], [0, *[100] * 11])
    assert [(tile.tile_id, tile.group) for tile in found] == [
        *((f"t0{i}", "worst") for i in range(3)),
        *((f"t0{i}", "median") for i in (4, 5, 6)),
        ("t08", "best"),
        ("t09", "best"),
        ("t10", "best"),
    ], "t11 has no cloud and none was predicted"
    assert [tile.iou for tile in found] == sorted(tile.iou for tile in found)
    for count in range(10):
        few = extreme_tiles(ids[:count], range(count), [50] * count)
        assert [tile.tile_id for tile in few] == ids[:count]
        assert not count or few[0].group == "worst"
    assert [each.group for each in extreme_tiles(ids[:3], [0, 1, 2], [5, 5, 5])] == ["worst", "median", "best"]
