"""Scores of counted pairs against brute force, intervals, slices, curves, members, comparison, and what is written."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from raytrain.config import EmptyUnionRule
from raytrain.errors import ConfigError
from raytrain.evaluation import maps, scores, slices, tables
from raytrain.evaluation.counting import EDGES, NUM_BINS, Truth
from raytrain.evaluation.evaluation import evaluation_of
from raytrain.evaluation.intervals import trust_text
from raytrain.evaluation.oddities import Oddity, not_allowed
from raytrain.evaluation.page import Plot, Shown, Table
from raytrain.evaluation.report import evaluation_page
from raytrain.evaluation.resampling import Difference, Ratio, intervals
from raytrain.evaluation.results import METRICS_NAME, Evaluation, Inputs, write_metrics
from raytrain.evaluation.tally import Summed, Tally, joined

INPUTS = Inputs(predictions="s3://a/masks", labels="s3://a/labels", metadata="s3://a/m.csv", where=("split=test",))
MEMBERS = ("m1", "m2", "m3")
SHAPE = (24, 30)


class Chips:
    """Random masks, maps and labels of some chips, and the tally of them."""

    def __init__(self, count: int, places: int, seed: int = 0, quality: float = 1.0) -> None:
        draw = np.random.default_rng(seed)
        self.ids = [f"c{i:03d}" for i in range(count)]
        self.locations = [f"place {draw.integers(places)}" for _ in range(count)]
        self.labels = [self._label(draw, i) for i in range(count)]
        self.maps: list[list[NDArray[np.float32]]] = []
        for label in self.labels:
            cloud = (label == 1).astype(np.float32)
            noise = [draw.normal(0, 0.4 / quality, SHAPE) for _ in MEMBERS]
            self.maps.append([np.clip(cloud * 0.8 + 0.1 + each, 0, 1).astype(np.float32) for each in noise])
        self.probabilities = [np.mean(each, 0, dtype=np.float64).astype(np.float32) for each in self.maps]
        self.predicted = [each >= np.float32(0.5) for each in self.probabilities]

    @staticmethod
    def _label(draw: np.random.Generator, i: int) -> NDArray[np.uint8]:
        if i % 7 == 0:
            return np.zeros(SHAPE, np.uint8)
        return draw.choice(np.array([0, 1, 255], np.uint8), SHAPE, p=[0.5, 0.4, 0.1])

    def tally(self) -> Tally:
        given = np.ones(SHAPE, np.bool_)
        parts = []
        for i, label in enumerate(self.labels):
            near = np.zeros(SHAPE, np.bool_)
            near[:, :10] = True
            truth = Truth.of(label, near)
            summed = Summed(
                truth.map_counts(self.probabilities[i], given), 1, truth.member_counts(self.maps[i], given, 0.5), 1
            )
            parts.append(
                Tally(
                    [self.ids[i]],
                    [self.locations[i]],
                    truth.confusion(self.predicted[i])[None],
                    np.zeros(1, np.int64),
                    {self.locations[i]: summed},
                )
            )
        return joined(parts)


@pytest.fixture(scope="module")
def chips() -> Chips:
    return Chips(40, 9)


def counted(predicted: list[NDArray[np.bool_]], labels: list[NDArray[np.uint8]]) -> tuple[int, int, int, int]:
    """Count all pixels of some chips, one after the other."""
    tp = fp = fn = tn = 0
    for says, label in zip(predicted, labels, strict=True):
        for p, t in zip(says.ravel().tolist(), label.ravel().tolist(), strict=True):
            tp += p and t == 1
            fp += p and t == 0
            fn += (not p) and t == 1
            tn += (not p) and t == 0
    return tp, fp, fn, tn


def iou(tp: int, fp: int, fn: int, tn: int) -> float:
    return tp / (tp + fp + fn) if tp + fp + fn else 1.0


def test_all_scores_are_those_of_brute_force(chips: Chips) -> None:
    found = scores.Scored(chips.tally(), "one").values
    tp, fp, fn, tn = counted(chips.predicted, chips.labels)
    single = [iou(*counted([p], [t])) for p, t in zip(chips.predicted, chips.labels, strict=True)]
    by_location, means = [], []
    for name in sorted(set(chips.locations)):
        of = [i for i, each in enumerate(chips.locations) if each == name]
        by_location.append(iou(*counted([chips.predicted[i] for i in of], [chips.labels[i] for i in of])))
        means.append(math.fsum(single[i] for i in of) / len(of))
    assert found["iou_pooled"] == tp / (tp + fp + fn)
    assert found["iou_mean"] == pytest.approx(math.fsum(single) / len(single), rel=1e-15)
    assert found["iou_location_weighted"] == pytest.approx(math.fsum(by_location) / len(by_location), rel=1e-15)
    assert found["iou_mean_location_weighted"] == pytest.approx(math.fsum(means) / len(means), rel=1e-15)
    assert found["precision"] == tp / (tp + fp)
    assert found["recall"] == tp / (tp + fn)
    assert found["f1"] == 2 * tp / (2 * tp + fp + fn)
    assert found["accuracy"] == (tp + tn) / (tp + fp + fn + tn)


def test_every_score_is_the_ratio_that_is_resampled(chips: Chips) -> None:
    scored = scores.Scored(chips.tally(), "one")
    assert set(scored.ratios) == set(scored.values) == set(scores.NAMES)
    for name, ratio in scored.ratios.items():
        assert ratio.value == pytest.approx(scored.values[name], rel=1e-12), name


def test_what_is_not_defined_is_none_and_an_empty_union_goes_by_the_rule() -> None:
    clear = np.zeros((2, 2, 4), np.int64)
    clear[:, 1, 3] = 100
    tally = Tally(["a", "b"], ["x", "y"], clear, np.zeros(2, np.int64))
    rules: tuple[tuple[EmptyUnionRule, float], ...] = (("one", 1.0), ("zero", 0.0))
    for rule, value in rules:
        found = scores.Scored(tally, rule).values
        assert [found[name] for name in scores.IOUS] == [value] * 4
        assert (found["precision"], found["recall"], found["f1"], found["accuracy"]) == (None, None, None, 1.0)


# Intervals


def test_intervals_are_seeded_and_narrow_with_more_locations() -> None:
    def widths(num_locations: int) -> float:
        draw = np.random.default_rng(1)
        below = draw.uniform(1, 5, num_locations)
        found = intervals([Ratio(below * draw.uniform(0.7, 1.0, num_locations), below)], seed=3)[0]
        assert found is not None
        assert found.low < found.value < found.high
        return found.high - found.low

    assert 1.6 < widths(20) / widths(80) < 2.6
    ratio = Ratio(np.arange(12.0) + 0.3, np.arange(12.0) ** 1.1 + 1)
    assert intervals([ratio], seed=1) == intervals([ratio], seed=1)
    assert intervals([ratio], seed=1) != intervals([ratio], seed=2)


def test_chunks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    ratio = Ratio(draw.uniform(0, 1, 30), np.ones(30))
    whole = intervals([ratio], seed=5, resamples=1000)
    monkeypatch.setattr("raytrain.evaluation.resampling._CELLS", 30 * 77)
    assert intervals([ratio], seed=5, resamples=1000) == whole


def test_where_locations_do_not_suffice_there_is_no_interval() -> None:
    assert intervals([Ratio.mean(np.array([0.7]))]) == [None]
    few = intervals([Ratio.mean(np.array([0.6, 0.601]))])[0]
    assert few is not None
    assert few.high - few.low > 0.008, "two locations say little"
    assert intervals([Ratio(np.zeros(9), np.zeros(9))]) == [None], "0 by 0 at every location"
    assert intervals([Ratio.mean(np.full(9, 0.75))]) == [None], "alike at every location"
    alike = np.full(30, 0.3) * np.arange(1, 31)
    assert intervals([Ratio(alike, np.arange(1.0, 31))]) == [None], "alike but for rounding"
    assert intervals([]) == []


def test_intervals_stay_where_scores_can_be() -> None:
    ratio = Ratio.mean(np.array([1.0, 1, 1, 0.99, 0.98, 0.2]))
    found = intervals([ratio, Difference(ratio, Ratio.mean(np.array([0.0, 0, 0, 0, 0.1, 0.9])))])
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].high == 1.0
    assert 0 <= found[0].low < found[0].value
    assert found[1].low >= -1
    assert found[1].high <= 1


def test_differences_are_in_pairs() -> None:
    """Two predictions that go up and down together are told apart, though either's interval holds the other's value."""
    draw = np.random.default_rng(2)
    level = draw.uniform(0.3, 1.0, 40)
    ours, theirs = Ratio.mean(level), Ratio.mean(level - 0.01 - draw.uniform(0, 0.01, 40))
    alone, paired = intervals([ours, Difference(ours, theirs)])
    assert alone is not None
    assert paired is not None
    assert alone.low < (theirs.value or 0) < alone.high
    assert 0 < paired.low < paired.value < paired.high < 0.03


def test_a_difference_has_the_outer_ends_of_both_ways() -> None:
    draw = np.random.default_rng(4)
    values = draw.exponential(0.02, 12) * (draw.random(12) < 0.4)
    difference = Difference(Ratio.mean(0.5 + values), Ratio.mean(np.full(12, 0.5)))
    resampled = values[np.random.default_rng(0).integers(0, 12, (10_000, 12))].mean(1)
    percentiles = np.quantile(resampled, [0.025, 0.975])
    (found,) = intervals([difference])
    (alone,) = intervals([Ratio.mean(values)])
    assert found is not None
    assert alone is not None
    assert found.low == pytest.approx(min(percentiles[0], found.low), abs=1e-3)
    assert found.low <= percentiles[0] + 1e-3
    assert found.high >= max(percentiles[1] - 1e-3, alone.high - 1e-9)


def test_few_locations_are_said() -> None:
    assert trust_text(20) == ""
    assert "fewer than 20 locations" in trust_text(19)
    assert "held the truth over 9 in 93%; over 20 in 94% of the draws" in trust_text(19)


# Comparison


@pytest.mark.parametrize(("quality", "words"), [(2.0, "worse"), (0.5, "better"), (1.0, "can't tell")])
def test_the_verdict_is_said_in_plain_words(chips: Chips, quality: float, words: str) -> None:
    ours, theirs = scores.Scored(chips.tally(), "one"), scores.Scored(Chips(40, 9, 0, quality).tally(), "one")
    found = scores.compare(ours, theirs, "s3://other", seed=0, resamples=2000)
    by_name = {each.name: each for each in found.scores}
    pooled = by_name["iou_pooled"]
    assert pooled.words == words
    assert pooled.difference == (ours.values["iou_pooled"] or 0) - (theirs.values["iou_pooled"] or 0)
    assert set(found.locations) == set(chips.locations)
    assert (found.num_chips, found.num_locations) == (40, len(set(chips.locations)))


# Slices


def tally_of(confusions: list[list[int]], locations: list[str]) -> Tally:
    both = np.zeros((len(confusions), 2, 4), np.int64)
    both[:, 0] = confusions
    return Tally([f"c{i}" for i in range(len(confusions))], locations, both, np.zeros(len(confusions), np.int64))


def test_slices_part_chips_by_cloud_month_and_columns(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("chip_id,location,sensor\nc0,x,S2\nc1,x,\nc2,y,L8\nc3,y,S2\nother,z,S3\n")
    second.write_text("chip_id,sensor,gsd_m\nc0,no,10\nc1,no,30\nc2,no,10\nc3,no,10\n")
    tally = tally_of([[0, 5, 0, 95], [3, 0, 2, 95], [50, 0, 0, 50], [95, 0, 0, 5]], ["x", "x", "y", "y"])
    read = slices.read_columns([str(first), str(second)], ["sensor", "gsd_m"])
    columns = slices.columns_of(tally, {"c0": "10", "c1": "02", "c2": "10"}, read)
    assert [(each.name, each.values) for each in columns] == [
        ("cloud_fraction", ["no cloud", "below 10 %", "50 to 90 %", "90 % and more"]),
        ("month", ["10", "02", "10", "not known"]),
        ("sensor", ["S2", "not known", "L8", "S2"]),
        ("gsd_m", ["10", "30", "10", "10"]),
    ]
    assert [each.order for each in columns[1:3]] == [["02", "10", "not known"], ["L8", "S2", "not known"]]
    found = slices.slice_results(tally, columns[2:3], "one")
    assert [(each.value, each.num_chips, each.num_locations) for each in found] == [
        ("L8", 1, 1),
        ("S2", 2, 2),
        ("not known", 1, 1),
    ]
    assert found[1].iou_pooled == 95 / 100
    assert found[1].iou_location_weighted == (0 + 1) / 2
    with pytest.raises(ConfigError, match="unknown column 'sensors'; known are chip_id, gsd_m, location, sensor"):
        slices.read_columns([str(first), str(second)], ["sensors"])


def test_columns_of_many_values_are_cut_into_quarters_or_refused() -> None:
    count = 40
    tally = tally_of([[1, 0, 0, 1]] * count, ["x"] * count)
    numbers = {f"c{i}": str(i / 2) for i in range(count - 1)}
    column = slices.columns_of(tally, {}, {"height": numbers})[1]
    assert len(column.order) == 5
    assert column.order[-1] == "not known"
    sizes = [column.values.count(value) for value in column.order]
    assert sizes[-1] == 1
    assert max(sizes[:-1]) - min(sizes[:-1]) <= 1
    dates = {f"c{i}": str(20200101 + i) for i in range(count)}
    column = slices.columns_of(tally, {}, {"date": dates})[1]
    assert column.order == [
        "below 20200111", "20200111 to below 20200120", "20200120 to below 20200130", "20200130 and more"
    ]  # fmt: skip
    assert [column.values.count(value) for value in column.order] == [10, 10, 10, 10]
    close = {f"c{i}": repr(0.5 + i * 1e-9) for i in range(count)}
    assert len(set(slices.columns_of(tally, {}, {"close": close})[1].order)) == 4
    words = {f"c{i}": f"scene {i}" for i in range(count)}
    with pytest.raises(ConfigError, match="column 'scene' has 40 different values, which are no numbers"):
        slices.columns_of(tally, {}, {"scene": words})
    with pytest.raises(ConfigError, match="column 'scene' has 40 different values"):
        slices.read_parts(tally.chip_ids, {"scene": words})


def test_values_stand_in_the_order_of_numbers_then_of_texts() -> None:
    ordered = ["-10", "-2.5", "0.9", "1.25", "1.5", "10", "scene 2", "scene 10", slices.UNKNOWN]
    tally = tally_of([[1, 0, 0, 1]] * len(ordered), ["x"] * len(ordered))
    by_chip = {f"c{i}": value for i, value in enumerate(ordered[::-1])}
    assert slices.columns_of(tally, {}, {"height": by_chip})[1].order == ordered


def test_a_column_of_the_metadata_takes_the_place_of_ours_of_its_name() -> None:
    tally = tally_of([[1, 0, 0, 1]] * 2, ["x", "y"])
    read = {"month": {"c0": "May", "c1": "June"}, "cloud_fraction": {"c0": "much", "c1": "some"}}
    found = slices.columns_of(tally, {"c0": "05", "c1": "06"}, read)
    assert [(each.name, each.values) for each in found] == [
        ("month", ["May", "June"]),
        ("cloud_fraction", ["much", "some"]),
    ]


# Maps


def test_the_curve_has_the_scores_at_every_threshold(chips: Chips) -> None:
    curve = maps.threshold_curve(chips.tally(), "one")
    assert curve is not None
    assert [each.threshold for each in curve] == [k / NUM_BINS for k in range(1, NUM_BINS)]
    for point in (curve[9], curve[49], curve[80]):
        limit = EDGES[round(point.threshold * NUM_BINS)]
        predicted = [each >= limit for each in chips.probabilities]
        tp, fp, fn, tn = counted(predicted, chips.labels)
        assert (point.iou_pooled, point.precision) == (iou(tp, fp, fn, tn), tp / (tp + fp))
        assert (point.recall, point.f1) == (tp / (tp + fn), 2 * tp / (2 * tp + fp + fn))
        each = scores.Scored(
            joined([Tally([i], [p], Truth.of(t, np.zeros(SHAPE, np.bool_)).confusion(s)[None], np.zeros(1, np.int64))
                    for i, p, t, s in zip(chips.ids, chips.locations, chips.labels, predicted, strict=True)]),
            "one",
        )  # fmt: skip
        assert point.iou_location_weighted == pytest.approx(each.ious.iou_location_weighted, rel=1e-15)
    assert curve[49].iou_pooled == scores.Scored(chips.tally(), "one").values["iou_pooled"]


def test_calibration_is_that_of_brute_force(chips: Chips) -> None:
    found = maps.calibration(chips.tally())
    assert found is not None
    probabilities = np.concatenate([p[t != 255] for p, t in zip(chips.probabilities, chips.labels, strict=True)])
    cloud = np.concatenate([t[t != 255] == 1 for t in chips.labels])
    error = 0.0
    for i, each in enumerate(found.bins):
        inside = (probabilities >= EDGES[10 * i]) & ((probabilities < EDGES[10 * i + 10]) | (i == 9))
        assert each.num_px == int(inside.sum())
        if each.num_px:
            assert each.mean_probability == pytest.approx(probabilities[inside].mean(dtype=np.float64), rel=1e-12)
            assert each.cloud_fraction == cloud[inside].sum() / each.num_px
            gap = probabilities[inside].mean(dtype=np.float64) - cloud[inside].mean()
            error += abs(gap) * each.num_px / len(cloud)
    assert found.expected_calibration_error == pytest.approx(error, rel=1e-9)
    assert (found.num_px, found.num_chips) == (len(cloud), 40)


def test_members_are_scored_alone_and_left_out(chips: Chips) -> None:
    found = maps.member_results(chips.tally(), MEMBERS, "one", seed=0, resamples=500)
    assert found is not None
    for i, member in enumerate(found.members):
        alone = [each[i] >= np.float32(0.5) for each in chips.maps]
        others = [np.mean([m for j, m in enumerate(each) if j != i], 0, dtype=np.float64) >= 0.5 for each in chips.maps]
        assert member.iou_pooled == iou(*counted(alone, chips.labels))
        assert member.without_iou_pooled == iou(*counted(others, chips.labels))
        assert member.adds == found.together_iou_location_weighted - member.without_iou_location_weighted
        assert member.adds_interval is not None
        assert member.adds_interval.low <= member.adds <= member.adds_interval.high
    valid = sum(int((label != 255).sum()) for label in chips.labels)
    assert sum(each.num_px for each in found.votes) == valid
    one, other = (
        np.concatenate([(m[i] >= np.float32(0.5))[t != 255] for m, t in zip(chips.maps, chips.labels, strict=True)])
        for i in (0, 1)
    )
    assert found.differ_fraction[0][1] == float((one != other).sum()) / valid
    assert found.unanimous_fraction == (found.votes[0].num_px + found.votes[3].num_px) / valid


# What is drawn and written


@pytest.mark.parametrize("decided_at", [None, 0.37])
def test_the_line_over_the_curve_is_the_threshold_that_made_the_masks(chips: Chips, decided_at: float | None) -> None:
    made = an_evaluation(chips)[0].model_copy(update={"decided_at": decided_at})
    page = evaluation_page(made, "Scores")
    (curve,) = [each for each in page.parts if isinstance(each, Plot) and each.heading == "Scores by threshold"]
    assert ("the threshold in use, 0.37" in curve.caption) == (decided_at is not None)
    assert "the threshold in use" not in curve.caption or decided_at is not None
    assert dict(page.facts)["Threshold"] == ("as the masks are" if decided_at is None else "0.37")
    without = evaluation_page(made.model_copy(update={"decided_at": None}), "Scores")
    assert (without.parts == page.parts) == (decided_at is None), "the drawing has the line"


def test_a_table_of_the_page_has_intervals_that_sort_and_a_dash_for_none(chips: Chips) -> None:
    evaluation = an_evaluation(chips)[0]
    assert evaluation.comparison is not None
    page = evaluation_page(evaluation, "Scores")
    (scored,) = [each for each in page.parts if isinstance(each, Table) and each.heading == "All scores"]
    assert all(isinstance(row[2], Shown) and row[2].text.startswith(f"{row[2].number:.4f} to ") for row in scored.rows)
    (located,) = [each for each in page.parts if isinstance(each, Table) and each.heading.startswith("Locations")]
    assert [row[2].number for row in located.rows if isinstance(row[2], Shown)] == [
        evaluation.comparison.locations[str(row[0])] for row in located.rows
    ]


def an_evaluation(chips: Chips, oddities: tuple[Oddity, ...] = ()) -> tuple[Evaluation, Tally, list[slices.Column]]:
    tally = chips.tally()
    columns = slices.columns_of(tally, {}, {})
    inputs = INPUTS.model_copy(update={"against": "s3://other"})
    tallies = [tally, Chips(40, 9, 0, 2.0).tally()]
    made = evaluation_of(tallies, columns, inputs, oddities, rule="one", members=MEMBERS, seed=0, resamples=500)
    return made, tally, columns


def test_metrics_json_has_the_documented_keys_and_comes_back_equal(chips: Chips, tmp_path: Path) -> None:
    evaluation = an_evaluation(chips, (Oddity("size", "b", "too small"), Oddity("missing-label", "a", "no label")))[0]
    written = write_metrics(str(tmp_path), evaluation)
    assert written == str(tmp_path / METRICS_NAME)
    values = json.loads(Path(written).read_text())
    documented = {"iou_pooled", "iou_mean", "iou_location_weighted", "iou_mean_location_weighted", "empty_union_rule"}
    assert documented | {"num_chips", "locations", "intervals", "problems", "inputs"} <= set(values)
    assert {"iou", "intersection", "union", "num_chips"} <= set(values["locations"]["place 0"])
    assert set(values["intervals"]) == set(scores.NAMES)
    assert values["problems"] == [
        {"subject": "a", "found": "no label", "kind": "missing-label"},
        {"subject": "b", "found": "too small", "kind": "size"},
    ]
    assert Evaluation.model_validate_json(Path(written).read_text()) == evaluation


def test_the_same_evaluation_gives_the_same_bytes_in_any_order_of_problems(chips: Chips) -> None:
    odd = (Oddity("size", "b", "too small"), Oddity("missing-label", "a", "no label"))
    assert an_evaluation(chips, odd)[0].to_json() == an_evaluation(chips, odd[::-1])[0].to_json()


def test_the_tables_have_the_figures_of_the_json(chips: Chips, tmp_path: Path) -> None:
    evaluation, tally, columns = an_evaluation(chips)
    tables.write_tables(str(tmp_path), evaluation, tally, columns)
    read: dict[str, list[dict[str, Any]]] = {
        path.name: pq.read_table(io.BytesIO(path.read_bytes())).to_pylist() for path in tmp_path.glob("*.parquet")
    }
    assert set(read) == set(tables.TABLES)
    assert [each["chip_id"] for each in read[tables.CHIPS]] == chips.ids
    assert sum(each["true_positive"] for each in read[tables.CHIPS]) == evaluation.pixels.true_positive
    assert {each["by_cloud_fraction"] for each in read[tables.CHIPS]} == {each.value for each in evaluation.slices}
    assert {each["location"]: each["iou"] for each in read[tables.LOCATIONS]} == {
        name: each.iou for name, each in evaluation.locations.items()
    }
    for each in read[tables.SCORES]:
        ends = evaluation.intervals[each["score"]]
        assert ends is not None
        assert (each["value"], each["low"], each["high"]) == (getattr(evaluation, each["score"]), ends.low, ends.high)
    assert [each["name"] for each in read[tables.MEMBERS]] == list(MEMBERS)
    assert evaluation.comparison is not None
    assert [each["words"] for each in read[tables.COMPARISON]] == [each.words for each in evaluation.comparison.scores]
    assert len(read[tables.CURVE]) == NUM_BINS - 1
    assert evaluation.calibration is not None
    assert sum(each["num_px"] for each in read[tables.RELIABILITY]) == evaluation.calibration.num_px


def test_only_what_is_allowed_by_name_is_let_through() -> None:
    odd = [Oddity("size", "b", "too small"), Oddity("missing-label", "a", "no label")]
    assert [each.chip_id for each in not_allowed(odd, ())] == ["a", "b"]
    assert [each.chip_id for each in not_allowed(odd, ("size",))] == ["a"]
    assert not_allowed(odd, ("size", "missing-label")) == []
