"""Which unit is next, what came of each, and when to give up: the book-keeping of a scoring, without who computes.

A unit that fails is tried again, later; one whose worker died is tried alone, and at last each of its items is. So is
one that many nodes were lost over. Blocks of a scene and what puts them together come before further scenes, so that
few scenes are under way. What failed on a worker goes to another one next, where there is one. Must not know Ray.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from raytrain.errors import WorkNotFinished
from raytrain.imagery.scene_files import SceneSource
from raytrain.scoring.blending import Region
from raytrain.scoring.pace import Progress, Rate
from raytrain.scoring.units import Answer, Problem, Unit

ATTEMPTS = 3
"""How often a unit is tried that fails, or whose worker dies over it."""
LOSSES_OF_A_SUSPECT, LOSSES = 3, 6
"""Nodes that are lost, perhaps by themselves, over a unit before it is tried alone, and before it is given up."""

Blame = Literal["task", "perhaps", "nobody"]
"""Who made a worker die: the task that it had, perhaps this task, as when its node is lost, or surely another cause."""
Worker = frozenset[str]
"""The names that tell a worker from others: its own, and that of its machine."""
NOBODY: Worker = frozenset()


class TooManyFailures(WorkNotFinished):
    """More items can't be scored than was allowed."""


@dataclass(eq=False)
class Task:
    """A unit to do, how often it failed, how many workers died over it; the names of those it `failed_on`.

    `losses` are the nodes that were lost with it under way.
    """

    unit: Unit
    failures: int = 0
    deaths: int = 0
    losses: int = 0
    failed_on: Worker = NOBODY

    @property
    def is_suspect(self) -> bool:
        """Whether it has to be alone on its worker: it may have brought one down."""
        return self.deaths > 0 or self.may_end_nodes

    @property
    def may_end_nodes(self) -> bool:
        """Whether so many nodes were lost over it that no other such task may be on the same machine."""
        return self.losses >= LOSSES_OF_A_SUSPECT

    def suits(self, worker: Worker, others: Collection[Worker]) -> bool:
        """Tell whether none of the `others` is better: one that it did not fail on, if possible on another machine."""
        marks = len(self.failed_on & worker)
        return not marks or all(len(self.failed_on & other) >= marks for other in others)


@dataclass(frozen=True)
class Casualty:
    """An item that can't be scored: why, and whether the data is at fault rather than the machines.

    What was not read (it is gone, refused, or described wrongly) keeps the outputs that it has: nothing is known of its
    data itself.
    """

    problem: Problem
    in_data: bool
    keeps_outputs: bool = False


@dataclass
class _Scene:
    """A scene in blocks: all of them, how many of them were to be done, and how many still are."""

    scene: SceneSource
    blocks: tuple[Region, ...]
    num_to_do: int
    left: int


@dataclass
class Schedule:
    """The units of a scoring, part by part, and what came of them; an empty part stands for one that can't be had yet.

    `num_units` are in the plan and `num_done` of them done, or given up; `num_finished` items have their outputs.
    """

    parts: Iterator[list[Unit]]
    num_units: int = 0
    max_failures: int | None = None
    casualties: list[Casualty] = field(default_factory=list)
    num_finished: int = 0
    num_done: int = 0
    _first: deque[Task] = field(default_factory=deque)
    _fresh: deque[Task] = field(default_factory=deque)
    _again: deque[Task] = field(default_factory=deque)
    _scenes: dict[str, _Scene] = field(default_factory=dict)
    _in_assembly: set[str] = field(default_factory=set)
    _taken: dict[Task, Worker] = field(default_factory=dict)

    def take(
        self, *, alone: bool, worker: Worker = NOBODY, others: Collection[Worker] = (), fresh_only: bool = False
    ) -> Task | None:
        """Return the next task for `worker`; None if there is none now.

        A suspect goes only to who has nothing else: `alone`. What failed goes to the best of `worker` and `others`,
        and with `fresh_only` to no one now. Of tasks that may end nodes a machine has one at a time: else the innocent
        ones, lost again and again with the one to blame, would be given up with it.
        """
        if not self._first and not self._fresh:
            self._read_on()
        for queue in (self._first, self._fresh, self._again):
            for task in list(queue):
                if self._was_given_up(task.unit):
                    queue.remove(task)
                elif (
                    (alone or not task.is_suspect)
                    and not (fresh_only and task.failures)
                    and not (task.may_end_nodes and self._has_another(worker))
                    and task.suits(worker, others)
                ):
                    queue.remove(task)
                    self._taken[task] = worker
                    return task
        return None

    def _has_another(self, worker: Worker) -> bool:
        """Tell whether a task that may end nodes is under way on the machine of `worker`."""
        return any(task.may_end_nodes and where & worker for task, where in self._taken.items())

    @property
    def has_untried(self) -> bool:
        """Whether something of the part of the plan that was read never failed so far."""
        return bool(self._first or self._fresh)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do or under way."""
        return not (self._first or self._fresh or self._again or self._taken) and not self._read_on()

    def _read_on(self) -> bool:
        """Read the next part of the plan and tell whether there is one; it is empty while it is out of reach."""
        part = next(self.parts, None)
        self._fresh.extend(Task(unit) for unit in part or ())
        return part is not None

    def finished(self, task: Task, answer: Answer) -> None:
        """Note what came of a task; raise `TooManyFailures`."""
        del self._taken[task]
        unit = task.unit
        if self._was_given_up(unit):
            return
        self.num_finished += len(answer.records)
        if unit.scene is None:
            self.num_done += 1
        else:
            self._scene_finished(task, unit.scene, answer)
        for problem in answer.problems:
            self.add(Casualty(problem, in_data=True))
        for problem in answer.changed:  # not tried again: a unit is of what was listed
            self.add(Casualty(problem, in_data=False))

    def _scene_finished(self, task: Task, scene: SceneSource, answer: Answer) -> None:
        """Note what came of a scene, one of its blocks, or its assembly."""
        unit, scene_id = task.unit, scene.scene_id
        self._in_assembly.discard(scene_id)
        if answer.problems or answer.changed or answer.records:
            self._scenes.pop(scene_id, None)
            self.num_done += 1
        elif answer.blocks:
            self._scenes[scene_id] = _Scene(scene, answer.blocks, len(answer.missing), len(answer.missing))
            self._first.extend(Task(Unit(kind="block", scene=scene, regions=(block,))) for block in answer.missing)
            self._put_together(scene_id)
        elif unit.kind == "block" and scene_id in self._scenes:
            self._scenes[scene_id].left -= 1
            self._put_together(scene_id)

    def failed(self, task: Task, why: str, worker: Worker = NOBODY) -> None:
        """Note that one failed on `worker`, its data not at fault: it is tried again, or its items are casualties."""
        del self._taken[task]
        task.failures += 1
        task.failed_on |= worker
        self._try_again(task, task.failures, why)

    def lost(self, task: Task, why: str, *, blame: Blame) -> None:
        """Note that a task's worker died, and who is to `blame`: it is tried again, or its items are casualties."""
        del self._taken[task]
        if blame == "task":
            task.deaths += 1
            self._try_again(task, task.deaths, why)
            return
        task.losses += blame == "perhaps"
        if self._was_given_up(task.unit):
            return
        if task.losses >= LOSSES:
            self._give_up(task, f"{why}; {LOSSES} were lost with this under way")
        elif task.may_end_nodes:
            self._again.append(task)
        else:
            self._first.appendleft(task)  # next, so that its scene is not left half done until the end

    def _try_again(self, task: Task, attempts: int, why: str) -> None:
        if self._was_given_up(task.unit):
            return
        if attempts < ATTEMPTS:
            self._again.append(task)
        else:
            self._give_up(task, f"{why} ({ATTEMPTS} attempts)")

    def _give_up(self, task: Task, found: str) -> None:
        """Make casualties of a unit's items, not their data's fault; of several, each has a last try by itself."""
        unit = task.unit
        if len(unit.item_ids) > 1:
            tried = replace(task, failures=ATTEMPTS - 1, deaths=ATTEMPTS - 1, losses=min(task.losses, LOSSES - 1))
            self._again.extend(replace(tried, unit=single) for single in unit.of_one_item())
            self.num_units += len(unit.item_ids) - 1
            return
        self.num_done += 1
        if unit.scene is not None:
            self._scenes.pop(unit.scene.scene_id, None)
            self._in_assembly.discard(unit.scene.scene_id)
        for problem in _problems(unit, found):
            self.add(Casualty(problem, in_data=False))

    def _was_given_up(self, unit: Unit) -> bool:
        """Tell whether a unit is a block of a scene that can't be finished."""
        return unit.kind == "block" and unit.item_ids[0] not in self._scenes

    def _put_together(self, scene_id: str) -> None:
        """Queue the assembly of a scene all of whose blocks are done."""
        scene = self._scenes[scene_id]
        if scene.left == 0:
            del self._scenes[scene_id]
            self._in_assembly.add(scene_id)
            self._first.append(Task(Unit(kind="assembly", scene=scene.scene, regions=scene.blocks)))

    def progress(self, rate: Rate) -> Progress:
        """Return how far the work is; a scene in blocks is one unit of the plan, done in part."""
        seconds = time.monotonic() - rate.start
        items, lost = self.num_finished, len(self.casualties)
        parts_done = sum(1 - each.left / each.num_to_do for each in self._scenes.values())
        units = self.num_done + len(self._in_assembly) + parts_done
        return Progress(units, self.num_units, items, lost, rate.pixels / 1e6, seconds)

    @property
    def most_workers(self) -> int:
        """How many workers could have something to do now."""
        blocks = sum(scene.left for scene in self._scenes.values())
        return max(1, self.num_units - self.num_done + blocks)

    def add(self, casualty: Casualty) -> None:
        """Note an item that can't be scored; raise `TooManyFailures`."""
        self.casualties.append(casualty)
        if self.max_failures is not None and len(self.casualties) > self.max_failures:
            raise TooManyFailures(
                f"{len(self.casualties)} items can't be scored, more than --max-failures {self.max_failures} "
                f"(the last, {casualty.problem.item_id}: {casualty.problem.found}); the same command goes on"
            )


def _problems(unit: Unit, found: str) -> Iterator[Problem]:
    for item_id, source_uri in unit.sources:
        yield Problem(item_id=item_id, source_uri=source_uri, found=found)
