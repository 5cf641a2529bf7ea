"""What stands of decisions, whatever their order and however they are spread; what reviewers agree on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raytrain.errors import ConfigError, DataError
from raytrain.review.decisions import VERDICTS, Decision
from raytrain.review.regions import encode_mask, label_after
from raytrain.review.standing import (
    agreement_of,
    agreements,
    are_verdicts_contested,
    iou_of_changes,
    is_contested,
    latest,
    merged,
    progress_of,
    standing_of,
)
from tests.deciding import decide

VALID = np.ones((4, 4), bool)
LABEL = np.zeros((4, 4), np.uint8)


def mask(rows: int, value: int = 1) -> str:
    found = np.zeros((4, 4), np.uint8)
    found[:rows] = value
    return encode_mask(found)


TWO_ROWS = mask(2)


def undo(i: int, of: int, **changes: Any) -> Decision:
    return decide(i, verdict="undo", undoes=f"{of:032x}", **changes)


def ids(decisions: list[Decision]) -> list[int]:
    """What stands on tile0 by ann, as its number; nothing where nothing does."""
    found = standing_of(decisions).get("tile0", {})
    return [each.number for name, each in found.items() if name == "ann"]


def test_the_last_that_is_not_taken_back_stands() -> None:
    one, two = decide(1, verdict="drop"), decide(2, verdict="unsure")
    assert ids([one, two]) == [2]
    assert ids([one, two, undo(3, of=2)]) == [1]
    assert ids([one, two, undo(3, of=2), undo(4, of=1)]) == []
    assert ids([one, two, undo(3, of=1)]) == [2], "an earlier one is taken back, and the last stands as it did"
    assert ids([one, two, undo(3, of=2), undo(4, of=3)]) == [2], "undo of an undo is redo"
    assert ids([one, two, undo(3, of=2), undo(4, of=3), undo(5, of=4)]) == [1]
    assert ids([one, two, undo(3, of=2), decide(4)]) == [4]


def test_undo_reaches_only_what_its_reviewer_did_on_its_tile() -> None:
    one = decide(1)
    assert ids([one, undo(2, of=1, reviewer="bob")]) == [1]
    assert ids([one, undo(2, of=1, tile_id="tile1")]) == [1]
    assert ids([one, undo(2, of=7)]) == [1]
    assert ids([one, undo(2, of=2)]) == [1], "itself"
    assert ids([one, undo(2, of=3), undo(3, of=2), undo(4, of=3)]) == [1], "a circle"


def test_undo_acts_by_the_id_that_it_names_whatever_the_clocks_say() -> None:
    early = {"time": "2026-11-27T09:00:00.000Z"}
    assert ids([decide(3), undo(2, of=3, **early)]) == []
    assert ids([decide(3), undo(2, of=3, **early), undo(1, of=2, **early)]) == [3]
    chain = [decide(1), *(undo(i + 1, of=i) for i in range(1, 3000))]
    assert (ids(chain), ids(chain[:-1])) == ([], [1])


def test_later_time_counts_whatever_the_number_then_number_then_id() -> None:
    """Two folders number the entries of a reviewer on their own; merged, the later decision stands."""
    early, late = decide(5, time="2026-11-27T10:00:00.000Z"), decide(2, number=1, time="2026-11-27T10:00:00.001Z")
    assert standing_of([late, early])["tile0"]["ann"] == late
    first, second = decide(9, number=1), decide(2, number=2)
    assert standing_of([second, first])["tile0"]["ann"] == second
    one, other = decide(1), decide(2, number=1)
    assert standing_of([other, one])["tile0"]["ann"] == other


@st.composite
def logs(draw: st.DrawFn) -> list[Decision]:
    entries = []
    for i in range(draw(st.integers(0, 12))):
        verdict = draw(st.sampled_from(VERDICTS))
        values: dict[str, Any] = {"verdict": verdict, "number": draw(st.integers(1, 6))}
        values |= {"reviewer": draw(st.sampled_from(["ann", "bob"])), "tile_id": draw(st.sampled_from(["t", "u"]))}
        values["time"] = f"2026-11-27T10:00:0{draw(st.integers(0, 2))}.000Z"
        values["mask"] = TWO_ROWS if verdict in ("fix", "ignore") else None
        values["undoes"] = f"{draw(st.integers(0, 12)):032x}" if verdict == "undo" else None
        entries.append(decide(i, **values))
    return entries


@settings(max_examples=200, deadline=None)
@given(logs(), st.data())
def test_log_of_two_folders_is_the_log_of_both_in_any_order(entries: list[Decision], data: st.DataObject) -> None:
    wanted = standing_of(entries)
    shuffled = data.draw(st.permutations(entries))
    first = data.draw(st.lists(st.sampled_from(entries), unique_by=id)) if entries else []
    rest = [each for each in shuffled if each not in first]
    assert standing_of(shuffled) == standing_of([*shuffled, *first]) == wanted
    assert standing_of(merged(rest, first)) == standing_of(merged(first, rest, first)) == wanted
    for by_reviewer in wanted.values():
        assert all(each.verdict != "undo" for each in by_reviewer.values())
    if not any(each.verdict == "undo" for each in entries):
        assert {(t, r) for t, found in wanted.items() for r in found} == {(e.tile_id, e.reviewer) for e in entries}


def test_entry_that_differs_between_logs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"drop of tile tile0 by ann .* differs from another entry of this id"):
        merged([decide(1)], [decide(1, verdict="drop")])
    assert len(merged([decide(1)], [decide(1), decide(1, reviewer="bob", verdict="drop")])) == 2


# Labels


def test_label_after_each_verdict() -> None:
    valid = VALID.copy()
    valid[0, 0] = False
    label = np.where(valid, LABEL, np.uint8(255))
    fixed = label_after(decide(verdict="fix", mask=mask(2)), label, valid)
    assert fixed is not None
    assert fixed.tolist() == [[255, 1, 1, 1], [1] * 4, [0] * 4, [0] * 4]
    ignored = label_after(decide(verdict="ignore", mask=mask(1)), label, valid)
    assert ignored is not None
    assert ignored.tolist() == [[255] * 4, [0] * 4, [0] * 4, [0] * 4]
    for verdict in ("accept", "drop", "unsure"):
        assert label_after(decide(verdict=verdict), label, valid) is label
    assert label_after(decide(verdict="fix", mask=mask(2)), None, VALID) is not None
    with pytest.raises(DataError, match="has no label"):
        label_after(decide(verdict="ignore", mask=mask(2)), None, VALID)
    with pytest.raises(DataError, match="4 x 4 px, where the tile has 4 x 3"):
        label_after(decide(verdict="fix", mask=mask(2)), None, VALID[:3])


@pytest.mark.parametrize(
    ("first", "second", "iou"),
    [
        (("fix", mask(2)), ("fix", mask(2)), 1),
        (("fix", mask(2)), ("fix", mask(3)), 2 / 3),
        (("fix", mask(2)), ("fix", mask(2, 255)), 0),
        (("fix", mask(0)), ("fix", mask(0)), 1),
        (("fix", mask(0)), ("fix", mask(1)), 0),
        (("ignore", mask(1)), ("ignore", mask(4)), 1 / 4),
        (("ignore", mask(2)), ("fix", mask(2, 255)), 1),
    ],
)
def test_iou_is_of_the_pixels_that_both_change_in_the_same_way(first: Any, second: Any, iou: float) -> None:
    one, other = (decide(verdict=verdict, mask=text) for verdict, text in (first, second))
    assert iou_of_changes(one, other, LABEL, VALID) == iou_of_changes(other, one, LABEL, VALID) == iou


@pytest.mark.parametrize("label", [LABEL, np.ones_like(LABEL), None])
def test_reviewers_contradict_by_verdict_or_by_what_they_change(label: NDArray[np.uint8] | None) -> None:
    def contested(*found: tuple[str, str | None]) -> bool:
        decisions = [decide(verdict=verdict, mask=text) for verdict, text in found]
        return is_contested(decisions, label, VALID)

    assert not contested()
    assert not contested(("accept", None), ("accept", None), ("unsure", None))
    assert not contested(("fix", mask(2)), ("unsure", None))
    assert contested(("accept", None), ("drop", None), ("accept", None))
    assert not contested(("fix", mask(2)), ("fix", mask(2)))
    if label is LABEL:
        assert not contested(("fix", mask(2)), ("fix", mask(3)))
        assert contested(("fix", mask(1)), ("fix", mask(3)))
        assert contested(("fix", mask(2)), ("fix", mask(3)), ("fix", mask(1)))
    assert are_verdicts_contested([decide(verdict="drop"), decide()])


def test_latest_goes_by_time_and_leaves_out_who_is_unsure() -> None:
    early = decide(9, time="2026-11-27T10:00:00.000Z")
    late = decide(1, reviewer="bob", time="2026-11-27T10:00:01.000Z")
    unsure = decide(2, reviewer="eve", verdict="unsure", time="2026-11-27T10:00:02.000Z")
    assert latest([early, late, unsure]) == latest([unsure, late, early]) == late
    assert latest([unsure]) is latest([]) is None


# Numbers


def test_progress_and_agreement_of_reviewers() -> None:
    entries = [
        decide(1, tile_id="a"),
        decide(2, tile_id="b", verdict="drop", time="2026-11-27T11:00:00.000Z"),
        decide(3, tile_id="c"),
        undo(4, of=3, tile_id="c"),
        decide(5, reviewer="bob", tile_id="a"),
        decide(6, reviewer="bob", tile_id="b"),
    ]
    standing = standing_of(entries)
    ann, bob = progress_of(entries, standing)
    assert (ann.reviewer, ann.num_entries, ann.num_tiles, ann.by_verdict) == ("ann", 4, 2, {"accept": 1, "drop": 1})
    assert (bob.reviewer, bob.num_entries, bob.num_tiles, bob.by_verdict) == ("bob", 2, 2, {"accept": 2})
    assert ann.last_time == "2026-11-27T11:00:00.000Z"
    (found,) = agreements(standing)
    assert (found.first, found.second, found.num_tiles, found.num_same, found.same_fraction) == (
        "ann",
        "bob",
        2,
        1,
        0.5,
    )
    assert found.kappa == 0


def test_kappa_is_that_of_a_worked_example() -> None:
    """Of 50 pairs 20 and 15 are equal, 5 and 10 are not: p_o 0.7, p_e 0.5 x 0.6 + 0.5 x 0.4 = 0.5, kappa 0.4."""
    pairs: Any = [("accept", "accept")] * 20 + [("accept", "drop")] * 5 + [("drop", "accept")] * 10
    pairs += [("drop", "drop")] * 15
    found = agreement_of("ann", "bob", pairs)
    assert found.same_fraction == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)
    assert agreement_of("ann", "bob", []).kappa is None
    assert agreement_of("ann", "bob", [("accept", "accept")] * 3).kappa is None
    assert agreement_of("ann", "bob", [("accept", "drop"), ("drop", "accept")]).kappa == -1
