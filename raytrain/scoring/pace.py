"""How fast a scoring goes, and how far it is. Must not know what is next, or who computes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from raytrain.scoring.units import Answer


@dataclass
class Rate:
    """How fast work goes: pixels so far, since `start` (of a monotonic clock), and the time inside the nets."""

    start: float = field(default_factory=time.monotonic)
    pixels: int = 0
    _network_s: dict[str, float] = field(default_factory=dict)
    _begin: float = math.inf
    _end: float = -math.inf

    def add(self, answer: Answer, worker: str) -> None:
        """Count what came of a unit that ended now."""
        now = time.monotonic()
        self.pixels += answer.pixels
        self._network_s[worker] = max(answer.network_s, self._network_s.get(worker, 0.0))
        self._begin, self._end = min(self._begin, now - answer.seconds), max(self._end, now)

    @property
    def wall_s(self) -> float:
        """Seconds from the begin of the first unit to the end of the last."""
        return max(0.0, self._end - self._begin)

    @property
    def network_s(self) -> float:
        """Seconds inside the nets, over all workers."""
        return sum(self._network_s.values())

    @property
    def network_fraction(self) -> float | None:
        """Share of the workers' time that went by inside the nets; None before anything was done."""
        return self.network_s / (self.wall_s * len(self._network_s)) if self.wall_s > 0 else None


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
