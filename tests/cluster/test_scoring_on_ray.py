"""Scoring on Ray: whoever does the units, whatever dies on the way, the destination is byte for byte the same."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from raytrain import cli
from raytrain.cluster.pool import UNITS_IN_FLIGHT
from raytrain.cluster.score import ScoreJob, ScoreReport, score
from raytrain.cluster.score_plan import plan_score
from raytrain.cluster.session import Cluster, joined
from raytrain.config import ScoreSettings, change
from raytrain.errors import ConfigError
from raytrain.imagery import synth
from raytrain.scoring.destination import tells_of_the_run
from raytrain.scoring.layers import Layers
from raytrain.scoring.pace import Progress
from raytrain.scoring.schedule import TooManyFailures
from tests.cluster.processes import scorers
from tests.making import make_ensemble

CPUS = 5
SETTINGS = ScoreSettings(window_px=96, overlap_px=32, threads=1, block_px=512, probability="uint8", members="uint8")
OPTIONS = ["window_px=96", "overlap_px=32", "threads=1", "block_px=512", "probability=uint8", "members=uint8"]
LIMIT_S = 300
pytestmark = pytest.mark.own_ray


@pytest.fixture(scope="module", autouse=True)
def wide_ray() -> Iterator[None]:
    """One Ray that counts more CPUs than the machine has: room for four actors."""
    assert not ray.is_initialized()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raytrain.cluster.session.get_num_cpus", lambda **_: CPUS)
        with joined(Cluster(), []):
            yield


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_ensemble(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small scenes, and one in four blocks."""
    folder = tmp_path_factory.mktemp("archive")
    synth.write_scenes(folder / "small", count=6, size_px=150, seed=3)
    synth.write_scenes(folder / "large", count=1, size_px=600, seed=4, first_place=50)
    merged = folder / "scenes"
    for name in ("small", "large"):
        shutil.copytree(folder / name / "scenes", merged, dirs_exist_ok=True)
    return merged


@pytest.fixture(scope="module")
def undisturbed(archive: Path, ensemble: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one actor leaves that nothing disturbs."""
    out = tmp_path_factory.mktemp("undisturbed")
    report = run(archive, out, ensemble, workers=1)
    assert (report.num_masks, report.num_skipped, report.problems, report.unfinished) == (7, 0, [], {})
    return files_of(out)


def run(
    source: Path,
    out: Path,
    ensemble: str,
    *,
    workers: int = 4,
    on_progress: Callable[[Progress], None] | None = None,
    **options: object,
) -> ScoreReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raytrain.cluster.score.actors_at_once", lambda threads, use_gpu: workers)
        job = ScoreJob(src=str(source), dst=str(out), ensemble=ensemble, settings=SETTINGS, **options)
        return score(job, Cluster(), on_progress)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return all files of a destination but its logs and its report, which tell of time and place."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if not tells_of_the_run(name)}


def rasters_of(folder: Path) -> dict[str, bytes]:
    """Return the rasters of a destination; the rest names the source."""
    return {name: data for name, data in files_of(folder).items() if name.endswith(".tif")}


def log_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in sorted((folder / "log").iterdir()) for line in path.read_text().splitlines()]


def report_of(folder: Path) -> tuple[dict[str, Any], int]:
    """Return the figures of a report, and when its page was written."""
    return json.loads((folder / "report.json").read_text()), (folder / "report.html").stat().st_mtime_ns


def test_destination_holds_outputs_catalogue_ledger_and_nothing_of_the_run(undisturbed: dict[str, bytes]) -> None:
    folders = {name.rpartition("/")[0] for name in undisturbed}
    members = {"members/small-byob-3b", "members/small-effnet-4b-20k"}
    assert folders == {"", "stac", "probability", "ledger", *members}
    assert {"scoring.json", "collection.json", "items.parquet"} <= undisturbed.keys()
    assert sum(name.endswith(".tif") for name in undisturbed) == 4 * 7
    assert all(name.startswith("ledger/records-") for name in undisturbed if name.startswith("ledger/"))


def test_four_workers_leave_the_bytes_of_one_and_share_the_work(
    archive: Path, ensemble: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    run(archive, tmp_path, ensemble, workers=4)
    assert files_of(tmp_path) == undisturbed
    assert len({line["pid"] for line in log_of(tmp_path)}) > 1
    kinds = [str(line["unit"]).partition("-")[0] for line in log_of(tmp_path)]
    assert (kinds.count("scene"), kinds.count("block"), kinds.count("assembly")) == (7, 4, 1)


def test_rerun_writes_nothing_twice_and_does_what_is_missing_or_changed(
    archive: Path, ensemble: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(archive, tmp_path / "source"))
    out = tmp_path / "out"
    run(source, out, ensemble)
    figures, written = report_of(out)
    assert (figures["items"]["done"], figures["items"]["left_out"]) == (7, 0)
    assert figures["work"]["pixels"] == 6 * 150**2 + 600**2
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.tif")}
    for path in source.iterdir():
        os.utime(path, (1, 1))  # a copy of the archive is the same archive
    again = run(source, out, ensemble)
    assert (again.num_masks, again.num_skipped, again.report) == (7, 7, str(out / "report.html"))
    assert report_of(out)[1] == written
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.tif")} == times
    whole = files_of(out)
    (out / "collection.json").unlink()
    (out / "items.parquet").write_bytes(b"junk")
    (out / "report.html").unlink()
    assert run(source, out, ensemble).num_skipped == 7
    assert files_of(out) == whole
    assert (out / "report.html").exists()
    names = sorted(path.name for path in source.iterdir())
    (out / names[0]).unlink()
    (out / "probability" / names[1]).unlink()
    (out / "members" / "small-byob-3b" / names[4]).unlink()
    shutil.copy(source / names[3], source / names[2])
    assert run(source, out, ensemble).num_skipped == 3
    found = files_of(out)
    assert found.keys() == undisturbed.keys()
    assert {name for name in undisturbed if found[name] != undisturbed[name] and name.endswith(".tif")} == {
        names[2],
        f"probability/{names[2]}",
        f"members/small-byob-3b/{names[2]}",
        f"members/small-effnet-4b-20k/{names[2]}",
    }
    assert found[names[2]] == undisturbed[names[3]]


def test_killed_workers_cost_nothing_but_time(
    archive: Path, ensemble: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if len(killed) < 3:
            victim = random.Random(len(killed)).choice(scorers())
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

    report = run(archive, tmp_path, ensemble, workers=2, on_progress=kill)
    assert len(killed) == 3
    assert (report.num_masks, report.problems, report.unfinished) == (7, [], {})
    assert files_of(tmp_path) == undisturbed


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGKILL, -9, None), (signal.SIGINT, 130, "interrupted")])
def test_stopped_driver_loses_nothing_and_the_same_command_goes_on(
    archive: Path,
    ensemble: str,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    said: str | None,
) -> None:
    command = [sys.executable, "-m", "raytrain.cli", "score", str(archive), str(tmp_path / "out")]
    command += ["--ensemble", ensemble, "--set", *OPTIONS]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stderr=log, start_new_session=True) as driver,
    ):
        until = time.monotonic() + LIMIT_S
        while not list((tmp_path / "out").glob("*.tif")) and time.monotonic() < until:
            time.sleep(0.05)
        driver.send_signal(number)
    lines = (tmp_path / "log").read_text().splitlines()
    assert driver.returncode == code, lines
    if said is not None:
        assert lines[-1] == f"raytrain: {said}; the same command goes on"
        assert not any("Traceback" in line for line in lines)
    done = {path.name for path in (tmp_path / "out").glob("*.tif")}
    assert 0 < len(done) < 7
    assert "collection.json" not in files_of(tmp_path / "out")
    report = run(archive, tmp_path / "out", ensemble)
    assert report.num_masks == 7
    assert files_of(tmp_path / "out") == undisturbed


def test_bad_scenes_are_casualties_in_a_table_and_the_rest_is_done(
    archive: Path, ensemble: str, undisturbed: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(archive, tmp_path / "source"))
    names = sorted(path.stem for path in source.iterdir())
    (source / f"{names[0]}.tif").write_bytes(b"II*\0 nothing")
    data = (source / f"{names[1]}.tif").read_bytes()
    (source / f"{names[1]}.tif").write_bytes(data[: len(data) // 2])
    out = tmp_path / "out"
    arguments = ["score", str(source), str(out), "--ensemble", ensemble, "--set", *OPTIONS]
    assert cli.main([*arguments, "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["num_masks"], found["unfinished"], found["report"]) == (5, {}, str(out / "report.html"))
    assert report_of(out)[0]["left_out"]["in_data"] == 2
    assert sorted(each["subject"] for each in found["problems"]) == names[:2]
    rows = list(csv.DictReader(io.StringIO((out / "casualties.csv").read_text())))
    assert [(row["item_id"], row["source_uri"], row["in_data"]) for row in rows] == [
        (name, str(source / f"{name}.tif"), "true") for name in names[:2]
    ]
    assert all("not a readable GeoTIFF" in row["cause"] for row in rows)
    for name in names[:2]:
        shutil.copy(archive / f"{name}.tif", source / f"{name}.tif")
    assert cli.main(arguments) == 0
    assert files_of(out).keys() == undisturbed.keys()
    assert rasters_of(out) == {name: data for name, data in undisturbed.items() if name.endswith(".tif")}
    assert cli.main(["verify", str(out)]) == 0
    (out / f"{names[0]}.tif").write_bytes(b"another mask")
    (out / f"{names[1]}.tif").unlink()
    (out / "stranger.tif").write_bytes(b"a mask")
    capsys.readouterr()
    assert cli.main(["verify", str(out), "--json"]) == 1
    differences = {
        Path(each["subject"]).name: each["found"] for each in json.loads(capsys.readouterr().out)["differences"]
    }
    assert differences.keys() == {f"{names[0]}.tif", f"{names[1]}.tif", "stranger.tif"}
    assert "missing" in differences[f"{names[1]}.tif"]


def test_work_stops_above_the_allowed_failures_and_says_so(archive: Path, ensemble: str, tmp_path: Path) -> None:
    source = Path(shutil.copytree(archive, tmp_path / "source"))
    for path in sorted(source.iterdir())[:3]:
        path.write_bytes(b"")
    with pytest.raises(TooManyFailures, match="3 items can't be scored, more than --max-failures 2"):
        run(source, tmp_path / "out", ensemble, max_failures=2)
    assert len((tmp_path / "out" / "casualties.csv").read_text().splitlines()) == 4
    assert not list((tmp_path / "out").glob("ledger/new/*"))
    assert report_of(tmp_path / "out")[0]["ended_by"].startswith("3 items can't be scored")
    assert run(source, tmp_path / "out", ensemble, max_failures=3).num_masks == 4


def test_output_that_cannot_be_written_is_tried_again_and_then_left_for_the_next_run(
    archive: Path, ensemble: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    name = sorted(path.name for path in archive.iterdir())[0]
    (tmp_path / name / "in-the-way").mkdir(parents=True)
    report = run(archive, tmp_path, ensemble)
    assert (report.num_masks, report.problems) == (6, [])
    assert list(report.unfinished) == [Path(name).stem]
    assert "IsADirectoryError" in report.unfinished[Path(name).stem]
    assert report.unfinished[Path(name).stem].endswith("(3 attempts)")
    shutil.rmtree(tmp_path / name)
    assert run(archive, tmp_path, ensemble).num_skipped == 6
    assert files_of(tmp_path) == undisturbed


def test_plan_says_what_there_is_to_do_and_writes_nothing(archive: Path, ensemble: str, tmp_path: Path) -> None:
    job = ScoreJob(src=str(archive), dst=str(tmp_path / "out"), ensemble=ensemble, settings=SETTINGS)
    plan = plan_score(job, Cluster())
    assert (plan.num_items, plan.num_done, plan.num_samples, plan.num_units, plan.workers) == (7, 0, 7, 10, CPUS - 1)
    assert plan.megapixels == pytest.approx((6 * 150**2 + 600**2) / 1e6)
    assert plan.bytes_to_read == sum(path.stat().st_size for path in archive.iterdir())
    layers = Layers(probability="uint8", members="uint8", member_names=("a", "b"))
    assert plan.bytes_to_write == 6 * layers.temporary_bytes(150, 150) + layers.temporary_bytes(600, 600)
    assert plan.disk_per_worker == UNITS_IN_FLIGHT * 2 * layers.temporary_bytes(600, 600)
    assert plan.hours > 0
    assert plan.memory_per_worker > 100 * 2**20
    assert not (tmp_path / "out").exists()


def test_destination_of_other_work_is_refused_with_the_difference(archive: Path, ensemble: str, tmp_path: Path) -> None:
    run(archive, tmp_path, ensemble)
    before = files_of(tmp_path)
    other = ScoreJob(
        src=str(archive), dst=str(tmp_path), ensemble=ensemble, settings=change(SETTINGS, {"threshold": 0.4})
    )
    with pytest.raises(ConfigError, match=r"masks of other work \(settings\.threshold: 0\.5 -> 0\.4\)"):
        score(other, Cluster())
    copy = Path(shutil.copytree(archive, tmp_path.with_name("copy")))
    elsewhere = ScoreJob(src=str(copy), dst=str(tmp_path), ensemble=ensemble, settings=SETTINGS)
    with pytest.raises(
        ConfigError, match=r"holds a mask of another p\d\ds00, not of .*copy/.*choose another destination"
    ):
        score(elsewhere, Cluster())
    with pytest.raises(ConfigError, match="would take the place of the source"):
        score(elsewhere.model_copy(update={"dst": str(copy)}), Cluster())
    slower = change(SETTINGS, {"block_px": 1024})
    assert score(other.model_copy(update={"settings": slower}), Cluster()).num_skipped == 7
    assert files_of(tmp_path).keys() == before.keys()


def test_weights_that_are_gone_are_the_callers_mistake(archive: Path, tmp_path: Path) -> None:
    ensemble = make_ensemble(tmp_path / "ensemble")
    next((tmp_path / "ensemble").rglob("weights.safetensors")).unlink()
    with pytest.raises(ConfigError, match=r"weights\.safetensors: no such file, but the ensemble names it"):
        run(archive, tmp_path / "out", ensemble)
    assert not list((tmp_path / "out").glob("*.tif"))


def test_session_is_left_as_it_was() -> None:
    with joined(Cluster(), []):
        assert ray.is_initialized()
    until = time.monotonic() + LIMIT_S
    while scorers() and time.monotonic() < until:
        time.sleep(0.1)
    assert not scorers(), "actors outlive their scoring"
