"""What a training leaves to be read: the page, JSON and Parquet of made-up runs, gathered from run folders."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain.cluster.history import BestEpoch, Epoch, RunHistory
from raytrain.cluster.rank import _metrics
from raytrain.cluster.runs import RunSettings
from raytrain.cluster.train_report import gather, write_report
from raytrain.evaluation.html import render_page
from raytrain.evaluation.page import Bar, Gallery, Page, Plot, Problems, Shown, Table
from raytrain.evaluation.resampling import Ratio, intervals
from raytrain.evaluation.results import Problem
from raytrain.evaluation.training_figures import _Line, _lines
from raytrain.evaluation.training_page import TilePictures, training_page
from raytrain.evaluation.training_results import (
    EpochResult,
    RestartResult,
    TrainingResults,
    TrainingRun,
    epochs_parquet,
    results_json,
)
from raytrain.scoring.manifest import TrainedMember
from raytrain.training.loop import EpochReport
from raytrain.training.metrics import LocationScore, TileScore, scores
from tests.making import tiny_member

BEGUN = datetime(2026, 11, 26, 8, tzinfo=UTC)


def epochs(values: Sequence[float | None], epoch_s: float = 60.0) -> tuple[EpochResult, ...]:
    """Return epochs with these scores by location, None for no validation."""
    return tuple(
        EpochResult(
            epoch=number,
            loss=1.5 / number,
            learning_rate=0.05 / number,
            images_per_s=20.0 + number,
            epoch_s=epoch_s,
            wait_s=0.03 * epoch_s,
            validation_s=5.0,
            skipped_steps=0,
            iou_pooled=None if value is None else value + 0.02,
            iou_mean=value,
            iou_location_weighted=value,
            iou_mean_location_weighted=value,
            empty_union_rule=None if value is None else "one",
            seconds=number * (epoch_s + 5),
            ended=BEGUN + timedelta(seconds=number * (epoch_s + 5)),
        )
        for number, value in enumerate(values, 1)
    )


def places(**ious: float) -> dict[str, LocationScore]:
    return {name: LocationScore(iou, iou, int(iou * 1000), 1000, 4) for name, iou in ious.items()}


LOST = RestartResult(1, "node lost", "gone: 10.0.0.2", 2, 40, 96, 80.0)
DONE = TrainingRun(
    name="small-byob-3b-fold0",
    member=tiny_member("small-byob-3b"),
    fold=0,
    state="done",
    seconds=200.0,
    best_epoch=3,
    score=0.6,
    epochs=epochs([0.3, 0.5, 0.6]),
    restarts=(LOST, replace(LOST, attempt=2, kind="resized", cause="2 to 1 ranks", lost_images=None, seconds=None)),
    locations=places(lake=0.7, desert=0.4, forest=0.7),
)
OTHER = replace(
    DONE,
    name="small-effnet-4b-20k-fold0",
    member=tiny_member(),
    best_epoch=2,
    score=0.5,
    epochs=epochs([0.4, 0.5, 0.45]),
    restarts=(),
    locations=places(lake=0.3, desert=0.5, forest=0.7),
)
FAILED = replace(
    OTHER,
    name="lite0-4b-fold0",
    member=tiny_member(name="lite0-4b"),
    state="failed",
    failed="the loss is <nan>; try a smaller optimiser.lr",
    score=None,
    best_epoch=None,
    epochs=epochs([]),
    locations=None,
)
RESULTS = TrainingResults("main", "s3://b/shards", "abc", (DONE, OTHER, FAILED))


def table(page: Page, heading: str) -> Table:
    return next(part for part in page.parts if isinstance(part, Table) and part.heading.startswith(heading))


def shown(cell: Any) -> Any:
    return cell.text if isinstance(cell, Shown) else cell.fraction if isinstance(cell, Bar) else cell


def test_figures_are_of_the_runs_that_have_them() -> None:
    totals = RESULTS.totals
    assert (totals.num_done, totals.num_runs, totals.num_scored) == (2, 3, 2)
    assert totals.iou_location_weighted == pytest.approx(0.55)
    assert totals.iou_pooled == pytest.approx(0.57), "at the best epochs"
    assert (totals.num_restarts, totals.lost_images, totals.seconds) == (2, 96, 600.0)
    assert totals.wait_fraction == pytest.approx(0.03)
    begun = replace(DONE, state="not finished", score=0.1)
    assert replace(RESULTS, runs=(DONE, begun)).totals.iou_location_weighted == 0.6, "what is not done is no net"
    assert replace(RESULTS, runs=(begun,)).totals.iou_location_weighted == 0.1
    uneven = replace(DONE, epochs=(*epochs([0.3], 10.0), *epochs([0.3, 0.4], 90.0)[1:]))
    assert replace(RESULTS, runs=(uneven,)).totals.images_per_s == pytest.approx((21 * 10 + 22 * 90) / 100)


def test_page_tells_scores_locations_restarts_and_failures() -> None:
    page = training_page(RESULTS)
    text = render_page(page)
    assert [figure.value for figure in page.figures] == [
        "0.5500",
        "0.5700",
        "2 of 3",
        "22.0",
        "3.0%",
        "2",
        "10 min 0 s",
    ]
    assert "1 failed" in page.subtitle
    assert [part.heading for part in page.parts if isinstance(part, Plot)] == [
        "Validation score",
        "Loss and learning rate",
        "Throughput over time",
    ]
    rows = [[shown(cell) for cell in row] for row in table(page, "Validation locations").rows]
    assert rows == [
        ["desert", pytest.approx(0.45), "0.4000", "0.5000", 4],
        ["lake", pytest.approx(0.5), "0.7000", "0.3000", 4],
        ["forest", pytest.approx(0.7), "0.7000", "0.7000", 4],
    ]
    runs = [[shown(cell) for cell in row] for row in table(page, "Runs").rows]
    assert [row[2] for row in runs] == ["done", "done", "failed"]
    assert runs[0][3:] == ["3 of 3", "0.6000", "0.6200", "3 min 20 s", 2, "96 and those of 1 unknown"]
    restarts = [[shown(cell) for cell in row] for row in table(page, "Restarts").rows]
    assert restarts[0] == [DONE.name, "node lost", "gone: 10.0.0.2", "1 min 20 s", "epoch 2, image 40", "96"]
    assert restarts[1][3:] == [None, "epoch 2, image 40", "unknown"]
    (failures,) = [part for part in page.parts if isinstance(part, Problems) and part.problems]
    assert [(each.subject, each.found) for each in failures.problems] == [(FAILED.name, FAILED.failed)]
    assert "the loss is &lt;nan&gt;" in text
    differing = {row[0] for row in table(page, "Settings that differ").rows}
    assert {"encoder", "bands"} <= differing
    facts = dict(page.facts)
    assert facts["epochs"] == "3"
    assert not differing & facts.keys(), "a setting is in the table or among the facts"
    assert "not whole yet" in facts["Ensemble"]


def test_interval_of_the_score_stands_beside_it() -> None:
    draw = np.random.default_rng(0)
    locations = {f"place {i}": LocationScore(float(draw.uniform(0.5, 1)), 0.5, 1, 2, 3) for i in range(30)}
    runs = tuple(replace(run, locations=locations) for run in RESULTS.runs[:2])
    same = replace(RESULTS, runs=runs)
    expected = intervals([Ratio.mean(np.array(sorted(each.iou for each in locations.values())))])[0]
    assert same.score_interval == expected is not None
    assert f"{expected.low:.4f} to {expected.high:.4f}" in training_page(same).figures[0].interval
    assert training_page(same).figures[1].interval == ""
    other = replace(runs[1], locations=dict(list(locations.items())[:20]))
    assert replace(RESULTS, runs=(runs[0], other)).score_interval is None, "of other locations"
    unknown = replace(runs[1], locations=None)
    assert replace(RESULTS, runs=(runs[0], unknown)).score_interval is None, "the figure is of both runs"


def test_interval_of_the_score_is_of_the_same_runs_as_the_score() -> None:
    draw = np.random.default_rng(0)
    good = {f"place {i}": LocationScore(float(draw.uniform(0.5, 1)), 0.5, 1, 2, 3) for i in range(30)}
    bad = {name: replace(score, iou=0.01) for name, score in good.items()}
    done = replace(DONE, locations=good)
    failed = replace(FAILED, score=0.01, best_epoch=1, epochs=epochs([0.01]), locations=bad)
    alone = replace(RESULTS, runs=(done,)).score_interval
    assert replace(RESULTS, runs=(done, failed)).score_interval == alone is not None
    begun = replace(done, state="not finished")
    assert replace(RESULTS, runs=(begun,)).score_interval == alone, "before any is done it is of what there is"


def test_neither_page_nor_json_shows_a_signature() -> None:
    secret = "https://h/{}.tif?X-Amz-SignedHeaders=host;x-amz-date&X-Amz-Signature=SECRET: 403"
    restart = replace(LOST, cause=secret.format("restart"))
    failed = replace(FAILED, failed=f"no 'az://{secret.format('failed')[8:]}'", restarts=(restart,))
    signed = replace(OTHER, member=tiny_member(encoder_weights="https://h/encoder.safetensors?sig=SECRET"))
    results = replace(RESULTS, shards="https://h/shards?sig=SECRET", runs=(DONE, signed, failed))
    problems = [Problem(subject="t", found=secret.format("tile"))]
    for tiles in (TilePictures(problems=problems), TilePictures(why_none=secret.format("none"))):
        page = render_page(training_page(results, tiles))
        assert "SECRET" not in page
        assert all(f"https://h/{name}" in page for name in ("restart.tif", "encoder.safetensors", "shards"))
        assert "az://h/failed.tif" in page
    text = results_json(results, [])
    assert "SECRET" not in text
    assert json.loads(text)["runs"][2]["restarts"][0]["cause"] == "https://h/restart.tif 403"


def test_page_is_the_same_text_whenever_it_is_made() -> None:
    assert render_page(training_page(RESULTS)) == render_page(training_page(RESULTS))


def test_restarts_are_marked_where_their_time_is_known() -> None:
    def marks(runs: tuple[TrainingRun, ...]) -> int:
        (plot,) = [
            p
            for p in training_page(replace(RESULTS, runs=runs)).parts
            if getattr(p, "heading", "")[:10] == "Throughput"
        ]
        assert isinstance(plot, Plot)
        return int(re.findall(r"with (\d+) restarts", plot.alt)[0])

    assert marks((DONE, OTHER)) == 1
    assert marks((OTHER,)) == 0


def test_a_training_without_validation_has_no_scores_and_says_so() -> None:
    blind = replace(
        DONE, name="small-byob-3b-foldnone", fold=None, score=None, epochs=epochs([None, None]), locations=None
    )
    page = training_page(replace(RESULTS, runs=(blind,)))
    assert page.figures[0].label == "Nets"
    assert "Nothing was validated" in page.note
    plots = [part.heading for part in page.parts if isinstance(part, Plot)]
    assert plots == ["Loss and learning rate", "Throughput over time"]
    assert "Validation locations" not in render_page(page)


def test_runs_that_have_not_come_far_have_a_page_without_curves() -> None:
    begun = replace(FAILED, state="not finished", failed=None)
    waiting = replace(begun, name="lite0-4b-fold1", fold=1, state="not begun")
    page = training_page(replace(RESULTS, runs=(begun, waiting)), TilePictures(why_none="There are no pictures."))
    assert not [part for part in page.parts if isinstance(part, Plot)]
    assert "1 not finished, 1 not begun" in page.subtitle
    assert "There are no pictures." in page.note
    assert not [part for part in page.parts if isinstance(part, Gallery) and part.pictures]
    assert render_page(page)


def test_many_long_runs_make_no_large_page_and_it_says_what_is_left_out() -> None:
    values = [0.3 + 0.5 * number / 500 for number in range(500)]
    long = epochs(values)
    runs = tuple(
        replace(DONE, name=f"small-byob-3b-fold{i}", fold=i, best_epoch=500, epochs=long[: 500 if i else 1])
        for i in range(101)
    )
    page = training_page(replace(RESULTS, runs=runs))
    assert len(render_page(page)) < 1_000_000
    plots = [part for part in page.parts if isinstance(part, Plot)]
    assert all("The lines go through one epoch in 26." in plot.caption for plot in plots)
    thinned = _Line(runs[1], {}, 26).epochs
    assert [each.epoch for each in thinned] == [*range(1, 500, 26), 500], "the first and the last are there"
    few = [part for part in training_page(RESULTS).parts if isinstance(part, Plot)]
    assert not any("one epoch in" in plot.caption for plot in few)


def test_a_run_of_one_epoch_is_seen_among_many_without_dots() -> None:
    short, long = replace(DONE, epochs=epochs([0.3])), replace(OTHER, epochs=epochs([0.5] * 600))
    lines = _lines([short, long])
    assert [line.style["marker"] for line in lines] == ["o", ""]
    assert [line.style["marker"] for line in _lines([short, OTHER])] == ["o", "o"]


def test_many_runs_have_the_lowest_and_the_highest_score_of_each_location() -> None:
    runs = tuple(
        replace(DONE, name=f"small-byob-3b-fold{i}", fold=i, locations=places(lake=0.1 * i)) for i in range(1, 6)
    )
    (row,) = table(training_page(replace(RESULTS, runs=runs)), "Validation locations").rows
    assert [shown(cell) for cell in row] == ["lake", pytest.approx(0.3), "0.1000", "0.5000", 4]


def test_rows_of_the_table_are_the_epochs_of_the_json() -> None:
    report = json.loads(results_json(RESULTS, [("raytrain", "1")]))
    rows = pq.read_table(pa.BufferReader(epochs_parquet(RESULTS))).to_pylist()
    expected = [
        {"run": run["name"], "member": run["member"]["name"], "fold": run["fold"], **epoch}
        for run in report["runs"]
        for epoch in run["epochs"]
    ]
    assert [{**row, "ended": row["ended"].strftime("%Y-%m-%dT%H:%M:%SZ")} for row in rows] == expected
    assert len(rows) == 6
    assert report["figures"]["iou_location_weighted"] == RESULTS.totals.iou_location_weighted
    assert [row["name"] for row in report["locations"]] == ["desert", "lake", "forest"]
    assert report["runs"][2]["failed"] == FAILED.failed


def test_every_metric_that_a_rank_tells_is_in_the_table() -> None:
    found = scores([1], [2], ["here"], "one")
    told = _metrics(EpochReport(0, 0.5, found, True, 0.1, 1.0, 1.0, 0.1, 5.0, 0))
    assert set(told) <= set(EpochResult.model_fields)
    assert set(told) <= set(pq.read_schema(pa.BufferReader(epochs_parquet(RESULTS))).names)


def settings_of(run: TrainingRun, **changes: Any) -> RunSettings:
    return RunSettings(member=run.member, shards="s", shards_digest="d", fold=run.fold, **changes)


def write_run(folder: Path, run: RunSettings, history: RunHistory, *, is_done: bool) -> None:
    """Write a run's folder as a command leaves it."""
    place = folder / run.name
    place.mkdir(parents=True)
    (place / "run.json").write_text(run.model_dump_json())
    (place / "history.json").write_text(history.model_dump_json())
    if is_done:
        net = TrainedMember(
            name=run.member.name,
            fold=run.fold,
            weights=f"{run.name}/weights.safetensors",
            sha256="5ha",
            settings=run.member,
            score=0.6,
            epoch=2,
        )
        (place / "weights.safetensors").write_bytes(b"weights")
        (place / "result.json").write_text(net.model_dump_json())


def history_of(**changes: Any) -> RunHistory:
    metrics = [each.model_dump(exclude={"epoch", "seconds", "ended"}) for each in epochs([0.3, 0.6])]
    found = {
        "seconds": 130.0,
        "epochs": tuple(
            Epoch(number=i, metrics=values, ended=BEGUN, seconds=60.0 * i) for i, values in enumerate(metrics, 1)
        ),
        "best": BestEpoch(number=2, locations=places(lake=0.6), tiles=(TileScore("t", 0.2, "worst"),)),
    }
    return RunHistory(**{**found, **changes})


def test_report_has_the_runs_of_all_commands_as_far_as_they_came(tmp_path: Path) -> None:
    folder = tmp_path / "main"
    done, failed, waiting = settings_of(DONE), settings_of(FAILED), settings_of(OTHER)
    write_run(folder, done, history_of(), is_done=True)
    write_run(folder, failed, history_of(failed="the loss is nan", best=None), is_done=False)
    found = gather(str(folder), [waiting])
    assert [(run.name, run.state, run.score, run.best_epoch) for run in found.runs] == [
        (waiting.name, "not begun", None, None),
        (failed.name, "failed", None, None),
        (done.name, "done", 0.6, 2),
    ]
    assert found.runs[2].locations == places(lake=0.6)
    assert found.runs[1].failed == "the loss is nan"
    written = write_report(str(folder), [waiting])
    assert written is not None
    assert written.card_uri is None
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {"report.html", "report.json", "epochs.parquet"}
    stands = {name: (folder / name).stat().st_mtime_ns for name in names}
    write_report(str(folder), [waiting])
    assert {name: (folder / name).stat().st_mtime_ns for name in names} == stands, "nothing changed"
    assert "There are no pictures of validation tiles" in (folder / "report.html").read_text()


def test_locations_of_another_epoch_than_the_one_that_is_kept_are_not_told(tmp_path: Path) -> None:
    run = settings_of(DONE)
    best = BestEpoch(number=1, locations=places(lake=0.3), tiles=())
    write_run(tmp_path / "main", run, history_of(best=best), is_done=True)
    results = gather(str(tmp_path / "main"), [run])
    assert results.runs[0].locations is None
    page = training_page(results)
    assert (page.figures[0].value, page.figures[1].value) == ("0.6000", "0.6200")


def test_nothing_is_written_before_a_run_has_begun(tmp_path: Path) -> None:
    assert write_report(str(tmp_path / "main"), [settings_of(DONE)]) is None
    assert not (tmp_path / "main").exists()


def test_a_damaged_run_folder_costs_its_run_not_the_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "main"
    write_run(folder, settings_of(DONE), history_of(), is_done=True)
    write_run(folder, settings_of(OTHER), history_of(), is_done=False)
    (folder / OTHER.name / "run.json").write_text('{"member": 3}')
    (folder / DONE.name / "history.json").write_text("{")
    (run,) = gather(str(folder), [settings_of(DONE)]).runs
    assert (run.name, run.score, run.epochs) == (DONE.name, 0.6, ())
    assert "left out of the report" in caplog.text
    assert "history can't be read" in caplog.text
