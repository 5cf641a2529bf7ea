"""The checkpoints of a run: which stay, where an attempt begins, who may write, and what a store's faults do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from botocore.exceptions import EndpointConnectionError

from raytrain import storage
from raytrain.errors import DataError, StoreOutOfReach, WorkNotFinished
from raytrain.tiles.order import Position
from raytrain.training import checkpoint_store
from raytrain.training.checkpoint_files import (
    CheckpointIndex,
    KeptCheckpoint,
    checkpoint_uri,
    read_checkpoint,
    read_index,
)
from raytrain.training.checkpoint_store import BackgroundWriter, CheckpointStore
from raytrain.training.checkpoints import Snapshot

BEST, WITHIN = True, False


def snapshot(epoch: int, samples_done: int = 0, value: float = 0.0) -> Snapshot:
    record = {"format_version": 3, "position": {"epoch": epoch, "samples_done": samples_done}}
    weights = {"weight": torch.full((3,), float(value))}
    return Snapshot(Position(epoch, samples_done), weights, {"weight": torch.ones(3)}, record)


def begun(folder: Path, keep_last: int = 2) -> CheckpointStore:
    store = CheckpointStore(str(folder), keep_last)
    store.begin()
    return store


def kept_names(folder: Path) -> list[str]:
    """Return the names of what the index has, which are exactly the folders there."""
    names = [each.name for each in read_index(str(folder)).kept]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir() if path.is_dir()) == sorted(names)
    return names


def all_bytes(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_last_checkpoints_and_the_best_one_stay_and_no_other(tmp_path: Path) -> None:
    store = begun(tmp_path)
    for epoch, is_best in ((1, True), (2, True), (3, False)):
        store.save(snapshot(epoch - 1, 8))
        store.save(snapshot(epoch), metrics={"epoch": epoch - 1}, is_best=is_best)
    assert kept_names(tmp_path) == [
        "epoch-0002-00000000-a0001",
        "epoch-0002-00000008-a0001",
        "epoch-0003-00000000-a0001",
    ]
    index = read_index(str(tmp_path))
    assert index.last is not None
    assert index.best is not None
    assert (index.last.position, index.best.position) == (Position(3), Position(2))
    assert index.best.metrics == {"epoch": 1}
    store.save(snapshot(3, 8))
    store.save(snapshot(3, 16))
    assert kept_names(tmp_path) == [
        "epoch-0002-00000000-a0001",
        "epoch-0003-00000008-a0001",
        "epoch-0003-00000016-a0001",
    ]


def test_the_next_attempt_begins_at_the_newest_checkpoint_with_its_bytes(tmp_path: Path) -> None:
    assert CheckpointStore(str(tmp_path), 2).begin().checkpoint is None
    store = begun(tmp_path)
    store.save(snapshot(0, 8, 1.0))
    store.save(snapshot(0, 16, 2.0))
    start = CheckpointStore(str(tmp_path), 2).begin()
    assert start.checkpoint is not None
    assert (start.attempt, start.checkpoint.position, start.torn) == (3, Position(0, 16), ())
    assert start.files == read_checkpoint(checkpoint_uri(str(tmp_path), "epoch-0000-00000016-a0002"))


@pytest.mark.parametrize("damage", ["cut", "gone", "turned"])
@pytest.mark.parametrize("name", ["weights.safetensors", "momentum.safetensors", "state.json"])
def test_a_torn_last_checkpoint_is_left_for_the_one_before_and_named(tmp_path: Path, name: str, damage: str) -> None:
    store = begun(tmp_path)
    store.save(snapshot(1), is_best=True)
    store.save(snapshot(1, 8))
    path = tmp_path / "checkpoints" / "epoch-0001-00000008-a0001" / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content[:-9] + content[-9:].swapcase())
        assert damage == "cut" or name != "state.json" or path.read_bytes() != content
    if damage == "turned" and path.read_bytes() == content:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = CheckpointStore(str(tmp_path), 2)
    start = again.begin()
    assert start.checkpoint is not None
    assert start.checkpoint.position == Position(1)
    (torn,) = start.torn
    assert (torn.subject, torn.found.split()[0]) == ("checkpoint epoch-0001-00000008-a0001", name)
    assert path.parent.exists(), "it went before there was another"
    again.save(snapshot(1, 8))
    assert kept_names(tmp_path) == ["epoch-0001-00000000-a0001", "epoch-0001-00000008-a0002"]


def test_where_no_checkpoint_is_whole_the_run_does_not_silently_begin_anew(tmp_path: Path) -> None:
    store = begun(tmp_path)
    store.save(snapshot(1))
    (tmp_path / "checkpoints" / "epoch-0001-00000000-a0001" / "state.json").unlink()
    before = all_bytes(tmp_path)
    with pytest.raises(DataError, match=r"no checkpoint is whole.*remove this folder to begin anew"):
        CheckpointStore(str(tmp_path), 2).begin()
    assert all_bytes(tmp_path) == before


def test_checkpoints_without_an_index_are_not_taken_for_a_fresh_run(tmp_path: Path) -> None:
    begun(tmp_path).save(snapshot(1))
    (tmp_path / "checkpoints" / "attempt-0001.json").unlink()
    before = all_bytes(tmp_path)
    with pytest.raises(DataError, match="has checkpoints, but no index of them"):
        CheckpointStore(str(tmp_path), 2).begin()
    assert all_bytes(tmp_path) == before


def test_an_attempt_that_another_one_followed_can_write_no_more(tmp_path: Path) -> None:
    first = begun(tmp_path)
    first.save(snapshot(1))
    second = begun(tmp_path)
    second.save(snapshot(2))
    second.save(snapshot(3))
    before = all_bytes(tmp_path)
    with pytest.raises(WorkNotFinished, match=r"attempt 2 trains this run now, not this one of number 1"):
        first.save(snapshot(1, 8))
    assert all_bytes(tmp_path) == before


def test_two_that_begin_as_the_same_attempt_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = CheckpointStore(str(tmp_path), 2), CheckpointStore(str(tmp_path), 2)
    monkeypatch.setattr(checkpoint_store, "read_index", lambda folder: CheckpointIndex())
    first.begin()
    second.begin()
    monkeypatch.undo()
    with pytest.raises(WorkNotFinished, match="the same command running twice"):
        first.save(snapshot(1))
    second.save(snapshot(1))


@pytest.mark.parametrize("cut_at", ["weights", "state.json", "attempt-0001.json"])
def test_a_ghost_whose_writes_arrive_late_harms_nothing_that_another_attempt_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_at: str
) -> None:
    """The ghost has looked whether it may write; its request then waits while another attempt begins, saves, ends."""
    ghost = begun(tmp_path)
    ghost.save(snapshot(1))
    write = storage.write_bytes
    seen: list[dict[Path, bytes]] = []

    def late(uri: str, data: bytes, **options: Any) -> None:
        if cut_at in uri and not seen:
            monkeypatch.undo()
            second = begun(tmp_path)
            second.save(snapshot(1, 8, value=2.0))
            seen.append(all_bytes(tmp_path))
        write(uri, data, **options)

    monkeypatch.setattr(storage, "write_bytes", late)
    with pytest.raises(WorkNotFinished, match="attempt 2 trains this run now"):
        ghost.save(snapshot(1, 8, value=1.0))
    after = all_bytes(tmp_path)
    own = ("attempt-0001.json", "a0001")
    assert {path: data for path, data in seen[0].items() if not str(path).endswith(own[0])}.items() <= after.items()
    start = CheckpointStore(str(tmp_path), 2).begin()
    assert start.attempt == 3
    assert start.checkpoint is not None
    assert start.checkpoint.name == "epoch-0001-00000008-a0002"


def test_what_a_killed_writer_left_over_does_not_count_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = begun(tmp_path)
    store.save(snapshot(1))
    write = storage.write_bytes

    def killed(uri: str, data: bytes, **options: Any) -> None:
        if uri.endswith(("momentum.safetensors", "attempt-0001.json")):
            raise KeyboardInterrupt
        write(uri, data, **options)

    monkeypatch.setattr(storage, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(snapshot(1, 8))
    monkeypatch.undo()
    assert len(list((tmp_path / "checkpoints").glob("epoch-*"))) == 2
    again = CheckpointStore(str(tmp_path), 2)
    start = again.begin()
    assert start.checkpoint is not None
    assert start.checkpoint.position == Position(1)
    again.save(snapshot(1, 8))
    assert kept_names(tmp_path) == ["epoch-0001-00000000-a0001", "epoch-0001-00000008-a0002"]


def test_an_index_that_is_written_at_the_second_try_leaves_nothing_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = begun(tmp_path, keep_last=1)
    store.save(snapshot(0, 8))
    write = storage.write_bytes

    def full(uri: str, data: bytes, **options: Any) -> None:
        if uri.endswith("attempt-0001.json"):
            raise OSError(28, "No space left on device")
        write(uri, data, **options)

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        store.save(snapshot(0, 16))
    monkeypatch.undo()
    store.save(snapshot(0, 16))
    assert kept_names(tmp_path) == ["epoch-0000-00000016-a0001"]


def test_what_a_store_does_not_remove_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str) -> None:
        raise EndpointConnectionError(endpoint_url="http://store")

    store = begun(tmp_path, keep_last=1)
    store.save(snapshot(0, 8))
    monkeypatch.setattr(storage, "remove_once", refuse)
    store.save(snapshot(0, 16))
    assert [each.name for each in read_index(str(tmp_path)).kept] == ["epoch-0000-00000016-a0001"]


def test_old_indexes_go_and_the_score_of_the_last_epoch_is_known(tmp_path: Path) -> None:
    for attempt in range(1, 5):
        store = CheckpointStore(str(tmp_path), 2)
        start = store.begin()
        assert start.metrics == (None if attempt == 1 else {"epoch": 0, "loss": attempt - 1})
        store.save(snapshot(1, 8 * attempt))
        store.save(snapshot(2), metrics={"epoch": 0, "loss": attempt}, is_best=True)
    found = sorted(path.name for path in (tmp_path / "checkpoints").glob("attempt-*"))
    assert found == ["attempt-0003.json", "attempt-0004.json"]


def test_the_same_on_a_store(s3: str, tmp_path: Path) -> None:
    folder = f"{s3}/{tmp_path.name}/run"
    store = CheckpointStore(folder, 1)
    assert store.begin().checkpoint is None
    for epoch in (1, 2, 3):
        store.save(snapshot(epoch, value=epoch), is_best=epoch == 1)
    found = {name.split("/")[1] for name in storage.find(folder) if name.startswith("checkpoints/epoch-")}
    assert found == {"epoch-0001-00000000-a0001", "epoch-0003-00000000-a0001"}
    again = CheckpointStore(folder, 1).begin()
    assert again.checkpoint is not None
    assert again.checkpoint.position == Position(3)


class Slow:
    """A store of which the test says when a write may end, and how."""

    def __init__(self) -> None:
        self.saved: list[tuple[str, bool]] = []
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.faults: list[Exception] = []

    def save(self, snapshot: Snapshot, *, is_best: bool = False, **about: Any) -> KeptCheckpoint:
        self.begun.release()
        assert self.may_end.acquire(timeout=20)
        if self.faults:
            raise self.faults.pop(0)
        self.saved.append((snapshot.name, is_best))
        return KeptCheckpoint(snapshot.name, snapshot.position, is_best, None, 0.0, 0.0, 0)


def writer_on(
    store: Any, give_up_s: float = 20, on_saved: Callable[[KeptCheckpoint], None] = print
) -> BackgroundWriter:
    return BackgroundWriter(store, give_up_s, on_saved, retry_s=0.01)


def test_training_never_waits_for_a_write_and_the_last_and_the_best_are_saved() -> None:
    store = Slow()
    writer = writer_on(store)
    start = time.monotonic()
    writer.submit(snapshot(0, 8))
    assert store.begun.acquire(timeout=20)
    writer.submit(snapshot(1), is_best=True)
    writer.submit(snapshot(1, 8))
    writer.submit(snapshot(2))
    writer.submit(snapshot(2, 8))
    assert time.monotonic() - start < 10, "a submit waited for a write"
    assert not writer.is_idle
    store.may_end.release(9)
    writer.close()
    assert store.saved == [
        ("epoch-0000-00000008", WITHIN),
        ("epoch-0001-00000000", BEST),
        ("epoch-0002-00000008", WITHIN),
    ]
    assert writer.is_idle


def test_a_write_that_fails_is_tried_again_with_what_is_newest_then(caplog: pytest.LogCaptureFixture) -> None:
    store = Slow()
    store.faults = [OSError(28, "No space left on device"), StoreOutOfReach("s3://b: out of reach")]
    writer = writer_on(store)
    writer.submit(snapshot(0, 8))
    assert store.begun.acquire(timeout=20)
    writer.submit(snapshot(0, 16))
    store.may_end.release(9)
    writer.close()
    assert store.saved == [("epoch-0000-00000016", WITHIN)]
    assert "epoch-0000-00000008 is not saved: [Errno 28] No space left on device" in caplog.text


def test_a_store_that_stays_away_ends_the_run_with_the_reason() -> None:
    store = Slow()
    store.faults = [StoreOutOfReach("s3://b: out of reach")] * 50
    store.may_end.release(99)
    writer = writer_on(store, give_up_s=0.05)
    writer.submit(snapshot(0, 8))
    with pytest.raises(StoreOutOfReach, match=r"no checkpoint could be saved for .* out of reach"):
        writer.close()
    with pytest.raises(StoreOutOfReach):
        writer.submit(snapshot(0, 16))


@pytest.mark.parametrize("error", [WorkNotFinished("attempt 2"), PermissionError("refused"), ValueError("a bug")])
def test_what_no_retry_can_mend_ends_the_run_at_once(error: Exception) -> None:
    store = Slow()
    store.faults = [error]
    store.may_end.release(1)
    writer = writer_on(store)
    writer.submit(snapshot(0, 8))
    with pytest.raises(type(error), match=str(error)):
        writer.close()


def test_saved_checkpoints_are_told_and_their_cost_is_recorded(tmp_path: Path) -> None:
    told: list[KeptCheckpoint] = []
    writer = BackgroundWriter(begun(tmp_path), 20, told.append)
    writer.submit(snapshot(1), metrics={"epoch": 0}, is_best=True, pause_s=0.25)
    writer.close()
    (kept,) = told
    assert (kept.position, kept.pause_s, kept.num_bytes) == (Position(1), 0.25, 24)
    assert kept.write_s > 0
    assert json.loads((tmp_path / "checkpoints" / "attempt-0001.json").read_text())["kept"][0]["pause_s"] == 0.25
    assert checkpoint_store.read_index(str(tmp_path)).best == kept
