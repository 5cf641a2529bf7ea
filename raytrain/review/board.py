"""What has been decided so far, as a server has it in memory: what stands, the order of arrival, progress, agreement.

The log in the store is the truth; others may write to it, so it is looked at again now and then, never by two threads
at a time, and nobody waits long for it. Must not know HTTP.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raytrain.errors import DataError, first_line
from raytrain.review.catalogue import Catalogue
from raytrain.review.decisions import VERDICTS, Decision, Verdict
from raytrain.review.log import DecisionLog, order_of
from raytrain.review.standing import Agreement, Standing, standing_of
from raytrain.review.tally import Tally

REFRESH_S = 2.0
"""How old what is known of others' decisions may be, where a look at the log is quick."""
LONGEST_WAIT_S = 1.0
"""How long somebody waits for a look at the log, which goes on without."""
SHARE_OF_TIME = 0.1
"""Of all time, spent on looking at the log, at most: a listing of a large one in a far store takes seconds."""
FINAL_VERDICTS = tuple(verdict for verdict in VERDICTS if verdict != "undo")
"""Those that can stand."""
STANDINGS = ("none", *VERDICTS, "any", "disputed")
"""What may hold of a tile: no verdict, one of these, any, or two that differ."""
_UNDECIDED = -1
_CODES: dict[Verdict, int] = {verdict: code for code, verdict in enumerate(VERDICTS)}
_logger = logging.getLogger(__name__)


class Board:
    """The decisions on the tiles of a catalogue. May be used by many threads.

    `cursor` counts arrivals here, which differ from the order of the log: a page that has seen some asks for the rest.
    """

    def __init__(self, log: DecisionLog, catalogue: Catalogue, refresh_s: float = REFRESH_S) -> None:
        self._log = log
        self._catalogue = catalogue
        self._refresh_s = refresh_s
        self._lock = threading.Lock()
        self._arrivals: list[Decision] = []
        self._by_id: dict[tuple[str, str], Decision] = {}
        self._histories: dict[str, list[Decision]] = defaultdict(list)
        self._standing: Standing = {}
        self._tally = Tally()
        self._verdicts: dict[str, NDArray[np.int8]] = {}
        self._numbers: Counter[str] = Counter()
        self._times: dict[str, str] = {}
        self._start = secrets.token_hex(4)
        self._looker = ThreadPoolExecutor(1, "look-at-log")
        self._look: Future[None] | None = None
        self._took_s = 0.0
        self._looking = threading.Lock()
        self._named: set[str] = set()
        self._take_new()  # what is damaged by now is named by who opens it
        self._looked_at = time.monotonic()

    @property
    def problems(self) -> list[DataError]:
        """What the log has that is no entry."""
        return self._log.problems

    def refresh(self) -> None:
        """Look at the log again where the last look is too long ago, and wait for it for a moment.

        A store that does not answer is no error here: what is known is shown, and the next one asks again.
        """
        look = self.begin_look()
        if look is not None:
            wait([look], LONGEST_WAIT_S)

    def begin_look(self) -> Future[None] | None:
        """Begin to look at the log where the last look is too long ago; return the last look that was begun."""
        with self._lock:
            due = self._looked_at + max(self._refresh_s, self._took_s / SHARE_OF_TIME)
            if (self._look is None or self._look.done()) and time.monotonic() >= due:
                self._look = self._looker.submit(self._look_again)
            return self._look

    def close(self) -> None:
        """Begin no further look at the log."""
        self._looker.shutdown(wait=False, cancel_futures=True)

    def _look_again(self) -> None:
        start = time.monotonic()
        try:
            self.look_now()
        except Exception as error:  # noqa: BLE001  # whatever it is, pages go on with what is known
            _logger.warning(
                "%s: can't be looked at: %s; others' decisions are not seen", self._log.uri, first_line(error)
            )
        self._took_s = time.monotonic() - start
        self._looked_at = time.monotonic()

    def look_now(self) -> None:
        """Look at the log, however long that takes, and take what is new in it; warn of what is newly damaged."""
        for problem in self._take_new():
            _logger.warning("%s; left out", problem)

    def _take_new(self) -> list[str]:
        """Take what is new in the log, one thread at a time; return what is wrong with what is no entry, if new."""
        with self._looking:
            for decision in self._log.refresh():
                self._take(decision)
            found = {first_line(each) for each in self._log.problems}
            new = sorted(found - self._named)
            self._named = found
            return new

    def add(self, decision: Decision) -> None:
        """Write a decision to the log and take it; it lies in the store when this returns."""
        self._log.append(decision)
        self._take(decision)

    def _take(self, decision: Decision) -> None:
        """Enter a decision of the log, of which nothing is known yet, or which is known already."""
        with self._lock:
            key = (decision.reviewer, decision.decision_id)
            if key in self._by_id:
                return
            self._by_id[key] = decision
            self._arrivals.append(decision)
            self._numbers[decision.reviewer] = max(self._numbers[decision.reviewer], decision.number)
            self._times[decision.reviewer] = max(self._times.get(decision.reviewer, ""), decision.time)
            history = self._histories[decision.tile_id]
            history.append(decision)
            before = self._standing.get(decision.tile_id, {})
            stands = standing_of(history).get(decision.tile_id, {})
            self._standing[decision.tile_id] = stands
            self._tally.enter(decision)
            row = self._catalogue.row_of(decision.tile_id)
            if row is not None:
                self._tally.change(decision.reviewer, before, stands)
                stands_here = stands.get(decision.reviewer)
                self._codes(decision.reviewer)[row] = _UNDECIDED if stands_here is None else _CODES[stands_here.verdict]

    def _codes(self, reviewer: str) -> NDArray[np.int8]:
        """Return the verdicts of a reviewer by row, `[N]`: what lists are filtered by."""
        if reviewer not in self._verdicts:
            self._verdicts[reviewer] = np.full(len(self._catalogue), _UNDECIDED, np.int8)
        return self._verdicts[reviewer]

    def next_number(self, reviewer: str) -> int:
        """Return the number for the next entry of a reviewer."""
        with self._lock:
            return self._numbers[reviewer] + 1

    def last_time(self, reviewer: str) -> str | None:
        """Return the latest time of a reviewer's entries, None where none is known."""
        with self._lock:
            return self._times.get(reviewer)

    def entry(self, reviewer: str, decision_id: str) -> Decision | None:
        """Return a reviewer's entry of this id, None where none is known."""
        with self._lock:
            return self._by_id.get((reviewer, decision_id))

    def entry_now(self, reviewer: str, decision_id: str) -> Decision | None:
        """Return a reviewer's entry of this id, for which the log is looked at where it is not known yet."""
        if self.entry(reviewer, decision_id) is None:
            self.look_now()
        return self.entry(reviewer, decision_id)

    def standing(self, tile_id: str) -> dict[str, Decision]:
        """Return the decision of each reviewer that stands for a tile."""
        with self._lock:
            return self._standing.get(tile_id, {})

    def history(self, tile_id: str) -> list[Decision]:
        """Return all entries about a tile, by time."""
        with self._lock:
            found = list(self._histories.get(tile_id, ()))
        return sorted(found, key=lambda each: (each.time, each.reviewer, *order_of(each)))

    def verdicts(self, rows: Iterable[int]) -> list[dict[str, Verdict]]:
        """Return of each row the verdicts that stand, by reviewer."""
        with self._lock:
            names = sorted(self._verdicts)
            return [
                {name: VERDICTS[code] for name in names if (code := int(self._verdicts[name][row])) != _UNDECIDED}
                for row in rows
            ]

    def rows_with(self, stands: str, reviewer: str | None) -> NDArray[np.bool_]:
        """Tell of each row whether one of `STANDINGS` holds: of what a reviewer decided, or anyone."""
        with self._lock:
            codes = [each for name, each in self._verdicts.items() if reviewer in (None, name)]
            if stands in _CODES:
                return self._any([each == _CODES[stands] for each in codes])
            if stands == "disputed":
                return self._disputed(reviewer)
            decided = self._any([each != _UNDECIDED for each in codes])
        return ~decided if stands == "none" else decided

    def decided_by_others(self, reviewer: str) -> NDArray[np.bool_]:
        """Tell of each row whether somebody else than this reviewer decided on it."""
        with self._lock:
            return self._any([each != _UNDECIDED for name, each in self._verdicts.items() if name != reviewer])

    def _disputed(self, reviewer: str | None) -> NDArray[np.bool_]:
        """Tell of each row whether two verdicts that stand differ, one of them this reviewer's where one is named."""
        pairs = [
            (self._verdicts[first] != self._verdicts[second])
            & (self._verdicts[first] != _UNDECIDED)
            & (self._verdicts[second] != _UNDECIDED)
            for first, second in itertools.combinations(sorted(self._verdicts), 2)
            if reviewer in (None, first, second)
        ]
        return self._any(pairs)

    def _any(self, rows: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
        found = np.zeros(len(self._catalogue), bool)
        for each in rows:
            found |= each
        return found

    def since(self, cursor: str, limit: int) -> tuple[str, list[Decision], bool]:
        """Return the next cursor, at most `limit` entries that came after `cursor`, and whether there are more.

        An empty cursor, or one of another server, begins at the first entry.
        """
        start, _, count = cursor.partition("-")
        seen = int(count) if start == self._start and count.isdecimal() else 0
        with self._lock:
            found = self._arrivals[seen : seen + limit]
            more = seen + len(found) < len(self._arrivals)
        return f"{self._start}-{seen + len(found)}", found, more

    @property
    def cursor(self) -> str:
        """The cursor of who has seen all that is known now."""
        with self._lock:
            return f"{self._start}-{len(self._arrivals)}"

    def progress(self) -> dict[str, Any]:
        """Return how much each reviewer has decided, and how far two who saw the same tiles agree."""
        with self._lock:
            pairs = self._tally.agreements()
            return {
                "total": len(self._catalogue),
                "decided_by_anyone": self._tally.num_decided,
                "by_reviewer": [
                    {
                        "reviewer": each.reviewer,
                        "decided": each.num_tiles,
                        "by_verdict": {verdict: each.by_verdict.get(verdict, 0) for verdict in FINAL_VERDICTS},
                        "last_time": each.last_time,
                        "agreement": _with_others(each.reviewer, pairs),
                    }
                    for each in self._tally.progress()
                ],
                "pairs": [
                    {
                        "a": each.first,
                        "b": each.second,
                        "both": each.num_tiles,
                        "same": each.num_same,
                        "kappa": each.kappa,
                    }
                    for each in pairs
                ],
            }


def _with_others(name: str, pairs: list[Agreement]) -> float | None:
    """Return which fraction of what others decided on the same tiles was the same; None where that is nothing."""
    own = [pair for pair in pairs if name in (pair.first, pair.second)]
    both = sum(pair.num_tiles for pair in own)
    return sum(pair.num_same for pair in own) / both if both else None
