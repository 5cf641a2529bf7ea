"""News from the ranks to the driver while it waits for Ray Train: an actor to post to, a thread that reads it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from raytrain.errors import RaytrainError

POLL_S = 0.5


@dataclass(frozen=True)
class Post:
    """One epoch of a run: its metrics, and how many epochs the run has."""

    run: str
    num_epochs: int
    metrics: dict[str, Any]


class Board:
    """Posts that the driver has not read yet, and the verdict on a run that must not go on (a Ray actor)."""

    def __init__(self) -> None:
        self._posts: list[Post] = []
        self._verdict: RaytrainError | None = None

    def post(self, post: Post) -> None:
        """Add news."""
        self._posts.append(post)

    def take(self) -> list[Post]:
        """Return the news since the last call."""
        posts, self._posts = self._posts, []
        return posts

    def condemn(self, reason: RaytrainError) -> None:
        """Say that the run ended for good, and why; the first reason stays."""
        self._verdict = self._verdict or reason

    def verdict(self) -> RaytrainError | None:
        """Return why the run ended for good; None if it did not."""
        return self._verdict


@contextlib.contextmanager
def follow(board: Any, on_post: Callable[[Post], None]) -> Iterator[None]:
    """Hand every post to `on_post`, in another thread, until the body is done and the last one is read."""
    done = threading.Event()

    def read() -> None:
        last = False
        while not last:
            last = done.wait(POLL_S)
            try:
                posts: list[Post] = ray.get(board.take.remote())
            except ray.exceptions.RayError:
                return  # the body learns of a lost cluster by itself
            for post in posts:
                on_post(post)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield
    finally:
        done.set()
        reader.join(timeout=10)
