"""Metrics below Ray: what is asked of stores is counted once and told as it grows; names are as Prometheus has them."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from raytrain import storage
from raytrain.cluster import metrics, tracking
from raytrain.cluster.metrics import METRICS, StoreMeter
from raytrain.cluster.tracking import RunMetrics, ScoringMetrics
from raytrain.errors import StoreOutOfReach
from raytrain.scoring.pace import Progress
from raytrain.storage import counts, retries
from raytrain.storage.retries import PassingAnswer, Retries, persistently
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
    for error, kind in ((PermissionError("403"), PermissionError), (FileNotFoundError("404"), FileNotFoundError)):
        with pytest.raises(kind):
            persistently(URI, answers(error))
    with pytest.raises(StoreOutOfReach):
        persistently(URI, answers(*[PassingAnswer("503")] * 3))
    found = counts.so_far()["read"]
    assert (found.requests, found.refused, found.given_up, found.retries) == (3, 1, 1, 2)


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


def progress(samples_done: int, epoch: int = 0) -> RunProgress:
    return RunProgress("a-fold1", epoch, 4, samples_done, 100, None, 10.0, 0.1, None, None)


def test_images_are_counted_from_where_the_attempt_began(told: Told) -> None:
    run = RunMetrics("a-fold1", "a", 1)
    run.begin(2, 130)
    for each in (progress(40, 1), progress(100, 1), progress(10, 2)):
        run.set(each)
    run.end()
    assert values(told, "raytrain_images") == [10, 60, 10]
    assert values(told, "raytrain_epoch") == [1.4, 2.0, 2.1]
    assert values(told, "raytrain_ranks") == [2, 0]
    assert {tags["fold"] for *_, tags in told} == {"1"}


def test_a_run_without_a_fold_has_a_tag_that_says_so(told: Told) -> None:
    RunMetrics("a-foldnone", "a", None).begin(1, 0)
    assert {tags["fold"] for *_, tags in told} == {"none"}


def test_items_and_pixels_of_a_scoring_are_counted_as_they_grow(told: Told) -> None:
    scoring = ScoringMetrics("s3://b/masks")
    for items, megapixels in ((2, 1.0), (2, 3.0), (5, 9.0)):
        scoring.set(Progress(units=1, total=4, items=items, casualties=0, megapixels=megapixels, seconds=1))
    assert values(told, "raytrain_scored_items") == [2, 0, 3]
    assert values(told, "raytrain_scored_megapixels") == [1.0, 2.0, 6.0]


def test_nothing_is_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_metric", lambda name: pytest.fail("Ray refuses to add nothing"))
    metrics.count("raytrain_images", 0, run="r", member="m", fold="0")
    metrics.set_gauge("raytrain_loss", None, run="r", member="m", fold="0")
