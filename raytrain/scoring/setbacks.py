"""Failures without a success in between: how long to wait, and when to give up, if it is not a unit that is to blame.

A store that is away, or a full disk, fails one unit after the other. Whoever failed then waits before the next unit,
and so does what failed, longer and longer; workers that did not fail go on. Must not know Ray.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field

from raytrain.errors import WorkNotFinished
from raytrain.scoring.schedule import Worker

FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 60.0
GIVE_UP_S, GIVE_UP_ITEMS = 1800.0, 10
"""How long nothing may succeed on any worker, and how many items must have failed, before the work ends; the same
command goes on. Fewer items may be to blame themselves, however long each attempt at one takes: they become casualties.
"""


@dataclass
class Setbacks:
    """The failures since the last success: on which workers, with which items.

    `was_replaced` is set once a worker was made anew.
    """

    num: int = 0
    workers: set[Worker] = field(default_factory=set)
    items: set[str] = field(default_factory=set)
    was_replaced: bool = False
    _since: float = 0.0
    _wait_until: float = 0.0

    def failed(self, worker: Worker, item_id: str) -> None:
        """Note that a unit failed on `worker`, of the item `item_id` or with it the first of some."""
        now = time.monotonic()
        self._since = self._since if self.num else now
        self.num += 1
        self.workers.add(worker)
        self.items.add(item_id)
        self._wait_until = now + self._wait_s

    def succeeded(self) -> None:
        """Note that a unit was done: what it needs is there."""
        self.num, self.workers, self.items, self.was_replaced, self._wait_until = 0, set(), set(), False, 0.0

    @property
    def _wait_s(self) -> float:
        return min(FIRST_WAIT_S * 2.0 ** min(self.num - 1, 10), LONGEST_WAIT_S)

    @property
    def is_wait(self) -> bool:
        """Whether what failed, and those on whom something failed, have to wait now."""
        return time.monotonic() < self._wait_until

    def tried(self, worker: Worker, failures: int) -> None:
        """Note that `worker` was given a unit of so many failures: if either failed, the next try is a wait later."""
        if self.num and (failures or worker in self.workers):
            self._wait_until = time.monotonic() + self._wait_s

    def are_of_all(self, workers: Collection[Worker]) -> bool:
        """Tell whether something failed on each of `workers`: none of them is better than another."""
        return self.workers.issuperset(workers)

    def give_up(self, workers: Collection[Worker], why: str) -> None:
        """Raise `WorkNotFinished` if nothing succeeded for long, with many items, on any of `workers`."""
        spent_s = time.monotonic() - self._since
        if spent_s > GIVE_UP_S and len(self.items) >= GIVE_UP_ITEMS and self.are_of_all(workers):
            raise WorkNotFinished(
                f"nothing could be done for {spent_s / 60:.0f} min, {self.num} attempts at {len(self.items)} items "
                f"failed one after the other, the last: {why}; the same command goes on"
            )
