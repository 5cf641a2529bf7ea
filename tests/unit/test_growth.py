"""What is asked of a cluster that can grow, what is decided while it has no workers, and how long it is waited for."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from raytrain.cluster import growth, session, tasks, train
from raytrain.cluster.room import resources_of
from raytrain.errors import ConfigError, WorkNotFinished


@dataclass
class GrowingCluster:
    """A cluster that has `comes_after_s` after each request what it was asked for; its time goes on as it is slept."""

    labels: dict[str, str] = field(default_factory=lambda: {"raytrain.most-gpus": "32", "raytrain.most-cpus": "64"})
    has: dict[str, float] = field(default_factory=dict)
    comes_after_s: float = 300.0
    now: float = 0.0
    requests: list[tuple[str, int, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    _comes: list[tuple[float, str, int]] = field(default_factory=list)

    def nodes(self) -> list[dict[str, Any]]:
        head = {"NodeID": "head", "Alive": True, "Resources": {}, "Labels": self.labels}
        return [{"NodeID": "gone", "Alive": False, "Resources": {}, "Labels": {}}, head]

    def resources(self) -> dict[str, float]:
        for at, resource, count in self._comes:
            if at <= self.now:
                self.has[resource] = max(self.has.get(resource, 0), count)
        return self.has

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def request(self, requester_id: str, resources: list[dict[str, int]], expire_after_s: float, priority: Any) -> None:
        (resource,) = {name for each in resources for name in each} or {"none"}
        self.requests.append((resource, len(resources), priority))
        self._comes.append((self.now + self.comes_after_s, resource, len(resources)))

    @property
    def coordinator(self) -> Any:
        return SimpleNamespace(
            request_resources=SimpleNamespace(remote=self.request),
            cancel_request=SimpleNamespace(remote=self.cancelled.append),
        )


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> GrowingCluster:
    fake = GrowingCluster()
    monkeypatch.setattr(session, "_nodes", fake.nodes)
    monkeypatch.setattr(session, "_resources", fake.resources)
    monkeypatch.setattr(growth, "_coordinator", lambda: fake.coordinator)
    monkeypatch.setattr(growth.time, "sleep", fake.sleep)
    monkeypatch.setattr(growth.time, "monotonic", lambda: fake.now)
    monkeypatch.setattr(ray, "get", lambda answer, timeout=None: answer)
    return fake


def asked(cluster: GrowingCluster) -> list[tuple[str, int]]:
    return [(resource, count) for resource, count, _ in cluster.requests]


def test_ranks_take_gpus_that_are_yet_to_come(cluster: GrowingCluster) -> None:
    assert session.uses_gpus(4)
    assert session.uses_gpus(32)


def test_ranks_for_which_the_cluster_never_has_room_are_refused(cluster: GrowingCluster) -> None:
    with pytest.raises(ConfigError, match="33 workers need as many GPUs, the cluster has 0 and can grow to 32"):
        session.uses_gpus(33)
    cluster.labels = {}
    with pytest.raises(ConfigError, match="1 workers need as many CPUs, the cluster has 0; use fewer"):
        session.uses_gpus(1)


def test_cluster_of_cpus_alone_is_not_asked_for_gpus(cluster: GrowingCluster) -> None:
    cluster.labels = {"raytrain.most-cpus": "64"}
    assert not session.uses_gpus(64)


def test_gpus_that_are_there_count_beside_a_head_that_says_nothing(cluster: GrowingCluster) -> None:
    cluster.labels, cluster.has = {}, {"GPU": 2, "CPU": 8}
    assert session.uses_gpus(2)
    with growth.asked_for(4, use_gpu=True, at_least=2):
        pass
    assert (cluster.requests, cluster.cancelled) == ([], [])


def test_label_that_is_no_number_is_refused_with_its_name(cluster: GrowingCluster) -> None:
    cluster.labels = {"raytrain.most-gpus": "many"}
    with pytest.raises(ConfigError, match=r"label raytrain\.most-gpus is 'many'; expected how many GPUs"):
        session.has_gpus()


def test_local_paths_are_refused_while_the_head_is_alone_but_will_not_be(cluster: GrowingCluster) -> None:
    with pytest.raises(ConfigError, match="/data is a path of one machine, but the cluster can grow to several nodes"):
        session._refuse_local_paths(session.Cluster(), ["/data"])
    session._refuse_local_paths(session.Cluster(shared_path=True), ["/data"])
    cluster.labels = {}
    session._refuse_local_paths(session.Cluster(), ["/data"])


def test_work_begins_when_the_least_is_there_and_not_before(
    cluster: GrowingCluster, caplog: pytest.LogCaptureFixture
) -> None:
    with growth.asked_for(40, use_gpu=True, at_least=4):
        assert cluster.now == cluster.comes_after_s
        assert asked(cluster) == [("GPU", 32)]  # as far as it can grow
        assert cluster.cancelled == []
    assert len(cluster.cancelled) == 1
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == ("waiting for nodes: the cluster has 0 GPUs, 4 are the least to begin with, and 32 are asked for")
    assert len(said) == cluster.comes_after_s // growth.TELL_S


def test_request_follows_the_need_and_is_made_only_where_it_changes(cluster: GrowingCluster) -> None:
    cluster.has = {"CPU": 16}
    with growth.asked_for(1000, use_gpu=False) as request:
        for left in (700, 65, 64, 63, 2, 0):
            request.ask(left)
    assert asked(cluster) == [("CPU", 64), ("CPU", 63), ("CPU", 2), ("none", 0)]


def test_request_stands_behind_those_of_runs_that_are_under_way(cluster: GrowingCluster) -> None:
    with growth.asked_for(1, use_gpu=True):
        pass
    assert [priority.name for _, _, priority in cluster.requests] == ["LOW"]


def test_nodes_that_never_come_end_the_work_with_where_to_look(cluster: GrowingCluster) -> None:
    cluster.comes_after_s = 1e9
    found = r"has 0 of at least 2 GPUs after 30 min: `ray status` .* same command"
    with pytest.raises(WorkNotFinished, match=found), growth.asked_for(8, use_gpu=True, at_least=2):
        raise AssertionError("begun without GPUs")
    assert len(cluster.cancelled) == 1  # nobody waits for them any more


def test_request_is_taken_back_where_the_work_fails(cluster: GrowingCluster) -> None:
    with pytest.raises(ZeroDivisionError), growth.asked_for(1, use_gpu=True):
        raise ZeroDivisionError
    assert len(cluster.cancelled) == 1


def test_request_is_made_again_before_it_is_forgotten(cluster: GrowingCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    assert growth.RENEW_S * 3 < growth.EXPIRE_S
    monkeypatch.setattr(growth, "RENEW_S", 0.01)
    cluster.has = {"GPU": 1}
    with growth.asked_for(8, use_gpu=True):
        until = growth.threading.Event()
        for _ in range(500):
            if len(cluster.requests) > 3 or until.wait(0.01):
                break
    assert set(asked(cluster)) == {("GPU", 8)}
    assert len(cluster.requests) > 3


def test_tasks_ask_for_a_cpu_each_until_they_are_done(cluster: GrowingCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def remote(function: Any) -> Any:
        task = SimpleNamespace(remote=lambda each: started.append(each) or function(each))
        return SimpleNamespace(options=lambda **options: task)

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(tasks, "_observed", lambda function: function)  # it changes the process that it runs in
    results = tasks.run_tasks(lambda each: each * 2, range(100), 100)
    assert next(results) == 0
    assert cluster.now == cluster.comes_after_s  # no CPU was there
    # Not two, as for a cluster without CPUs: what waits makes it grow. And not more than it has CPUs without GPUs for.
    assert started == list(range(65))
    assert list(results) == [each * 2 for each in range(1, 100)]
    assert asked(cluster) == [("CPU", count) for count in range(64, 0, -1)] + [("none", 0)]


def test_training_asks_for_the_runs_that_wait_and_for_none_once_all_have_begun() -> None:
    rooms, waiting, begun = iter([1, 1, 1, 2, 2, 2, 2, 2]), [], []
    journal: Any = SimpleNamespace(begin=begun.append, end=lambda *anything: None)
    net: Any = SimpleNamespace(score=0.5)
    fits = {f"run{i}": lambda: net for i in range(3)}
    ended = train._side_by_side(fits, lambda: next(rooms), None, journal, waiting.append)
    assert [each.net for each in ended.values()] == [net] * 3
    assert begun == ["run0", "run1", "run2"]
    assert waiting[0] == 2
    assert waiting[-1] == 0
    assert waiting == sorted(waiting, reverse=True)


@pytest.mark.parametrize(("use_gpu", "count"), [(True, 5), (False, 11)])
def test_scoring_asks_for_a_gpu_a_worker_or_its_threads_and_a_cpu_beside(use_gpu: bool, count: int) -> None:
    assert resources_of(5, threads=2, use_gpu=use_gpu) == count
