"""What a search has come to, as its writers and its page know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raytrain.search.finals import FinalScore, Verdict
from raytrain.search.records import Trial
from raytrain.search.space import Point


@dataclass(frozen=True)
class Best:
    """The setting that `best.toml` has: the number of its trial, what was drawn, and what is known of it in a line."""

    number: int
    point: Point
    why: str


@dataclass(frozen=True)
class Results:
    """What a search has come to so far, and where it was written; `best` is None before any trial has a score."""

    trials: Sequence[Trial]
    best: Best | None
    verdict: Verdict | None
    final_scores: Sequence[FinalScore]
    seconds: float
    rank_hours: float
    best_uri: str
    trials_uri: str
    report_uri: str
