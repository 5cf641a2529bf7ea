"""News from ranks and controllers to the driver while it waits for Ray Train: an actor to post to, a thread that reads.

The actor lives on the driver's node: it is lost with the driver and with nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain.search.records import Trial
from raytrain.tiles.order import Position
from raytrain.training.metrics import LocationScore, TileScore
from raytrain.training.progress import RunProgress

POLL_S = 0.5
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """The runs that a command is going to train."""

    runs: tuple[str, ...]


@dataclass(frozen=True)
class Placed:
    """The ranks of a run have their places: id and address of the node of each."""

    run: str
    nodes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Begun:
    """An attempt of a run begins at `position`, on so many ranks; `torn` says which newer checkpoints can't be used."""

    run: str
    attempt: int
    position: Position
    num_ranks: int
    torn: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stepped:
    """How an attempt of a run goes on."""

    run: str
    attempt: int
    position: Position
    progress: RunProgress


@dataclass(frozen=True)
class Validated:
    """What the validation of an epoch found beside its metrics: the locations by name, and tiles worth a look."""

    locations: dict[str, LocationScore]
    tiles: tuple[TileScore, ...]


@dataclass(frozen=True)
class Post:
    """One epoch of a run: its metrics, and how many epochs the run has; `best` only if none before was as good."""

    run: str
    num_epochs: int
    metrics: dict[str, Any]
    best: Validated | None = None


@dataclass(frozen=True)
class Failed:
    """An attempt of a run ended: the kind of the cause, the cause in one line, whether another one follows."""

    run: str
    kind: str
    cause: str
    is_retried: bool


@dataclass(frozen=True)
class Noted:
    """A line about a run for a person."""

    run: str
    text: str


@dataclass(frozen=True)
class Tried:
    """A trial of a search begins, or goes on, as this run."""

    run: str
    trial: Trial


@dataclass(frozen=True)
class Unplaced:
    """A trial of a search has no places any more: its ranks have ended, or its actor is lost."""

    run: str


@dataclass(frozen=True)
class Ended:
    """A trial of a search is over, whose run this was."""

    run: str
    trial: Trial


News = Planned | Placed | Begun | Stepped | Post | Failed | Noted | Tried | Unplaced | Ended


class Board:
    """News that the driver has not read yet, and what the controllers of the runs ask for (a Ray actor)."""

    def __init__(self) -> None:
        self._news: list[News] = []
        self._attempts: Counter[str] = Counter()
        self._saves: Counter[str] = Counter()
        self._controllers: dict[str, Any] = {}

    def post(self, news: News) -> None:
        """Add news; only the last step of a run is kept, and none of an attempt before the last."""
        if isinstance(news, Stepped):
            if news.attempt < self._attempts[news.run]:
                return
            self._news = [each for each in self._news if not (isinstance(each, Stepped) and each.run == news.run)]
        if isinstance(news, Begun):
            self._attempts[news.run] = news.attempt
        self._news.append(news)

    def take(self) -> list[News]:
        """Return the news since the last call."""
        news, self._news = self._news, []
        return news

    def add_save(self, run: str) -> None:
        """Say that a checkpoint of a run was saved."""
        self._saves[run] += 1

    def state(self, run: str) -> tuple[int, int]:
        """Return the number of the last attempt of a run that began (0 for none), how many checkpoints were saved."""
        return self._attempts[run], self._saves[run]

    def set_controller(self, run: str, controller: Any) -> None:
        """Say which actor controls a run."""
        self._controllers[run] = controller

    def hold(self, places: Any, controller: Any) -> None:
        """Hear which placement group the ranks of a controller have: here it goes with the run."""

    def controllers(self) -> list[Any]:
        """Return the actors that control runs."""
        return list(self._controllers.values())


def start_board(kind: type[Board] = Board, *arguments: Any) -> Any:
    """Return a new board, on the node of this process."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(kind).options(scheduling_strategy=here).remote(*arguments)


@contextlib.contextmanager
def follow(board: Any, on_news: Callable[[News], None]) -> Iterator[None]:
    """Hand all news to `on_news`, in another thread, until the body is done and the last ones are read."""
    done = threading.Event()

    def read() -> None:
        last = False
        while not last:
            last = done.wait(POLL_S)
            try:
                found: list[News] = ray.get(board.take.remote())
            except ray.exceptions.RayError:
                return  # the body learns of a lost cluster by itself
            for news in found:
                try:
                    on_news(news)
                except Exception:  # news that can't be told are not worth those that follow
                    _logger.exception("news of run can't be told: %s", news)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield
    finally:
        done.set()
        reader.join(timeout=10)
