"""Whether a search gets anywhere: how long no trial has had its places. Must not know clusters."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_S = 600.0
"""How long no trial may have places before the search ends with the reason."""


class Watchdog:
    """Counts how long no trial has had places, or how long there was room for none; for any thread."""

    def __init__(self, limit_s: float = LIMIT_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._placed: set[str] = set()
        self._placed_at = self._room_at = clock()

    def place(self, trial: str) -> None:
        """Say that a trial has its places."""
        self._placed.add(trial)

    def lose(self, trial: str) -> None:
        """Say that a trial has ended, or lost its places."""
        self._look()
        self._placed.discard(trial)

    def look(self, room: int) -> None:
        """Say for how many trials the cluster has room."""
        self._look()
        if room > 0:
            self._room_at = self._clock()

    def _look(self) -> None:
        if self._placed:
            self._placed_at = self._clock()

    def waited_s(self) -> float | None:
        """Return how long no trial has had places, or could have any, if that is longer than the limit."""
        self._look()
        waited_s = self._clock() - min(self._placed_at, self._room_at)
        return waited_s if waited_s >= self._limit_s else None
