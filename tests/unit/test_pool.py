"""Actors die in all the ways that Ray tells of; each unit is done, and blamed only for what it did itself.

The cluster is a table in memory: what each request to an actor comes to is written down before.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.exceptions

from raytrain import storage
from raytrain.cluster import pool, session, vacancies
from raytrain.cluster.books import Books
from raytrain.cluster.pool import Pool
from raytrain.cluster.room import actors_at_once, cpus_each
from raytrain.cluster.score import ScoreJob, _run
from raytrain.errors import ConfigError, StoreOutOfReach, WorkNotFinished
from raytrain.scoring import ledger, patience
from raytrain.scoring.plan import read_parts, write_plan
from raytrain.scoring.schedule import LOSSES, Schedule, Task
from raytrain.scoring.units import Answer, Unit
from tests.unit.test_schedule import answer, scene, schedule

READY = ("", {"host": "here"})
DIED = ray.exceptions.ActorDiedError()
UNAVAILABLE = ray.exceptions.ActorUnavailableError("rpc: connection refused", None)
NODE_DIED = ray.exceptions.NodeDiedError("The actor died because its node has died. Node Id: 1")
PREEMPTED = ray.exceptions.RayActorError(preempted=True)
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
    put_in_place(fake, monkeypatch)
    return fake


def put_in_place(fake: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wait", "get", "kill"):
        monkeypatch.setattr(ray, name, getattr(fake, name))
    monkeypatch.setattr(pool.time, "monotonic", lambda: fake.now)
    monkeypatch.setattr(pool.time, "sleep", fake.sleep)
    monkeypatch.setattr(session, "alive_nodes", lambda: set(fake.nodes))


@dataclass(eq=False)
class Later(Ref):
    """What a request comes to at a time."""

    at: float = 0.0


@dataclass
class SlowCluster(FakeCluster):
    """Actors whose `perform` takes time; `answers` says of an actor and a time how long, and why it fails.

    So does `fails` of a unit.
    """

    answers: Callable[[int, float], tuple[float, str]] = lambda number, now: (60.0, "")
    fails: Callable[[str], str] = lambda unit_id: ""
    tried: list[tuple[float, int, str]] = field(default_factory=list)

    def start(self) -> FakeActor:
        actor = SlowActor(self, self.started, deque(), deque())
        self.started += 1
        return actor

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        due = {ref: ref.at if isinstance(ref, Later) else self.now for ref in refs}
        first = min(refs, key=lambda ref: due[ref])
        if due[first] > self.now + timeout:
            self.now += timeout
            return [], refs
        self.now = max(self.now, due[first])
        return [first], [ref for ref in refs if ref is not first]


@dataclass(eq=False)
class SlowActor(FakeActor):
    busy_until: float = 0.0

    @property
    def ready(self) -> Method:
        return Method(lambda: Ref(("", {"host": f"node {min(self.number, 9)}"})))

    @property
    def perform(self) -> Method:
        cluster = self.cluster
        assert isinstance(cluster, SlowCluster)

        def remote(text: str) -> Ref:
            unit = Unit.model_validate_json(text)
            start = max(cluster.now, self.busy_until)
            seconds, why = cluster.answers(self.number, start)
            why = why or cluster.fails(unit.unit_id)
            cluster.tried.append((cluster.now, self.number, unit.unit_id))
            self.busy_until = start + seconds
            return Later(("", why) if why else (answer(unit).model_dump_json(), ""), self.busy_until)

        return Method(remote)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowCluster:
    fake = SlowCluster()
    put_in_place(fake, monkeypatch)
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


def test_pool_tells_for_how_many_workers_there_is_something_to_do(cluster: FakeCluster) -> None:
    """Nodes are asked for by this: not one for each actor that there is room for."""
    plan, needs = schedule([scene("a"), scene("b"), scene("c")]), []

    def finished(task: Task, text: str, where: dict[str, Any]) -> None:
        plan.finished(task, Answer.model_validate_json(text))

    Pool(cluster.start, lambda: 1, on_need=needs.append).run(plan, finished)
    assert needs[0] == 3


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


def test_scene_that_takes_its_node_down_costs_few_nodes_and_no_other_scene(cluster: FakeCluster) -> None:
    class Bomb(FakeActor):
        @property
        def perform(self) -> Method:
            return Method(lambda text: Ref(NODE_DIED) if '"bomb"' in text else super(Bomb, self).perform.remote(text))

    start = cluster.start

    def start_one() -> FakeActor:
        actor = start()
        return Bomb(cluster, actor.number, actor.to_ready, actor.to_perform)

    plan = schedule([scene("bomb"), scene("b"), scene("c")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "start", start_one)
        found = run(cluster, plan)
    assert sorted(task.unit.item_ids[0] for task in found) == ["b", "c"]
    assert [(each.problem.item_id, each.in_data) for each in plan.casualties] == [("bomb", False)]
    assert cluster.started == LOSSES + 1


def test_nodes_that_are_taken_away_with_notice_blame_no_unit(cluster: FakeCluster) -> None:
    cluster.scripts = [([], [PREEMPTED])] * (3 * LOSSES)
    (task,) = run(cluster, schedule([scene("a")]))
    assert (task.losses, task.is_suspect, cluster.started) == (0, False, 3 * LOSSES + 1)


def test_log_tells_of_each_attempt_that_failed_or_was_lost_where_and_why(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.scripts = [([], [("", "OSError: no space left"), DIED])]
    plan = schedule([scene("a")])
    books = Books(str(tmp_path), plan, None)
    Pool(cluster.start, lambda: 1, books.note_failure).run(plan, books.add)
    books.roll()
    (log,) = (tmp_path / "log").iterdir()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = [(each["unit"], each["outcome"], each["failures"], each["deaths"], each["host"]) for each in lines]
    assert told == [
        ("scene-a", "failed", 0, 0, "here"),
        ("scene-a", "lost", 1, 0, "here"),
        ("scene-a", "done", 1, 1, "here"),
    ]
    assert lines[0]["cause"] == "OSError: no space left"
    assert "the process of a worker is gone" in lines[1]["cause"]
    assert "cause" not in lines[2]


def test_log_has_no_query_of_an_address_which_may_be_a_signature(cluster: FakeCluster, tmp_path: Path) -> None:
    causes = [f"OSError: {address}?X-Amz-Signature=secret: 403" for address in ("https://h/a.tif", "s3://b/a.tif")]
    cluster.scripts = [([], [("", cause) for cause in causes])]
    plan = schedule([scene("a")])
    books = Books(str(tmp_path), plan, None)
    Pool(cluster.start, lambda: 1, books.note_failure).run(plan, books.add)
    books.roll()
    (log,) = (tmp_path / "log").iterdir()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = [line["cause"] for line in lines if line["outcome"] == "failed"]
    assert told == ["OSError: https://h/a.tif 403", "OSError: s3://b/a.tif 403"]
    assert "secret" not in log.read_text()


def test_nodes_that_are_lost_as_actors_start_are_no_sick_starts(cluster: FakeCluster) -> None:
    cluster.scripts = [([NODE_DIED], [])] * (2 * pool.SICK_STARTS)
    assert len(run(cluster, schedule([scene("a")]), actors=3)) == 1
    cluster.started, cluster.killed = 0, []
    cluster.scripts = [([DIED], [])] * pool.SICK_STARTS
    with pytest.raises(WorkNotFinished, match=f"{pool.SICK_STARTS} workers in a row died as they started"):
        run(cluster, schedule([scene("a")]), actors=3)


def test_worker_that_fails_fast_costs_no_scene_and_comes_back_less_and_less(
    slow: SlowCluster, caplog: pytest.LogCaptureFixture
) -> None:
    def answers(number: int, now: float) -> tuple[float, str]:
        return (2.0, "OSError: no space left on device") if number >= 9 else (60.0, "")

    slow.answers = answers
    plan = schedule([scene(f"s{i:04d}") for i in range(1000)])
    found = run(slow, plan, actors=10)
    assert (len(found), plan.casualties) == (1000, [])
    sick = {number for _, number, _ in slow.tried if number >= 9}
    assert 5 < len(sick) < 1000 * 60 / 9 / vacancies.FIRST_PAUSE_S / 3
    assert max(task.failures for task in found) == 1, "what failed on a worker goes to another one"
    assert slow.now < 1.1 * 1000 * 60 / 9
    told = [each.getMessage() for each in caplog.records if "is made anew" in each.getMessage()]
    assert len(told) >= len(sick) - 1
    assert "3 units failed on it in a row (OSError: no space left" in told[0]
    assert "comes in" not in told[0]
    assert "comes in 30 s" in told[1]
    assert "comes in 60 s" in told[2]


def test_end_of_each_worker_that_was_ready_is_told_once(cluster: FakeCluster) -> None:
    cluster.scripts = [([("", {"pid": i})], [end]) for i, end in enumerate((DIED, NODE_DIED, OUT_OF_MEMORY))]
    cluster.scripts.insert(1, ([DIED], []))
    plan, ended = schedule([scene(f"s{i}") for i in range(20)]), []
    Pool(cluster.start, lambda: 1, on_end=lambda where: ended.append(where["pid"])).run(
        plan, lambda task, text, where: plan.finished(task, Answer.model_validate_json(text))
    )
    assert ended == [0, 1, 2]


def test_worker_that_is_well_again_once_it_is_made_anew_keeps_its_place(slow: SlowCluster) -> None:
    slow.answers = lambda number, now: (2.0, "AcceleratorError: CUDA error") if number == 0 else (60.0, "")
    plan = schedule([scene(f"s{i}") for i in range(40)])
    assert len(run(slow, plan, actors=1)) == 40
    assert (slow.started, plan.casualties) == (2, [])


@pytest.mark.parametrize("actors", [1, 2, 8])
@pytest.mark.parametrize("units", [40, 400])
def test_store_that_is_away_for_minutes_costs_no_scene(slow: SlowCluster, actors: int, units: int) -> None:
    away = (40.0, 640.0)

    def answers(number: int, now: float) -> tuple[float, str]:
        return (1.0, "StoreOutOfReach: gone") if away[0] <= now < away[1] else (30.0, "")

    slow.answers = answers
    plan = schedule([scene(f"s{i}") for i in range(units)])
    found = run(slow, plan, actors=actors)
    assert (len(found), plan.casualties) == (units, [])
    assert slow.started <= actors + 2, "all were made anew for what none of them is to blame for"
    first = min(at for at, *_ in slow.tried if at >= away[1])
    assert first < away[1] + 61, "it was noticed late that the store is back"


def test_last_scene_is_not_tried_three_times_at_once(slow: SlowCluster) -> None:
    slow.answers = lambda number, now: (1.0, "StoreOutOfReach: gone")
    plan = schedule([scene("a")])
    assert run(slow, plan, actors=3) == []
    times = [at for at, *_ in slow.tried]
    assert [round(later - earlier) for earlier, later in itertools.pairwise(times)] == [6, 11]
    assert [each.problem.item_id for each in plan.casualties] == ["a"]


def test_work_ends_when_nothing_could_be_done_for_long(slow: SlowCluster) -> None:
    slow.answers = lambda number, now: (1.0, "StoreOutOfReach: gone")
    plan = schedule([scene(f"s{i}") for i in range(500)])
    with pytest.raises(
        WorkNotFinished,
        match=r"nothing could be done for 3\d min, \d+ attempts at \d+ items .*StoreOutOfReach: gone; the",
    ):
        run(slow, plan, actors=4)
    assert (plan.casualties, len(slow.tried) < 60) == ([], True)
    assert slow.now < 1.1 * patience.GIVE_UP_S


@pytest.mark.parametrize(("seconds", "actors", "bad"), [(2400.0, 1, 2), (2400.0, 2, 2), (1.0, 2, 20)])
def test_items_that_fail_every_time_become_casualties_and_the_work_ends_well(
    slow: SlowCluster, seconds: float, actors: int, bad: int
) -> None:
    slow.answers = lambda number, now: (seconds, "")
    slow.fails = lambda unit_id: "MemoryError: " if "bad" in unit_id else ""
    names = [*(f"bad{i}" for i in range(bad)), "a", "b"]
    plan = schedule([scene(name) for name in names])
    assert sorted(task.unit.item_ids[0] for task in run(slow, plan, actors=actors)) == ["a", "b"]
    assert sorted(each.problem.item_id for each in plan.casualties) == sorted(names[:-2])
    assert slow.now > patience.GIVE_UP_S


def test_plan_that_is_out_of_reach_for_minutes_is_waited_for_and_for_ever_ends_the_work(
    slow: SlowCluster, tmp_path: Path
) -> None:
    def read(uri: str, limit_bytes: int | None = None) -> bytes:
        if 100 <= slow.now < back:
            slow.now += 40  # asked again and again before
            raise StoreOutOfReach(f"{uri}: out of reach")
        return storage.read_bytes(uri)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raytrain.scoring.plan.UNITS_PER_PART", 2)
        patch.setattr(storage, "read_listed", read)
        uri, back = str(tmp_path), 1600.0
        plan = write_plan(uri, "run", [scene(f"s{i}") for i in range(11)])
        work = Schedule(read_parts(uri, plan), plan.num_units)
        assert (len(run(slow, work, actors=2)), work.casualties) == (11, [])
        assert back < slow.now < back + 500
        slow.started, slow.killed, slow.now, back = 0, [], 0.0, 1e9
        with pytest.raises(StoreOutOfReach, match=r"part-run-.*out of reach"):
            run(slow, Schedule(read_parts(uri, plan), plan.num_units), actors=2)
    assert patience.GIVE_UP_S < slow.now < 1.2 * patience.GIVE_UP_S


def test_driver_that_cannot_write_goes_on_and_writes_all_later(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raytrain.cluster.books.RECORDS_PER_ROLL", 2)
    write, failed = storage.write_bytes, []

    def write_unless_away(uri: str, data: bytes) -> None:
        if cluster.now < 0.03 or (cluster.now < 0.09 and "ledger/rolled" in uri):  # each answer takes 0.01 s
            failed.append(cluster.now)
            raise StoreOutOfReach(f"{uri}: out of reach")
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", write_unless_away)
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.015)
    plan = schedule([scene(f"s{i}") for i in range(20)])
    books = Books(str(tmp_path), plan, None)

    def add(task: Task, text: str, where: dict[str, Any]) -> None:
        entry = {"entry": f"{task.unit.unit_id}.jsonl"}
        books.add(task, Answer.model_validate_json(text).model_copy(update=entry).model_dump_json(), where)

    Pool(cluster.start, lambda: 1).run(plan, add)
    books.roll()
    assert 1 < len(failed) < 5, "asked again at every answer"
    ledger.compact(str(tmp_path))
    names = sorted(f"s{i}" for i in range(20))
    assert sorted(record.item_id for record in ledger.read_records(str(tmp_path))) == names
    lines = [line for path in (tmp_path / "log").iterdir() for line in path.read_text().splitlines()]
    assert sorted(json.loads(line)["unit"] for line in lines) == sorted(f"scene-{name}" for name in names)


def test_worker_that_dies_as_it_starts_does_not_end_the_work_of_others(cluster: FakeCluster) -> None:
    cluster.scripts = [([], []), *[([DIED], [])] * (2 * pool.SICK_STARTS)]
    assert len(run(cluster, schedule([scene(f"s{i}") for i in range(20)]), actors=2)) == 20


@pytest.mark.parametrize("actors", [1, 3])
def test_workers_that_cannot_start_again_while_a_store_is_away_are_waited_for(
    cluster: FakeCluster, actors: int
) -> None:
    away = [([DIED], [])] * (actors * (pool.LATER_SICK_STARTS - 1))
    cluster.scripts = [*[([], [DIED, DIED])] * actors, *away]
    plan = schedule([scene(f"s{i}") for i in range(20)])
    assert (len(run(cluster, plan, actors=actors)), plan.casualties) == (20, [])
    assert 15 * 60 < cluster.now < 60 * 60
    cluster.started, cluster.killed, cluster.now = 0, [], 0.0
    cluster.scripts += [([DIED], [])] * 5 * actors
    with pytest.raises(WorkNotFinished, match=f"{pool.LATER_SICK_STARTS} workers in a row died as they started"):
        run(cluster, schedule([scene(f"s{i}") for i in range(20)]), actors=actors)
    assert cluster.now < 60 * 60


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


@dataclass
class Started:
    """What actors were asked for by `_run`, on a fake cluster whose GPUs are `gpus`, one for each actor until then."""

    cluster: FakeCluster
    gpus: list[int]
    asked: list[dict[str, Any]] = field(default_factory=list)

    def remote(self, _: type) -> Started:
        return self

    def options(self, **options: Any) -> SimpleNamespace:
        self.asked.append(options)
        return SimpleNamespace(remote=self.start)

    def start(self, *_: Any) -> FakeActor:
        if self.cluster.started:
            self.cluster.now += 100
        return self.cluster.start()

    def num_gpus(self) -> int:
        return self.gpus[min(self.cluster.started, len(self.gpus) - 1)]

    def run(self, monkeypatch: pytest.MonkeyPatch, plan: Schedule, uri: str) -> Books:
        monkeypatch.setattr(session, "num_gpus", self.num_gpus)
        monkeypatch.setattr(session, "can_grow_to", lambda resource: 0)
        monkeypatch.setattr(session, "cpus_of_nodes", lambda: [8])
        monkeypatch.setattr(ray, "remote", self.remote)
        record: Any = SimpleNamespace(model_dump=lambda mode: {})
        books = Books(uri, plan, None)
        _run(ScoreJob(src="s", dst=uri, ensemble="e"), record, record, plan, books)
        return books


@pytest.mark.parametrize("gpus", [[1, 0], [0, 1]], ids=["the last GPU is lost", "a GPU comes"])
def test_run_stays_on_the_kind_of_device_that_it_began_on(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: list[int]
) -> None:
    cluster.scripts = [([], [NODE_DIED]), ([None] if gpus[0] else [], [])]
    started, plan = Started(cluster, gpus), schedule([scene("a")])
    if gpus[0]:
        with pytest.raises(WorkNotFinished, match=r"no worker could be started in 60\d s: .* GPUs are taken or gone"):
            started.run(monkeypatch, plan, str(tmp_path))
    else:
        started.run(monkeypatch, plan, str(tmp_path))
        assert plan.num_finished == 1
    assert [each.get("num_gpus", 0) for each in started.asked] == [gpus[0]] * len(started.asked)
    assert len(started.asked) > 1


def test_worker_that_is_replaced_leaves_the_share_of_the_nets_as_it_is(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = (Answer(seconds=10.0, network_s=8.0).model_dump_json(), "")
    cluster.scripts = [([("", {"pid": 1})], [done, DIED]), ([("", {"pid": 2})], [done])]
    books = Started(cluster, [0]).run(monkeypatch, schedule([scene("a"), scene("b")]), str(tmp_path))
    assert books.rate.network_fraction == pytest.approx(0.8, abs=0.01)


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
    assert (actors_at_once(threads, use_gpu=False), cpus_each(threads)) == (actors, each)
    assert actors * each < max(2, sum(cpus))
