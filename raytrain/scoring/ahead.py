"""Work in threads of its own: reading ahead of who computes, and asking one thread to do all of a kind.

Must not know what is read or asked.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

ItemT = TypeVar("ItemT")
_END = object()


@contextlib.contextmanager
def ahead(items: Generator[ItemT], depth: int) -> Iterator[Iterator[ItemT]]:
    """Give an iterator over `items`, which are made in a thread, at most `depth` of them before they are asked for.

    What `items` raises is raised where the item would have come. When the body is left, `items` is closed and the
    thread is over.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        yield _Ahead(pool, items, depth)
    finally:
        pool.shutdown(cancel_futures=True)
        items.close()


class _Ahead(Iterator[ItemT]):
    """Items that a thread makes; one that was taken is not held."""

    def __init__(self, pool: ThreadPoolExecutor, items: Iterator[ItemT], depth: int) -> None:
        self._pool, self._items = pool, items
        self._made: deque[Future[object]] = deque(self._make() for _ in range(depth))

    def _make(self) -> Future[object]:
        return self._pool.submit(next, self._items, _END)

    def __next__(self) -> ItemT:
        item = self._made[0].result()
        if item is _END:
            raise StopIteration
        self._made.popleft()
        self._made.append(self._make())
        return cast(ItemT, item)


class OneThread:
    """A thread that does what others ask of it, one thing after the other; over when the context is left."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    def __enter__(self) -> OneThread:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, what: Callable[[], ItemT]) -> ItemT:
        """Return what `what` returns there, or raise what it raises."""
        return self._pool.submit(what).result()
