"""A pool of actors that do the units of a scoring: as many as the cluster has room for, replaced when they die.

Ray Data's own pool retries a unit that brings its actor down for ever, and gives the reason to no one; here the units
of a dead actor are counted, and tried alone. An actor on which one unit after the other fails is made anew. A CPU of
the cluster is kept free. Must not know what a unit is made of.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
import ray.exceptions

from raytrain import logs
from raytrain.cluster import session
from raytrain.cluster.deaths import Cause, Kind, cause_of_death, last_cause
from raytrain.cluster.vacancies import Vacancies
from raytrain.errors import ConfigError, WorkNotFinished
from raytrain.scoring.schedule import NOBODY, Blame, Schedule, Task, Worker
from raytrain.scoring.setbacks import Setbacks

UNITS_IN_FLIGHT = 2
"""Units that an actor has at once: one computes while the other reads or writes."""
LOOK_EVERY_S = 10.0
"""How often the cluster is asked whether it has room for more actors."""
START_LIMIT_S = 600.0
"""How long to wait for a first actor; a cluster that is taken by others is told so."""
SICK_STARTS, LATER_SICK_STARTS = 5, 10
"""Actors that may die one after the other as they start, while there is no other: before any was ready, and, once one
was, in the same place. Then it is rather a store that is away than a setting; with the pauses that takes half an hour.
"""
SICK_FAILURES = 3
"""Units that may fail on an actor one after the other before it is made anew."""
RENEW_S = 60.0
"""How old an actor is that never was ready, when a lost node is reason enough to make it anew: what it waits for may be
gone for good."""
ASK_S = 1.0
SILENCE_LIMIT_S = 90.0
"""How long an actor may be out of reach before it is given up; a cluster notices a dead node within 15 to 30 s."""

REMEDY = "lower block_px or window_px, or give a node fewer workers by more threads"

Outcome = Literal["failed", "lost"]
OnAnswer = Callable[[Task, str, dict[str, Any]], None]
"""Told of a task that is done, its answer, and where."""
OnFailure = Callable[[Task, Outcome, str, dict[str, Any]], None]
"""Told of an attempt at a task that failed or was lost, why, and where, before it counts against the task."""
OnEnd = Callable[[dict[str, Any]], None]
"""Told where an actor computed that was ready and is no more."""


OnWorkers = Callable[[Mapping[str, int], float], None]
"""Told now and then how many actors there are in each state, and for how long units fail without a success."""
STATES = ("starting", "busy", "idle", "silent")
TELL_S = 5.0
"""How often that is told."""
_logger = logging.getLogger(__name__)


@dataclass
class _Actor:
    """An actor: whether it is ready, what it was asked for that, where it computes, what it has under way.

    `nodes` are those of the cluster when it was made; `ended_before` counts those in its place that were sick without a
    success since. It is `silent_since` it was out of reach, with tasks that
    are `unanswered`: only once the cluster knows what became of it, it is known whether a task is to blame.
    """

    handle: Any
    asked: Any
    asked_at: float
    begun: float
    nodes: set[str]
    is_ready: bool = False
    where: dict[str, Any] = field(default_factory=dict)
    tasks: dict[Any, Task] = field(default_factory=dict)
    unanswered: list[Task] = field(default_factory=list)
    silent_since: float | None = None
    worker: Worker = NOBODY
    failures: int = 0
    ended_before: int = 0

    @property
    def takes_tasks(self) -> bool:
        """Whether it can be given tasks now."""
        return self.is_ready and self.silent_since is None

    @property
    def state(self) -> str:
        """What an operator calls it."""
        if self.silent_since is not None:
            return "silent"
        return "starting" if not self.is_ready else "busy" if self.tasks else "idle"

    @property
    def has_suspect(self) -> bool:
        """Whether it has a task that must be alone."""
        return any(task.is_suspect for task in self.tasks.values())

    @property
    def under_way(self) -> list[Task]:
        """All tasks that it was given and has not answered."""
        return [*self.tasks.values(), *self.unanswered]


class Pool:
    """Does all units of a schedule on actors that `start` makes; `room` is how many the cluster can hold now.

    `on_need` hears how many there would be something to do for.

    An actor has `ready()`, which returns the caller's mistake that keeps it from work, or an empty text, and where it
    computes; and `perform(unit)`, which returns (answer, "") or ("", why it failed).
    """

    def __init__(
        self,
        start: Callable[[], Any],
        room: Callable[[], int],
        on_failure: OnFailure = lambda *_: None,
        on_end: OnEnd = lambda _: None,
        on_need: Callable[[int], None] = lambda _: None,
        on_workers: OnWorkers = lambda *_: None,
    ) -> None:
        self._start, self._room, self._on_failure, self._on_end = start, room, on_failure, on_end
        self._on_need = on_need
        self._on_workers, self._told_at = on_workers, -TELL_S
        self._actors: list[_Actor] = []
        self._vacancies = Vacancies()
        self._setbacks = Setbacks()
        self._num_ready = 0
        self._sick_starts = 0
        self._last_ready = time.monotonic()

    def run(self, schedule: Schedule, on_answer: OnAnswer) -> None:
        """Do all of `schedule`; raise `ConfigError` for the caller's mistake, `WorkNotFinished` if no actor starts."""
        looked = -LOOK_EVERY_S
        try:
            while not schedule.is_over:
                if time.monotonic() - looked >= LOOK_EVERY_S:
                    looked = time.monotonic()
                    self._renew()
                    self._grow(schedule)
                self._hand_out(schedule)
                self._wait(schedule, on_answer)
                self._ask_silent_ones(schedule)
                self._check_start()
                self._tell()
        finally:
            for actor in self._actors:
                ray.kill(actor.handle)
            self._actors = []
            self._on_workers(dict.fromkeys(STATES, 0), 0.0)

    def _tell(self) -> None:
        """Tell now and then what the actors do."""
        if time.monotonic() - self._told_at < TELL_S:
            return
        self._told_at = time.monotonic()
        found = Counter(actor.state for actor in self._actors)
        self._on_workers({state: found[state] for state in STATES}, self._setbacks.failing_s)

    def _renew(self) -> None:
        """End actors that may wait for what a lost node had: they are made anew, for the cluster as it is now."""
        alive, now = session.alive_nodes(), time.monotonic()
        for actor in list(self._actors):
            if not actor.is_ready and now - actor.begun > RENEW_S and not actor.nodes <= alive:
                self._actors.remove(actor)
                ray.kill(actor.handle)

    def _grow(self, schedule: Schedule) -> None:
        self._on_need(schedule.most_workers)
        wanted, nodes, now = min(self._room(), schedule.most_workers), session.alive_nodes(), time.monotonic()
        while len(self._actors) + self._vacancies.num_closed < max(1, wanted):
            handle, ended_before = self._start(), self._vacancies.take()
            self._actors.append(_Actor(handle, handle.ready.remote(), now, now, nodes, ended_before=ended_before))

    def _hand_out(self, schedule: Schedule) -> None:
        """Give each actor that is ready what it may have; those with the least first."""
        workers = self._workers()
        for depth in range(UNITS_IN_FLIGHT):
            for actor in self._actors:
                if not actor.takes_tasks or len(actor.tasks) != depth or actor.has_suspect:
                    continue
                waits = self._setbacks.is_wait
                if waits and actor.worker in self._setbacks.workers:
                    continue
                task = schedule.take(alone=not actor.tasks, worker=actor.worker, others=workers, fresh_only=waits)
                if task is not None:
                    self._setbacks.tried(actor.worker, task.failures)
                    actor.tasks[actor.handle.perform.remote(task.unit.model_dump_json())] = task

    def _workers(self) -> list[Worker]:
        """Return the names of all actors that take tasks."""
        return [actor.worker for actor in self._actors if actor.takes_tasks]

    def _wait(self, schedule: Schedule, on_answer: OnAnswer) -> None:
        """Wait for something to happen, for a second at most, and deal with it."""
        owners = {ref: actor for actor in self._actors for ref in (actor.asked, *actor.tasks) if ref is not None}
        if not owners:
            time.sleep(ASK_S)
            return
        done, _ = ray.wait(list(owners), num_returns=1, timeout=1.0)
        for ref in done:
            actor = owners[ref]
            try:
                result = ray.get(ref)
            except ray.exceptions.RayTaskError:
                raise  # an error of our own code, not of the cluster
            except (ray.exceptions.ActorUnavailableError, ray.exceptions.ObjectLostError) as error:
                self._is_silent(actor, ref, error)
            except ray.exceptions.RayError as error:  # not all that ends actors is a RayActorError: memory is not
                cause = cause_of_death("a worker", error, REMEDY)
                if cause.error is not None:
                    raise cause.error from error
                self._bury(actor, cause, schedule)
            else:
                if ref == actor.asked:
                    self._is_ready(actor, schedule, *result)
                else:
                    self._is_answered(actor.tasks.pop(ref), actor, schedule, on_answer, *result)

    def _is_answered(
        self, task: Task, actor: _Actor, schedule: Schedule, on_answer: OnAnswer, answer: str, why: str
    ) -> None:
        if why:
            event = logs.fields(event="unit failed", unit=task.unit.unit_id, failures=task.failures + 1, **actor.where)
            _logger.warning("unit %s failed: %s", task.unit.unit_id, why, extra=event)
            self._setbacks.failed(actor.worker, task.unit.item_ids[0])
            actor.failures += 1
            self._on_failure(task, "failed", why, actor.where)
            schedule.failed(task, why, actor.worker)
            if schedule.has_untried:  # else all that is left becomes a casualty soon, and the books can be closed
                self._setbacks.give_up(self._workers(), why)
            self._end_if_sick(actor, why, schedule)
        else:
            self._setbacks.succeeded()
            actor.failures = actor.ended_before = 0
            on_answer(task, answer, actor.where)

    def _end_if_sick(self, actor: _Actor, why: str, schedule: Schedule) -> None:
        """Make an actor anew on which units fail one after the other.

        Where they fail on all actors, as when a store is away, one is made anew to see whether that helps: all at once
        could not even start.
        """
        are_all_failing = self._setbacks.are_of_all(self._workers())
        if actor.failures < SICK_FAILURES or (are_all_failing and self._setbacks.was_replaced):
            return
        self._setbacks.was_replaced = are_all_failing
        pause_s = self._vacancies.leave(actor.ended_before)
        again = (
            f"; so it was with {actor.ended_before} before it, the next one comes in {pause_s:.0f} s" if pause_s else ""
        )
        host = actor.where.get("host", "a node")
        text = f"a worker on {host} is made anew: {actor.failures} units failed on it in a row ({why}){again}"
        self._bury(actor, Cause(Kind.ACTOR_LOST, text), schedule)

    def _is_ready(self, actor: _Actor, schedule: Schedule, mistake: str, where: dict[str, Any]) -> None:
        if mistake:
            raise ConfigError(mistake)
        actor.asked = None
        if actor.silent_since is not None:  # it lives, and may still be at what it never will be able to answer
            self._bury(actor, _OUT_OF_REACH, schedule)
            return
        self._num_ready += 1
        _logger.info("a worker is ready on %s", where.get("host"), extra=logs.fields(event="worker ready", **where))
        actor.is_ready, actor.where = True, where
        actor.worker = frozenset({f"worker {self._num_ready}", f"host {where.get('host')}"})
        self._sick_starts = 0

    def _is_silent(self, actor: _Actor, ref: Any, error: Exception) -> None:
        """Note that an actor was out of reach: dead with its process, dead with its node, or not dead at all."""
        if actor.silent_since is None:
            actor.silent_since = time.monotonic()
            event = logs.fields(event="worker silent", **actor.where)
            _logger.warning("a worker is out of reach (%s)", last_cause(error), extra=event)
        if ref == actor.asked:
            actor.asked = None
        else:
            actor.unanswered.append(actor.tasks.pop(ref))

    def _ask_silent_ones(self, schedule: Schedule) -> None:
        """Ask actors that were out of reach again and again whether they live, and give up those that never answer."""
        now = time.monotonic()
        for actor in [each for each in self._actors if each.silent_since is not None]:
            if now - (actor.silent_since or now) > SILENCE_LIMIT_S:
                self._bury(actor, _OUT_OF_REACH, schedule)
            elif actor.asked is None and now - actor.asked_at >= ASK_S:
                actor.asked, actor.asked_at = actor.handle.ready.remote(), now

    def _check_start(self) -> None:
        now = time.monotonic()
        if any(actor.is_ready for actor in self._actors) or self._vacancies.num_closed:
            self._last_ready = now
        waited_s = now - self._last_ready
        if waited_s > START_LIMIT_S:
            raise WorkNotFinished(
                f"no worker could be started in {waited_s:.0f} s: the cluster's CPUs or GPUs are taken or gone; "
                "the same command goes on"
            )

    def _end_if_none_starts(self, actor: _Actor, why: str) -> None:
        """Count an actor that died as it started; raise `WorkNotFinished` if it was one too many."""
        self._sick_starts += 1
        in_a_row, limit = self._sick_starts, SICK_STARTS
        if self._num_ready:
            self._vacancies.leave(actor.ended_before)
            in_a_row, limit = actor.ended_before + 1, LATER_SICK_STARTS
        if in_a_row >= limit and not any(each.is_ready for each in self._actors):
            raise WorkNotFinished(f"{in_a_row} workers in a row died as they started: {why}; the same command goes on")

    def _bury(self, actor: _Actor, cause: Cause, schedule: Schedule) -> None:
        """Take a dead actor out and hand its tasks back; another one takes its place."""
        self._actors.remove(actor)
        ray.kill(actor.handle)  # if it lives after all, it must not do what others will
        blame = _BLAME.get(cause.kind, "task")
        under_way = ", ".join(task.unit.unit_id for task in actor.under_way)
        event = logs.fields(event="worker lost", kind=str(cause.kind), units=len(actor.under_way), **actor.where)
        _logger.warning("%s, with %s under way", cause.text, under_way or "nothing", extra=event)
        for task in actor.under_way:
            self._on_failure(task, "lost", cause.text, actor.where)
            schedule.lost(task, cause.text, blame=blame)
        if actor.is_ready:
            self._on_end(actor.where)
        elif blame == "task":
            self._end_if_none_starts(actor, cause.text)
        self._grow(schedule)


_BLAME: dict[Kind, Blame] = {Kind.NODE_LOST: "perhaps", Kind.ACTOR_LOST: "perhaps", Kind.PREEMPTED: "nobody"}
"""Who is to blame for the death of an actor. A lost node may be one whose memory a task used up, container and all."""
_OUT_OF_REACH = Cause(Kind.ACTOR_LOST, "a worker was out of reach for a while")
