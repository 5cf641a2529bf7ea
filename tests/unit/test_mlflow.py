"""Runs in MLflow, in a local folder: never doubled, found again, told how they end; and an MLflow that fails."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from raytrain.cluster.mlflow_tracking import MlflowRuns
from raytrain.config import change, flat
from raytrain.errors import ConfigError
from raytrain.recipes import members

MEMBER = members(["small-byob-4b"])[0]
RUN = f"{MEMBER.name}-fold0"
PLACE = "s3://bucket/it's here/main/small-byob-4b-fold0"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for MLflow's files whose name has characters that URIs quote."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "false")
    return tmp_path / "ml flow %20"


def epoch(number: int, loss: float = 0.5) -> dict[str, Any]:
    return {"epoch": number, "loss": loss, "iou_pooled": 0.25, "empty_union_rule": "one", "score": None}


def runs_in(folder: Path, experiment: str = "clouds") -> list[Run]:
    client = MlflowClient(tracking_uri=folder.as_uri())
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def history(folder: Path, run: Run, name: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri=folder.as_uri())
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def test_a_run_has_its_settings_its_epochs_and_its_end(folder: Path) -> None:
    with MlflowRuns(str(folder), "clouds") as runs:
        runs.begin(RUN, PLACE, MEMBER)
        runs.epoch(RUN, epoch(0, 0.5))
        runs.epoch(RUN, epoch(1, 0.25))
        runs.end(RUN)
    (run,) = runs_in(folder)
    assert (run.info.run_name, run.info.status) == (RUN, "FINISHED")
    assert (run.data.tags["raytrain.run"], run.data.tags["raytrain.uri"]) == (RUN, PLACE)
    assert "raytrain.restarts" not in run.data.tags
    assert run.data.params.keys() == flat(MEMBER).keys()
    assert run.data.params["optimiser.lr"] == str(MEMBER.optimiser.lr)
    assert run.data.params["bands"] == '["B02", "B03", "B04", "B08"]'
    assert run.data.params["encoder"] == MEMBER.encoder
    assert history(folder, run, "loss") == [(0, 0.5), (1, 0.25)]
    assert run.data.metrics.keys() == {"loss", "iou_pooled"}


def test_the_same_command_goes_on_in_the_same_run_and_no_epoch_is_doubled(folder: Path) -> None:
    with MlflowRuns(str(folder), "clouds") as runs:
        runs.begin(RUN, PLACE, MEMBER)
        runs.epoch(RUN, epoch(0))
        runs.epoch(RUN, epoch(1))
        runs.epoch(RUN, epoch(1))
        runs.end(RUN, "out of memory on a node")
    (run,) = runs_in(folder)
    assert (run.info.status, run.data.tags["raytrain.failure"]) == ("FAILED", "out of memory on a node")
    with MlflowRuns(str(folder), "clouds") as runs:
        runs.begin(RUN, PLACE, MEMBER)
        runs.epoch(RUN, epoch(1, 0.75))
        runs.epoch(RUN, epoch(2))
        runs.end(RUN)
    (run,) = runs_in(folder)
    assert run.info.status == "FINISHED"
    assert "raytrain.failure" not in run.data.tags
    assert run.data.tags["raytrain.restarts"] == "1"
    assert run.data.tags["raytrain.last_restart"] == "the command ran again"
    assert history(folder, run, "loss") == [(0, 0.5), (1, 0.5), (2, 0.5)]


def test_a_failed_run_that_goes_on_is_running_while_it_does(folder: Path) -> None:
    with MlflowRuns(str(folder), "clouds") as runs:
        runs.begin(RUN, PLACE, MEMBER)
        runs.end(RUN, "a node was lost")
    with MlflowRuns(str(folder), "clouds") as runs:
        runs.begin(RUN, PLACE, MEMBER)
        told = threading.Event()
        runs._jobs.put(told.set)  # behind what was to be told
        assert told.wait(60)
        assert [run.info.status for run in runs_in(folder)] == ["RUNNING"]


@pytest.mark.parametrize("other", ["name", "place", "settings", "experiment"])
def test_another_name_place_setting_or_experiment_is_another_run(folder: Path, other: str) -> None:
    with MlflowRuns(str(folder), "clouds") as runs:
        runs.begin(RUN, PLACE, MEMBER)
    experiment = "others" if other == "experiment" else "clouds"
    name, place = "else" if other == "name" else RUN, "else" if other == "place" else PLACE
    with MlflowRuns(str(folder), experiment) as runs:
        runs.begin(name, place, change(MEMBER, {"epochs": 7}) if other == "settings" else MEMBER)
    assert len(runs_in(folder) + (runs_in(folder, experiment) if experiment != "clouds" else [])) == 2


def test_restarts_of_a_run_are_counted_with_the_last_reason(folder: Path) -> None:
    with MlflowRuns(str(folder), "clouds") as runs:
        runs.begin(RUN, PLACE, MEMBER)
        for reason in ("a node was lost", "out of memory"):
            runs.restarted(RUN, reason)
        runs.end(RUN)
    (run,) = runs_in(folder)
    assert (run.data.tags["raytrain.restarts"], run.data.tags["raytrain.last_restart"]) == ("2", "out of memory")


def test_a_run_that_did_not_end_is_told_as_killed(folder: Path) -> None:
    with MlflowRuns(str(folder), "clouds") as runs:
        runs.begin(RUN, PLACE, MEMBER)
    (run,) = runs_in(folder)
    assert run.info.status == "KILLED"


class Failing:
    """A client of MLflow that can be told to fail."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        if self.fails:
            raise ConnectionError("no answer")
        return getattr(self._client, name)


@pytest.mark.parametrize("takes_it_first", [False, True])
def test_an_mlflow_that_fails_is_one_warning_and_gets_the_epochs_when_it_is_back(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, takes_it_first: bool
) -> None:
    with caplog.at_level(logging.WARNING), MlflowRuns(str(folder), "clouds") as runs:
        client = Failing(runs._client)
        take = client.log_batch

        def log_batch(run_id: str, **values: Any) -> None:
            """Fail on epochs 1 and 2, which are taken or not."""
            failing = {metric.step for metric in values.get("metrics", [])} in ({1}, {1, 2})
            if takes_it_first or not failing:
                take(run_id, **values)
            if failing and told[0] < 2:
                told[0] += 1
                raise ConnectionError("no answer")

        told = [0]
        client.log_batch = log_batch  # type: ignore[method-assign]
        monkeypatch.setattr(runs, "_client", client)
        runs.begin(RUN, PLACE, MEMBER)
        for number in range(4):
            runs.epoch(RUN, epoch(number))
        runs.end(RUN)
    (run,) = runs_in(folder)
    assert sorted(history(folder, run, "loss")) == [(step, 0.5) for step in range(4)]
    assert run.info.status == "FINISHED"
    assert "raytrain.restarts" not in run.data.tags
    assert [record.getMessage() for record in caplog.records] == ["MLflow failed, training goes on: no answer"]


def test_an_mlflow_that_is_gone_ends_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), MlflowRuns(str(folder), "clouds") as runs:
        client = Failing(runs._client)
        runs._client = client  # type: ignore[assignment]
        client.fails = True
        runs.begin(RUN, PLACE, MEMBER)
        runs.epoch(RUN, epoch(0))
        runs.end(RUN)
    assert runs_in(folder) == []
    assert len(caplog.records) == 1


def test_without_the_extra_the_way_to_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "mlflow"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'raytrain\[mlflow\]'"):
        MlflowRuns(str(folder), "clouds")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:1", "can't open experiment 'clouds'"),
        ("sqlite:////tmp/never.db", "expected http"),
        ("http://me:secret@host/", "MLFLOW_TRACKING_USERNAME"),
        ("", "an empty path"),
    ],
)
def test_a_wrong_address_is_a_mistake_before_work_starts(
    uri: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=message) as caught:
        MlflowRuns(uri, "clouds")
    assert "secret" not in str(caught.value)


def test_a_deleted_experiment_is_a_mistake_before_work_starts(folder: Path) -> None:
    with MlflowRuns(str(folder), "clouds"):
        pass
    client = MlflowClient(tracking_uri=folder.as_uri())
    found = client.get_experiment_by_name("clouds")
    assert found is not None
    client.delete_experiment(found.experiment_id)
    with pytest.raises(ConfigError, match="is deleted there"):
        MlflowRuns(str(folder), "clouds")
