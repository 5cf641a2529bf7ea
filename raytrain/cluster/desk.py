"""Where the actor of a trial and the ranks that it keeps between trials meet: which trial is on, its epochs, answers.

A desk is the board of its ranks, too: news go on to the board of the search, by the name of the trial that is on.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Literal

import ray
from pydantic import Field

from raytrain.cluster.board import Begun, Board, News, Planned, Unplaced
from raytrain.cluster.runs import RankWork
from raytrain.config import Settings

ASK_S = 10.0
"""How often a rank that waits for an answer looks whether its trial is over."""


class TrialWork(Settings):
    """What ranks need to train a trial.

    The first `known_epochs` were told by earlier attempts. With `judge` the best weights are held against the tiles
    that are kept back, in the end.
    """

    name: str
    work: RankWork
    known_epochs: int = 0
    judge: bool = False


class Told(Settings):
    """What rank 0 tells of a trial and waits to be answered: an epoch with its metrics, or the end with its state.

    `judged` has the counts of the locations kept back, by name.
    """

    trial: str
    number: int = 0
    what: Literal["epoch", "end"]
    metrics: dict[str, Any] = Field(default_factory=dict)
    state: str = ""
    cause: str | None = None
    judged: dict[str, dict[str, Any]] | None = None


class SearchBoard(Board):
    """The board of a search (an actor): it knows, too, which trials are recorded as ended, and whether all end now."""

    def __init__(self) -> None:
        super().__init__()
        self._ended: set[str] = set()
        self._is_stopping = False
        self._held: list[tuple[Any, Any, Any]] = []

    def add_held(self, desk: Any, places: Any, controller: Any) -> None:
        """Hear which placement group the ranks of a desk have, and who controls them."""
        self._held.append((desk, places, controller))

    def take_held(self) -> list[tuple[Any, Any, Any]]:
        """Return what was heard since the last call: a desk, the placement group of its ranks, their controller."""
        held, self._held = self._held, []
        return held

    def stop(self) -> None:
        """Say that all trials end now, to be gone on with by another command."""
        self._is_stopping = True

    def is_stopping(self) -> bool:
        """Tell whether all trials end now."""
        return self._is_stopping

    def end(self, trial: str) -> None:
        """Say that a trial is recorded as ended: nothing goes on from its checkpoints."""
        self._ended.add(trial)

    def is_ended(self, trial: str) -> bool:
        """Tell whether a trial is recorded as ended."""
        return trial in self._ended


class Desk(Board):
    """The desk of one trial's actor (an actor itself); `board` is that of the search."""

    def __init__(self, board: Any) -> None:
        super().__init__()
        self._board = board
        self._work: TrialWork | None = None
        self._changed = asyncio.Condition()
        self._told: Told | None = None
        self._answers: dict[int, bool] = {}
        self._count = 0
        self._num_begun = self._num_saved = 0

    async def assign(self, work: TrialWork) -> None:
        """Give the ranks a trial to train."""
        async with self._changed:
            self._work, self._told = work, None
            self._changed.notify_all()

    async def leave(self, trial: str) -> None:
        """Take a trial off the desk: its ranks stop it at their next epoch."""
        async with self._changed:
            if self._work is not None and self._work.name == trial:
                self._work = self._told = None
                self._changed.notify_all()

    async def next_work(self, limit_s: float) -> TrialWork | None:
        """Return the trial that is on, or the next one; None if there is none for `limit_s`. For ranks."""
        await self._wait(lambda: self._work is not None, limit_s)
        return self._work

    async def tell(self, told: Told) -> bool:
        """Return the answer to what rank 0 tells, whether to go on; wait for it as long as the trial is not over.

        A trial that Tune has stopped gets no answer before the next one begins: the search's board knows of it.
        """
        async with self._changed:
            if not self._is_on(told.trial):
                return False
            self._count += 1
            number = self._count
            self._told = told.model_copy(update={"number": number})
            self._changed.notify_all()
        while self._is_on(told.trial) and number not in self._answers:
            await self._wait(lambda: number in self._answers or not self._is_on(told.trial), ASK_S)
            if number not in self._answers and await self.is_ended(told.trial):
                return False
        return self._answers.pop(number, False)

    async def next_told(self, limit_s: float) -> Told | None:
        """Return what rank 0 has told and was not asked for yet; None if there is nothing for `limit_s`."""
        await self._wait(lambda: self._told is not None, limit_s)
        told, self._told = self._told, None
        return told

    async def answer(self, told: Told) -> None:
        """Let the ranks go on behind what they told."""
        async with self._changed:
            self._answers = {told.number: True}
            if self._work is not None and told.what == "epoch" and self._is_on(told.trial):
                known = max(self._work.known_epochs, told.metrics["epoch"] + 1)
                self._work = self._work.model_copy(update={"known_epochs": known})
            self._changed.notify_all()

    def hold(self, places: Any, controller: Any) -> None:
        """Hear which placement group the ranks have and who controls them, and tell the search."""
        self._board.add_held.remote(ray.get_runtime_context().current_actor, places, controller)

    async def stay(self) -> None:
        """Never return: who waits for it learns that this desk is gone, and with it the trial's actor."""
        await asyncio.Event().wait()

    async def is_ended(self, trial: str) -> bool:
        """Tell whether a trial is recorded as ended."""
        return bool(await self._board.is_ended.remote(trial))

    async def _wait(self, condition: Any, limit_s: float) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(condition), limit_s)
            except TimeoutError:
                return

    def _is_on(self, trial: str) -> bool:
        return self._work is not None and self._work.name == trial

    def free(self) -> None:
        """Hear that the ranks have ended: the trial that is on has no places now."""
        if self._work is not None:
            self._board.post.remote(Unplaced(self._work.work.run.name))

    def post(self, news: News) -> None:
        """Hand news to the board of the search; what is said of the ranks is said of the trial that is on."""
        if self._work is None or isinstance(news, Planned):
            return
        self._num_begun += isinstance(news, Begun)
        self._board.post.remote(replace(news, run=self._work.work.run.name))

    def add_save(self, run: str) -> None:
        """Say that a checkpoint of the trial that is on was saved."""
        self._num_saved += 1

    def state(self, run: str) -> tuple[int, int]:
        """Return how many attempts these ranks have begun, of whatever trials, how many checkpoints were saved."""
        return self._num_begun, self._num_saved
