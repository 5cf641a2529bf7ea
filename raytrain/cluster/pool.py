"""A pool of actors that do the units of a scoring: as many as the cluster has room for, replaced when they die.

Ray Data's own pool retries a unit that brings its actor down for ever, and gives the reason to no one; here the units
of a dead actor are counted, and tried alone. A CPU of the cluster is kept free. Must not know what a unit is made of.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from raytrain.cluster import session
from raytrain.cluster.deaths import Kind, cause_of_death
from raytrain.errors import ConfigError, WorkNotFinished
from raytrain.scoring.schedule import Schedule, Task

UNITS_IN_FLIGHT = 2
"""Units that an actor has at once: one computes while the other reads or writes."""
LOOK_EVERY_S = 10.0
"""How often the cluster is asked whether it has room for more actors."""
START_LIMIT_S = 600.0
"""How long to wait for a first actor; a cluster that is taken by others is told so."""
SICK_STARTS = 5
"""Actors that may die one after the other before one is ready."""

REMEDY = "lower block_px or window_px, or give a node fewer workers by more threads"

OnAnswer = Callable[[Task, str, dict[str, Any]], None]
_logger = logging.getLogger(__name__)


@dataclass
class _Actor:
    """An actor: what tells that it is ready, None once it is; where it computes; what it has under way."""

    handle: Any
    starting: Any
    where: dict[str, Any] = field(default_factory=dict)
    tasks: dict[Any, Task] = field(default_factory=dict)

    @property
    def has_suspect(self) -> bool:
        """Whether it has a task that must be alone."""
        return any(task.is_suspect for task in self.tasks.values())


class Pool:
    """Does all units of a schedule on actors that `start` makes; `room` is how many the cluster can hold now.

    An actor has `ready()`, which returns the caller's mistake that keeps it from work, or an empty text, and where it
    computes; and `perform(unit)`, which returns (answer, "") or ("", why it failed).
    """

    def __init__(self, start: Callable[[], Any], room: Callable[[], int]) -> None:
        self._start, self._room = start, room
        self._actors: list[_Actor] = []
        self._sick_starts = 0
        self._last_ready = time.monotonic()

    def run(self, schedule: Schedule, on_answer: OnAnswer) -> None:
        """Do all of `schedule`; raise `ConfigError` for the caller's mistake, `WorkNotFinished` if no actor starts."""
        looked = -LOOK_EVERY_S
        try:
            while not schedule.is_over:
                if time.monotonic() - looked >= LOOK_EVERY_S:
                    looked = time.monotonic()
                    self._grow(schedule)
                self._hand_out(schedule)
                self._wait(schedule, on_answer)
        finally:
            for actor in self._actors:
                ray.kill(actor.handle)
            self._actors = []

    def _grow(self, schedule: Schedule) -> None:
        wanted = min(self._room(), schedule.most_workers)
        while len(self._actors) < max(1, wanted):
            handle = self._start()
            self._actors.append(_Actor(handle, handle.ready.remote()))

    def _hand_out(self, schedule: Schedule) -> None:
        """Give each actor that is ready what it may have; those with the least first."""
        for depth in range(UNITS_IN_FLIGHT):
            for actor in self._actors:
                if actor.starting is None and len(actor.tasks) == depth and not actor.has_suspect:
                    task = schedule.take(alone=not actor.tasks)
                    if task is not None:
                        actor.tasks[actor.handle.perform.remote(task.unit.model_dump_json())] = task

    def _wait(self, schedule: Schedule, on_answer: OnAnswer) -> None:
        """Wait for something to happen, for a second at most, and deal with it."""
        owners = {ref: actor for actor in self._actors for ref in (actor.starting, *actor.tasks) if ref is not None}
        done, _ = ray.wait(list(owners), num_returns=1, timeout=1.0) if owners else ([], [])
        for ref in done:
            actor = owners[ref]
            if actor not in self._actors:
                continue
            try:
                result = ray.get(ref)
            except ray.exceptions.RayActorError as error:
                self._bury(actor, error, schedule)
                continue
            if ref == actor.starting:
                self._is_ready(actor, *result)
            else:
                task = actor.tasks.pop(ref)
                answer, why = result
                if why:
                    _logger.warning("unit %s failed: %s", task.unit.unit_id, why)
                    schedule.failed(task, why)
                else:
                    on_answer(task, answer, actor.where)
        if not any(actor.starting is None for actor in self._actors):
            waited_s = time.monotonic() - self._last_ready
            if waited_s > START_LIMIT_S:
                raise WorkNotFinished(
                    f"no worker could be started in {waited_s:.0f} s: the cluster's CPUs or GPUs are taken; "
                    "the same command goes on"
                )
        else:
            self._last_ready = time.monotonic()

    def _is_ready(self, actor: _Actor, mistake: str, where: dict[str, Any]) -> None:
        if mistake:
            raise ConfigError(mistake)
        actor.starting, actor.where = None, where
        self._sick_starts = 0

    def _bury(self, actor: _Actor, error: Exception, schedule: Schedule) -> None:
        """Take a dead actor out and hand its tasks back; another one takes its place."""
        self._actors.remove(actor)
        cause = cause_of_death("a worker", error, REMEDY)
        under_way = ", ".join(task.unit.unit_id for task in actor.tasks.values())
        _logger.warning("%s, with %s under way", cause.text, under_way or "nothing")
        for task in actor.tasks.values():
            schedule.lost(task, cause.text, by_itself=cause.kind not in (Kind.NODE_LOST, Kind.PREEMPTED))
        if actor.starting is not None:
            self._sick_starts += 1
            if self._sick_starts >= SICK_STARTS:
                raise WorkNotFinished(f"{self._sick_starts} workers in a row died as they started: {cause.text}")
        self._grow(schedule)


def actors_at_once(threads: int) -> int:
    """Return how many actors of `threads` CPUs, or of a GPU, the cluster has room for; a CPU is kept free."""
    gpus = session.num_gpus()
    return gpus or max(1, (session.num_cpus() - 1) // cpus_each(threads))


def cpus_each(threads: int) -> int:
    """Return the CPUs of one actor: its threads, or what a small cluster has, less the one that is kept free."""
    return min(threads, max(1, session.num_cpus() - 1))
