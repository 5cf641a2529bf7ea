"""As the books of a scoring are closed, nothing good goes, nothing stale stays, and a plan is read by its own run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from raytrain import storage
from raytrain.cluster.books import Books
from raytrain.cluster.score import ScoreJob, _noted, _plan, write_report
from raytrain.config import ScoreSettings, change
from raytrain.errors import WorkNotFinished
from raytrain.imagery.scene_files import BandFile, SceneSource
from raytrain.scoring import ledger
from raytrain.scoring.casualties import LONGEST_CAUSE, read_casualties, write_casualties
from raytrain.scoring.destination import Scoring, check_destination
from raytrain.scoring.ledger import Known
from raytrain.scoring.perform import perform
from raytrain.scoring.plan import is_started, read_parts, write_plan
from raytrain.scoring.planning import Listing
from raytrain.scoring.schedule import Casualty, Schedule, TooManyFailures
from raytrain.scoring.units import Problem, Unit
from raytrain.scoring.work import Work
from raytrain.tiles.selection import Selection
from tests.unit.test_perform import BANDS, SETTINGS, files_of, nets, noise, scenes_of, work_at, write_scene
from tests.unit.test_scoring import DIGEST_OF_BEFORE


def run(source: Path | str, work: Work, *problems: Problem) -> Listing:
    """Do what `score` does, in this process; `problems` are what a listing finds beside the scenes."""
    known = Known(work.destination, work.digest, ledger.standing_at(work.destination))
    listing = Listing(str(source), work.destination, BANDS, work.scoring.settings, Selection(), known)
    job = ScoreJob(src=str(source), dst=work.destination, ensemble="e", settings=work.scoring.settings)
    plan = _plan(job, work.scoring, listing, "run")
    listing.problems += problems
    schedule = Schedule(read_parts(work.destination, plan), plan.num_units)
    books = Books(work.destination, schedule, None)
    for problem in [*listing.problems, *listing.unreached]:
        schedule.add(Casualty(problem, in_data=problem in listing.problems, keeps_outputs=True))
    while not schedule.is_over:
        task = schedule.take(alone=True)
        assert task is not None
        schedule.finished(task, perform(task.unit, work))
    books.write_casualties(is_over=True)
    books.close(work.scoring)
    return listing


def test_second_bad_item_of_an_id_costs_the_good_one_nothing(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    work = work_at(tmp_path / "out")
    twice = Problem(item_id="s", source_uri="x", found="not a valid date")
    for _ in range(2):
        run(tmp_path / "in", work, twice)
        assert {"s.tif", "stac/s.json", "casualties.csv"} <= files_of(tmp_path / "out").keys()
        assert [record.item_id for record in ledger.read_records(work.destination)] == ["s"]


def test_item_that_was_read_and_is_bad_loses_its_outputs_and_its_record(tmp_path: Path) -> None:
    for name in "ab":
        write_scene(tmp_path / "in" / f"{name}.tif", noise(70, 60))
    work = work_at(tmp_path / "out")
    run(tmp_path / "in", work)
    (tmp_path / "in" / "a.tif").write_bytes(b"II*\0 and no more")
    run(tmp_path / "in", work)
    assert [record.item_id for record in ledger.read_records(work.destination)] == ["b"]
    found = files_of(tmp_path / "out")
    assert not {"a.tif", "stac/a.json"} & found.keys()
    assert {"b.tif", "stac/b.json", "casualties.csv"} <= found.keys()


def test_closed_books_leave_no_map_of_a_member_of_a_bad_item(tmp_path: Path) -> None:
    for name in "ab":
        write_scene(tmp_path / "in" / f"{name}.tif", noise(70, 60))
    work = work_at(tmp_path / "out", change(SETTINGS, {"members": "uint8"}))
    run(tmp_path / "in", work)
    assert {"members/other/a.tif", "members/other/b.tif"} <= files_of(tmp_path / "out").keys()
    schedule: Schedule = Schedule(iter([]), 0)
    bad = Problem(item_id="a", source_uri="x", found="not a raster")
    schedule.add(Casualty(bad, in_data=True))
    Books(work.destination, schedule, None).close(work.scoring)
    assert not [name for name in files_of(tmp_path / "out") if Path(name).stem == "a"]
    assert "members/other/b.tif" in files_of(tmp_path / "out")


def test_item_whose_source_is_gone_or_refused_keeps_its_outputs_and_its_record(tmp_path: Path) -> None:
    for name in "ab":
        write_scene(tmp_path / "in" / f"{name}.tif", noise(70, 60))
    work = work_at(tmp_path / "out")
    run(tmp_path / "in", work)
    before = files_of(tmp_path / "out")
    (tmp_path / "in" / "a.tif").unlink()
    run(tmp_path / "in", work, Problem(item_id="a", source_uri="x", found="access refused (403)"))
    found = files_of(tmp_path / "out")
    assert found.pop("casualties.csv") == b"item_id,source_uri,in_data,cause\na,x,true,access refused (403)\n"
    assert found == before


def test_destination_of_a_run_in_which_all_was_bad_is_ours(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "list.txt").write_text(str(tmp_path / "in" / "s.tif"))
    work = work_at(tmp_path / "out")
    run(tmp_path / "list.txt", work)
    assert files_of(tmp_path / "out").keys() >= {"casualties.csv", "scoring.json"}
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    check_destination(work.destination, work.scoring, files_of(tmp_path / "out"))
    run(tmp_path / "list.txt", work)
    assert "s.tif" in files_of(tmp_path / "out")
    assert "casualties.csv" not in files_of(tmp_path / "out")


def test_casualties_that_a_run_did_not_come_to_stay_in_the_table(tmp_path: Path) -> None:
    def books_of(*item_ids: str) -> Books:
        schedule = Schedule(iter([]), 0)
        for item_id in item_ids:
            schedule.add(Casualty(Problem(item_id=item_id, source_uri=f"of {item_id}", found="x"), in_data=False))
        return Books(str(tmp_path), schedule, None)

    books_of("b", "c").write_casualties(is_over=True)
    books_of().write_casualties(is_over=False)
    books_of("a", "c").write_casualties(is_over=False)
    rows = (tmp_path / "casualties.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["item_id", "a", "b", "c"]
    books_of().write_casualties(is_over=True)
    assert not (tmp_path / "casualties.csv").exists()


def test_endless_cause_is_cut_and_one_that_stands_costs_its_own_row_alone(tmp_path: Path) -> None:
    write_casualties(str(tmp_path), [["b", "of b", "true", "x" * 200_000], ["a", "of a", "false", "gone"]])
    assert [(row[0], len(row[3])) for row in read_casualties(str(tmp_path))] == [("a", 4), ("b", LONGEST_CAUSE)]
    endless = "x" * 200_000
    table = f"item_id,source_uri,in_data,cause\na,of a,true,{endless}\nb,of b,false,gone\n"
    (tmp_path / "casualties.csv").write_text(table)
    assert read_casualties(str(tmp_path)) == [["b", "of b", "false", "gone"]]
    Books(str(tmp_path), Schedule(iter([]), 0), None).write_casualties(is_over=False)  # as after an interrupt
    assert read_casualties(str(tmp_path)) == [["b", "of b", "false", "gone"]]
    for text in ("", "item_id\n", f"{endless}\n"):
        (tmp_path / "casualties.csv").write_text(text)
        assert read_casualties(str(tmp_path)) == []


def test_blocks_of_scenes_that_are_done_go_and_those_of_unfinished_ones_stay(tmp_path: Path) -> None:
    work = work_at(tmp_path)
    for scene_id in ("done", "unfinished", "bad"):
        storage.write_bytes(storage.join(work.destination, "blocks", scene_id, "digest", "0-0-mask.tif"), b"mask")
    schedule = Schedule(iter([]), 0)
    for item_id, in_data in (("unfinished", False), ("bad", True)):
        schedule.add(Casualty(Problem(item_id=item_id, source_uri="x", found="x"), in_data=in_data))
    Books(work.destination, schedule, None).close(work.scoring)
    assert [name for name in files_of(tmp_path) if name.startswith("blocks/")] == [
        "blocks/unfinished/digest/0-0-mask.tif"
    ]
    Books(work.destination, Schedule(iter([]), 0), None).close(work.scoring)
    assert not (tmp_path / "blocks").exists()


def test_output_that_a_source_has_no_more_goes_with_its_change(tmp_path: Path) -> None:
    settings = change(SETTINGS, {"datetime": "2022-05-06"})
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    work = work_at(tmp_path / "out", settings)
    run(tmp_path / "in", work)
    assert "stac/s.json" in files_of(tmp_path / "out")
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60, seed=1), crs=None)
    run(tmp_path / "in", work)
    fresh = work_at(tmp_path / "fresh", settings)
    run(tmp_path / "in", fresh)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_output_that_a_source_has_no_more_goes_though_the_run_was_killed_before_its_books_were_closed(
    tmp_path: Path,
) -> None:
    settings = change(SETTINGS, {"datetime": "2022-05-06"})
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    work = work_at(tmp_path / "out", settings)
    run(tmp_path / "in", work)
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60, seed=1), crs=None)
    (scene,) = scenes_of(tmp_path / "in")
    perform(Unit(kind="scene", scene=scene), work)  # and its driver is killed
    ledger.compact(work.destination)
    run(tmp_path / "in", work)
    fresh = work_at(tmp_path / "fresh", settings)
    run(tmp_path / "in", fresh)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_output_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    work = work_at(tmp_path / "out")
    run(tmp_path / "in", work)
    whole = files_of(tmp_path / "out")
    (tmp_path / "out" / "s.tif").write_bytes(whole["s.tif"][:100])
    assert run(tmp_path / "in", work).num_done == 0
    assert files_of(tmp_path / "out") == whole
    assert run(tmp_path / "in", work).num_done == 1


def test_report_that_cannot_be_made_is_told_of_and_fails_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    work = work_at(tmp_path / "out")
    run(tmp_path / "in", work)
    job = ScoreJob(src=str(tmp_path / "in"), dst=work.destination, ensemble="e", settings=work.scoring.settings)
    page = tmp_path / "out" / "report.html"
    page.mkdir()
    assert write_report(job, work.scoring) is None
    assert "no report of the scoring: " in caplog.text
    page.rmdir()
    assert write_report(job, work.scoring, only_if_missing=True) == str(page)
    page.write_text("as it was")
    assert write_report(job, work.scoring, only_if_missing=True) == str(page)
    assert page.read_text() == "as it was"
    (table,) = (tmp_path / "out" / "ledger").iterdir()
    table.write_bytes(b"PAR1")
    assert write_report(job, work.scoring) is None
    assert "damaged, not a table of the ledger" in caplog.text


def test_scoring_keeps_its_result_through_any_fault_of_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work = work_at(tmp_path / "out")
    job = ScoreJob(src=str(tmp_path / "in"), dst=work.destination, ensemble="e", settings=work.scoring.settings)

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("raytrain.evaluation.scoring_report.read_scored", broken)
    assert write_report(job, work.scoring) is None
    assert "no report of the scoring: a fault of ours" in caplog.text
    assert "in broken" in caplog.text, "the trace says where"
    too_many = TooManyFailures("more than --max-failures 0")
    books = Books(work.destination, Schedule(iter([]), 0), None)
    with pytest.raises(TooManyFailures), _noted(job, work.scoring, books):
        raise too_many


def test_report_of_a_run_that_ends_early_has_what_was_done_and_why_it_ended(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    work = work_at(tmp_path / "out")
    (scene,) = scenes_of(tmp_path / "in")
    schedule = Schedule(iter([]), 0, max_failures=0)
    books = Books(work.destination, schedule, None)
    job = ScoreJob(src=str(tmp_path / "in"), dst=work.destination, ensemble="e", settings=work.scoring.settings)
    perform(Unit(kind="scene", scene=scene), work)
    casualty = Casualty(Problem(item_id="a", source_uri="x", found="gone"), in_data=True)
    with pytest.raises(TooManyFailures), _noted(job, work.scoring, books):
        schedule.add(casualty)
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["items"] == {"done": 1, "left_out": 1, "kinds": {"scene": 1}}
    assert "more than --max-failures 0" in found["ended_by"]
    (tmp_path / "out" / "report.html").unlink()
    with pytest.raises(KeyboardInterrupt), _noted(job, work.scoring, books):
        raise KeyboardInterrupt
    assert not (tmp_path / "out" / "report.html").exists()


def test_plan_of_another_command_ends_work_that_reads_this_one(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", np.ones((4, 8, 8), np.uint16))
    (scene,) = scenes_of(tmp_path / "in")
    units = [Unit(kind="scene", scene=scene.model_copy(update={"scene_id": f"s{i}"})) for i in range(1500)]
    parts = read_parts(str(tmp_path / "out"), write_plan(str(tmp_path / "out"), "one", units))
    assert [unit.item_ids[0] for unit in next(parts)] == [f"s{i}" for i in range(1000)]
    other = write_plan(str(tmp_path / "out"), "two", units[1000:])
    with pytest.raises(WorkNotFinished, match="the plan is gone; does another command score"):
        next(parts)
    (part,) = read_parts(str(tmp_path / "out"), other)
    assert part == units[1000:]


@pytest.mark.parametrize("damage", ["torn", "another's", "too large"])
def test_part_of_a_plan_that_its_command_did_not_write_is_never_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    files = {"*": BandFile(uri="s3://archive/s.tif")}
    units = [Unit(kind="scene", scene=SceneSource(scene_id="s", files=files, identity="1"))]
    uri = str(tmp_path)
    plan = write_plan(uri, "run", units)
    assert list(read_parts(uri, plan)) == [units]
    (part,) = (tmp_path / "plan").glob("part-*.parquet")
    if damage == "torn":
        part.write_bytes(part.read_bytes()[:-1])
    elif damage == "another's":
        secret = {"*": BandFile(uri="/etc/passwd")}
        write_plan(uri, "run", [Unit(kind="scene", scene=SceneSource(scene_id="s", files=secret, identity="1"))])
    else:
        monkeypatch.setattr("raytrain.scoring.plan.PART_BYTES", part.stat().st_size - 1)
    with pytest.raises(WorkNotFinished, match=r"part-run-00000\.parquet: not what this command wrote there"):
        next(read_parts(uri, plan))


def test_nothing_is_written_where_there_is_nothing_to_do(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    work = work_at(tmp_path / "out")
    run(tmp_path / "in", work)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    known = Known(work.destination, work.digest, ledger.standing_at(work.destination))
    listing = Listing(str(tmp_path / "in"), work.destination, BANDS, SETTINGS, Selection(), known)
    job = ScoreJob(src=str(tmp_path / "in"), dst=work.destination, ensemble="e", settings=SETTINGS)
    assert _plan(job, work.scoring, listing, "again").num_units == 0
    assert not is_started(work.destination)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times
    assert json.loads(storage.read_bytes(storage.join(work.destination, "scoring.json")))["members"]


def test_nothing_is_left_to_do_where_all_was_scored_before_there_were_maps_of_members(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    settings = ScoreSettings(baseline="before-04.00")
    scoring = Scoring(ensemble="a" * 64, members=("m-fold0", "m-fold1"), settings=settings, raytrain_version="0.1.0")
    work = Work(str(tmp_path / "out"), scoring, nets(settings))
    run(tmp_path / "in", work)
    records = [
        record.model_copy(update={"settings_digest": DIGEST_OF_BEFORE})
        for record in ledger.read_records(work.destination)
    ]
    assert len(records) == 1
    ledger.enter(work.destination, records)
    ledger.compact(work.destination)
    known = Known(work.destination, scoring.digest(), ledger.standing_at(work.destination))
    listing = Listing(str(tmp_path / "in"), work.destination, BANDS, settings, Selection(), known)
    assert (list(listing.units()), listing.num_done) == ([], 1)
