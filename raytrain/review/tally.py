"""How much each reviewer has decided, and how far two agree, counted as entries come. Must not know a log.

Of a large log everything is not counted again after each decision: an entry changes some numbers of one reviewer.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping

from raytrain.review.decisions import Decision, Verdict
from raytrain.review.standing import Agreement, Progress, agreement_of_counts


class Tally:
    """The counts of `progress_of` and of `agreements`, kept. For one thread at a time."""

    def __init__(self) -> None:
        self.num_decided = 0
        """Tiles on which a decision of anyone stands."""
        self._entries: Counter[str] = Counter()
        self._last_times: dict[str, str] = {}
        self._verdicts: defaultdict[str, Counter[Verdict]] = defaultdict(Counter)
        self._pairs: defaultdict[tuple[str, str], Counter[tuple[Verdict, Verdict]]] = defaultdict(Counter)

    def enter(self, decision: Decision) -> None:
        """Count an entry of the log, whatever becomes of it."""
        self._entries[decision.reviewer] += 1
        self._last_times[decision.reviewer] = max(decision.time, self._last_times.get(decision.reviewer, ""))

    def change(self, reviewer: str, before: Mapping[str, Decision], after: Mapping[str, Decision]) -> None:
        """Count what stands on a tile, `after` instead of `before`, by reviewer: only this reviewer's may differ."""
        self.num_decided += bool(after) - bool(before)
        for standing, number in ((before, -1), (after, 1)):
            if reviewer not in standing:
                continue
            verdict = standing[reviewer].verdict
            self._verdicts[reviewer][verdict] += number
            for other in standing.keys() - {reviewer}:
                theirs = standing[other].verdict
                if reviewer < other:
                    self._pairs[reviewer, other][verdict, theirs] += number
                else:
                    self._pairs[other, reviewer][theirs, verdict] += number

    def progress(self) -> list[Progress]:
        """Return how far each reviewer has come, by name."""
        return [
            Progress(name, self._entries[name], self._verdicts[name].total(), dict(self._verdicts[name]), time)
            for name, time in sorted(self._last_times.items())
        ]

    def agreements(self) -> list[Agreement]:
        """Return how far any two reviewers of whom a decision stands agree, by their names."""
        names = sorted(name for name, verdicts in self._verdicts.items() if verdicts.total())
        return [
            agreement_of_counts(*pair, self._pairs.get(pair, Counter())) for pair in itertools.combinations(names, 2)
        ]
