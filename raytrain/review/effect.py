"""Whether cleaning labels helped: nets of both versions, with the same seeds, beside each other, place by place.

Must not know where nets and labels are, or how anything is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any, Literal

import numpy as np

from raytrain import __version__, storage
from raytrain.config import EmptyUnionRule, MemberName, Settings
from raytrain.evaluation.counting import NEAR
from raytrain.evaluation.intervals import LEVEL, Interval, over_seeds, widened_by_seeds
from raytrain.evaluation.resampling import Difference, Ratio, intervals
from raytrain.evaluation.results import Ends, Problem
from raytrain.evaluation.scores import Scored, ends_of
from raytrain.evaluation.tally import Tally, joined

EFFECT_FILE, EFFECT_PAGE = "effect.json", "effect.html"
FEWEST_SEEDS = 3
"""With fewer nothing can be said of how much of a difference is the seeds' alone."""
RULE: EmptyUnionRule = "one"
"""Where there is no cloud and none was predicted, nothing was missed."""

PartName = Literal["test", "untouched", "unchanged", "new-labels", "old-labels"]
PART_WORDS: Mapping[PartName, str] = {
    "test": "the test set",
    "untouched": "places where no label was touched",
    "unchanged": "tiles whose label stayed, at touched places",
    "new-labels": "touched places, by the new labels",
    "old-labels": "touched places, by the old labels",
}
"""What is compared, by the name that `effect.json` has; in the order in which it decides whether cleaning helped."""
DECIDING: tuple[PartName, ...] = ("test", "untouched", "unchanged")
"""Parts whose labels are the same for both versions: the first one that there is says whether cleaning helped."""
Words = Literal["helped", "harmed", "no difference shown", "can't tell"]
"""Can't tell: places are too few for an interval, or all alike."""
PlaceWords = Literal["gained", "lost", "no difference shown"]
EFFECT_SCORES: Mapping[str, str] = {
    "iou_location_weighted": "IoU by location",
    "iou_pooled": "IoU, pooled",
    "near_edges": "IoU near edges, pooled",
    "precision": "Precision",
    "recall": "Recall",
}
"""The scores that are compared, the one that decides first."""
DECIDING_SCORE = "iou_location_weighted"


class ScoreEffect(Settings):
    """A score of the nets of both versions, and what can be said of the difference: after less before.

    IoU by location is the mean over locations of each one's mean over seeds; the others are of the counts of all seeds
    together. `over_places` says what other places could have given with these very
    nets; `interval` what other places and other seeds could have, and decides the `words`. `by_seed` are the
    differences of single seeds, by seed.
    """

    name: str
    before: float | None
    after: float | None
    difference: float | None
    over_places: Ends | None
    interval: Ends | None
    by_seed: dict[int, float | None]
    words: Words


class PlaceEffect(Settings):
    """The IoU of a location before and after, each the mean over seeds; `by_seed` as in `ScoreEffect`.

    Each seed's training is a draw, and what is asked is what such trainings come to on average: so counts of seeds are
    never summed here. Summed, one pixel that one of many nets takes for cloud would turn a clear place from 1 to 0, and
    the difference would depend on the number of seeds. The `interval` is over seeds alone, and decides the `words`.
    `num_tiles` are counted; labels of `num_changed` of the location's tiles differ, in this part or not, and
    `num_dropped` tiles were dropped.
    """

    before: float
    after: float
    difference: float
    interval: Ends
    by_seed: dict[int, float]
    words: PlaceWords
    num_tiles: int
    num_changed: int
    num_dropped: int


class PartEffect(Settings):
    """What the comparison on some tiles came to, by score and by location.

    Of `num_tiles` tiles, the labels of `num_changed` of which differ; `num_ignored` more have a label of which no pixel
    counts, and are left out.
    """

    name: PartName
    num_tiles: int
    num_changed: int
    num_ignored: int
    scores: tuple[ScoreEffect, ...]
    locations: dict[str, PlaceEffect]

    @property
    def deciding(self) -> ScoreEffect:
        """The score that says whether cleaning helped."""
        return self.scores[0]


class Compared(Settings):
    """What was compared: shards by URI and hash, members with the settings changed for both, seeds, how intervals are.

    `test` are shards whose labels are the same for both versions; they and their hash are None without any. `is_child`
    says that the manifest of `after` names `before` as its parent.
    """

    before: str
    after: str
    before_digest: str
    after_digest: str
    is_child: bool
    test: str | None
    test_digest: str | None
    members: tuple[MemberName, ...]
    changes: dict[str, Any]
    seeds: tuple[int, ...]
    folds: tuple[int, ...]
    threshold: float
    empty_union_rule: EmptyUnionRule
    edge_px: int
    level: float = LEVEL
    resamples: int
    resampling_seed: int


class Effect(Settings):
    """The content of `effect.json`: the verdict, on which part it rests, all parts, what was touched, what is left out.

    `lost_places` are locations of which no tile is left after cleaning: they are in no comparison.
    """

    format_version: Literal[1] = 1
    words: Words
    decided_by: PartName | None
    parts: tuple[PartEffect, ...]
    num_tiles: int
    num_changed: int
    num_dropped: int
    num_touched_places: int
    num_untouched_places: int
    lost_places: tuple[str, ...]
    problems: tuple[Problem, ...]
    compared: Compared
    raytrain_version: str = __version__

    def part(self, name: PartName) -> PartEffect | None:
        """Return the part of this name, None where there is nothing in it."""
        return next((each for each in self.parts if each.name == name), None)


@dataclass(frozen=True)
class _Side:
    """What the nets of one version came to, a tally scored for each seed."""

    seeds: Mapping[int, Scored]

    @cached_property
    def by_place(self) -> dict[str, float]:
        """The mean over seeds of the IoU of each location, by name."""
        names = next(iter(self.seeds.values())).locations
        return {name: mean(each.locations[name].iou for each in self.seeds.values()) for name in names}

    @cached_property
    def ratios(self) -> dict[str, Ratio]:
        """Every score of all seeds, by name."""
        pooled = Scored(joined(each.tally for each in self.seeds.values()), RULE)
        return {**_ratios(pooled), DECIDING_SCORE: Ratio.mean(np.array(list(self.by_place.values())))}


def judge(
    name: PartName,
    before: Mapping[int, Tally],
    after: Mapping[int, Tally],
    *,
    changed: Mapping[str, int] | None = None,
    dropped: Mapping[str, int] | None = None,
    num_changed: int = 0,
    num_ignored: int = 0,
    resamples: int,
    resampling_seed: int = 0,
) -> PartEffect:
    """Return what the nets of both versions, a tally for each seed, come to on the same tiles, one at least.

    `changed` and `dropped` count tiles by location, `num_changed` those among the tiles, `num_ignored` what was left
    out. Raises `ValueError` for fewer seeds than `FEWEST_SEEDS`.
    """
    if set(before) != set(after) or len(before) < FEWEST_SEEDS:
        raise ValueError(f"expected the same {FEWEST_SEEDS} seeds or more, found {sorted(before)} and {sorted(after)}")
    tallies = [*before.values(), *after.values()]
    assert all(each.chip_ids == tallies[0].chip_ids for each in tallies), "pairs are of the same tiles"
    old, new = (_Side({seed: Scored(each[seed], RULE) for seed in sorted(each)}) for each in (before, after))
    differences = {score: Difference(new.ratios[score], old.ratios[score]) for score in EFFECT_SCORES}
    found = intervals(list(differences.values()), resampling_seed, resamples)
    scores = tuple(
        _score_effect(score, difference, interval, old, new)
        for (score, difference), interval in zip(differences.items(), found, strict=True)
    )
    return PartEffect(
        name=name,
        num_tiles=len(tallies[0]),
        num_changed=num_changed,
        num_ignored=num_ignored,
        scores=scores,
        locations=_places(old, new, changed or {}, dropped or {}),
    )


def decide(parts: Sequence[PartEffect]) -> tuple[Words, PartName | None]:
    """Return whether cleaning helped and which part says so: the first of `DECIDING` that has an interval.

    Where none has one it is the first that there is, which then can't tell, or has no difference at all; can't tell
    without any.
    """
    there = [part for name in DECIDING for part in parts if part.name == name]
    part = next((each for each in there if each.deciding.interval is not None), there[0] if there else None)
    return ("can't tell", None) if part is None else (part.deciding.words, part.name)


def write_effect(uri: str, effect: Effect) -> str:
    """Write `effect.json` into the folder `uri` and return its URI."""
    target = storage.join(uri, EFFECT_FILE)
    storage.write_bytes(target, f"{effect.model_dump_json(indent=1)}\n".encode())
    return target


def _ratios(scored: Scored) -> dict[str, Ratio]:
    return {**scored.ratios, "near_edges": scored.zone(NEAR)[1]}


def _score_effect(name: str, difference: Difference, found: Interval | None, old: _Side, new: _Side) -> ScoreEffect:
    pairs = {seed: (new.seeds[seed], old.seeds[seed]) for seed in old.seeds}
    by_seed = {
        seed: Difference(_ratios(ours)[name], _ratios(theirs)[name]).value for seed, (ours, theirs) in pairs.items()
    }
    known = np.array([value for value in by_seed.values() if value is not None], np.float64)
    widened = None if found is None or len(known) < len(by_seed) else widened_by_seeds(found, known)
    return ScoreEffect(
        name=name,
        before=difference.theirs.value,
        after=difference.ours.value,
        difference=difference.value,
        over_places=ends_of(found),
        interval=ends_of(widened),
        by_seed=by_seed,
        words=_words(difference, widened),
    )


def _words(difference: Difference, interval: Interval | None) -> Words:
    if interval is None:
        alike = all(
            np.array_equal(a, b)
            for a, b in (
                (difference.ours.above, difference.theirs.above),
                (difference.ours.below, difference.theirs.below),
            )
        )
        return "no difference shown" if alike else "can't tell"
    return "helped" if interval.low > 0 else "harmed" if interval.high < 0 else "no difference shown"


def _places(old: _Side, new: _Side, changed: Mapping[str, int], dropped: Mapping[str, int]) -> dict[str, PlaceEffect]:
    found = {}
    for name, before in old.by_place.items():
        by_seed = {s: new.seeds[s].locations[name].iou - old.seeds[s].locations[name].iou for s in old.seeds}
        interval = over_seeds(np.array(list(by_seed.values()), np.float64))
        found[name] = PlaceEffect(
            before=before,
            after=new.by_place[name],
            difference=interval.value,
            interval=Ends(low=max(-1.0, interval.low), high=min(1.0, interval.high)),
            by_seed=by_seed,
            words="gained" if interval.low > 0 else "lost" if interval.high < 0 else "no difference shown",
            num_tiles=next(iter(old.seeds.values())).locations[name].num_chips,
            num_changed=changed.get(name, 0),
            num_dropped=dropped.get(name, 0),
        )
    return found
