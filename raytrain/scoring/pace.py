"""How fast a scoring goes, and how far it is. Must not know what is next, or who computes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from raytrain.scoring.units import Answer


@dataclass
class _Life:
    """A worker: when the first unit that it did began, when it was no more, how long its nets computed."""

    begin: float
    end: float = math.inf
    network_s: float = 0.0


@dataclass
class Rate:
    """How fast work goes: pixels so far, since `start` (of a monotonic clock), and the time inside the nets."""

    start: float = field(default_factory=time.monotonic)
    pixels: int = 0
    _lives: dict[str, _Life] = field(default_factory=dict)
    _end: float = -math.inf

    def add(self, answer: Answer, worker: str) -> None:
        """Count what came of a unit that ended now."""
        now = time.monotonic()
        begin = now - answer.seconds
        self.pixels += answer.pixels
        life = self._lives.setdefault(worker, _Life(begin))
        life.begin, life.network_s = min(life.begin, begin), max(life.network_s, answer.network_s)
        self._end = max(self._end, now)

    def ended(self, worker: str) -> None:
        """Note that `worker` is no more, whether it did anything or not."""
        if worker in self._lives:
            self._lives[worker].end = time.monotonic()

    @property
    def wall_s(self) -> float:
        """Seconds from the begin of the first unit to the end of the last."""
        return max(0.0, self._end - min((life.begin for life in self._lives.values()), default=math.inf))

    @property
    def network_s(self) -> float:
        """Seconds inside the nets, over all workers."""
        return sum(life.network_s for life in self._lives.values())

    @property
    def network_fraction(self) -> float | None:
        """Share of the workers' time that went by inside the nets; None before anything was done.

        A worker's time is that from its first unit until it was no more, or else until the last unit of all.
        """
        workers_s = sum(max(0.0, min(life.end, self._end) - life.begin) for life in self._lives.values())
        return self.network_s / workers_s if workers_s > 0 else None


@dataclass(frozen=True)
class Progress:
    """How far a scoring is: units done of `total` as planned, items finished and failed, megapixels, in `seconds`.

    A scene in blocks is one unit, done as far as the blocks are that were still to do.
    """

    units: float
    total: int
    items: int
    casualties: int
    megapixels: float
    seconds: float

    def __str__(self) -> str:
        """Return the rates, what failed, and how long the rest takes at this pace."""
        if not self.seconds or not (self.units or self.megapixels):
            return ""
        hour_s = 3600.0
        lost = f"{self.casualties} not scored, " if self.casualties else ""
        rates = f"{self.items * hour_s / self.seconds:.0f} items/h, {self.megapixels / self.seconds:.2f} Mpx/s"
        if not self.units:
            return f"{lost}{rates}"
        left_s = (self.total - self.units) * self.seconds / self.units
        left = f"{left_s / hour_s:.1f} h left" if left_s >= hour_s else f"{left_s / 60:.0f} min left"
        return f"{lost}{rates}, {left}"
