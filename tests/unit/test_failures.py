"""Why attempts end: each kind of error has its cause in one line, and its policy; the history that comes of it."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayActorError, RaySystemError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from raytrain import storage
from raytrain.cluster import failures
from raytrain.cluster.board import Begun, Board, Failed, News, Placed, Post, Stepped, Validated
from raytrain.cluster.deaths import Kind
from raytrain.cluster.failures import RETRIES, RunFailurePolicy, cause_of, final_error
from raytrain.cluster.history import DOUBT_S, EARLIER_BESTS, Journal, read_history
from raytrain.errors import ConfigError, DataError, StoreOutOfReach, TrainingDiverged, WorkNotFinished
from raytrain.tiles.order import Position
from raytrain.training.metrics import LocationScore, TileScore
from raytrain.training.progress import RunProgress

MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. \n"
    "Memory on the node (IP: 10.0.0.1, ID: abc) was 22.30GB used / 23.47GB limit (0.950000)\n"
    "Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/"
)
LESS = "lower global_batch, crop_px or the number of ranks on a node"


def of_ranks(**errors: Exception) -> WorkerGroupError:
    """Return what Ray Train makes of the errors of ranks: rank0=..., rank1=..."""
    return WorkerGroupError("text", {int(name.removeprefix("rank")): error for name, error in errors.items()})


def dead(error: Exception) -> WorkerHealthCheckFailedError:
    """Return what the controller finds of a rank whose process is gone."""
    return WorkerHealthCheckFailedError("A worker health check failed.", error)


def started_badly(error: Exception) -> ControllerError:
    """Return what the controller has of ranks that died before they could begin."""
    failed = WorkerGroupStartupFailedError("At least one of the worker actors failed to initialize.")
    failed.__cause__ = error
    return ControllerError(failed)


GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.77.0.12]:34567")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (of_ranks(rank1=DataError("tile t", "can't be read")), Kind.FINAL, "tile t: can't be read"),
        (of_ranks(rank0=ConfigError("compile is for GPUs")), Kind.FINAL, "compile is for GPUs"),
        (of_ranks(rank0=TrainingDiverged("the loss is nan")), Kind.FINAL, "the loss is nan"),
        (of_ranks(rank0=PermissionError("s3://b: refused")), Kind.FINAL, "no right to it: s3://b: refused"),
        (of_ranks(rank0=StoreOutOfReach("s3://b: away")), Kind.STORE_OUT_OF_REACH, "s3://b: away"),
        (of_ranks(rank0=OSError(5, "bad disk")), Kind.STORE_OUT_OF_REACH, "OSError: [Errno 5] bad disk"),
        (
            of_ranks(rank0=dead(OutOfMemoryError(MEMORY))),
            Kind.OUT_OF_MEMORY,
            f"out of memory on a node (22.30GB used / 23.47GB limit); {LESS}",
        ),
        (of_ranks(rank2=MemoryError("no room")), Kind.OUT_OF_MEMORY, f"rank 2: no room; {LESS}"),
        (
            of_ranks(rank0=RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 5 bytes")),
            Kind.OUT_OF_MEMORY,
            f"rank 0: [enforce fail] DefaultCPUAllocator: can't allocate memory: 5 bytes; {LESS}",
        ),
        (of_ranks(rank1=dead(NodeDiedError("gone"))), Kind.NODE_LOST, "the node of rank 1 is gone"),
        (
            of_ranks(rank1=dead(RayActorError(error_msg="The actor died because its node has died."))),
            Kind.NODE_LOST,
            "the node of rank 1 is gone",
        ),
        (of_ranks(rank0=GLOO), Kind.WORKER_KILLED, f"rank 0 has lost a peer ({GLOO})"),
        (of_ranks(rank0=KeyError("lr")), Kind.UNEXPECTED, "rank 0: KeyError: 'lr'"),
        (ControllerError(WorkerGroupStartupTimeoutError(2)), Kind.NO_WORKERS, None),
        (started_badly(ActorDiedError()), Kind.WORKER_KILLED, None),
        (started_badly(OutOfMemoryError(MEMORY)), Kind.OUT_OF_MEMORY, None),
        (of_ranks(rank0=OSError(12, "Cannot allocate memory")), Kind.OUT_OF_MEMORY, None),
        (of_ranks(rank0=RuntimeError("NCCL error: out of memory")), Kind.OUT_OF_MEMORY, None),
        (ControllerError(NodeDiedError("x")), Kind.NODE_LOST, "the node of a rank, or of what serves it, is gone"),
        (ControllerError(ValueError("a bug of Ray")), Kind.FINAL, "a bug of Ray"),
        (PreemptionError(PreemptionInfo(None, {"n": [0]})), Kind.PREEMPTED, "a node was taken away, with notice"),
    ],
)
def test_every_error_has_its_kind_and_one_line(error: TrainingFailedError, kind: Kind, text: str | None) -> None:
    found = cause_of(error)
    assert found.kind == kind
    assert text is None or found.text == text
    assert "\n" not in found.text


def test_what_ended_a_rank_counts_before_what_that_does_to_its_peers() -> None:
    killed = dead(ActorDiedError())
    assert cause_of(of_ranks(rank0=GLOO, rank1=DataError("tile t", "bad"))).text == "tile t: bad"
    assert cause_of(of_ranks(rank0=GLOO, rank1=dead(NodeDiedError("gone")))).kind == Kind.NODE_LOST
    assert cause_of(of_ranks(rank0=killed, rank1=dead(OutOfMemoryError(MEMORY)))).kind == Kind.OUT_OF_MEMORY
    assert cause_of(of_ranks(rank0=KeyError("x"), rank1=killed)).kind == Kind.WORKER_KILLED


def test_the_error_that_ends_a_run_is_ours_where_there_is_one() -> None:
    wrong = ConfigError("wrong")
    assert final_error("run", of_ranks(rank0=wrong)) is wrong
    error = final_error("run", of_ranks(rank0=dead(OutOfMemoryError(MEMORY))))
    assert isinstance(error, WorkNotFinished)
    assert str(error).startswith("run run: out of memory: out of memory on a node (22.30GB")


class Remote:
    """A board in this process that is spoken to as an actor is."""

    def __init__(self) -> None:
        self.board = Board()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.board, name)
        return type("Method", (), {"remote": staticmethod(lambda *arguments: method(*arguments))})


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Remote:
    monkeypatch.setattr(failures.ray, "get", lambda found, timeout=None: found)
    return Remote()


def decisions(remote: Remote, error: TrainingFailedError, count: int) -> list[FailureDecision]:
    """Return what is decided of as many attempts, which all end so."""
    policy = RunFailurePolicy(FailureConfig(), "run", remote)
    return [attempt(remote, policy, error, number) for number in range(1, count + 1)]


def attempt(remote: Remote, policy: RunFailurePolicy, error: TrainingFailedError, number: int) -> FailureDecision:
    remote.board.post(Begun("run", number, Position(), 2))
    return policy.make_decision(error)


def test_a_store_that_is_away_has_an_hour_to_come_back(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(failures.time, "monotonic", lambda: now_s)
    policy = RunFailurePolicy(FailureConfig(), "run", remote)
    away = of_ranks(rank0=StoreOutOfReach("away"))
    for _ in range(60):  # attempts, most of which can't begin
        now_s += 59
        assert policy.make_decision(away) == FailureDecision.RETRY
    remote.board.add_save("run")
    now_s += 3000
    assert policy.make_decision(away) == FailureDecision.RETRY
    now_s += failures.STORE_LIMIT_S
    assert policy.make_decision(away) == FailureDecision.RAISE


def test_a_board_that_does_not_answer_leaves_a_run_its_retries(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(found: Any, timeout: float | None = None) -> Any:
        raise ray.exceptions.GetTimeoutError("no answer")

    monkeypatch.setattr(failures.ray, "get", lost)
    policy = RunFailurePolicy(FailureConfig(), "run", remote)
    error = of_ranks(rank0=dead(ActorDiedError()))
    found = [policy.make_decision(error) for _ in range(RETRIES[Kind.WORKER_KILLED] + 1)]
    assert found == [FailureDecision.RETRY] * RETRIES[Kind.WORKER_KILLED] + [FailureDecision.RAISE]


def test_news_of_an_attempt_before_the_last_are_dropped() -> None:
    board = Board()
    board.post(Begun("run", 2, Position(), 2))
    board.post(stepped(1, 0, 64))
    board.post(stepped(2, 0, 8))
    board.post(stepped(2, 0, 16))
    assert board.take() == [Begun("run", 2, Position(), 2), stepped(2, 0, 16)]


@pytest.mark.parametrize("kind", [kind for kind in Kind if RETRIES.get(kind)])
def test_what_may_pass_is_tried_again_so_often_and_no_more(remote: Remote, kind: Kind) -> None:
    errors = {
        Kind.NODE_LOST: of_ranks(rank0=dead(NodeDiedError("gone"))),
        Kind.WORKER_KILLED: of_ranks(rank0=dead(ActorDiedError())),
        Kind.OUT_OF_MEMORY: of_ranks(rank0=dead(OutOfMemoryError(MEMORY))),
        Kind.UNEXPECTED: of_ranks(rank0=KeyError("x")),
    }
    limit = RETRIES[kind]
    assert decisions(remote, errors[kind], limit + 1) == [FailureDecision.RETRY] * limit + [FailureDecision.RAISE]
    told = [news for news in remote.board.take() if isinstance(news, Failed)]
    assert [each.is_retried for each in told] == [True] * limit + [False]
    assert {each.kind for each in told} == {kind}


def test_what_is_wrong_for_good_ends_the_run_at_once(remote: Remote) -> None:
    for error in (ConfigError("x"), DataError("t", "x"), TrainingDiverged("x")):
        assert decisions(remote, of_ranks(rank0=error), 1) == [FailureDecision.RAISE]


def test_preemptions_and_waiting_for_nodes_are_no_failures(remote: Remote) -> None:
    for error in (PreemptionError(PreemptionInfo(None, {})), ControllerError(WorkerGroupStartupTimeoutError(2))):
        assert decisions(remote, error, 100) == [FailureDecision.RETRY] * 100
    told = {news.kind for news in remote.board.take() if isinstance(news, Failed)}
    assert told == {Kind.PREEMPTED}, "an attempt that never began has not ended"


def test_a_run_that_saves_in_between_is_not_given_up(remote: Remote) -> None:
    policy = RunFailurePolicy(FailureConfig(), "run", remote)
    error = of_ranks(rank0=dead(ActorDiedError()))
    for number in range(1, 40):
        remote.board.add_save("run")
        assert attempt(remote, policy, error, number) == FailureDecision.RETRY
    last = [attempt(remote, policy, error, 40 + i) for i in range(RETRIES[Kind.WORKER_KILLED])]
    assert last[-1] == FailureDecision.RAISE


def test_one_event_that_also_ends_the_ranks_that_were_to_follow_counts_once(remote: Remote) -> None:
    policy = RunFailurePolicy(FailureConfig(), "run", remote)
    memory = of_ranks(rank0=dead(OutOfMemoryError(MEMORY)))
    assert attempt(remote, policy, memory, 1) == FailureDecision.RETRY
    starts = [policy.make_decision(ControllerError(OutOfMemoryError(MEMORY))) for _ in range(failures.STARTS + 1)]
    assert starts == [FailureDecision.RETRY] * failures.STARTS + [FailureDecision.RAISE]
    assert attempt(remote, policy, memory, 2) == FailureDecision.RAISE


def stepped(attempt: int, epoch: int, samples_done: int) -> Stepped:
    progress = RunProgress("run", epoch, 3, samples_done, 100, 0.5, 10.0, 0.0, None, None)
    return Stepped("run", attempt, Position(epoch, samples_done), progress)


def test_history_says_what_ended_each_attempt_and_how_much_is_done_again(tmp_path: Path) -> None:
    seen: list[News] = []
    journal = Journal(str(tmp_path), seen.append, lambda: {"n1"})
    news = [
        Begun("run", 1, Position(), 2),
        stepped(1, 0, 40),
        stepped(1, 1, 30),
        Failed("run", Kind.WORKER_KILLED, "the process of rank 1 is gone", True),
        Failed("run", Kind.NODE_LOST, "the node of a rank, or of what serves it, is gone", True),
        Begun("run", 2, Position(0, 80), 2),
        stepped(2, 0, 90),
        Begun("run", 3, Position(0, 90), 1),
    ]
    for each in news:
        journal.on_news(each)
    assert seen == news
    journal.end("run", 12.5, None)
    history = read_history(str(tmp_path / "run"))
    assert [(each.attempt, each.kind, each.lost_images) for each in history.restarts] == [
        (1, Kind.WORKER_KILLED, 50),
        (2, Kind.RESIZED, 0),
    ]
    assert history.restarts[0].reached == Position(1, 30)
    assert (history.restarts[1].cause, history.seconds) == ("2 to 1 ranks", 12.5)


def test_a_node_that_turns_out_to_be_gone_is_what_killed_its_ranks(tmp_path: Path) -> None:
    alive = {"n1", "n2", "n3"}
    journal = Journal(str(tmp_path), lambda news: None, lambda: alive)
    killed = Failed("run", Kind.WORKER_KILLED, "rank 0 has lost a peer (gloo)", True)
    for attempt, nodes in enumerate((("n1", "n2"), ("n1", "n3"), ("n1", "n3")), 1):
        journal.on_news(Placed("run", tuple((node, f"10.0.0.{node[1]}") for node in nodes)))
        journal.on_news(Begun("run", attempt, Position(), 2))
        journal.on_news(killed)
        alive.discard("n2")
    restarts = journal.history("run").restarts
    assert [(each.kind, each.cause) for each in restarts] == [
        (Kind.NODE_LOST, "gone: 10.0.0.2"),
        (Kind.WORKER_KILLED, "rank 0 has lost a peer (gloo)"),
    ]


Nodes = tuple[str, ...]


def killed_on(journal: Journal, *attempts: tuple[Nodes, ...]) -> None:
    """Tell a journal of attempts that end with killed workers: where each was placed, until it could begin."""
    for number, placed in enumerate(attempts, 1):
        for nodes in placed:
            journal.on_news(Placed("run", tuple((node, f"10.0.0.{node[1]}") for node in nodes)))
        journal.on_news(Begun("run", number, Position(), 2))
        journal.on_news(Failed("run", Kind.WORKER_KILLED, "rank 0 has lost a peer (gloo)", True))


@pytest.mark.parametrize("how", ["a step", "another attempt", "the end"])
def test_a_node_whose_loss_is_noticed_after_the_next_attempt_has_begun_is_named_then(tmp_path: Path, how: str) -> None:
    alive = {"n1", "n2", "n3"}
    journal = Journal(str(tmp_path), lambda news: None, lambda: alive)
    killed_on(journal, (("n1", "n2"),), (("n1", "n3"),))
    assert [each.kind for each in journal.history("run").restarts] == [Kind.WORKER_KILLED]
    journal.on_news(stepped(2, 0, 4))
    alive.discard("n2")
    if how == "a step":
        journal.on_news(stepped(2, 0, 8))
    elif how == "another attempt":
        journal.on_news(Begun("run", 3, Position(), 2))
    else:
        journal.end("run", 1.0, None)
    restart = read_history(str(tmp_path / "run")).restarts[0]
    assert (restart.kind, restart.cause) == (Kind.NODE_LOST, "gone: 10.0.0.2")


def test_a_node_that_goes_later_is_not_what_ended_an_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that the next attempt had, nor one that goes when heads have long noticed what was lost before."""
    alive = {"n1", "n2", "n3"}
    again = Journal(str(tmp_path / "again"), lambda news: None, lambda: alive)
    killed_on(again, (("n1", "n2"),), (("n1", "n2"),))
    late = Journal(str(tmp_path / "late"), lambda news: None, lambda: alive)
    killed_on(late, (("n1", "n2"),), (("n1", "n3"),))
    alive.discard("n2")
    again.on_news(stepped(2, 0, 4))
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + DOUBT_S + 1)
    late.on_news(stepped(2, 0, 4))
    for journal in (again, late):
        assert [each.kind for each in journal.history("run").restarts] == [Kind.WORKER_KILLED]


def test_a_lost_node_is_named_though_the_attempt_behind_it_was_placed_twice(tmp_path: Path) -> None:
    alive = {"n1", "n3"}
    journal = Journal(str(tmp_path), lambda news: None, lambda: alive)
    killed_on(journal, (("n1", "n2"),), (("n1", "n3"), ("n3", "n1")))
    (restart,) = journal.history("run").restarts
    assert (restart.kind, restart.cause) == (Kind.NODE_LOST, "gone: 10.0.0.2")


def test_news_go_on_while_the_nodes_are_not_known(tmp_path: Path) -> None:
    def unknown() -> set[str]:
        raise RaySystemError("the head does not answer")

    seen: list[News] = []
    journal = Journal(str(tmp_path), seen.append, unknown)
    killed_on(journal, (("n1", "n2"),), (("n1", "n3"),))
    journal.on_news(stepped(2, 0, 4))
    assert seen[-1] == stepped(2, 0, 4)
    assert [each.kind for each in journal.history("run").restarts] == [Kind.WORKER_KILLED]


def test_a_command_that_ended_before_its_run_is_a_restart_of_the_next_one(tmp_path: Path) -> None:
    first = Journal(str(tmp_path), lambda news: None, set)
    first.on_news(Begun("run", 1, Position(), 1))
    second = Journal(str(tmp_path), lambda news: None, set)
    second.on_news(Begun("run", 2, Position(1), 1))
    second.end("run", 1.0, "run run: out of memory: no room")
    third = Journal(str(tmp_path), lambda news: None, set)
    third.on_news(Begun("run", 3, Position(1), 1))
    third.end("run", 2.0, None)
    history = read_history(str(tmp_path / "run"))
    assert [(each.kind, each.lost_images) for each in history.restarts] == [(Kind.JOB_ENDED, None)] * 2
    assert "ended before the run did" in history.restarts[0].cause
    assert history.restarts[1].cause == "run run: out of memory: no room"
    assert (history.seconds, history.failed) == (3.0, None)
    assert json.loads((tmp_path / "run" / "history.json").read_text())["seconds"] == 3.0


def test_history_has_no_query_of_an_address_which_may_be_a_signature(tmp_path: Path) -> None:
    signed = "https://h/shard-00000.parquet?X-Amz-Signature=secret refused"
    first = Journal(str(tmp_path), lambda news: None, set)
    first.on_news(Begun("run", 1, Position(), 1))
    first.on_news(Failed("run", Kind.STORE_OUT_OF_REACH, signed, True))
    first.on_news(Begun("run", 2, Position(), 1))
    first.end("run", 1.0, signed)
    text = (tmp_path / "run" / "history.json").read_text()
    history = read_history(str(tmp_path / "run"))
    assert [each.cause for each in history.restarts] == ["https://h/shard-00000.parquet refused"]
    assert history.failed == "https://h/shard-00000.parquet refused"
    assert "secret" not in text
    (tmp_path / "run" / "history.json").write_text(text.replace(" refused", "?sig=secret refused"))  # of an older one
    second = Journal(str(tmp_path), lambda news: None, set)
    second.on_news(Begun("run", 3, Position(), 1))
    assert second.history("run").restarts[-1].cause == "https://h/shard-00000.parquet refused"


def post(epoch: int, score: float, *, is_best: bool) -> Post:
    place = LocationScore(score, score, 5, 10, 2)
    best = Validated({"here": place}, (TileScore("t", score, "worst"),)) if is_best else None
    metrics = {"epoch": epoch, "loss": 0.5, "iou_location_weighted": score, "empty_union_rule": "one"}
    return Post("run", 4, metrics, best)


def test_history_keeps_each_epoch_once_and_the_locations_of_the_best(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), lambda news: None, set)
    for each in (post(0, 0.2, is_best=True), post(1, 0.6, is_best=True), post(2, 0.5, is_best=False)):
        journal.on_news(each)
    best = read_history(str(tmp_path / "run")).best
    assert best is not None
    assert (best.number, best.locations["here"].iou, best.tiles[0].tile_id) == (2, 0.6, "t")
    journal.on_news(Begun("run", 2, Position(1), 1))
    journal.on_news(post(1, 0.1, is_best=False))
    history = read_history(str(tmp_path / "run"))
    assert [(each.number, each.metrics["iou_location_weighted"]) for each in history.epochs] == [(1, 0.2), (2, 0.1)]
    assert "epoch" not in history.epochs[0].metrics
    assert history.best is not None
    assert history.best.number == 1, "the best of before: the one behind it is of an attempt that was thrown away"
    journal.on_news(post(2, 0.7, is_best=True))
    history = read_history(str(tmp_path / "run"))
    assert ([each.number for each in history.epochs], history.best and history.best.number) == ([1, 2, 3], 3)


def test_locations_of_the_best_epoch_are_known_whatever_epochs_are_thrown_away(tmp_path: Path) -> None:
    def best() -> int | None:
        found = read_history(str(tmp_path / "run")).best
        return None if found is None else found.number

    for epoch in range(4):  # each by a command of its own, so that what is kept is on disk
        Journal(str(tmp_path), lambda news: None, set).on_news(post(epoch, 0.1 * epoch, is_best=True))
    journal = Journal(str(tmp_path), lambda news: None, set)
    journal.on_news(post(2, 0.0, is_best=False))
    assert best() == 2
    journal.on_news(post(1, 0.0, is_best=False))
    assert best() == 1
    journal.on_news(post(0, 0.0, is_best=False))
    assert best() is None
    for epoch in range(EARLIER_BESTS + 3):
        journal.on_news(post(epoch, 0.1 * epoch, is_best=True))
    assert len(read_history(str(tmp_path / "run")).earlier_bests) == EARLIER_BESTS


def test_nothing_waits_for_a_history_that_is_being_written_and_the_newest_is_written_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_writing, may_write = threading.Event(), threading.Event()
    write = storage.write_bytes

    def slow(uri: str, data: bytes) -> None:
        is_writing.set()
        assert may_write.wait(30)
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", slow)
    journal = Journal(str(tmp_path), lambda news: None, set)
    with ThreadPoolExecutor(3) as pool:
        told = pool.submit(journal.on_news, post(0, 0.2, is_best=True))
        assert is_writing.wait(30)
        try:
            pool.submit(journal.begin, "other").result(timeout=10)
            later = pool.submit(journal.on_news, post(1, 0.3, is_best=True))
            end = pool.submit(journal.end, "run", 5.0, None)
            assert not told.done()
        finally:
            may_write.set()
        for each in (told, later, end):
            each.result(timeout=30)
    history = read_history(str(tmp_path / "run"))
    assert ([each.number for each in history.epochs], history.seconds) == ([1, 2], 5.0)


def test_a_restart_has_no_time_where_nobody_keeps_that_of_its_run(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), lambda news: None, set, keeps_epochs=False)
    journal.on_news(Begun("run", 1, Position(), 2))
    journal.on_news(Begun("run", 2, Position(), 1))
    assert [each.seconds for each in journal.history("run").restarts] == [None]


def test_the_clock_of_a_run_goes_on_over_commands_also_behind_one_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def command(epoch: int, *, is_killed: bool = False) -> None:
        journal = Journal(str(tmp_path), lambda news: None, set)
        journal.begin("run")
        now[0] += 10
        journal.on_news(Begun("run", epoch + 1, Position(epoch), 1))
        now[0] += 20
        journal.on_news(post(epoch, 0.5, is_best=True))
        now[0] += 5
        if not is_killed:
            journal.end("run", 35.0, None)
        now[0] += 1000

    command(0, is_killed=True)
    command(1)
    command(2)
    history = read_history(str(tmp_path / "run"))
    assert [each.seconds for each in history.epochs] == [30.0, 60.0, 95.0]
    assert [each.seconds for each in history.restarts] == [40.0, 75.0]
    assert history.seconds == 100.0
    assert all(each.ended.utcoffset() == timedelta(0) for each in history.epochs)


def test_a_history_of_before_epochs_were_kept_is_read(tmp_path: Path) -> None:
    restart = {"attempt": 1, "kind": "resized", "cause": "2 to 1 ranks", "reached": None}
    restart |= {"resumed": {"epoch": 0, "samples_done": 8}}
    old = {"seconds": 5.0, "restarts": [{**restart, "lost_images": None}], "failed": None}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "history.json").write_text(json.dumps(old))
    history = read_history(str(tmp_path / "run"))
    assert (history.epochs, history.best, history.restarts[0].seconds) == ((), None, None)


def test_a_search_keeps_its_epochs_itself(tmp_path: Path) -> None:
    seen: list[News] = []
    Journal(str(tmp_path), seen.append, set, keeps_epochs=False).on_news(post(0, 0.5, is_best=True))
    assert len(seen) == 1
    assert not list(tmp_path.iterdir())


def test_ray_names_what_the_causes_are_read_from() -> None:
    """The classes and texts are of Ray's insides: another version has to be looked at anew."""
    assert ray.__version__.startswith("2.60.")
