"""Causes of failures put together by kind: the same trouble of many items is one line with a count and an example.

Must not know where they come from, or how they are shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from raytrain import storage

CAUSES = 200
"""Kinds of causes that are counted by themselves."""
OTHERS = "(others)"
_PLACE = re.compile(r"""(?:[a-z0-9]{1,30}:/)?/[^\s'",;]+""")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass
class Cause:
    """A kind of cause: how often it was met, by what (words of who counts), and the first one of them, in its words."""

    example: str
    subject: str
    counts: dict[str, int] = field(default_factory=dict)
    places: set[str] = field(default_factory=set)

    @property
    def total(self) -> int:
        """How often it was met."""
        return sum(self.counts.values())


class Causes:
    """Causes by kind, `CAUSES` of them at most; what comes later is among `OTHERS`."""

    def __init__(self) -> None:
        self._by_kind: dict[str, Cause] = {}

    def add(self, text: str, subject: str, word: str, place: str = "", names: tuple[str, ...] = ()) -> None:
        """Count a cause met by `subject` at `place`, under `word`; `names` in it are its own."""
        kind = kind_of(text, names)
        if kind not in self._by_kind and len(self._by_kind) >= CAUSES:
            kind = OTHERS
        cause = self._by_kind.setdefault(kind, Cause(storage.without_queries(text), subject))
        cause.counts[word] = cause.counts.get(word, 0) + 1
        if place:
            cause.places.add(place)

    def most_frequent(self) -> list[tuple[str, Cause]]:
        """Return kinds and causes, the most frequent first."""
        return sorted(self._by_kind.items(), key=lambda each: (-each[1].total, each[0]))


def kind_of(text: str, names: tuple[str, ...] = ()) -> str:
    """Return `text` without what differs from one item to the next: the `names` given, places and numbers.

    No query of an address is left in it, whatever letters a signature has.
    """
    text = storage.without_queries(text)
    for name in sorted(filter(None, map(storage.without_queries, names)), key=len, reverse=True):
        text = text.replace(name, "…")
    return _NUMBER.sub("N", _PLACE.sub("…", text))
