"""Places of a pool that stay empty for a while, since one actor after the other ended in them. Must not know Ray."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

FIRST_PAUSE_S, LONGEST_PAUSE_S = 30.0, 300.0
"""How long the place of an actor stays empty if the one before it ended the same way."""


@dataclass(frozen=True)
class _Vacancy:
    until: float
    ended_before: int


@dataclass
class Vacancies:
    """The empty places, each until a time and with the number of actors that were sick in it, one after the other."""

    _places: list[_Vacancy] = field(default_factory=list)

    @property
    def num_closed(self) -> int:
        """Places that must stay empty now."""
        now = time.monotonic()
        return sum(each.until > now for each in self._places)

    def leave(self, ended_before: int) -> float:
        """Note that an actor left its place sick, `ended_before` before it; return for how many seconds it is closed.

        The first time it is open at once; then it is closed for longer each time.
        """
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(ended_before - 1, 10), LONGEST_PAUSE_S) if ended_before else 0.0
        self._places.append(_Vacancy(time.monotonic() + pause_s, ended_before + 1))
        return pause_s

    def take(self) -> int:
        """Fill a place that is open, if there is one; return how many actors were sick in it, one after the other."""
        now = time.monotonic()
        for place in self._places:
            if place.until <= now:
                self._places.remove(place)
                return place.ended_before
        return 0
