"""Whether cleaning labels helped: nets of both versions, with the same seeds, beside each other, place by place.

Must not know where nets and labels are, or how anything is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

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

    Each is of the counts of all seeds together. `over_places` says what other places could have given with these very
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
    """The IoU of a location before and after, of the counts of all seeds together; `by_seed` as in `ScoreEffect`.

    The `interval` is over seeds alone, and decides the `words`. Of so many tiles counted, and beside them dropped.
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
    """What the comparison on some tiles came to, by score and by location."""

    name: PartName
    num_tiles: int
    num_changed: int
    scores: tuple[ScoreEffect, ...]
    locations: dict[str, PlaceEffect]

    @property
    def deciding(self) -> ScoreEffect:
        """The score that says whether cleaning helped."""
        return self.scores[0]


class Compared(Settings):
    """What was compared: shards by URI and hash, members with the settings changed for both, seeds, how intervals are.

    `test` are shards whose labels are the same for both versions, None without any. `is_child` says that the manifest
    of `after` names `before` as its parent.
    """

    before: str
    after: str
    before_digest: str
    after_digest: str
    is_child: bool
    test: str | None
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


def judge(
    name: PartName,
    before: Mapping[int, Tally],
    after: Mapping[int, Tally],
    *,
    changed: Mapping[str, int] | None = None,
    dropped: Mapping[str, int] | None = None,
    resamples: int,
    resampling_seed: int = 0,
) -> PartEffect:
    """Return what the nets of both versions, a tally for each seed, come to on the same tiles, one at least.

    Counts of all seeds are summed by location before anything is divided. `changed` and `dropped` count tiles by
    location. Raises `ValueError` for fewer seeds than `FEWEST_SEEDS`.
    """
    if set(before) != set(after) or len(before) < FEWEST_SEEDS:
        raise ValueError(f"expected the same {FEWEST_SEEDS} seeds or more, found {sorted(before)} and {sorted(after)}")
    tallies = [*before.values(), *after.values()]
    assert all(each.chip_ids == tallies[0].chip_ids for each in tallies), "pairs are of the same tiles"
    seeds = sorted(before)
    old, new = (Scored(joined(each[seed] for seed in seeds), RULE) for each in (before, after))
    of_seeds = [(Scored(before[seed], RULE), Scored(after[seed], RULE)) for seed in seeds]
    differences = {score: Difference(_ratios(new)[score], _ratios(old)[score]) for score in EFFECT_SCORES}
    found = intervals(list(differences.values()), resampling_seed, resamples)
    scores = tuple(
        _score_effect(score, difference, interval, {s: pair for s, pair in zip(seeds, of_seeds, strict=True)})
        for (score, difference), interval in zip(differences.items(), found, strict=True)
    )
    return PartEffect(
        name=name,
        num_tiles=len(tallies[0]),
        num_changed=sum((changed or {}).get(each, 0) for each in old.tally.location_names),
        scores=scores,
        locations=_places(old, new, dict(zip(seeds, of_seeds, strict=True)), changed or {}, dropped or {}),
    )


def decide(parts: Sequence[PartEffect]) -> tuple[Words, PartName | None]:
    """Return whether cleaning helped and which part says so: the first of `DECIDING`; can't tell without any."""
    for name in DECIDING:
        part = next((each for each in parts if each.name == name), None)
        if part is not None:
            return part.deciding.words, name
    return "can't tell", None


def write_effect(uri: str, effect: Effect) -> str:
    """Write `effect.json` into the folder `uri` and return its URI."""
    target = storage.join(uri, EFFECT_FILE)
    storage.write_bytes(target, f"{effect.model_dump_json(indent=1)}\n".encode())
    return target


def _ratios(scored: Scored) -> dict[str, Ratio]:
    return {**scored.ratios, "near_edges": scored.zone(NEAR)[1]}


def _score_effect(
    name: str, difference: Difference, found: Interval | None, of_seeds: Mapping[int, tuple[Scored, Scored]]
) -> ScoreEffect:
    by_seed = {seed: Difference(_ratios(new)[name], _ratios(old)[name]).value for seed, (old, new) in of_seeds.items()}
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


def _places(
    old: Scored,
    new: Scored,
    of_seeds: Mapping[int, tuple[Scored, Scored]],
    changed: Mapping[str, int],
    dropped: Mapping[str, int],
) -> dict[str, PlaceEffect]:
    found = {}
    for name, theirs in old.locations.items():
        ours = new.locations[name]
        by_seed = {seed: b.locations[name].iou - a.locations[name].iou for seed, (a, b) in of_seeds.items()}
        difference = ours.iou - theirs.iou
        interval = _about(difference, np.array(list(by_seed.values()), np.float64))
        found[name] = PlaceEffect(
            before=theirs.iou,
            after=ours.iou,
            difference=difference,
            interval=Ends(low=interval.low, high=interval.high),
            by_seed=by_seed,
            words="gained" if interval.low > 0 else "lost" if interval.high < 0 else "no difference shown",
            num_tiles=theirs.num_chips // len(of_seeds),
            num_changed=changed.get(name, 0),
            num_dropped=dropped.get(name, 0),
        )
    return found


def _about(value: float, by_seed: NDArray[np.float64]) -> Interval:
    """Return the interval over seeds about the `value` of all their counts together."""
    around = over_seeds(by_seed)
    half = around.high - around.value
    return Interval(value, max(-1.0, value - half), min(1.0, value + half))
