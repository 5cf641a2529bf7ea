"""Failures without a success in between: how long to wait, and when to give up, if it is not a unit that is to blame.

A store that is away, or a full disk, fails one unit after the other. Whoever failed then waits before the next unit,
and so does what failed, longer and longer; workers that did not fail go on. Must not know Ray.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from raytrain.errors import WorkNotFinished
from raytrain.scoring.patience import GIVE_UP_S, Patience
from raytrain.scoring.schedule import Worker

GIVE_UP_ITEMS = 10
"""How many items must have failed, beside `GIVE_UP_S` without a success on any worker, before the work ends. Fewer may
be to blame themselves, however long each attempt at one takes: they become casualties.
"""


@dataclass
class Setbacks:
    """The failures since the last success: on which workers, with which items.

    `was_replaced` is set once a worker was made anew.
    """

    workers: set[Worker] = field(default_factory=set)
    items: set[str] = field(default_factory=set)
    was_replaced: bool = False
    _patience: Patience = field(default_factory=Patience)

    def failed(self, worker: Worker, item_id: str) -> None:
        """Note that a unit failed on `worker`, of the item `item_id` or with it the first of some."""
        self._patience.failed()
        self.workers.add(worker)
        self.items.add(item_id)

    def succeeded(self) -> None:
        """Note that a unit was done: what it needs is there."""
        self._patience.succeeded()
        self.workers, self.items, self.was_replaced = set(), set(), False

    @property
    def failing_s(self) -> float:
        """Seconds since the first failure of those without a success; 0 where there is none."""
        return self._patience.spent_s

    @property
    def is_wait(self) -> bool:
        """Whether what failed, and those on whom something failed, have to wait now."""
        return self._patience.is_wait

    def tried(self, worker: Worker, failures: int) -> None:
        """Note that `worker` was given a unit of so many failures: if either failed, the next try is a wait later."""
        if self._patience.num and (failures or worker in self.workers):
            self._patience.put_off()

    def are_of_all(self, workers: Collection[Worker]) -> bool:
        """Tell whether something failed on each of `workers`: none of them is better than another."""
        return self.workers.issuperset(workers)

    def give_up(self, workers: Collection[Worker], why: str) -> None:
        """Raise `WorkNotFinished` if nothing succeeded for long, with many items, on any of `workers`."""
        spent_s = self._patience.spent_s
        if spent_s > GIVE_UP_S and len(self.items) >= GIVE_UP_ITEMS and self.are_of_all(workers):
            raise WorkNotFinished(
                f"nothing could be done for {spent_s / 60:.0f} min, {self._patience.num} attempts at {len(self.items)} "
                f"items failed one after the other, the last: {why}; the same command goes on"
            )
