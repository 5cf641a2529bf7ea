"""Sharding, auditing and verifying on Ray: killed and gone on with, spread over nodes, leakage and damage found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio

from raytrain import cli
from raytrain.cluster.session import Cluster
from raytrain.cluster.shard import ShardJob, shard
from raytrain.config import ShardSettings
from raytrain.errors import ConfigError, WorkNotFinished
from raytrain.imagery.synth import write_chips
from raytrain.tiles.archive import open_archive
from raytrain.tiles.reader import TileReader
from tests.deciding import decide_on, make_review

RAYTRAIN = Path(sys.executable).with_name("raytrain")
SETTINGS = ShardSettings(folds="3", tiles_per_shard=2)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def shards(chips: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "here"
    assert not shard(ShardJob(src=str(chips), dst=str(folder), settings=SETTINGS), Cluster()).problems
    return folder


def test_killed_sharding_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, local_ray: None) -> None:
    """SIGKILL, to the driver and to its Ray: nobody tidies up."""
    write_chips(tmp_path / "chips", count=120, size_px=256, seed=3, num_places=6)
    arguments = [str(tmp_path / "chips"), str(tmp_path / "shards"), "--tiles-per-shard", "4", "--folds", "3"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        [RAYTRAIN, "shard", *arguments], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "shards").glob("shard-*.parquet"))) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    folder = tmp_path / "shards"
    assert not (folder / "manifest.json").exists()
    standing = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*.parquet")}
    parts = {path.name for path in (folder / "unfinished").iterdir() if path.suffix == ".parquet"}
    assert 5 <= len(standing) < 30
    settings = ShardSettings(folds="3", tiles_per_shard=4)
    report = shard(ShardJob(src=str(tmp_path / "chips"), dst=str(folder), settings=settings), Cluster())
    assert report.manifest is not None
    assert report.manifest["num_tiles"] == 120
    assert all(path.stat().st_mtime_ns == time for path, time in standing.items() if path.name in parts)
    shard(ShardJob(src=str(tmp_path / "chips"), dst=str(tmp_path / "whole"), settings=settings), Cluster())
    assert bytes_of(folder) == bytes_of(tmp_path / "whole")


def test_chips_that_change_while_they_are_read_are_noticed_and_read_again(own_chips: Path, tmp_path: Path) -> None:
    job = ShardJob(src=str(own_chips), dst=str(tmp_path / "shards"), settings=SETTINGS)
    path = Path(open_archive(str(own_chips), ("B02",)).chips[7].bands["B02"])

    def touch(done: int, total: int) -> None:
        if done == total:
            data = path.read_bytes()
            path.write_bytes(data)
            os.utime(path, (1, 1))

    with pytest.raises(WorkNotFinished, match="chips changed while they were read; the same command"):
        shard(job, Cluster(), touch)
    assert not (tmp_path / "shards" / "manifest.json").exists()
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("shard-*.parquet")}
    assert shard(job, Cluster()).manifest is not None
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("shard-*.parquet")}
    assert [name for name in times if again[name] != times[name]] == ["shard-00003.parquet"]


def test_chips_that_changed_after_the_shards_were_made_are_noticed(own_chips: Path, tmp_path: Path) -> None:
    job = ShardJob(src=str(own_chips), dst=str(tmp_path / "shards"), settings=SETTINGS)
    assert shard(job, Cluster()).manifest is not None
    before = bytes_of(tmp_path / "shards")
    os.utime(open_archive(str(own_chips), ("B02",)).chips[3].bands["B02"], (1, 1))
    with pytest.raises(ConfigError, match="are not those that the shards were made from"):
        shard(job, Cluster())
    assert bytes_of(tmp_path / "shards") == before


def test_shards_that_people_s_decisions_made_are_not_those_of_the_chips(
    chips: Path, shards: Path, tmp_path: Path, local_ray: None
) -> None:
    review, new = make_review(tmp_path / "review", shards), tmp_path / "new"
    decide_on(review, shards, TileReader(str(shards), ()).tile_id(0), 1, verdict="drop")
    assert cli.main(["review", "apply", review, str(new)]) == 0
    before = bytes_of(new)
    with pytest.raises(
        ConfigError, match=r"holds shards that raytrain review apply made of those at .*; choose another"
    ):
        shard(ShardJob(src=str(chips), dst=str(new), settings=SETTINGS), Cluster())
    assert bytes_of(new) == before


def test_values_that_do_not_look_like_their_baseline_are_warned_of_and_recorded(
    chips: Path, tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["shard", str(chips), str(tmp_path / "shards"), "--folds", "3", "--baseline", "from-04.00", "--json"]
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert "raytrain: warning: the values do not look shifted by 1000 (" in captured.err
    assert json.loads(captured.out)["warning"].startswith("the values do not look shifted by 1000")
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert manifest["settings"]["baseline"] == "from-04.00"
    assert manifest["source"]["doubt"] == json.loads(captured.out)["warning"]
    assert cli.main(["shard", str(chips), str(tmp_path / "plain"), "--folds", "3"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_verify_is_silent_about_what_is_whole_and_names_what_is_not(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(shards), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_objects"] == 7
    spoilt = Path(shutil.copytree(shards, tmp_path / "spoilt"))
    data = bytearray((spoilt / "shard-00001.parquet").read_bytes())
    data[len(data) // 3] ^= 1
    (spoilt / "shard-00001.parquet").write_bytes(data)
    (spoilt / "shard-00004.parquet").unlink()
    assert cli.main(["verify", str(spoilt)]) == 1
    said = capsys.readouterr().err
    assert f"{spoilt}/shard-00001.parquet: sha256 is" in said
    assert f"{spoilt}/shard-00004.parquet: missing, but the manifest names it" in said
    assert "shard-00000" not in said


def test_audit_passes_folds_by_location_and_fails_others(
    shards: Path, chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit", str(shards), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["num_tiles"] for each in found["folds"]] == [4, 4, 4]
    assert all(not leak["tiles_by_fold"] for leak in found["leaks"].values())
    ids = TileReader(str(shards), ()).tile_ids
    (tmp_path / "folds.csv").write_text("\n".join(["chip_id,fold", *(f"{name},{i % 2}" for i, name in enumerate(ids))]))
    assert cli.main(["audit", str(shards), "--folds", str(tmp_path / "folds.csv")]) == 1
    captured = capsys.readouterr()
    assert "leakage between the folds: same location" in captured.err
    assert "fold 0: 6, fold 1: 6" in captured.out


def test_copied_pixels_under_another_name_are_found_across_folds(own_chips: Path, tmp_path: Path) -> None:
    """A chip's pixels again, a little brighter and noisier, at a place that is in another fold."""
    archive = open_archive(str(own_chips), ("B02", "B03", "B04", "B08"))
    brightest = max(archive.chips, key=lambda chip: float(np.std(_pixels(chip.bands["B04"]))))
    other = next(chip for chip in archive.chips if chip.row.location != brightest.row.location)
    generator = np.random.default_rng(0)
    for band in brightest.bands:
        pixels = _pixels(brightest.bands[band])
        noisy = (pixels * 1.02 + generator.normal(0, 10, pixels.shape)).clip(1, 65535) * (pixels != 0)
        with rasterio.open(other.bands[band]) as source:
            profile = source.profile
        with rasterio.open(other.bands[band], "w", **profile) as target:
            target.write(noisy.astype(np.uint16), 1)
    (tmp_path / "folds.csv").write_text(
        "\n".join(["chip_id,fold", *(f"{c.chip_id},{int(c.chip_id == other.chip_id)}" for c in archive.chips)])
    )
    settings = ShardSettings(folds=str(tmp_path / "folds.csv"))
    assert shard(ShardJob(src=str(own_chips), dst=str(tmp_path / "shards"), settings=settings), Cluster()).manifest
    from raytrain.cluster.audit import AuditJob, audit

    report = audit(AuditJob(src=str(tmp_path / "shards")), Cluster())
    leaks = {leak.kind: leak for leak, _ in report.leaks}
    ids = [chip.chip_id for chip in archive.chips]
    found = {ids[i] for i in leaks["nearly equal pixels"].tiles}
    assert found == {brightest.chip_id, other.chip_id}


def _pixels(uri: str) -> np.ndarray:
    with rasterio.open(uri) as source:
        return source.read(1)


@pytest.fixture
def three_nodes() -> Iterator[str]:
    """The address of a Ray of a head without CPUs and two nodes of one each, on this machine."""
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        yield nodes.address
    finally:
        nodes.shutdown()


def test_work_is_spread_over_the_nodes(three_nodes: str, chips: Path, tmp_path: Path) -> None:
    """In a process of its own: this one has another Ray."""
    program = (
        "import sys\n"
        "from raytrain.cluster.shard import ShardJob, shard\n"
        "from raytrain.cluster.session import Cluster\n"
        "from raytrain.config import ShardSettings\n"
        "settings = ShardSettings(folds='3', tiles_per_shard=1)\n"
        "job = ShardJob(src=sys.argv[2], dst=sys.argv[3], settings=settings)\n"
        "report = shard(job, Cluster(address=sys.argv[1], shared_path=True))\n"
        "print(len(report.nodes), report.manifest['num_tiles'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, three_nodes, str(chips), str(tmp_path / "shards")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "12"]
