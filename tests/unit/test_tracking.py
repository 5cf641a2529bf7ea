"""Event files of a run: read back by TensorBoard itself, over attempts, and with a store that fails."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from raytrain import storage
from raytrain.cluster.tracking import EventFile
from raytrain.errors import StoreOutOfReach


def curve(run: Path | str, name: str) -> list[tuple[int, float]]:
    """Return what TensorBoard shows of a name in a run's folder: (step, value) in order."""
    events = EventAccumulator(str(Path(run) / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    if name not in events.Tags()["tensors"]:
        return []
    return [(point.step, tensor_util.make_ndarray(point.tensor_proto).item()) for point in events.Tensors(name)]


def test_tensorboard_reads_what_was_added(tmp_path: Path) -> None:
    events = EventFile(str(tmp_path), 0, 0)
    events.add(8, {"loss": 0.5, "images_per_s": 40.0})
    events.add(16, {"loss": 0.25, "score/iou": 0.75})
    events.publish()
    assert curve(tmp_path, "loss") == [(8, 0.5), (16, 0.25)]
    assert curve(tmp_path, "images_per_s") == [(8, 40.0)]
    assert curve(tmp_path, "score/iou") == [(16, 0.75)]


def test_steps_thrown_away_by_a_resume_are_shown_once_and_those_kept_stay(tmp_path: Path) -> None:
    first = EventFile(str(tmp_path), 0, 0)
    for step in (8, 16, 24, 32):  # a checkpoint at 16 counts; 24 and 32 are lost with their rank
        first.add(step, {"loss": step / 100, "only_then": 1.0})
    first.publish()
    second = EventFile(str(tmp_path), 1, 16)
    for step in (24, 40):
        second.add(step, {"loss": 1 + step / 128})
    second.publish()
    assert [step for step, _ in curve(tmp_path, "loss")] == [8, 16, 24, 40]
    assert [value >= 1 for _, value in curve(tmp_path, "loss")] == [False, False, True, True]
    assert [step for step, _ in curve(tmp_path, "only_then")] == [8, 16]


def test_attempts_are_read_in_their_order_beyond_nine(tmp_path: Path) -> None:
    for attempt in (9, 10):
        events = EventFile(str(tmp_path), attempt, 0)
        events.add(8, {"loss": attempt})
        events.publish()
    assert curve(tmp_path, "loss") == [(8, 10.0)]


def test_an_attempt_has_one_object_whatever_the_clock_says(tmp_path: Path) -> None:
    for now_s in (1e9, 2e9):
        events = EventFile(str(tmp_path), 3, 0, clock=lambda now_s=now_s: now_s)
        for step in range(3):
            events.add(step, {"loss": 1.0})
            events.publish()
            events.publish()
        events.publish()
    assert list(storage.find(str(tmp_path))) == ["tensorboard/events.out.tfevents.attempt-000003"]
    assert [step for step, _ in curve(tmp_path, "loss")] == [0, 1, 2]


def test_a_store_that_fails_is_a_warning_and_the_next_publication_has_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(uri: str, data: bytes) -> None:
        raise StoreOutOfReach(f"{uri}: out of reach")

    events = EventFile(str(tmp_path), 0, 0)
    events.add(8, {"loss": 0.5})
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(storage, "write_bytes", fail)
        events.publish()
    assert "training goes on" in caplog.text
    assert curve_or_none(tmp_path) is None
    events.publish()
    assert curve_or_none(tmp_path) == [(8, 0.5)]
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", fail)
        events.add(16, {"loss": 0.5})
        events.publish()
    assert curve_or_none(tmp_path) == [(8, 0.5)]


def curve_or_none(run: Path) -> list[tuple[int, float]] | None:
    return curve(run, "loss") if (run / "tensorboard").is_dir() else None


def test_a_mistake_of_ours_while_publishing_is_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(uri: str, data: bytes) -> None:
        raise TypeError("not bytes")

    events = EventFile(str(tmp_path), 0, 0)
    monkeypatch.setattr(storage, "write_bytes", fail)
    with pytest.raises(TypeError):
        events.publish()
