"""Which decisions about one version of shards hold for another: those about tiles that are the same in both.

Must not know where logs are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from raytrain.errors import DataError
from raytrain.review.decisions import Decision
from raytrain.review.regions import name_of
from raytrain.review.table import Key, key_of


def carried(
    entries: Iterable[Decision], own: Iterable[Decision], hashes: Mapping[str, str], shards: str
) -> tuple[list[Decision], list[DataError]]:
    """Return the entries of another log that hold for `shards`, whose tiles have these `hashes`; and why others do not.

    An entry holds if the tile that was looked at is still the same. An undo goes with what it takes back, which may be
    among the log's `own` entries, whatever its own hash; one that takes nothing back is as any other entry.
    """
    entries = list(entries)
    ours = {key_of(each): each for each in own}
    known = {**ours, **{key_of(each): each for each in entries}}
    held: list[Decision] = []
    problems: list[DataError] = []
    for decision in entries:
        root = _root_of(decision, known)
        is_ours = ours.get(key_of(root)) == root
        reason = None if is_ours else _why_not(root, hashes, shards)
        if reason is None:
            held.append(decision)
        elif root is decision:
            problems.append(DataError(name_of(decision), reason))
        else:
            problems.append(DataError(name_of(decision), f"it goes with what it takes back: {reason}"))
    return held, problems


def _root_of(decision: Decision, known: Mapping[Key, Decision]) -> Decision:
    """Return what an undo comes to, which may be an undo of an undo: the decision; itself where there is none."""
    found, seen = decision, {decision.decision_id}
    while found.undoes is not None:
        undone = known.get((decision.reviewer, found.undoes))
        if undone is None or undone.tile_id != decision.tile_id or undone.decision_id in seen:
            return decision
        seen.add(undone.decision_id)
        found = undone
    return found


def _why_not(decision: Decision, hashes: Mapping[str, str], shards: str) -> str | None:
    found = hashes.get(decision.tile_id)
    if found is None:
        return f"{shards} has no such tile"
    if found != decision.tile_sha256:
        return (
            f"the tile that was looked at had the sha256 {decision.tile_sha256}, that of {shards} has {found}; look "
            "again"
        )
    return None
