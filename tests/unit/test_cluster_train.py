"""The parts of the benchmark of training on Ray that need no Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raytrain.config import LoaderSettings, ShardSettings
from raytrain.training.ranks import Ranks
from tests.bench import checkpoint_pause, record, stamps, torchrun_rank
from tests.bench.cluster_failures import loss_of
from tests.bench.cluster_train import PHASES, phases
from tests.bench.record import Table
from tests.bench.trainings import steady
from tests.making import shard_chips, tiny_member


@pytest.fixture(scope="module")
def shards(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench-shards") / "here"
    shard_chips(chips, folder, ShardSettings(folds="3"))
    return folder


def test_loop_without_ray_tells_its_epochs_and_its_all_reduces(shards: Path) -> None:
    work = {
        "settings": tiny_member(epochs=2).model_dump(mode="json"),
        "shards": str(shards),
        "fold": 0,
        "loader": LoaderSettings(threads=1).model_dump(mode="json"),
        "profile": True,
    }
    found = torchrun_rank.measure(work, Ranks())
    assert len(found["epochs"]) == 2
    assert found["all_reduce"] == 0
    assert steady(found["epochs"]) > 0


def test_steady_rate_leaves_out_the_first_epoch_and_weighs_the_others_by_their_time() -> None:
    epochs = [(1.0, 100.0), (10.0, 1.0), (20.0, 3.0)]
    assert steady({"images_per_s": rate, "epoch_s": s} for rate, s in epochs) == pytest.approx(70 / 4)


def test_pauses_writes_and_steps_of_checkpoints_are_told_apart(shards: Path, tmp_path: Path) -> None:
    found = checkpoint_pause.measure(tiny_member(), shards, tmp_path, num_checkpoints=2)
    assert len(found.pauses) == len(found.writes) == 2
    assert len(found.quiet) >= 2 * checkpoint_pause.QUIET_STEPS
    assert len(found.beside) >= 2
    assert found.num_bytes > 4 * 100_000
    known = checkpoint_pause.Pauses(pauses=[0.5], writes=[2.0], quiet=[1.0, 1.0], beside=[1.5, 2.0])
    assert known.slower_s == pytest.approx(1.5)
    assert known.share(100) == pytest.approx(0.02)


def test_phases_of_a_start_add_up_to_its_time() -> None:
    names = [name for name in PHASES if name not in ("step begins", "step ends")]
    events = [{"what": name, "at": 10.0 + i, "rank": 0} for i, name in enumerate(names, 1)]
    events.insert(0, {"what": "rank begins", "at": 10.5, "rank": 1})
    events.append({"what": "step", "at": 30.0, "begun": 25.0})
    found = phases(10.0, events)
    assert list(found) == list(PHASES.values())
    assert sum(found.values()) == pytest.approx(20)
    assert found["first step"] == pytest.approx(5)


def test_loss_of_a_failure_counts_every_step_taken_before_the_next_attempt() -> None:
    events = [
        {"what": "rank begins", "at": 0.0, "pid": 1, "rank": 0},
        {"what": "news: begun", "at": 0.5, "pid": 9, "position": [0, 0]},
        *({"what": "step", "at": 1.0 + i, "pid": 1, "images": 10 * (i + 1)} for i in range(5)),
        {"what": "kill", "at": 5.5, "pid": 9},
        {"what": "step", "at": 5.7, "pid": 1, "images": 60},
        {"what": "news: failed", "at": 7.0, "pid": 9},
        {"what": "rank begins", "at": 12.0, "pid": 2, "rank": 0},
        {"what": "news: begun", "at": 14.0, "pid": 9, "position": [0, 30]},
        {"what": "step", "at": 15.5, "pid": 2, "images": 40},
    ]
    loss = loss_of(events, told=20, kind="worker killed")
    assert (loss.noticed_s, loss.ranks_s, loss.step_s) == (1.5, 6.5, 10.0)
    assert loss.images == 30
    assert loss.again_s == pytest.approx(3 * 4.7 / 5)


def test_events_of_several_processes_are_read_in_the_order_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv(stamps.EVENTS, str(path))
    stamps.noting(lambda: stamps.note("inside"), "before", "after")()
    path.write_text(json.dumps({"at": 2e10, "what": "later"}) + "\n" + path.read_text() + '{"at": 1')
    assert [event["what"] for event in stamps.read(path)] == ["before", "inside", "after", "later"]


def test_several_tables_are_kept_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "BENCHMARKS", tmp_path)
    tables = [Table("First", ["a", "b"], [["1", "2"]], "A note."), Table("Second", ["c"], [["3"]])]
    record.keep_tables("some-name", "module", "machine", "Title", tables)
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-machine-some-name.md")
    lines = path.read_text().splitlines()
    assert "`python -m tests.bench.module" in lines[2]
    assert lines[4:12] == ["## First", "", "A note.", "", "| a | b |", "| --- | --- |", "| 1 | 2 |", ""]
