"""How a training ends: trained nets are an ensemble, whatever becomes of its report; errors and interrupts are told."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raytrain.cluster import train as training
from raytrain.cluster.plan import plan_runs
from raytrain.cluster.runs import RunSettings, TrainJob
from raytrain.cluster.session import Cluster
from raytrain.cluster.train import TrainReport, _reported_if_it_fails, train
from raytrain.config import ShardSettings
from raytrain.errors import StoreOutOfReach
from raytrain.scoring.manifest import ENSEMBLE_FILE
from tests.making import shard_chips
from tests.unit.test_training_report import history_of, write_run

TINY = {"epochs": 2, "crop_px": 32, "crops_per_tile": 1, "global_batch": 4, "decoder_channels": [8, 8, 8, 4, 4]}


@pytest.fixture(scope="module")
def shards(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("concluded") / "shards"
    shard_chips(chips, folder, ShardSettings(folds="3"))
    return folder


@pytest.fixture
def job(shards: Path, tmp_path: Path) -> TrainJob:
    return TrainJob(shards=str(shards), out=str(tmp_path / "runs"), members=("small-byob-3b",), changes=TINY)


def folder_of(job: TrainJob) -> Path:
    return Path(job.out) / job.experiment


def finish(job: TrainJob) -> Path:
    """Write the only run of a job as one that is done; return its folder."""
    (run,) = plan_runs(job)
    write_run(folder_of(job), run, history_of(), is_done=True)
    return folder_of(job) / run.name


def again(job: TrainJob) -> TrainReport:
    return train(job, Cluster(), lambda news: None)


def test_nets_that_are_trained_make_an_ensemble_a_page_and_a_card(job: TrainJob) -> None:
    finish(job)
    report = again(job)
    assert (report.ensemble_uri, report.num_members) == (str(folder_of(job)), 1)
    assert report.report_uri is not None
    assert report.card_uri is not None


@pytest.mark.parametrize("error", [StoreOutOfReach("s3://b: no answer"), ValueError("a bug in a drawing")])
def test_a_report_that_cannot_be_made_is_logged_and_the_training_is_done(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def write_report(folder: str, runs: list[RunSettings]) -> None:
        raise error

    finish(job)
    monkeypatch.setattr(training, "write_report", write_report)
    report = again(job)
    assert (report.ensemble_uri, report.report_uri) == (str(folder_of(job)), None)
    assert f"no report of the training: {error}" in caplog.text
    assert ("Traceback" in caplog.text) == isinstance(error, ValueError), "where it is an error of ours to mend"


def test_a_card_of_shards_that_have_changed_is_not_written_and_the_page_is(
    job: TrainJob, shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from raytrain.evaluation import trained_on

    finish(job)
    monkeypatch.setattr(trained_on, "shards_digest", lambda manifest: "of others")
    report = again(job)
    assert report.report_uri is not None
    assert report.card_uri is None
    assert "no model card" in caplog.text


@pytest.mark.parametrize("damage", ["{", '{"seconds": "long"}'])
def test_a_broken_history_costs_its_lines_not_a_training_that_is_done(job: TrainJob, damage: str) -> None:
    (finish(job) / "history.json").write_text(damage)
    report = again(job)
    assert report.ensemble_uri is not None
    assert report.report_uri is not None
    assert [(run.net is not None, run.seconds) for run in report.runs] == [(True, 0.0)]


def test_an_epoch_without_its_metrics_is_left_out_of_the_report(
    job: TrainJob, caplog: pytest.LogCaptureFixture
) -> None:
    path = finish(job) / "history.json"
    history = json.loads(path.read_text())
    del history["epochs"][0]["metrics"]["loss"]
    path.write_text(json.dumps(history))
    report = again(job)
    assert report.report_uri is not None
    results = json.loads((folder_of(job) / "report.json").read_text())
    assert [[each["epoch"] for each in run["epochs"]] for run in results["runs"]] == [[2]]
    assert "epoch 1 is left out of the report: loss" in caplog.text


def without_ray(job: TrainJob, monkeypatch: pytest.MonkeyPatch, draw: Callable[..., None]) -> None:
    """Let the only run of a job be trained at once, by nobody, and `draw` stand for its pictures."""

    def side_by_side(*anything: Any) -> dict[str, Any]:
        finish(job)
        return {run.name: training._Ended(training.finished(str(folder_of(job)), run), None, 1.0) for run in runs}

    runs = plan_runs(job)
    for name in ("joined", "uses_gpus"):
        monkeypatch.setattr(training.session, name, lambda *anything: contextlib.nullcontext())
    monkeypatch.setattr(training.session, "can_grow_to", lambda resource: 0)
    monkeypatch.setattr(training, "start_board", lambda: None)
    monkeypatch.setattr(training, "follow", lambda *anything: contextlib.nullcontext())
    monkeypatch.setattr(training, "_side_by_side", side_by_side)
    monkeypatch.setattr(training, "draw_missing", draw)


@pytest.mark.parametrize("error", [StoreOutOfReach("s3://b: no answer"), KeyError("a bug")])
def test_pictures_that_cannot_be_made_cost_no_ensemble(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def draw(*anything: Any, **more: Any) -> None:
        raise error

    without_ray(job, monkeypatch, draw)
    report = again(job)
    assert report.ensemble_uri is not None
    assert report.report_uri is not None


def test_the_ensemble_stands_before_pictures_are_drawn(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*anything: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    without_ray(job, monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        again(job)
    assert (folder_of(job) / ENSEMBLE_FILE).exists()
    assert (folder_of(job) / "report.html").exists()


def test_an_interrupt_is_told_though_its_report_fails(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_report(folder: str, runs: list[RunSettings]) -> None:
        raise ValueError("a bug in a drawing")

    monkeypatch.setattr(training, "write_report", write_report)
    with pytest.raises(KeyboardInterrupt), _reported_if_it_fails("nowhere", plan_runs(job)):
        raise KeyboardInterrupt


def test_a_store_that_is_away_is_not_asked_again_for_a_report(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(training, "write_report", lambda *anything: asked.append(anything))
    with pytest.raises(StoreOutOfReach), _reported_if_it_fails("nowhere", plan_runs(job)):
        raise StoreOutOfReach("s3://b: no answer")
    assert not asked
    with pytest.raises(RuntimeError), _reported_if_it_fails("nowhere", plan_runs(job)):
        raise RuntimeError
    assert asked, "of what else ends a training there is one"
