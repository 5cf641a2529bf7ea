"""The log of decisions in a store: one object an entry, `decisions/<reviewer>/<decision_id>.json`, only ever added to.

An entry has a name of its own, so that reviewers, and servers on one store, never write the same object; a page that
asks again for what it is not sure of writes nothing twice. Must not know what decisions come to.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pydantic import ValidationError

from raytrain import storage
from raytrain.config import one_line
from raytrain.errors import ConfigError, DataError
from raytrain.review.decisions import Decision
from raytrain.review.folder import DECISIONS
from raytrain.storage import FileInfo

READERS = 16
WRITERS = 64
"""How many entries threads may add at a time, at most: two whose ids have the same remainder wait for each other."""
ENTRY_BYTES = 32 * 2**20
"""Of an entry: the mask of the largest chip, drawn at random of three values, takes 25 MB; a usual one 5 kB."""
_NAME = re.compile(r"(?P<reviewer>[^/]+)/(?P<decision_id>[0-9a-f]{32})\.json")


def order_of(decision: Decision) -> tuple[str, int, str]:
    """Return what the entries of a reviewer are sorted by: time, number, id. The last one counts.

    Time comes first, for each folder counts a reviewer's entries on its own, and `merge` puts them together.
    """
    return decision.time, decision.number, decision.decision_id


class EntryTooLarge(ConfigError):
    """A decision that has no room in the log, whoever asks again; nothing was written."""


@dataclass
class _Known:
    """What was read so far: entries by name, and what is wrong with the others, by name, with their identities then."""

    entries: dict[str, Decision] = field(default_factory=dict)
    problems: dict[str, tuple[str, DataError]] = field(default_factory=dict)


class DecisionLog:
    """The log of the review in the folder `review_uri`: what was read of it so far, and what is added.

    May be used by many threads. What others add, in other processes, is seen by `refresh`. An entry that was read is
    taken as it was then: nothing in the log changes.
    """

    def __init__(self, review_uri: str) -> None:
        self.uri = storage.join(review_uri, DECISIONS)
        self._known = _Known()
        self._lock = threading.Lock()
        self._writing = [threading.Lock() for _ in range(WRITERS)]

    def read_all(self) -> list[Decision]:
        """List and read what is new, and return all entries that can be used, by reviewer, time, number and id.

        What is no entry is left out, and named by `problems`.
        """
        self.refresh()
        return self.decisions

    def refresh(self) -> list[Decision]:
        """List again, read what was not there before, and return that, by reviewer, time, number and id."""
        listed = {name: info for name, info in storage.walk(self.uri) if not _is_half_written(name)}
        with self._lock:
            bad = {name: identity for name, (identity, _) in self._known.problems.items()}
            new = [
                name
                for name, info in listed.items()
                if name not in self._known.entries and bad.get(name) != storage.identity(info)
            ]
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(lambda name: _read(storage.join(self.uri, name), name, listed[name]), new))
        read: list[Decision] = []
        with self._lock:
            for name in self._known.problems.keys() - listed.keys():
                del self._known.problems[name]
            for name, each in zip(new, found, strict=True):
                if isinstance(each, DataError):
                    self._known.problems[name] = (storage.identity(listed[name]), each)
                elif name not in self._known.entries:  # `append` may have been quicker
                    self._known.problems.pop(name, None)
                    self._known.entries[name] = each
                    read.append(each)
        return _sorted(read)

    @property
    def decisions(self) -> list[Decision]:
        """All entries that were read or added so far, by reviewer, time, number and id."""
        with self._lock:
            return _sorted(self._known.entries.values())

    @property
    def problems(self) -> list[DataError]:
        """What the last listing had that is no entry, each with what is wrong with it, by name."""
        with self._lock:
            return [problem for _, (_, problem) in sorted(self._known.problems.items())]

    def append(self, decision: Decision) -> bool:
        """Add an entry; return whether it is new: the same one again is no second entry, and no error.

        When this returns it lies in the store, on a local disk durably. Raises `DataError`, and writes nothing, where
        another entry has this id, and `EntryTooLarge` for one that is too large.
        """
        data = f"{decision.model_dump_json(exclude_none=True)}\n".encode()
        if len(data) > ENTRY_BYTES:
            raise EntryTooLarge(f"a decision of {len(data)} bytes, expected at most {ENTRY_BYTES}; is its mask a mask?")
        name = _name_of(decision)
        uri = storage.join(self.uri, name)
        # Between the look and the write no other thread may write this entry. Another process may, on a disk without
        # harm; in a store the later one would win, but its ids are others.
        with self._writing[int(decision.decision_id, 16) % WRITERS]:
            standing, is_new = self._standing(uri, name), False
            while standing is None and not is_new:
                is_new = _is_added(uri, data)
                standing = None if is_new else self._standing(uri, name)
            if standing is not None and standing != decision:
                raise DataError(uri, "another decision has this id, and nothing in the log is overwritten; draw a new")
        with self._lock:
            self._known.problems.pop(name, None)
            self._known.entries[name] = decision
        return is_new

    def _standing(self, uri: str, name: str) -> Decision | None:
        """Return the entry that stands under this name, None without one; raise `DataError` for anything else."""
        with self._lock:
            known = self._known.entries.get(name)
        if known is not None:
            return known
        try:
            found = _parse(uri, name, storage.read_bytes(uri, ENTRY_BYTES))
        except FileNotFoundError:
            return None
        if isinstance(found, DataError):
            raise found
        return found


def _sorted(decisions: Iterable[Decision]) -> list[Decision]:
    return sorted(decisions, key=lambda each: (each.reviewer, *order_of(each)))


def _name_of(decision: Decision) -> str:
    return f"{decision.reviewer}/{decision.decision_id}.json"


def _is_added(uri: str, data: bytes) -> bool:
    """Write an entry; return False where another process was quicker, whose entry stays."""
    try:
        storage.write_bytes(uri, data, durably=True, exclusively=True)
    except FileExistsError:
        return False
    return True


def _is_half_written(name: str) -> bool:
    return storage.partial_of(name.rpartition("/")[2]) is not None


def _read(uri: str, name: str, info: FileInfo) -> Decision | DataError:
    """Return the entry of this name in the log, or what is wrong with it; a store that can't be asked raises."""
    match = _NAME.fullmatch(name)
    if match is None or not storage.is_plain_name(match["reviewer"]) or storage.is_special(uri):
        return DataError(uri, "no entry of the log: expected files <reviewer>/<32 hexadecimal digits>.json")
    if info["size"] > ENTRY_BYTES:
        return DataError(uri, f"{info['size']} bytes, expected at most {ENTRY_BYTES} of an entry; it was not read")
    try:
        return _parse(uri, name, storage.read_listed(uri, ENTRY_BYTES))
    except storage.TooLarge as error:  # than the listing said
        return error
    except FileNotFoundError:
        return DataError(uri, "was listed, but is not there")


def _parse(uri: str, name: str, data: bytes) -> Decision | DataError:
    try:
        found = Decision.model_validate_json(data)
    except ValidationError as error:
        return DataError(uri, f"damaged, no decision: {one_line(error)}")
    if _name_of(found) != name:
        return DataError(uri, f"damaged, it is {found.decision_id} of {found.reviewer}")
    return found
