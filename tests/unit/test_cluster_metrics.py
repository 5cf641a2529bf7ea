"""Metrics below Ray: what is asked of stores is counted once and told as it grows; names are as Prometheus has them."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from raytrain import storage
from raytrain.cluster import metrics, rank, session, tasks, tracking, train
from raytrain.cluster.board import Begun
from raytrain.cluster.metrics import METRICS, StoreMeter
from raytrain.cluster.runs import RunSettings, TrainJob, run_tags
from raytrain.cluster.scorer import Scorer
from raytrain.cluster.tracking import RunMetrics, ScoringMetrics
from raytrain.errors import StoreOutOfReach, WorkNotFinished
from raytrain.recipes import published_members
from raytrain.scoring.fold_nets import FoldNets
from raytrain.scoring.pace import Progress
from raytrain.scoring.units import Unit
from raytrain.storage import counts, retries
from raytrain.storage.counts import AddressRefused
from raytrain.storage.retries import PassingAnswer, Retries, persistently
from raytrain.tiles.order import Position
from raytrain.training.progress import RunProgress

URI = "s3://bucket/key"
UNBOUNDED = {"unit", "chip", "item", "key", "uri", "tile", "scene", "attempt", "pid"}
Told = list[tuple[str, float, dict[str, str]]]


@pytest.fixture(autouse=True)
def own_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count from nothing, and wait for nothing."""
    monkeypatch.setattr(counts, "_counts", {})
    monkeypatch.setattr(retries, "RETRIES", Retries(attempts=3, first_wait_s=0.0))


def answers(*given: Any) -> Any:
    """Return an operation that gives one of these each time that it is asked, errors by raising them."""
    left = list(given)

    def operation() -> Any:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return operation


def test_a_request_is_counted_once_however_often_it_is_asked() -> None:
    assert persistently(URI, answers(PassingAnswer("503"), PassingAnswer("503"), b"12345")) == b"12345"
    persistently(URI, answers(None), "write", 7)
    found = counts.so_far()
    assert (found["read"].requests, found["read"].retries, found["read"].bytes) == (1, 2, 5)
    assert (found["write"].requests, found["write"].retries, found["write"].bytes) == (1, 0, 7)


def test_what_a_store_refuses_is_told_apart_from_what_it_never_answers_and_from_what_is_missing() -> None:
    refused = (PermissionError("403"), FileNotFoundError("404"), AddressRefused("no public host"))
    for error, kind in zip(refused, (PermissionError, FileNotFoundError, AddressRefused), strict=True):
        with pytest.raises(kind):
            persistently(URI, answers(error))
    with pytest.raises(StoreOutOfReach):
        persistently(URI, answers(*[PassingAnswer("503")] * 3))
    found = counts.so_far()["read"]
    assert (found.requests, found.refused, found.given_up, found.retries) == (4, 1, 1, 2)


def test_a_retry_is_seen_while_the_request_goes_on() -> None:
    seen = []

    def operation() -> bytes:
        seen.append(counts.so_far().get("read", counts.Counts()).retries)
        if len(seen) < 3:
            raise PassingAnswer("503")
        return b""

    persistently(URI, operation)
    assert seen == [0, 1, 2]


def test_local_files_are_no_requests(tmp_path: Any) -> None:
    storage.write_bytes(str(tmp_path / "a"), b"1")
    storage.read_bytes(str(tmp_path / "a"))
    storage.exists(str(tmp_path / "a"))
    assert counts.so_far() == {}


def test_a_store_meter_tells_only_what_is_new() -> None:
    told: dict[str, float] = {}

    def tell(name: str, amount: float, operation: str) -> None:
        told[f"{name} {operation}"] = told.get(f"{name} {operation}", 0.0) + amount

    meter = StoreMeter(tell)
    for _ in range(3):
        persistently(URI, answers(b"1234"))
        meter.flush()
        meter.flush()
    assert told["raytrain_store_requests read"] == 3
    assert told["raytrain_store_bytes read"] == 12
    assert told["raytrain_store_retries read"] == 0
    assert {name.split()[0] for name in told} <= METRICS.keys()


@pytest.fixture
def of_stores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The requests that this process tells of, where no thread gets to tell any."""
    told: list[float] = []

    def tell(name: str, amount: float, operation: str) -> None:
        if name == "raytrain_store_requests" and amount:
            told.append(amount)

    meter = StoreMeter(tell)
    monkeypatch.setattr(metrics, "_meter", lambda: meter)
    return told


def test_what_work_asked_of_stores_is_told_when_it_is_over_and_also_when_it_failed(of_stores: list[float]) -> None:
    def work(uri: str) -> None:
        persistently(uri, answers(b""))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), metrics.stores_watched():
        work(URI)
    assert of_stores == [1]
    with pytest.raises(ZeroDivisionError):
        tasks._observed(work)(URI)
    assert of_stores == [1, 1]


def test_a_command_and_a_rank_tell_on_their_way_out_and_a_command_while_ray_is_there(
    of_stores: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*anything: Any) -> Any:
        persistently(URI, answers(b""))
        raise WorkNotFinished("lost")

    seen: list[tuple[list[float], dict[Any, float]]] = []
    monkeypatch.setattr(metrics, "_gauges", {("raytrain_runs", ()): 1.0})
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: seen.append((list(of_stores), dict(metrics._gauges))))
    for name in ("_start", "_refuse_local_paths"):
        monkeypatch.setattr(session, name, lambda *anything, **more: None)
    with pytest.raises(WorkNotFinished), session.joined(session.Cluster(), []):
        fail()
    assert seen == [([1], {})]  # what is over is no longer told either
    monkeypatch.setattr(rank, "_train_on_rank", fail)
    with pytest.raises(WorkNotFinished):
        rank.train_on_rank(SimpleNamespace(), None)  # type: ignore[arg-type]  # it is not looked at
    assert of_stores == [1, 1]


def test_what_a_unit_asked_is_told_with_its_answer(of_stores: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(unit: Any, work: Any) -> None:
        persistently(URI, answers(b""))
        raise OSError

    monkeypatch.setattr("raytrain.scoring.perform.perform", fail)
    scorer: Any = SimpleNamespace(_nets=FoldNets(lambda _: "nets"), _work=lambda nets: nets)
    Scorer.perform(scorer, Unit(kind="chips").model_dump_json())
    assert of_stores == [1]


def test_a_process_tells_of_stores_before_it_ends_however_short_it_lives() -> None:
    """Ray's exporter flushes at exit, too: what is told after it is lost."""
    program = """
import atexit, ray
atexit.register(print, "Ray ends")
from raytrain.cluster import metrics
metrics.StoreMeter.__init__.__defaults__ = (lambda name, amount, operation: print(name, amount, flush=True),)
with metrics.stores_watched():
    pass
from raytrain.storage import counts
with counts.asking("read"):
    pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    told = done.stdout.splitlines()
    assert "raytrain_store_requests 1" in told[: told.index("Ray ends")]


def test_counting_costs_a_request_microseconds() -> None:
    def spend(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            with counts.asking("read") as asked:
                asked.num_bytes = 1
        return (time.perf_counter() - start) / count

    # Reading a tile takes milliseconds; here it is some 3 us, on a machine that others share.
    assert min(spend(200) for _ in range(20)) < 50e-6


def test_names_units_and_tags_are_as_prometheus_and_its_users_want_them() -> None:
    for metric in METRICS.values():
        assert re.fullmatch("raytrain_[a-z_]+", metric.name), metric.name
        assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket")), f"{metric.name}: added by exporters"
        assert metric.description.endswith("."), metric.name
        assert not set(metric.tags) & UNBOUNDED, f"{metric.name}: as many series as there is data"
        assert (metric.kind == "histogram") == bool(metric.bounds), metric.name
        assert list(metric.bounds) == sorted(metric.bounds), metric.name


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What is told to Ray, by (name, value, tags)."""
    found: Told = []

    def tell(name: str, value: float | None = 1.0, **tags: str) -> None:
        if value is not None:
            assert set(tags) == set(METRICS[name].tags), name
            found.append((name, value, tags))

    for each in ("set_gauge", "count", "observe"):
        monkeypatch.setattr(metrics, each, tell)
    assert tracking.metrics is metrics
    return found


def values(told: Told, name: str) -> list[float]:
    return [value for found, value, _ in told if found == name]


TAGS = {"experiment": "main", "run": "a-fold1", "member": "a", "fold": "1"}


def run_of(fold: int | None, member: str = "a") -> RunSettings:
    settings = published_members()[0].model_copy(update={"name": member})
    return RunSettings(member=settings, shards="s", shards_digest="d", fold=fold)


def progress(samples_done: int, epoch: int = 0) -> RunProgress:
    return RunProgress("a-fold1", epoch, 4, samples_done, 100, None, 10.0, 0.1, None, None)


def test_images_are_counted_from_where_the_attempt_began(told: Told) -> None:
    run = RunMetrics(TAGS)
    run.begin(2, 130)
    for each in (progress(40, 1), progress(100, 1), progress(10, 2)):
        run.set(each)
    run.end()
    assert values(told, "raytrain_images") == [10, 60, 10]
    assert values(told, "raytrain_epoch") == [1.4, 2.0, 2.1]
    assert values(told, "raytrain_ranks") == [2, 0]
    assert all(tags == TAGS for *_, tags in told)


def test_tags_tell_runs_of_the_same_name_in_two_experiments_apart() -> None:
    first, second = (run_tags(experiment, run_of(0)) for experiment in ("one", "two"))
    assert first != second
    assert first | {"experiment": "two"} == second
    assert run_tags("one", run_of(None))["fold"] == "none"
    assert run_tags("one", run_of(0)).keys() == set(metrics.RUN)


class Ray:
    """What is told to Ray of gauges, by (name, run)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: dict[tuple[str, str], float] = {}
        monkeypatch.setattr(metrics, "_gauges", {})
        monkeypatch.setattr(metrics, "_meter", lambda: None)
        monkeypatch.setattr(metrics, "_metric", lambda name: SimpleNamespace(set=partial(self._set, name)))
        monkeypatch.setattr(metrics, "count", lambda name, amount, **tags: None)

    def _set(self, name: str, value: float, tags: dict[str, str]) -> None:
        self.told[name, tags["run"]] = value

    def told_later(self) -> dict[tuple[str, str], float]:
        """Return what is told where nothing was set meanwhile: Ray drops what is not told again."""
        self.told.clear()
        metrics._set_gauges_again()
        return dict(self.told)


def test_a_gauge_keeps_its_value_while_nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is saved, or no image is trained, somebody has to see that there are ranks."""
    node = Ray(monkeypatch)
    RunMetrics(TAGS).begin(2, 0)
    saved_at = node.told["raytrain_saved_timestamp_seconds", "a-fold1"]
    for _ in range(2):
        told = node.told_later()
        assert told["raytrain_ranks", "a-fold1"] == 2
        assert told["raytrain_saved_timestamp_seconds", "a-fold1"] == saved_at


def test_what_has_ended_is_exported_no_longer_and_what_goes_on_beside_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Ray(monkeypatch)
    ended, other = RunMetrics(TAGS), RunMetrics(TAGS | {"run": "b-fold1"})
    for run in (ended, other):
        run.begin(2, 0)
        run.set(replace(progress(40), loss=0.5, left_s=60.0))
    ended.end()
    assert node.told["raytrain_ranks", "a-fold1"] == 0
    assert {run for _, run in node.told_later()} == {"b-fold1"}
    metrics.forget_gauges()  # as the end of a command does
    assert node.told_later() == {}


def test_gauges_are_told_again_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    again = threading.Event()
    monkeypatch.setattr(metrics, "TELL_S", 0.01)
    monkeypatch.setattr(metrics, "_set_gauges_again", again.set)
    metrics._meter.__wrapped__()
    assert again.wait(10)


def test_a_run_that_fails_for_good_is_counted_and_one_that_is_done_is_not(told: Told) -> None:
    def fail() -> Any:
        raise WorkNotFinished("lost")

    journal: Any = SimpleNamespace(begin=lambda run: None, end=lambda *anything: None)
    net: Any = SimpleNamespace(score=0.5)
    runs = {"a-fold0": fail, "b-fold0": lambda: net}
    train._side_by_side(runs, lambda: 2, None, journal, lambda waiting: None, "main")
    failed = [(value, tags) for name, value, tags in told if name == "raytrain_runs_failed" and value]
    assert failed == [(1, {"experiment": "main"})]


def test_a_restart_is_counted_with_the_tags_of_its_run_whatever_it_is_called(told: Told, tmp_path: Any) -> None:
    run = run_of(0, member="a-fold9")
    job = TrainJob(shards="s", out=str(tmp_path), experiment="main")
    with train._told_to_mlflow(job, str(tmp_path), [run], lambda news: None) as journal:
        journal.on_news(Begun(run.name, 1, Position(), 1))
        journal.on_news(Begun(run.name, 2, Position(), 2))
    (tags,) = (tags for name, _, tags in told if name == "raytrain_restarts")
    assert tags == run_tags("main", run) | {"cause": "resized"}
    assert tags["member"] == "a-fold9"


def test_items_and_pixels_of_a_scoring_are_counted_as_they_grow(told: Told) -> None:
    scoring = ScoringMetrics("s3://b/masks")
    for items, megapixels in ((2, 1.0), (2, 3.0), (5, 9.0)):
        scoring.set(Progress(units=1, total=4, items=items, casualties=0, megapixels=megapixels, seconds=1))
    assert values(told, "raytrain_scored_items") == [2, 0, 3]
    assert values(told, "raytrain_scored_megapixels") == [1.0, 2.0, 6.0]


def test_nothing_is_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_metric", lambda name: pytest.fail("Ray refuses to add nothing"))
    metrics.count("raytrain_images", 0, **TAGS)
    metrics.set_gauge("raytrain_loss", None, **TAGS)
