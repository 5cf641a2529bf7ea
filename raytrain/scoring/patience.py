"""How long to wait after failures in a row, longer and longer, and how long they last. Must not know what failed."""

from __future__ import annotations

import time
from dataclasses import dataclass

FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 60.0
GIVE_UP_S = 1800.0
"""How long failures may last before whoever waits gives up; the same command goes on."""


@dataclass
class Patience:
    """The number of failures since the last success, and what follows from it."""

    num: int = 0
    _since: float = 0.0
    _wait_until: float = 0.0

    def failed(self) -> None:
        """Note a failure; the next try is a wait later."""
        self._since = self._since if self.num else time.monotonic()
        self.num += 1
        self.put_off()

    def put_off(self) -> None:
        """Wait once more, from now, as long as after the last failure."""
        self._wait_until = time.monotonic() + min(FIRST_WAIT_S * 2.0 ** min(self.num - 1, 10), LONGEST_WAIT_S)

    def succeeded(self) -> None:
        """Note a success: no more waits."""
        self.num, self._wait_until = 0, 0.0

    @property
    def is_wait(self) -> bool:
        """Whether it is too early for the next try."""
        return time.monotonic() < self._wait_until

    @property
    def spent_s(self) -> float:
        """Seconds since the first failure of those in a row."""
        return time.monotonic() - self._since if self.num else 0.0
