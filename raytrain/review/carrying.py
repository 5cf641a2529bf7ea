"""Which decisions about one version of shards hold for another: those about tiles that are the same in both.

Must not know where logs are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raytrain.errors import DataError
from raytrain.review.decisions import Decision
from raytrain.review.regions import name_of
from raytrain.review.standing import standing_of
from raytrain.review.table import Key, key_of, standing_keys


@dataclass(frozen=True)
class MadeBy:
    """By which decisions shards were made of those of the other review: those that count in them, and their tiles.

    `keys` are of decisions that stood then and were applied, agree with one that was, were overruled or unsure.
    """

    keys: frozenset[Key] = frozenset()
    tiles: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Carried:
    """The entries of another log that hold, why others do not, and how many of these the shards were made by."""

    held: list[Decision]
    problems: list[DataError]
    num_settled: int


def carried(
    entries: Iterable[Decision], own: Iterable[Decision], hashes: Mapping[str, str], shards: str, made_by: MadeBy
) -> Carried:
    """Return which entries of another log hold for `shards`, whose tiles have these `hashes`.

    An entry holds if the tile that was looked at is still the same. An undo goes with what it takes back, which may be
    among the log's `own` entries, whatever its own hash; one that takes nothing back is as any other entry. What
    `shards` were made by, and what it took the place of, is settled, and no problem.
    """
    entries = list(entries)
    ours = {key_of(each): each for each in own}
    known = {**ours, **{key_of(each): each for each in entries}}
    standing = standing_keys(standing_of(entries))
    held: list[Decision] = []
    problems: list[DataError] = []
    num_settled = 0
    for decision in entries:
        root = _root_of(decision, known)
        is_ours = ours.get(key_of(root)) == root
        reason = None if is_ours else _why_not(root, hashes, shards)
        if reason is None:
            held.append(decision)
        elif _is_settled(decision, root, made_by, standing):
            num_settled += 1
        elif root is decision:
            problems.append(DataError(name_of(decision), reason))
        else:
            problems.append(DataError(name_of(decision), f"it goes with what it takes back: {reason}"))
    return Carried(held, problems, num_settled)


def _is_settled(decision: Decision, root: Decision, made_by: MadeBy, standing: set[Key]) -> bool:
    """Tell whether nothing of an entry is lost: its tile was made by it, or by what took its place before.

    What came after the shards were made is not settled: another decision, or an undo of one that counts in them.
    """
    if decision.tile_id not in made_by.tiles:
        return False
    counts, stands = key_of(root) in made_by.keys, key_of(root) in standing
    return counts == stands if root is not decision else counts or not stands


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
