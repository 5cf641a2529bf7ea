"""Shards scored out of fold on Ray: each tile once, by the nets of its fold, whatever is damaged or stopped."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raytrain import cli
from raytrain.cluster.score import score
from raytrain.cluster.score_plan import plan_score
from raytrain.cluster.session import Cluster
from raytrain.cluster.verify import VerifyJob, verify
from raytrain.config import change
from raytrain.scoring.destination import tells_of_the_run
from raytrain.scoring.schedule import TooManyFailures
from tests.making import make_ensemble, make_tile, write_tiles
from tests.unit.test_out_of_fold import SETTINGS, do_all, job_of, rasters_of, records_of, spoil

pytestmark = pytest.mark.usefixtures("local_ray")
REVIEWED = change(SETTINGS, {"probability": "uint8", "disagreement": "uint8"})
OPTIONS = ["--set", "window_px=64", "overlap_px=16", "threads=1", "windows_per_pass=3"]
COUNT = 40
"""Tiles: of each fold there is a full unit and a part of one."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    tiles = [replace(make_tile(i, (32, 32)), location=f"place{i % 10}") for i in range(COUNT)]
    write_tiles(folder, tiles, "blosc2-bitshuffle-lz4", tiles_per_shard=10)
    return folder


@pytest.fixture(scope="module")
def ensemble(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_ensemble(tmp_path_factory.mktemp("ensemble"), folds=(0, 1), shards=str(shards))


@pytest.fixture(scope="module")
def one_by_one(shards: Path, ensemble: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is there when the units are done one after the other without Ray."""
    folder = tmp_path_factory.mktemp("one-by-one")
    do_all(job_of(shards, folder, ensemble, settings=REVIEWED))
    return folder


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the files of a destination that are a function of the work, with when they were written."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    kept = {name: path for name, path in files.items() if not tells_of_the_run(name)}
    return {name: (path.stat().st_mtime_ns, path.read_bytes()) for name, path in kept.items()}


def test_command_scores_each_tile_once_and_tells_of_the_damaged_one(
    shards: Path, ensemble: str, one_by_one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, out = Path(shutil.copytree(shards, tmp_path / "own")), tmp_path / "out"
    spoil(own, "tile7", "B04")
    argv = ["score", str(own), str(out), "--ensemble", ensemble, "--out-of-fold", "--json", *OPTIONS]
    assert cli.main(argv) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["num_masks"], said["num_skipped"], said["unfinished"]) == (COUNT - 1, 0, {})
    assert [problem["subject"] for problem in said["problems"]] == ["tile7"]
    assert "B04: its" in said["problems"][0]["found"]
    expected = {name: data for name, data in rasters_of(one_by_one).items() if not name.endswith("tile7.tif")}
    assert rasters_of(out) == expected
    assert len(expected) == 3 * (COUNT - 1), "probability and disagreement are there, too"
    before = files_of(out)
    assert cli.main(argv) == 1
    assert json.loads(capsys.readouterr().out)["num_skipped"] == COUNT - 1
    after = files_of(out)
    assert {name: data for name, data in after.items() if name.endswith(".tif")} == {
        name: data for name, data in before.items() if name.endswith(".tif")
    }, "something was written twice"
    (out / "probability" / "tile3.tif").unlink()
    shutil.copytree(shards, own, dirs_exist_ok=True)
    assert cli.main(argv) == 0
    assert json.loads(capsys.readouterr().out)["num_skipped"] == COUNT - 2
    assert rasters_of(out) == rasters_of(one_by_one)
    found, expected_records = records_of(out), records_of(one_by_one)
    assert {i: (r.identity, r.outputs) for i, r in found.items()} == {
        i: (r.identity, r.outputs) for i, r in expected_records.items()
    }
    assert verify(VerifyJob(uri=str(out)), Cluster()).differences == []
    page = (out / "report.html").read_text()
    assert "True colour" in page
    assert "no true colour" not in page
    assert "40 tiles scored by 2 members" in page


def test_stopped_work_goes_on_to_the_same_bytes(shards: Path, ensemble: str, one_by_one: Path, tmp_path: Path) -> None:
    own, out = Path(shutil.copytree(shards, tmp_path / "own")), tmp_path / "out"
    spoil(own, "tile38", "B02")
    job = job_of(own, out, ensemble, settings=REVIEWED, max_failures=0)
    with pytest.raises(TooManyFailures):
        score(job, Cluster())
    shutil.copytree(shards, own, dirs_exist_ok=True)
    report = score(job, Cluster())
    assert report.num_masks == COUNT
    assert report.num_skipped >= 3, "what was done beside the damaged tile was done again"
    assert rasters_of(out) == rasters_of(one_by_one)


def test_shards_made_anew_while_they_are_scored_are_listed_anew_by_the_next_run(
    shards: Path, ensemble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, out = Path(shutil.copytree(shards, tmp_path / "own")), tmp_path / "out"
    job = job_of(own, out, ensemble, settings=REVIEWED)
    from raytrain.cluster import score as module

    real = module.write_plan

    def then_change(*arguments: Any) -> object:
        plan = real(*arguments)
        tiles = [replace(make_tile(i, (32, 32)), location=f"place{i % 10}") for i in reversed(range(COUNT))]
        shutil.rmtree(own)
        write_tiles(own, tiles, "blosc2-bitshuffle-lz4")
        return plan

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_plan", then_change)
        report = score(job, Cluster())
    assert (report.num_masks, report.problems) == (0, [])
    assert len(report.unfinished) == COUNT
    assert not rasters_of(out)


def test_tile_that_no_net_may_score_any_more_loses_its_outputs_and_its_record(
    shards: Path, ensemble: str, one_by_one: Path, tmp_path: Path
) -> None:
    own, out = Path(shutil.copytree(shards, tmp_path / "own")), tmp_path / "out"
    job = job_of(own, out, ensemble, settings=REVIEWED)
    assert score(job, Cluster()).num_masks == COUNT
    shutil.rmtree(own)
    tiles = [replace(make_tile(i, (32, 32)), location=f"place{i % 10}") for i in range(COUNT)]
    tiles[7] = replace(tiles[7], label=None, location="place8")  # without its label: only the old name tells
    tiles[9] = replace(tiles[9], location="Chad")
    write_tiles(own, tiles, "blosc2-bitshuffle-lz4", tiles_per_shard=10)
    report = score(job, Cluster())
    gone = ["tile7", *(f"tile{i}" for i in range(8, COUNT, 10))]
    assert sorted(problem.subject for problem in report.problems) == sorted(gone)
    assert all("so every net learnt from it" in problem.found for problem in report.problems)
    assert (report.num_masks, report.num_skipped) == (COUNT - len(gone), COUNT - len(gone))
    expected = {name: data for name, data in rasters_of(one_by_one).items() if Path(name).stem not in gone}
    assert rasters_of(out) == expected
    assert sorted(records_of(out)) == sorted({Path(name).stem for name in expected})
    assert verify(VerifyJob(uri=str(out)), Cluster()).differences == []


def test_plan_says_what_shards_take(shards: Path, ensemble: str, tmp_path: Path) -> None:
    job = job_of(shards, tmp_path / "out", ensemble, settings=REVIEWED)
    plan = plan_score(job, Cluster())
    assert (plan.num_items, plan.num_done, plan.num_units, plan.problems) == (COUNT, 0, 4, [])
    assert plan.megapixels == pytest.approx(COUNT * 32 * 32 / 1e6)
    assert plan.bytes_to_read > 0
    assert not (tmp_path / "out").exists()
