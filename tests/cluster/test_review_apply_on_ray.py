"""Decisions applied on Ray: the result is verified, audited and read by training; killed, it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from raytrain import cli, storage
from raytrain.review.log import DecisionLog
from raytrain.review.regions import encode_mask
from raytrain.tiles.reader import TileReader, read_index
from tests.deciding import decide, decide_on, make_review
from tests.making import BANDS, make_tile, write_tiles

RAYTRAIN = Path(sys.executable).with_name("raytrain")
SHAPE = (32, 32)
HALF = np.zeros(SHAPE, np.uint8)
HALF[:16] = 1


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["local", "s3"])
def test_new_shards_are_as_decided_and_are_verified_and_audited(
    tmp_path: Path, s3: str, local_ray: None, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(tmp_path) if place == "local" else f"{s3}/apply"
    shards, dst = f"{base}/shards", f"{base}/new"
    write_tiles(shards, [make_tile(i, SHAPE) for i in range(6)], "blosc2-bitshuffle-zstd", tiles_per_shard=2)
    review = make_review(f"{base}/review", shards)
    parent = {name: storage.read_bytes(f"{shards}/{name}") for name in storage.find(shards)}
    decide_on(review, shards, "tile0", 1, verdict="fix", mask=encode_mask(HALF))
    decide_on(review, shards, "tile1", 2, verdict="ignore", mask=encode_mask(HALF))
    decide_on(review, shards, "tile4", 3, verdict="drop")
    assert cli.main(["review", "apply", review, dst, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_tiles"], found["problems"]) == (5, [])
    assert found["review"]["applied"] == {"drop": 1, "fix": 1, "ignore": 1}
    assert found["review"]["outcomes"]["applied"] == found["review"]["num_decisions"] == 3
    assert {name: storage.read_bytes(f"{shards}/{name}") for name in storage.find(shards)} == parent
    assert storage.read_bytes(f"{dst}/shard-00001.parquet") == parent["shard-00001.parquet"]
    old, new = TileReader(shards, BANDS), TileReader(dst, BANDS)
    for i, name in enumerate(new.tile_ids):
        pixels, label = new.read(i)
        before, label_before = old.read(old.tile_ids.index(name))
        assert (pixels == before).all()
        expected = {"tile0": HALF, "tile1": np.where(HALF == 1, 255, label_before)}.get(name, label_before)
        assert np.array_equal(label, expected)
    assert cli.main(["verify", dst]) == 0
    assert "5 objects" in capsys.readouterr().out, "three shards, the index and the decisions"
    assert cli.main(["audit", dst]) == 0
    capsys.readouterr()

    names = list(storage.find(dst))
    assert cli.main(["review", "apply", review, dst]) == 0
    assert "already there" in capsys.readouterr().out
    assert list(storage.find(dst)) == names
    table = storage.read_bytes(f"{dst}/decisions.parquet")
    storage.write_bytes(f"{dst}/decisions.parquet", table[:-1] + b"?")
    assert cli.main(["verify", dst]) == 1
    assert "decisions.parquet: sha256 is" in capsys.readouterr().err.replace("\n", "")


def test_stale_and_contested_decisions_end_with_1_and_are_listed(
    tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    write_tiles(shards, [make_tile(i, SHAPE) for i in range(4)], "raw", tiles_per_shard=2)
    review = make_review(tmp_path / "review", shards)
    decide_on(review, shards, "tile0", 1, verdict="drop", tile_sha256="1" * 64)
    decide_on(review, shards, "tile1", 2, verdict="drop")
    decide_on(review, shards, "tile1", 2, reviewer="bob")
    decide_on(review, shards, "tile2", 3, verdict="drop")
    for _ in range(2):
        assert cli.main(["review", "apply", review, str(tmp_path / "new"), "--json"]) == 1
        printed = capsys.readouterr()
        found = json.loads(printed.out)
        assert found["num_tiles"] == 3
        assert [each["subject"].split(" by")[0] for each in found["problems"]] == ["drop of tile tile0", "tile tile1"]
        assert "reviewers contradict each other (ann drop, bob accept)" in printed.err.replace("\n", "")
    decide_on(review, shards, "tile2", 9, verdict="drop", reviewer="bob")
    decide_on(review, shards, "tile2", 9, verdict="unsure", reviewer="eve")
    capsys.readouterr()
    assert cli.main(["review", "apply", review, str(tmp_path / "counted")]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 6 decisions applied (drop 1); 1 agreeing with one that is; 1 unsure; 3 left out" in printed
    assert cli.main(["review", "apply", review, str(tmp_path / "one"), "--reviewers", "bob"]) == 0
    latest = ["review", "apply", review, str(tmp_path / "latest"), "--conflicts", "latest"]
    assert cli.main(latest) == 1
    assert len(TileReader(str(tmp_path / "latest"), ())) == 3
    assert cli.main(["review", "apply", review, str(shards)]) == 2


def test_killed_apply_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, local_ray: None) -> None:
    """SIGKILL, to the driver and to its Ray: nobody tidies up."""
    shards, folder, count = tmp_path / "shards", tmp_path / "new", 400
    write_tiles(shards, [make_tile(i, SHAPE) for i in range(count)], "blosc2-bitshuffle-zstd", tiles_per_shard=2)
    review = make_review(tmp_path / "review", shards)
    hashes = read_index(str(shards), ["sha256"])["sha256"].to_pylist()
    log = DecisionLog(review)
    for i in range(0, count, 3):
        fix = {"verdict": "fix", "mask": encode_mask(HALF)}
        log.append(decide(i + 1, tile_id=f"tile{i}", tile_sha256=hashes[i], **fix))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        [RAYTRAIN, "review", "apply", review, str(folder)],
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(list(folder.glob("shard-*.parquet"))) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "manifest.json").exists()
    parts = {path.name for path in (folder / "unfinished").iterdir() if path.suffix == ".parquet"}
    standing = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*.parquet") if path.name in parts}
    assert 1 <= len(standing) < count // 2
    assert cli.main(["review", "apply", review, str(folder)]) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in standing.items()), "a whole shard was written again"
    assert cli.main(["review", "apply", review, str(tmp_path / "whole")]) == 0
    assert bytes_of(folder) == bytes_of(tmp_path / "whole")
