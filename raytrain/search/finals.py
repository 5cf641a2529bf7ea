"""The finalists of a search, and who wins: judged on locations that the search never used, several seeds each.

Must not know who trains them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from raytrain.config import Settings
from raytrain.evaluation.intervals import Interval, mean_over_seeds_and_locations
from raytrain.search.records import ORIGINAL, Trial

Words = Literal["better", "no difference", "worse", "the original is the best"]
FEWEST_SEEDS = 2
"""One seed shows nothing of how seeds differ, so no interval can be had from it."""


class Finals(Settings):
    """How many settings beside the original are trained to the end, each with how many seeds; none with 0."""

    finalists: int = Field(default=2, ge=0)
    seeds: int = Field(default=3, ge=FEWEST_SEEDS)


@dataclass(frozen=True)
class Verdict:
    """Whether the winner is better than the original, on the locations kept back, both with the same seeds.

    `winner` is the number of the setting with the best mean score on the validation fold. `difference` is the winner's
    IoU minus the original's, mean over seeds and locations; None where the original wins. `words` say "better" or
    "worse" only where the whole interval does.
    """

    winner: int
    words: Words
    difference: Interval | None
    seeds: tuple[int, ...]
    num_locations: int


@dataclass(frozen=True)
class FinalScore:
    """A finalist, in means over its seeds: score on the validation fold, IoU of locations kept back; this by seed."""

    number: int
    validation: float
    kept_back: float
    by_seed: dict[int, float]


def candidates(trials: Sequence[Trial], finals: Finals) -> list[int]:
    """Return the numbers of the settings that are trained to the end: the original's, then the best of the search."""
    if finals.finalists == 0:
        return []
    tried = [each for each in trials if each.kind == "search"]
    original = next((each for each in tried if each.number == ORIGINAL), None)
    scored = [each for each in tried if each.score is not None and each.state in ("stopped", "finished")]
    others = [each for each in scored if original is not None and each.point != original.point]
    best: list[Trial] = []
    for each in sorted(others, key=lambda each: (-(each.score or 0), each.number)):
        if all(each.point != known.point for known in best):
            best.append(each)
    return [ORIGINAL, *(each.number for each in best[: finals.finalists])] if best else []


def given_up(trials: Sequence[Trial]) -> set[int]:
    """Return the numbers of the finalists of which a training failed: they can't win, whatever the others come to."""
    return {each.number for each in trials if each.kind == "final" and each.state in ("failed", "diverged")}


def finalists(trials: Sequence[Trial], finals: Finals) -> list[int]:
    """Return the numbers of the candidates that are not given up."""
    lost = given_up(trials)
    return [number for number in candidates(trials, finals) if number not in lost]


def final_scores(trials: Sequence[Trial], numbers: Sequence[int]) -> list[FinalScore]:
    """Return the scores of the settings over the seeds that all of them have finished; empty without such a seed."""
    judged = _judged(trials, numbers)
    seeds = _common_seeds(judged, numbers)
    if not seeds:
        return []
    found = []
    for number in numbers:
        ended = [judged[number, seed] for seed in seeds]
        by_seed = {each.seed: float(_ious(each).mean()) for each in ended}
        validation = float(np.mean([each.score for each in ended]))
        found.append(FinalScore(number, validation, float(np.mean(list(by_seed.values()))), by_seed))
    return found


def judge(trials: Sequence[Trial], finals: Finals) -> Verdict | None:
    """Return who wins among the finalists that are finished with common seeds; None where nothing can be compared.

    One of which a training failed drops out.
    """
    numbers = finalists(trials, finals)
    if ORIGINAL not in numbers:
        return None
    judged = _judged(trials, numbers)
    scored = final_scores(trials, numbers)
    seeds = tuple(_common_seeds(judged, numbers))
    if len(scored) < 2 or len(seeds) < FEWEST_SEEDS:
        return None
    winner = max(scored, key=lambda each: (each.validation, -each.number)).number
    locations = len(judged[ORIGINAL, seeds[0]].judged or {})
    if winner == ORIGINAL:
        return Verdict(winner, "the original is the best", None, seeds, locations)
    difference_SL = np.stack([_ious(judged[winner, seed]) - _ious(judged[ORIGINAL, seed]) for seed in seeds])
    found = mean_over_seeds_and_locations(difference_SL)
    words: Words = "better" if found.low > 0 else "worse" if found.high < 0 else "no difference"
    return Verdict(winner, words, found, seeds, locations)


def _judged(trials: Sequence[Trial], numbers: Sequence[int]) -> dict[tuple[int, int], Trial]:
    return {
        (each.number, each.seed): each
        for each in trials
        if each.kind == "final" and each.number in numbers and each.state == "finished" and each.judged
    }


def _common_seeds(judged: dict[tuple[int, int], Trial], numbers: Sequence[int]) -> list[int]:
    of = [{seed for number, seed in judged if number == each} for each in numbers]
    return sorted(set.intersection(*of)) if of else []


def _ious(trial: Trial) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the IoU of each location kept back, in the order of their names, `[L] float64`."""
    judged = trial.judged or {}
    return np.array([judged[name].iou for name in sorted(judged)], np.float64)


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict in a sentence."""
    count = f"{verdict.num_locations} locations kept back, {len(verdict.seeds)} seeds"
    if verdict.difference is None:
        return f"the original's setting has the best mean score of all finalists on the validation fold ({count})"
    found = verdict.difference
    told = f"{found.value:+.4f} IoU by location, 95 % interval {found.low:+.4f} to {found.high:+.4f}; {count}"
    words = {
        "better": "better than the original",
        "no difference": "no difference to the original could be shown",
        "worse": "the winner of the validation fold is worse than the original, which is kept",
    }[verdict.words]
    return f"{words} ({told})"
