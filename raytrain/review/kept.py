"""What was made is kept in memory, the latest used, up to a number of bytes. Must not know what it is."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class Kept(Generic[ValueT]):
    """Values by key, made once by whoever asks first; the least recently used go first. For many threads."""

    def __init__(self, limit_bytes: int, size_of: Callable[[ValueT], int]) -> None:
        self._limit_bytes = limit_bytes
        self._size_of = size_of
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, ValueT] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self.num_bytes = 0

    def get(self, key: Hashable, make: Callable[[], ValueT]) -> ValueT:
        """Return the value of `key`; others who ask while it is being made wait for it. An error keeps nothing."""
        while True:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    return self._values[key]
                mine = self._making.setdefault(key, threading.Lock())
            with mine:
                with self._lock:
                    if self._making.get(key) is not mine:
                        continue  # who made it, or failed to, is done with it: look again
                try:
                    value = make()
                    self._keep(key, value)
                    return value
                finally:
                    with self._lock:
                        del self._making[key]

    def _keep(self, key: Hashable, value: ValueT) -> None:
        with self._lock:
            replaced = self._values.pop(key, None)
            self._values[key] = value
            self.num_bytes += self._size_of(value) - (0 if replaced is None else self._size_of(replaced))
            while self.num_bytes > self._limit_bytes and self._values:
                _, gone = self._values.popitem(last=False)
                self.num_bytes -= self._size_of(gone)
