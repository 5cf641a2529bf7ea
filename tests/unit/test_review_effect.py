"""The effect of cleaning labels, below Ray: what differs between versions, counts, intervals, verdicts, the page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from scipy.stats import t

from raytrain.errors import ConfigError
from raytrain.evaluation.html import render_page
from raytrain.evaluation.intervals import Interval, over_seeds, widened_by_seeds
from raytrain.evaluation.results import Problem
from raytrain.evaluation.tally import Tally
from raytrain.review.effect import Compared, Effect, PartEffect, decide, judge
from raytrain.review.effect_counts import NEW, OLD, CountedTile, TileToCount, count_tiles
from raytrain.review.effect_page import effect_page, headline, places_of, sentences
from raytrain.review.effect_parts import Trained, judge_parts, tiles_of_parts
from raytrain.review.effect_versions import Versions, compare_versions, read_version
from raytrain.tiles.format import Tile
from tests.making import BANDS, make_tile, write_tiles

SIZE = (32, 32)
PLACES = 4
SEEDS = (0, 1, 2)
DRAWS = 200


def tiles(count: int = 8) -> list[Tile]:
    return [replace(make_tile(i, SIZE), location=f"place{i % PLACES}") for i in range(count)]


def with_label(tile: Tile, value: int | None) -> Tile:
    return replace(tile, label=None if value is None else np.full(SIZE, value, np.uint8))


def write(folder: Path, some: list[Tile], **manifest: Any) -> str:
    write_tiles(folder, some, "raw")
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **manifest}))
    return str(folder)


def compared(tmp_path: Path, before: list[Tile], after: list[Tile], **manifest: Any) -> Versions:
    uris = write(tmp_path / "before", before), write(tmp_path / "after", after, **manifest)
    return compare_versions(*map(read_version, uris))


# What differs between versions


def test_changed_given_taken_and_dropped_labels_touch_their_places(tmp_path: Path) -> None:
    before = tiles(12)
    before[4] = with_label(before[4], None)
    after = [*before[:-2]]  # the last two, of place2 and place3, are dropped
    after[0] = with_label(after[0], 1)
    after[4] = with_label(after[4], 0)
    after[8] = with_label(after[8], None)
    found = compared(tmp_path, before, after)
    assert [found.tile_ids[i] for i in np.flatnonzero(found.is_changed)] == ["tile0", "tile4", "tile8"]
    assert found.changed_by_place == {"place0": 3, "place2": 0, "place3": 0}
    assert found.dropped == {"tile10": "place2", "tile11": "place3"}
    assert found.dropped_by_place == {"place2": 1, "place3": 1}
    assert {found.locations[i] for i in np.flatnonzero(~found.is_touched)} == {"place1"}
    assert found.lost_places == []
    assert not found.had_label[4]
    assert found.has_label[4]
    assert not found.has_label[8]


def test_a_place_of_which_nothing_is_left_is_named(tmp_path: Path) -> None:
    before = tiles(8)
    gone = [tile for tile in before if tile.location != "place3"]
    # Folds alternate as tiles are written, so one of another place goes, too.
    found = compared(tmp_path, before[:4], gone[:3])
    assert found.lost_places == ["place3"]


def test_a_child_is_known_by_the_digest_of_its_parent(tmp_path: Path) -> None:
    before = tiles()
    after = [with_label(before[0], 1), *before[1:]]
    digest = read_version(write(tmp_path / "first", before)).digest
    assert compared(tmp_path, before, after, parent={"shards_digest": digest}).is_child
    assert not compared(tmp_path, before, after, parent={"shards_digest": "0"}).is_child


def test_versions_given_the_wrong_way_round_are_refused(tmp_path: Path) -> None:
    before = tiles()
    digest = read_version(write(tmp_path / "before", before)).digest
    after = write(tmp_path / "after", [with_label(before[0], 1), *before[1:]], parent={"shards_digest": digest})
    with pytest.raises(ConfigError, match=r"after was made of .*before, .* give them the other way round"):
        compare_versions(read_version(after), read_version(str(tmp_path / "before")))


def test_report_says_so_when_after_is_no_child_of_before() -> None:
    effect = made_effect()
    stranger = effect.model_copy(update={"compared": effect.compared.model_copy(update={"is_child": False})})
    assert "as its parent" not in " ".join(sentences(effect))
    assert "s3://b/after does not name s3://b/before as its parent" in " ".join(sentences(stranger))


def other_place(some: list[Tile]) -> list[Tile]:
    return [replace(some[0], location="elsewhere"), *some[1:]]


def other_image(some: list[Tile]) -> list[Tile]:
    band = some[2].bands["B08"].copy()
    band[0, 0] ^= 1
    return [*some[:2], replace(some[2], bands={**some[2].bands, "B08": band}), *some[3:]]


def other_order(some: list[Tile]) -> list[Tile]:
    return [some[1], some[0], *some[2:]]


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda some: some, "nothing to compare"),
        (
            lambda some: [*some, replace(make_tile(99, SIZE), location="place3")],
            "1 tiles that .* has not, among them tile99",
        ),
        (other_place, "tile tile0: location elsewhere in .*after, but place0 in .*before"),
        (other_image, r"tile tile2: band B08 has other bytes"),
        (other_order, "tile tile1: fold 0 in .*after, but 1 in"),
    ],
)
def test_versions_that_differ_in_more_than_labels_are_refused(
    tmp_path: Path, spoil: Callable[[list[Tile]], list[Tile]], found: str
) -> None:
    with pytest.raises(ConfigError, match=found):
        compared(tmp_path, tiles(), spoil(tiles()))


def test_versions_of_other_bands_or_cells_are_refused(tmp_path: Path) -> None:
    before = write(tmp_path / "before", tiles())
    write_tiles(tmp_path / "packed", [with_label(tiles()[0], 1), *tiles()[1:]], "blosc2-bitshuffle-lz4")
    with pytest.raises(ConfigError, match=r"blosc2-bitshuffle-lz4 cells, but .* has raw"):
        compare_versions(read_version(before), read_version(str(tmp_path / "packed")))
    other = write(tmp_path / "bands", [with_label(tiles()[0], 1), *tiles()[1:]], bands=list(BANDS[:4]))
    with pytest.raises(ConfigError, match="has the bands B02, B03, B04, B08, but"):
        compare_versions(read_version(before), read_version(other))


def test_shards_that_only_lie_in_other_files_have_no_effect_to_look_for(tmp_path: Path) -> None:
    before = write(tmp_path / "before", tiles())
    write_tiles(tmp_path / "after", tiles(), "raw", tiles_per_shard=3)
    with pytest.raises(ConfigError, match="no label differs"):
        compare_versions(read_version(before), read_version(str(tmp_path / "after")))


# Counting


def write_mask(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": pixels.shape[0], "width": pixels.shape[1]}
    with rasterio.open(path, "w", **profile) as target:
        target.write(pixels, 1)


def test_a_tile_counts_against_both_labels_and_for_every_prediction(tmp_path: Path) -> None:
    old, new = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    old[:8], new[:16], new[16:18] = 1, 1, 255
    before = [replace(tiles()[0], label=old), *tiles()[1:3]]
    after = [replace(tiles()[0], label=new), with_label(tiles()[1], None), tiles()[2]]
    uris = write(tmp_path / "before", before), write(tmp_path / "after", after)
    mask = np.zeros(SIZE, np.uint8)
    mask[4:17] = 1
    for name, pixels in (("a", mask), ("b", 1 - mask)):
        for tile_id in ("tile0", "tile1"):
            write_mask(tmp_path / name / f"{tile_id}.tif", pixels)
    write_mask(tmp_path / "a" / "tile2.tif", mask)
    todo = [
        TileToCount("tile0", "place0", (0, 0)),
        TileToCount("tile1", "place1", (1, None)),
        TileToCount("tile2", "place2", (2, 2)),
    ]
    counted, problems = count_tiles(todo, uris, [str(tmp_path / "a"), str(tmp_path / "b")])
    assert [tile.tile_id for tile in counted] == ["tile0", "tile1"]
    first = counted[0].counts.sum(2)  # [label, prediction, (tp, fp, fn, tn)]
    assert first[OLD, 0].tolist() == [4 * 32, 9 * 32, 4 * 32, 15 * 32]
    assert first[NEW, 0].tolist() == [12 * 32, 0, 4 * 32, 14 * 32], "ignored rows count for nothing"
    assert first[OLD, 1].tolist() == [4 * 32, 15 * 32, 4 * 32, 9 * 32]
    assert not counted[1].counts[NEW].any()
    assert counted[1].counts[OLD].any()
    assert len(problems) == 1, "a tile counts for all predictions or for none"
    assert problems[0].subject == "tile tile2"
    assert "b/tile2.tif" in problems[0].found


def test_a_mask_of_another_size_is_a_problem(tmp_path: Path) -> None:
    uri = write(tmp_path / "shards", tiles(2))
    write_mask(tmp_path / "masks" / "tile0.tif", np.zeros((16, 32), np.uint8))
    counted, problems = count_tiles([TileToCount("tile0", "place0", (0, 0))], (uri, uri), [str(tmp_path / "masks")])
    assert counted == []
    assert "32 x 16 px" in problems[0].found


# Judging


def tally_of_counts(counts: Mapping[str, tuple[int, int]]) -> Tally:
    """Return a tally of one tile a place, with so many pixels of intersection and union, of 1000."""
    confusions = np.array([[[0, 0, 0, 0], [i, u - i, 0, 1000 - u]] for i, u in counts.values()], np.int64)
    names = list(counts)
    return Tally([f"tile of {name}" for name in names], names, confusions, np.zeros(len(names), np.int64))


def of_seeds(*counts: Mapping[str, tuple[int, int]]) -> dict[int, Tally]:
    return {seed: tally_of_counts(each) for seed, each in enumerate(counts)}


def judged(before: dict[int, Tally], after: dict[int, Tally], **more: Any) -> PartEffect:
    return judge("untouched", before, after, resamples=200, **more)


def test_iou_of_a_place_is_its_mean_over_seeds_and_pooled_scores_are_of_all_counts() -> None:
    before = of_seeds({"a": (1, 10), "b": (50, 100)}, {"a": (90, 100), "b": (50, 100)}, {"a": (0, 0), "b": (50, 100)})
    after = of_seeds(*[{"a": (80, 100), "b": (60, 100)}] * 3)
    part = judged(before, after)
    assert part.locations["a"].before == pytest.approx((0.1 + 0.9 + 1.0) / 3), "not 91 / 110"
    assert part.locations["a"].after == pytest.approx(0.8)
    assert part.deciding.before == pytest.approx((2 / 3 + 0.5) / 2)
    pooled = next(each for each in part.scores if each.name == "iou_pooled")
    assert pooled.before == pytest.approx(241 / 410)
    assert pooled.after == pytest.approx(420 / 600)
    assert part.deciding.by_seed == pytest.approx({0: 0.7 - 0.3, 1: 0.7 - 0.7, 2: 0.7 - 0.75})
    assert part.deciding.difference == pytest.approx(np.mean(list(part.deciding.by_seed.values())))
    assert part.num_tiles == 2
    assert part.locations["a"].num_tiles == 1


@pytest.mark.parametrize("times", [1, 3])
def test_a_false_pixel_at_a_clear_place_counts_for_its_seed_alone_however_many_seeds_there_are(times: int) -> None:
    right, wrong = {"clear": (0, 0), "b": (50, 100)}, {"clear": (0, 1), "b": (50, 100)}
    part = judged(of_seeds(*[wrong, right, right] * times), of_seeds(*[right, right, right] * times))
    assert part.locations["clear"].before == pytest.approx(2 / 3)
    assert part.locations["clear"].difference == pytest.approx(1 / 3)
    assert part.deciding.difference == pytest.approx(1 / 6)


def test_touched_tiles_are_told_by_place() -> None:
    counts = of_seeds(*[{"a": (80, 100), "b": (60, 100)}] * 3)
    part = judged(counts, counts, changed={"b": 3, "elsewhere": 5}, dropped={"b": 1})
    assert (part.locations["b"].num_changed, part.locations["b"].num_dropped) == (3, 1)
    assert part.locations["a"].num_changed == 0


def test_fewer_than_three_seeds_or_others_are_refused() -> None:
    counts = of_seeds(*[{"a": (80, 100)}] * 3)
    two = {seed: counts[seed] for seed in (0, 1)}
    with pytest.raises(ValueError, match="3 seeds or more"):
        judged(two, two)
    with pytest.raises(ValueError, match="same"):
        judged(counts, {seed + 1: each for seed, each in counts.items()})


def test_versions_that_come_to_the_same_show_no_difference() -> None:
    counts = of_seeds(*[{f"p{i}": (50 + i + seed, 100) for i in range(6)} for seed in SEEDS])
    part = judged(counts, counts)
    assert {each.words for each in part.scores} == {"no difference shown"}
    assert {each.words for each in part.locations.values()} == {"no difference shown"}


def test_one_place_can_tell_nothing() -> None:
    part = judged(of_seeds(*[{"a": (50, 100)}] * 3), of_seeds(*[{"a": (70, 100)}] * 3))
    assert part.deciding.words == "can't tell"
    assert part.deciding.difference == pytest.approx(0.2)


def made_up(
    random: np.random.Generator, gain: float, seeds_part: float, num_places: int = 12
) -> tuple[dict[int, Tally], dict[int, Tally]]:
    """Draw places and seeds: log odds of the IoU of each place, of each training (`seeds_part`), of each of both."""
    places = random.normal(1.5, 0.8, num_places)
    sizes = random.integers(200, 900, num_places)
    sides = []
    for more in (0.0, gain):
        of_side = {}
        for seed in SEEDS:
            odds = places + more + random.normal(0, seeds_part) + random.normal(0, 0.1, num_places)
            ious = 1 / (1 + np.exp(-odds))
            counts = {
                f"p{i}": (int(iou * size), int(size)) for i, (iou, size) in enumerate(zip(ious, sizes, strict=True))
            }
            of_side[seed] = tally_of_counts(counts)
        sides.append(of_side)
    return sides[0], sides[1]


@pytest.mark.parametrize("seeds_part", [0.0, 0.05, 0.3])
def test_where_there_is_no_effect_none_is_shown(seeds_part: float) -> None:
    """Where trainings part as a whole, an interval over places alone takes luck for an effect."""
    shown, by_places_alone = 0, 0
    for i in range(DRAWS):
        found = judged(*made_up(np.random.default_rng([i, 1]), 0.0, seeds_part)).deciding
        shown += found.words != "no difference shown"
        assert found.over_places is not None
        by_places_alone += found.over_places.low > 0 or found.over_places.high < 0
    assert shown / DRAWS <= 0.07
    if seeds_part == 0.3:
        assert by_places_alone / DRAWS > 0.3


def test_an_effect_is_found_and_called_by_its_sign() -> None:
    words = []
    for i in range(30):
        random = np.random.default_rng([i, 2])
        before, after = made_up(random, 0.6, 0.05)
        words.append((judged(before, after).deciding.words, judged(after, before).deciding.words))
    assert words.count(("helped", "harmed")) >= 28


def test_intervals_hold_the_true_effect() -> None:
    random = np.random.default_rng(3)
    of_trainings_2N = random.normal(0, math.hypot(0.15, 0.1), (2, 10**6))
    odds_2N = random.normal(1.5, 0.8, 10**6) + of_trainings_2N + np.array([[0.0], [0.3]])
    before, after = (1 / (1 + np.exp(-odds_2N))).mean(1)
    held = 0
    for i in range(DRAWS):
        found = judged(*made_up(np.random.default_rng([i, 4]), 0.3, 0.15)).deciding
        assert found.interval is not None
        held += found.interval.low <= after - before <= found.interval.high
    assert held / DRAWS >= 0.93


def test_an_interval_is_widened_by_the_squares_of_distances() -> None:
    by_seed = np.array([0.01, 0.02, 0.06])
    half = float(t.ppf(0.975, 2)) * by_seed.std(ddof=1) / math.sqrt(3)
    found = widened_by_seeds(Interval(0.03, 0.02, 0.07), by_seed)
    assert found.low == pytest.approx(0.03 - math.hypot(0.01, half))
    assert found.high == pytest.approx(0.03 + math.hypot(0.04, half))
    assert over_seeds(by_seed).high == pytest.approx(0.03 + half)
    with pytest.raises(ValueError, match="two of them, found 1"):
        widened_by_seeds(Interval(0.03, 0.02, 0.07), by_seed[:1])
    with pytest.raises(ValueError, match="two of them, found 1"):
        over_seeds(by_seed[:1])


# The whole


def versions_of(some: list[str], **changed: Any) -> Versions:
    count = len(some)
    values: dict[str, Any] = {
        "before": "b",
        "after": "a",
        "before_digest": "1" * 64,
        "after_digest": "2" * 64,
        "is_child": True,
        "tile_ids": [f"t{i}" for i in range(count)],
        "locations": some,
        "folds": [0, 1],
        "positions": np.arange(count),
        "has_label": np.ones(count, np.bool_),
        "had_label": np.ones(count, np.bool_),
        "is_changed": np.zeros(count, np.bool_),
    }
    return Versions(**{**values, **changed})


def test_each_part_has_its_tiles_and_its_label() -> None:
    changed, had, has = (
        np.array([1, 0, 0, 0, 1, 1], bool),
        np.array([1, 1, 1, 1, 0, 1], bool),
        np.array([1] * 5 + [0], bool),
    )
    versions = versions_of(["a", "a", "b", "c", "c", "c"], is_changed=changed, had_label=had, has_label=has)
    counted = [CountedTile(f"t{i}", "", np.zeros((2, 6, 2, 4), np.int64)) for i in (5, 4, 3, 2, 1, 0)]
    found = {
        name: ([tile.tile_id for tile in some], label)
        for name, (some, label) in tiles_of_parts(versions, counted).items()
    }
    assert found == {
        "untouched": (["t2"], NEW),
        "unchanged": (["t3", "t1"], NEW),
        "new-labels": (["t4", "t3", "t1", "t0"], NEW),
        "old-labels": (["t5", "t3", "t1", "t0"], OLD),
    }


def test_changed_and_ignored_tiles_of_a_part_are_those_among_its_own() -> None:
    trained = [Trained(version, seed) for seed in SEEDS for version in ("before", "after")]
    counts = np.ones((2, len(trained), 2, 4), np.int64)
    ignored = counts.copy()
    ignored[NEW] = 0  # in the new label every pixel is 255
    places = ["a", "a", "a", "b", "c"]
    versions = versions_of(places, is_changed=np.array([1, 1, 0, 0, 0], bool))
    counted = [CountedTile(f"t{i}", place, ignored if i in (1, 4) else counts) for i, place in enumerate(places)]
    parts = {part.name: part for part in judge_parts(versions, counted, [], trained, resamples=200)}
    found = {name: (part.num_tiles, part.num_changed, part.num_ignored) for name, part in parts.items()}
    assert found == {"untouched": (1, 0, 1), "unchanged": (1, 0, 0), "new-labels": (2, 1, 1), "old-labels": (3, 2, 0)}
    assert list(parts["untouched"].locations) == ["b"], "of c nothing is known, so it has no IoU of 1"
    assert parts["new-labels"].locations["a"].num_changed == 2


def made_effect(*, num_touched: int = 3, with_test: bool = False) -> Effect:
    """Return an effect of 24 tiles at 6 places: nets of the new labels find more of what both labels call cloud."""
    random = np.random.default_rng(5)
    places = [f"place{i % 6}" for i in range(24)]
    is_changed = np.array([i < num_touched for i in range(24)])
    versions = versions_of(places, is_changed=is_changed, dropped={"gone": "place5"})
    trained = [Trained(version, seed) for seed in SEEDS for version in ("before", "after")]
    counted = []
    for i, place in enumerate(places):
        counts = np.zeros((2, len(trained), 2, 4), np.int64)
        for j, each in enumerate(trained):
            found = 500 + (100 if each.version == "after" else 0) + int(random.integers(0, 40)) + 10 * (i % 6)
            for label in (OLD, NEW):
                counts[label, j, 1] = [found, 50, 800 - found, 150]
                counts[label, j, 0] = [20, 5, 5, 20]
        counted.append(CountedTile(f"t{i}", place, counts))
    tested = [replace(tile, location=f"test-{tile.location}") for tile in counted] if with_test else []
    parts = judge_parts(versions, counted, tested, trained, resamples=200)
    words, decided_by = decide(parts)
    return Effect(
        words=words,
        decided_by=decided_by,
        parts=parts,
        num_tiles=24,
        num_changed=num_touched,
        num_dropped=1,
        num_touched_places=len(versions.changed_by_place),
        num_untouched_places=6 - len(versions.changed_by_place),
        lost_places=(),
        problems=(Problem(subject="tile t7", found="can't be read <b>"),),
        compared=Compared(
            before="s3://b/before",
            after="s3://b/after",
            before_digest="1" * 64,
            after_digest="2" * 64,
            is_child=True,
            test="s3://b/test" if with_test else None,
            test_digest="3" * 64 if with_test else None,
            members=("small-byob-3b",),
            changes={"epochs": 3},
            seeds=SEEDS,
            folds=(0, 1),
            threshold=0.5,
            empty_union_rule="one",
            edge_px=5,
            resamples=200,
            resampling_seed=0,
        ),
    )


def test_parts_whose_labels_are_the_same_decide_in_their_order() -> None:
    assert made_effect(with_test=True).decided_by == "test"
    assert made_effect().decided_by == "untouched"
    everywhere = made_effect(num_touched=6)
    assert everywhere.part("untouched") is None
    assert everywhere.decided_by == "unchanged"
    assert everywhere.words == "helped"
    new = everywhere.part("new-labels")
    assert new is not None
    assert decide([new]) == ("can't tell", None), "labels that differ decide nothing"
    # One untouched place gives no interval, so what comes after it decides, and it is said why.
    untouched = judged(of_seeds(*[{"a": (50, 100)}] * 3), of_seeds(*[{"a": (70, 100)}] * 3))
    parts = (untouched, *everywhere.parts)
    assert decide(parts) == ("helped", "unchanged")
    told = " ".join(sentences(everywhere.model_copy(update={"parts": parts})))
    assert "since there is no interval over places where no label was touched (1 place)" in told
    assert "What decides is tiles whose label stayed, at touched places, since" in told
    assert decide([untouched]) == ("can't tell", "untouched")


def test_what_was_written_is_read_again_as_it_was() -> None:
    effect = made_effect(with_test=True)
    assert Effect.model_validate_json(effect.model_dump_json()) == effect


def test_page_says_whether_it_helped_and_where() -> None:
    effect = made_effect()
    assert effect.words == "helped"
    assert headline(effect) == "Cleaning helped at places where no label was touched"
    told = " ".join(sentences(effect))
    assert "Of 25 tiles the labels of 3 differ and 1 was dropped, at 4 places; 2 places were not touched." in told
    assert "What decides is places where no label was touched, where both versions have the same labels." in told
    assert "of these 6 about 0.2 each" in told, "how many places are named by chance"
    gained = [name for name, each in places_of(effect) if each.words == "gained"]
    assert len(places_of(effect)) == 6
    assert f"{len(gained)} gained, most of all " in told
    page = render_page(effect_page(effect))
    for text in (headline(effect), "Did it help", "Where", "Seeds", "can&#x27;t be read &lt;b&gt;", "s3://b/after"):
        assert text in page
    assert "<b>" not in page


def test_an_effect_without_tiles_in_common_has_a_page() -> None:
    effect = made_effect().model_copy(update={"parts": (), "words": "can't tell", "decided_by": None})
    assert "no label is the same in both versions" in render_page(effect_page(effect))
