"""The nets of each fold of an ensemble, loaded when a unit needs them. Must not know what they compute, or Ray.

Units come in the order of folds, so a worker loads each fold once, but for what is tried again later.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

FOLDS_HELD = 2
"""Folds whose nets are in memory at most: those of the units that a worker has at once."""
NetsT = TypeVar("NetsT")


@dataclass
class _Held(Generic[NetsT]):
    """The nets of a fold, None while they are loaded, and how many use or load them."""

    nets: NetsT | None
    users: int


class FoldNets(Generic[NetsT]):
    """Gives the nets of a fold, which `load` makes, to one thread or several; None stands for those of no single fold.

    Of more folds than `FOLDS_HELD` the nets that nobody uses and that were used longest ago are dropped before others
    are loaded; while all are in use, who asks for further ones waits.
    """

    def __init__(self, load: Callable[[int | None], NetsT]) -> None:
        self._load = load
        self._held: dict[int | None, _Held[NetsT]] = {}
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, fold: int | None) -> Iterator[NetsT]:
        """Give the nets of `fold`, for as long as the body runs; what `load` raises is raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_place(fold))
            held = self._held.pop(fold, None)
            is_mine = held is None
            if held is None:
                self._make_room()
                held = _Held(None, 0)
            self._held[fold] = held  # last: the one that was asked for last
            held.users += 1
        try:
            if is_mine:
                self._fill(fold, held)
            assert held.nets is not None, "whoever finds nets of a fold waits until they are loaded"
            yield held.nets
        finally:
            with self._changed:
                held.users -= 1
                self._changed.notify_all()

    def _has_place(self, fold: int | None) -> bool:
        held = self._held.get(fold)
        if held is not None:
            return held.nets is not None
        return len(self._held) < FOLDS_HELD or any(each.users == 0 for each in self._held.values())

    def _make_room(self) -> None:
        while len(self._held) >= FOLDS_HELD:
            unused = next(fold for fold, each in self._held.items() if each.users == 0)
            del self._held[unused]

    def _fill(self, fold: int | None, held: _Held[NetsT]) -> None:
        try:
            nets = self._load(fold)
        except BaseException:
            with self._changed:
                del self._held[fold]  # the next who asks loads anew
            raise
        with self._changed:
            held.nets = nets
            self._changed.notify_all()
