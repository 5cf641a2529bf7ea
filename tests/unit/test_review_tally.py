"""What is counted as entries come is what counting all of them gives."""

from __future__ import annotations

import random

from raytrain.review.decisions import Decision, Verdict
from raytrain.review.standing import Standing, agreements, progress_of, standing_of
from raytrain.review.tally import Tally

REVIEWERS = ("zoe", "ann", "bob", "eve")
VERDICTS: tuple[Verdict, ...] = ("accept", "drop", "unsure")


def test_entries_in_any_order_with_undo_and_redo_count_as_all_at_once() -> None:
    drawn = random.Random(4)
    entries: list[Decision] = []
    for i in range(300):
        who, tile_id = drawn.choice(REVIEWERS), f"t{drawn.randrange(8)}"
        own = [each for each in entries if (each.reviewer, each.tile_id) == (who, tile_id)]
        undoes = drawn.choice(own).decision_id if own and drawn.random() < 0.3 else None
        entries.append(
            Decision(
                decision_id=f"{i:032x}",
                reviewer=who,
                number=i + 1,
                time=f"2026-01-01T00:{i // 60:02}:{i % 60:02}.000Z",
                tile_id=tile_id,
                tile_sha256="0" * 64,
                verdict="undo" if undoes else drawn.choice(VERDICTS),
                undoes=undoes,
            )
        )
    drawn.shuffle(entries)
    tally, standing = Tally(), Standing()
    for i, decision in enumerate(entries, 1):
        after = standing_of(each for each in entries[:i] if each.tile_id == decision.tile_id)
        tally.enter(decision)
        tally.change(decision.reviewer, standing.get(decision.tile_id, {}), after.get(decision.tile_id, {}))
        standing[decision.tile_id] = after.get(decision.tile_id, {})
        if i % 20 == 0:
            ours, theirs = tally.progress(), progress_of(entries[:i], standing)
            for found, expected in zip(ours, theirs, strict=True):
                assert {verdict: n for verdict, n in found.by_verdict.items() if n} == expected.by_verdict
                assert (found.reviewer, found.num_entries, found.num_tiles, found.last_time) == (
                    expected.reviewer,
                    expected.num_entries,
                    expected.num_tiles,
                    expected.last_time,
                )
            assert tally.agreements() == agreements(standing)
            assert tally.num_decided == sum(map(bool, standing.values()))
