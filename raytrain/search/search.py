"""A search as it goes on: which trial is next, what is known of each, when it is over. Kept in the store as it changes.

Must not know Ray, or how a trial is trained.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from raytrain.config import MemberSettings, change
from raytrain.search.budget import FINALS_SHARE, Budget
from raytrain.search.finals import Finals, finalists
from raytrain.search.records import ENDED, FIRST_SEED, ORIGINAL, Epoch, LocationCounts, Record, SearchSettings, Trial
from raytrain.search.sampling import draw
from raytrain.search.space import Point, is_setting, original_point, parse_distribution, settings_of


class Search:
    """The trials of a search, for any thread of the one process that leads it.

    `spent` changes with the clock, which counts the commands before this one, too.
    """

    def __init__(
        self,
        record: Record,
        settings: SearchSettings,
        budget: Budget,
        finals: Finals,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.finals = finals
        self._budget = budget
        self._record = record
        self._space = {path: parse_distribution(path, text) for path, text in settings.space.items()}
        self._is_setting = is_setting(settings.member)
        self._clock = clock
        self._seconds_before = record.seconds()
        self._begun_at = clock()
        self._trials = {trial.name: trial for trial in record.trials()}
        self._running: dict[str, float] = {}
        self._lock = threading.RLock()

    @property
    def trials(self) -> list[Trial]:
        """All trials so far, those of the search before finalists, by number and seed."""
        with self._lock:
            return sorted(self._trials.values(), key=lambda trial: (trial.kind != "search", trial.number, trial.seed))

    @property
    def running(self) -> set[str]:
        """The names of the trials that run now."""
        with self._lock:
            return set(self._running)

    @property
    def seconds(self) -> float:
        """How long the search has taken, over all commands."""
        return self._seconds_before + self._clock() - self._begun_at

    @property
    def rank_hours(self) -> float:
        """What all trials have taken so far."""
        with self._lock:
            running = sum((self._clock() - at) * self._trials[name].num_ranks for name, at in self._running.items())
            return sum(trial.rank_hours for trial in self._trials.values()) + running / 3600

    def spent(self, trial: Trial) -> str | None:
        """Return why there is no more for `trial`, in a few words; None while there is."""
        share = 1 - FINALS_SHARE if trial.kind == "search" and self.finals.finalists else 1.0
        return self._budget.spent(self.rank_hours, self.seconds / 3600, share=share)

    def settings_of(self, trial: Trial) -> MemberSettings:
        """Return what a trial trains: a member of its own name, so that its run has a folder of its own."""
        member = settings_of(self.settings.member, trial.point)
        return change(member, {"name": trial.name, "seed": trial.seed, "epochs": trial.num_epochs})

    def next(self, num_ranks: int) -> Trial | None:
        """Return the trial to run next, on `num_ranks` ranks; None while the running ones have to end first.

        Trials that were cut off go first. `is_over` tells whether any can follow.
        """
        with self._lock:
            found = self._next_of_search() or self._next_final()
            if found is not None:
                found = found.model_copy(update={"begun": found.begun + 1, "num_ranks": num_ranks, "cause": None})
                self._running[found.name] = self._clock()
                self._keep(found)
            return found

    @property
    def has_next(self) -> bool:
        """Whether a trial could begin now."""
        with self._lock:
            return self._next_of_search() is not None or self._next_final() is not None

    @property
    def is_over(self) -> bool:
        """Whether no trial runs and none can follow."""
        with self._lock:
            return not self._running and not self.has_next

    def add_epoch(self, name: str, epoch: int, values: Mapping[str, float]) -> Trial:
        """Record an epoch (from 1) of a running trial, and return the trial; one that is known stays as it was."""
        with self._lock:
            trial = self._trials[name]
            if all(each.epoch != epoch for each in trial.epochs):
                found = Epoch(epoch=epoch, **values, at_s=self.seconds)
                self._keep(self._with_time(trial).model_copy(update={"epochs": (*trial.epochs, found)}))
            return self._trials[name]

    def add_restart(self, name: str, cause: str) -> None:
        """Record why a trial had to begin again from its last checkpoint."""
        with self._lock:
            trial = self._trials.get(name)
            if trial is not None:
                self._keep(trial.model_copy(update={"restarts": (*trial.restarts, cause)}))

    def end(
        self, name: str, state: str, cause: str | None = None, judged: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Trial:
        """Record how a running trial ended (one of `ENDED`), and of a finalist the locations kept back."""
        assert state in ENDED, state
        with self._lock:
            trial = self._with_time(self._trials[name])
            self._running.pop(name, None)
            locations = None if judged is None else {place: LocationCounts(**each) for place, each in judged.items()}
            trial = trial.model_copy(update={"state": state, "cause": cause, "judged": locations})
            self._keep(trial)
            return trial

    def put_back(self, name: str) -> Trial:
        """Take a trial from those that run: it is not over, and the next to run, from where it was saved."""
        with self._lock:
            self._keep(self._with_time(self._trials[name]))
            self._running.pop(name, None)
            return self._trials[name]

    def leave(self) -> None:
        """Record the time of what runs, and that of the search: another command goes on with them."""
        with self._lock:
            for name in list(self._running):
                self._keep(self._with_time(self._trials[name]))
                del self._running[name]
            self._record.write_seconds(self.seconds)

    def _with_time(self, trial: Trial) -> Trial:
        """Return a trial with the time since this was last asked of it, if it runs."""
        if trial.name not in self._running:
            return trial
        now = self._clock()
        seconds = now - self._running[trial.name]
        self._running[trial.name] = now
        return trial.model_copy(update={"seconds": trial.seconds + seconds})

    def _keep(self, trial: Trial) -> None:
        self._trials[trial.name] = trial
        self._record.write(trial)
        self._record.write_seconds(self.seconds)

    def _next_of_search(self) -> Trial | None:
        of_search = [trial for trial in self.trials if trial.kind == "search"]
        waiting = [trial for trial in of_search if trial.state == "running" and trial.name not in self._running]
        number = len(of_search)
        trial = waiting[0] if waiting else self._trial("search", number, self.settings.member.seed, {})
        if self.spent(trial):
            return None
        if waiting:
            return trial
        if self._budget.trials is not None and number >= self._budget.trials:
            return None
        return trial.model_copy(update={"point": self._point(number, of_search)})

    def _point(self, number: int, of_search: list[Trial]) -> Point:
        if number == ORIGINAL:
            return original_point(self._space, self.settings.member)
        settings = self.settings
        return draw(self._space, of_search, number, settings.seed, settings.method, self._is_setting)

    def _next_final(self) -> Trial | None:
        points = {trial.number: trial.point for trial in self._trials.values() if trial.kind == "search"}
        numbers = finalists(self.trials, self.finals)
        if ORIGINAL not in numbers:
            return None  # there is nothing to compare with
        if any(self._trials[name].kind == "search" for name in self._running):
            numbers = [ORIGINAL]  # which is among the finalists whatever the others come to
        for seed in range(FIRST_SEED, FIRST_SEED + self.finals.seeds):
            for number in numbers:
                trial = self._trial("final", number, self.settings.member.seed + seed, points[number])
                known = self._trials.get(trial.name, trial)
                if known.state == "running" and known.name not in self._running:
                    return None if self.spent(known) else known
        return None

    def _trial(self, kind: Literal["search", "final"], number: int, seed: int, point: Point) -> Trial:
        name = f"trial-{number:04d}" if kind == "search" else f"final-{number:04d}-seed{seed}"
        epochs = self.settings.trial_epochs if kind == "search" else self.settings.member.epochs
        return Trial(name=name, kind=kind, number=number, seed=seed, point=point, num_epochs=epochs)
