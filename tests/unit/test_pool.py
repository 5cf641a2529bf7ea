"""Actors die in all the ways that Ray tells of; each unit is done, and blamed only for what it did itself.

The cluster is a table in memory: what each request to an actor comes to is written down before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray
import ray.exceptions

from raytrain.cluster import pool, session
from raytrain.cluster.pool import Pool, actors_at_once, cpus_each
from raytrain.errors import ConfigError, WorkNotFinished
from raytrain.scoring.schedule import Schedule, Task
from raytrain.scoring.units import Answer, Unit
from tests.unit.test_schedule import answer, scene, schedule

READY = ("", {"host": "here"})
DIED = ray.exceptions.ActorDiedError()
UNAVAILABLE = ray.exceptions.ActorUnavailableError("rpc: connection refused", None)
NODE_DIED = ray.exceptions.NodeDiedError("The actor died because its node has died. Node Id: 1")
OUT_OF_MEMORY = ray.exceptions.OutOfMemoryError("(15.20GB used / 15.00GB limit) the node was low on memory")
OUTPUT_LOST = ray.exceptions.ObjectLostError("1" * 56, None, "")
Script = list[Any]


@dataclass
class FakeCluster:
    """Actors of which the i-th answers by the i-th script: to `ready`, and to `perform`; once it is over, well."""

    scripts: list[tuple[Script, Script]] = field(default_factory=list)
    nodes: set[str] = field(default_factory=lambda: {"one", "two"})
    started: int = 0
    killed: list[int] = field(default_factory=list)
    now: float = 0.0

    def start(self) -> FakeActor:
        ready, perform = self.scripts[self.started] if self.started < len(self.scripts) else ([], [])
        actor = FakeActor(self, self.started, deque(ready), deque(perform))
        self.started += 1
        return actor

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        self.now += 0.01
        done = [ref for ref in refs if ref.result is not None]
        if not done:
            self.now += timeout
        return done[:num_returns], [ref for ref in refs if ref not in done[:num_returns]]

    def get(self, ref: Ref) -> Any:
        if isinstance(ref.result, Exception):
            raise ref.result
        return ref.result

    def kill(self, actor: FakeActor) -> None:
        self.killed.append(actor.number)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass(eq=False)
class Ref:
    """What a request comes to, None for never."""

    result: Any


@dataclass
class Method:
    """A method of an actor as Ray has it."""

    remote: Callable[..., Ref]


@dataclass(eq=False)
class FakeActor:
    cluster: FakeCluster
    number: int
    to_ready: deque[Any]
    to_perform: deque[Any]

    @property
    def ready(self) -> Method:
        return Method(lambda: Ref(self.to_ready.popleft() if self.to_ready else READY))

    @property
    def perform(self) -> Method:
        def remote(text: str) -> Ref:
            well = (answer(Unit.model_validate_json(text)).model_dump_json(), "")
            return Ref(self.to_perform.popleft() if self.to_perform else well)

        return Method(remote)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    for name in ("wait", "get", "kill"):
        monkeypatch.setattr(ray, name, getattr(fake, name))
    monkeypatch.setattr(pool.time, "monotonic", lambda: fake.now)
    monkeypatch.setattr(pool.time, "sleep", fake.sleep)
    monkeypatch.setattr(session, "alive_nodes", lambda: set(fake.nodes))
    return fake


def run(cluster: FakeCluster, plan: Schedule, actors: int = 1) -> list[Task]:
    """Do a schedule and return its tasks in the order of their answers."""
    found: list[Task] = []

    def add(task: Task, text: str, where: dict[str, Any]) -> None:
        found.append(task)
        plan.finished(task, Answer.model_validate_json(text))

    Pool(cluster.start, lambda: actors).run(plan, add)
    assert sorted(cluster.killed) == list(range(cluster.started)), "an actor was left to itself"
    return found


@pytest.mark.parametrize("end", [DIED, OUT_OF_MEMORY], ids=["killed", "out of memory"])
def test_unit_whose_actor_dies_is_done_by_another_one_and_is_suspect(cluster: FakeCluster, end: Exception) -> None:
    cluster.scripts = [([], [end])]
    (task,) = run(cluster, schedule([scene("a")]))
    assert (cluster.started, task.deaths, task.failures) == (2, 1, 0)


def test_actor_out_of_reach_whose_node_died_blames_no_unit(cluster: FakeCluster) -> None:
    cluster.scripts = [([READY, UNAVAILABLE, UNAVAILABLE, NODE_DIED], [UNAVAILABLE, UNAVAILABLE])] * 4
    found = run(cluster, schedule([scene("a"), scene("b")]))
    assert [(task.deaths, task.failures) for task in found] == [(0, 0), (0, 0)]
    assert cluster.started == 5
    assert cluster.now < pool.SILENCE_LIMIT_S


def test_actor_out_of_reach_whose_process_died_makes_its_unit_suspect(cluster: FakeCluster) -> None:
    cluster.scripts = [([READY, DIED], [UNAVAILABLE])]
    (task,) = run(cluster, schedule([scene("a")]))
    assert (cluster.started, task.deaths) == (2, 1)


@pytest.mark.parametrize("found", [UNAVAILABLE, OUTPUT_LOST], ids=["out of reach", "answer lost"])
def test_actor_that_lives_after_all_is_ended_before_its_unit_is_done_again(
    cluster: FakeCluster, found: Exception
) -> None:
    cluster.scripts = [([READY, READY], [found])]
    (task,) = run(cluster, schedule([scene("a")]))
    assert (cluster.started, task.deaths, task.failures) == (2, 0, 0)


def test_actor_that_stays_out_of_reach_is_given_up_and_takes_no_unit_meanwhile(cluster: FakeCluster) -> None:
    cluster.scripts = [([READY, *[UNAVAILABLE] * 1000], [UNAVAILABLE])]
    found = run(cluster, schedule([scene("a"), scene("b"), scene("c")]), actors=2)
    assert sorted(task.unit.item_ids[0] for task in found) == ["a", "b", "c"]
    assert pool.SILENCE_LIMIT_S <= cluster.now < 2 * pool.SILENCE_LIMIT_S


def test_nodes_that_are_lost_as_actors_start_are_no_sick_starts(cluster: FakeCluster) -> None:
    cluster.scripts = [([NODE_DIED], [])] * (2 * pool.SICK_STARTS)
    assert len(run(cluster, schedule([scene("a")]), actors=3)) == 1
    cluster.started, cluster.killed = 0, []
    cluster.scripts = [([DIED], [])] * pool.SICK_STARTS
    with pytest.raises(WorkNotFinished, match=f"{pool.SICK_STARTS} workers in a row died as they started"):
        run(cluster, schedule([scene("a")]), actors=3)


def test_actor_that_waits_for_what_a_lost_node_had_is_made_anew(cluster: FakeCluster) -> None:
    cluster.scripts = [([None], [])]
    before = cluster.start

    def start() -> FakeActor:
        actor = before()
        cluster.nodes = {"one"} if actor.number else {"one", "two"}
        return actor

    wait = cluster.wait

    def lose_a_node(*arguments: Any, **options: Any) -> Any:
        cluster.nodes = {"one"}
        return wait(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "start", start)
        patch.setattr(ray, "wait", lose_a_node)
        assert len(run(cluster, schedule([scene("a")]))) == 1
    assert cluster.started == 2
    assert pool.RENEW_S < cluster.now < 2 * pool.RENEW_S


def test_cluster_that_is_taken_by_others_is_told_so_in_time(cluster: FakeCluster) -> None:
    cluster.scripts = [([None], [])]
    with pytest.raises(WorkNotFinished, match=r"no worker could be started in 60\d s"):
        run(cluster, schedule([scene("a")]))


def test_mistake_of_the_caller_ends_the_work_at_once(cluster: FakeCluster) -> None:
    cluster.scripts = [([("no weights", {})], [])]
    with pytest.raises(ConfigError, match="no weights"):
        run(cluster, schedule([scene("a")]))


@pytest.mark.parametrize(
    ("cpus", "threads", "actors", "each"),
    [
        ([], 2, 1, 1),
        ([1], 2, 1, 1),
        ([2], 2, 1, 1),
        ([2, 2], 3, 1, 2),
        ([1, 1], 1, 1, 1),
        ([4], 1, 3, 1),
        ([4, 4], 2, 3, 2),
        ([3, 3, 3], 2, 3, 2),
        ([8, 2], 4, 2, 4),
    ],
)
def test_each_actor_fits_on_a_node_and_a_cpu_is_kept_free(
    monkeypatch: pytest.MonkeyPatch, cpus: list[int], threads: int, actors: int, each: int
) -> None:
    monkeypatch.setattr(session, "cpus_of_nodes", lambda: cpus)
    monkeypatch.setattr(session, "num_gpus", lambda: 0)
    assert (actors_at_once(threads), cpus_each(threads)) == (actors, each)
    assert actors * each < max(2, sum(cpus))
