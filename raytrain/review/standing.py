"""What stands of all decisions, what reviewers agree on, and how far each has come. Must not know where a log is kept.

A log is a set: whatever the order in which its entries come, and however they lay in several folders, the same stands.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytrain.errors import ConfigError
from raytrain.review.decisions import WITH_MASK, Decision, Verdict
from raytrain.review.log import order_of
from raytrain.review.regions import label_after, name_of

MIN_IOU = 0.5
"""From where on the pixels that two decisions change are the same error, seen twice: hands never draw the same line."""

Standing = dict[str, dict[str, Decision]]
"""By tile, then by reviewer, the decision that stands."""


def merged(*logs: Iterable[Decision]) -> list[Decision]:
    """Return the entries of several logs, each once, by reviewer, time, number and id.

    Raises `ConfigError` where an entry has another content in another log: one of them was changed.
    """
    found: dict[tuple[str, str], Decision] = {}
    for decision in itertools.chain(*logs):
        first = found.setdefault((decision.reviewer, decision.decision_id), decision)
        if first != decision:
            raise ConfigError(f"{name_of(decision)}: differs from another entry of this id; one log was changed")
    return sorted(found.values(), key=lambda each: (each.reviewer, *order_of(each)))


def standing_of(decisions: Iterable[Decision]) -> Standing:
    """Return what stands: of each reviewer on a tile the last entry, by time, number and id, that is not taken back.

    An undo takes back the entry that it names, of its reviewer on its tile, whatever their times: clocks differ, and
    who undoes has seen what is undone. Then an earlier one stands again. An undo that is taken back itself takes
    nothing back: undo of an undo is redo. One that names anything else is as if it were not there.
    """
    entries: dict[tuple[str, str], list[Decision]] = defaultdict(list)
    for decision in merged(decisions):
        entries[decision.tile_id, decision.reviewer].append(decision)
    standing: Standing = {}
    for (tile_id, reviewer), of_one in sorted(entries.items()):
        last = _last(of_one)
        if last is not None:
            standing.setdefault(tile_id, {})[reviewer] = last
    return standing


def _last(entries: list[Decision]) -> Decision | None:
    """Return the last of one reviewer's entries on a tile that is neither an undo nor taken back."""
    decisions = [each for each in entries if each.undoes is None]
    taken = _taken_back(entries)
    return next((each for each in reversed(decisions) if each.decision_id not in taken), None)


def _taken_back(entries: Iterable[Decision]) -> set[str]:
    """Return the ids of one reviewer's entries on a tile that undos take back which are not taken back themselves."""
    undos: dict[str, list[Decision]] = defaultdict(list)
    reached: list[Decision] = []
    for decision in entries:
        (reached if decision.undoes is None else undos[decision.undoes]).append(decision)
    # An undo names one entry only, so that none of a circle of undos leads to a decision: this ends.
    for decision in reached:
        reached += undos[decision.decision_id]
    taken: set[str] = set()
    for decision in reversed(reached):  # all that take an entry back stand behind it
        if decision.undoes is not None and decision.decision_id not in taken:
            taken.add(decision.undoes)
    return taken


def are_verdicts_contested(decisions: Iterable[Decision]) -> bool:
    """Tell whether the verdicts of several reviewers on a tile differ; who is unsure speaks for none."""
    return len({decision.verdict for decision in decisions} - {"unsure"}) > 1


def iou_of_changes(
    first: Decision, second: Decision, label_HW: NDArray[np.uint8] | None, valid_HW: NDArray[np.bool_]
) -> float:
    """Return the IoU of the pixels that two decisions change in a label; 1 where neither changes any.

    A pixel is in the intersection if both give it the same new value. Raises what `label_after` does.
    """
    before_HW = np.full(valid_HW.shape, 255, np.uint8) if label_HW is None else label_HW
    after = [label_after(each, label_HW, valid_HW) for each in (first, second)]
    one_HW, other_HW = (before_HW if each is None else each for each in after)
    union = int(((one_HW != before_HW) | (other_HW != before_HW)).sum())
    return int(((one_HW == other_HW) & (one_HW != before_HW)).sum()) / union if union else 1.0


def is_contested(
    decisions: Iterable[Decision], label_HW: NDArray[np.uint8] | None, valid_HW: NDArray[np.bool_]
) -> bool:
    """Tell whether reviewers contradict each other about a tile: by verdict, or by the pixels that they change.

    Of those, any two must have an IoU of `MIN_IOU`. Raises what `label_after` does.
    """
    sure = [decision for decision in decisions if decision.verdict != "unsure"]
    if are_verdicts_contested(sure):
        return True
    drawn = [decision for decision in sure if decision.verdict in WITH_MASK]
    return any(
        first.mask != second.mask and iou_of_changes(first, second, label_HW, valid_HW) < MIN_IOU
        for first, second in itertools.combinations(drawn, 2)
    )


def latest(decisions: Iterable[Decision]) -> Decision | None:
    """Return the latest decision of several reviewers on a tile, by their clocks; None where all are unsure.

    Numbers are each reviewer's own, so that only times compare; between equal ones the names of the reviewers decide.
    """
    sure = [decision for decision in decisions if decision.verdict != "unsure"]
    return max(sure, key=lambda each: (each.time, each.reviewer, each.decision_id), default=None)


@dataclass(frozen=True)
class Progress:
    """How far a reviewer has come: entries in the log, tiles by what stands on them, the time of the last entry."""

    reviewer: str
    num_entries: int
    num_tiles: int
    by_verdict: dict[Verdict, int]
    last_time: str


@dataclass(frozen=True)
class Agreement:
    """How far the verdicts of two reviewers are the same on the tiles that both decided; None without any such tile.

    `kappa` is Cohen's: the agreement beyond what two people who decide blindly, each as often for a verdict as these
    did, would reach; 1 is full agreement, 0 none beyond chance. None where chance alone would reach all of it.
    """

    first: str
    second: str
    num_tiles: int
    num_same: int
    same_fraction: float | None
    kappa: float | None


def progress_of(decisions: Iterable[Decision], standing: Mapping[str, Mapping[str, Decision]]) -> list[Progress]:
    """Return how far each reviewer has come, by name."""
    entries: dict[str, list[Decision]] = defaultdict(list)
    for decision in decisions:
        entries[decision.reviewer].append(decision)
    verdicts: dict[str, Counter[Verdict]] = defaultdict(Counter)
    for by_reviewer in standing.values():
        for reviewer, decision in by_reviewer.items():
            verdicts[reviewer][decision.verdict] += 1
    return [
        Progress(name, len(of_one), verdicts[name].total(), dict(verdicts[name]), max(each.time for each in of_one))
        for name, of_one in sorted(entries.items())
    ]


def agreements(standing: Mapping[str, Mapping[str, Decision]]) -> list[Agreement]:
    """Return how far any two reviewers agree, by their names."""
    verdicts = {tile_id: {who: each.verdict for who, each in found.items()} for tile_id, found in standing.items()}
    names = sorted({who for found in verdicts.values() for who in found})
    return [
        agreement_of(
            first,
            second,
            [(found[first], found[second]) for found in verdicts.values() if first in found and second in found],
        )
        for first, second in itertools.combinations(names, 2)
    ]


def agreement_of(first: str, second: str, pairs: list[tuple[Verdict, Verdict]]) -> Agreement:
    """Return how far two reviewers agree by `pairs` of their verdicts on the same tiles.

    Cohen, J. (1960), A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20:
    kappa = (p_o - p_e) / (1 - p_e), with p_o the share of equal pairs and p_e the sum over verdicts of the product of
    both reviewers' shares of it.
    """
    return agreement_of_counts(first, second, Counter(pairs))


def agreement_of_counts(first: str, second: str, pairs: Counter[tuple[Verdict, Verdict]]) -> Agreement:
    """Return what `agreement_of` does, by how often there is each pair of verdicts."""
    count = pairs.total()
    num_same = sum(number for (one, other), number in pairs.items() if one == other)
    if not count:
        return Agreement(first, second, 0, 0, None, None)
    ours: Counter[Verdict] = Counter()
    theirs: Counter[Verdict] = Counter()
    for (one, other), number in pairs.items():
        ours[one] += number
        theirs[other] += number
    # Times count squared, in whole numbers: so that chance is 1 exactly where it is.
    by_chance = sum(number * theirs[verdict] for verdict, number in ours.items())
    kappa = None if by_chance == count**2 else (num_same * count - by_chance) / (count**2 - by_chance)
    return Agreement(first, second, count, num_same, num_same / count, kappa)
