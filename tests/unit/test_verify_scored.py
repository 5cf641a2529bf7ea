"""What is wrong with a scored archive is named, each object by itself, whatever else is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from raytrain.cluster import session
from raytrain.cluster import verify as cluster_verify
from raytrain.cluster.verify import VerifyJob, VerifyReport
from raytrain.config import change
from raytrain.scoring import ledger
from raytrain.scoring.catalogue import is_catalogue_whole
from raytrain.scoring.destination import claim_destination
from raytrain.scoring.units import Unit
from tests.unit.test_perform import SETTINGS, do_all, noise, scenes_of, work_at, write_scene


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """Four scenes scored."""
    for name in "abcd":
        write_scene(tmp_path / "in" / f"{name}.tif", noise(70, 60))
    work = work_at(tmp_path / "out")
    claim_destination(work.destination, work.scoring)
    do_all([Unit(kind="scene", scene=scene) for scene in scenes_of(tmp_path / "in")], work)
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the tasks of Ray one after the other, in this process."""

    def in_order(function: Callable[[Any], Any], work: Iterable[Any], total: int, on_progress: object) -> list[Any]:
        done = [function(each) for each in work]
        assert len(done) == total
        return done

    monkeypatch.setattr(cluster_verify, "run_tasks", in_order)
    monkeypatch.setattr(session, "joined", lambda *_: nullcontext())


def verified(folder: Path) -> VerifyReport:
    return cluster_verify.verify(VerifyJob(uri=str(folder)), session.Cluster())


def named(report: VerifyReport) -> dict[str, str]:
    return {Path(each.subject).name: each.found for each in report.differences}


def test_damaged_table_is_a_difference_and_the_rest_is_verified(scored: Path) -> None:
    report = verified(scored)
    assert (report.num_objects, report.differences) == (8, [])
    digit = ledger.bucket_of("a")
    mates = [name for name in "abcd" if ledger.bucket_of(name) == digit]
    table = scored / "ledger" / f"records-{digit}.parquet"
    data = bytearray(table.read_bytes())
    data[60] ^= 0xFF
    table.write_bytes(bytes(data))
    (other,) = [name for name in "abcd" if name not in mates][-1:]
    (scored / f"{other}.tif").write_bytes(b"junk")
    (scored / "stranger.tif").write_bytes(b"junk")
    report = verified(scored)
    found = named(report)
    assert found.keys() == {table.name, f"{other}.tif", "stranger.tif"}
    assert "damaged, not a table of the ledger" in found[table.name]
    assert report.num_objects == 2 * (4 - len(mates))


def test_map_of_a_member_that_is_damaged_gone_or_of_nobody_is_a_difference(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    work = work_at(tmp_path / "out", change(SETTINGS, {"members": "uint8"}))
    claim_destination(work.destination, work.scoring)
    do_all([Unit(kind="scene", scene=scene) for scene in scenes_of(tmp_path / "in")], work)
    report = verified(tmp_path / "out")
    assert (report.num_objects, report.differences) == (4, [])
    folder = tmp_path / "out" / "members"
    data = bytearray((folder / "other" / "s.tif").read_bytes())
    data[-1] ^= 1
    (folder / "other" / "s.tif").write_bytes(bytes(data))
    (folder / "small-effnet-4b-20k" / "s.tif").unlink()
    (folder / "former").mkdir()
    (folder / "former" / "s.tif").write_bytes(b"junk")
    found = {str(Path(each.subject).parent.name): each.found for each in verified(tmp_path / "out").differences}
    assert found.keys() == {"other", "small-effnet-4b-20k", "former"}
    assert "the ledger says" in found["other"]
    assert "missing, but the ledger names it" in found["small-effnet-4b-20k"]
    assert "no record of the ledger names it" in found["former"]


def test_catalogue_that_is_gone_damaged_or_of_other_items_is_a_difference_and_to_be_written_again(
    scored: Path,
) -> None:
    assert is_catalogue_whole(str(scored))
    collection, table = scored / "collection.json", scored / "items.parquet"
    whole = {path: path.read_bytes() for path in (collection, table)}

    def wrong_with(changed: dict[Path, bytes | None]) -> dict[str, str]:
        for path, data in {**whole, **changed}.items():
            path.unlink(missing_ok=True) if data is None else path.write_bytes(data)
        found = named(verified(scored))
        assert is_catalogue_whole(str(scored)) == (not found)
        return found

    assert wrong_with({}) == {}
    missing = "missing, but the ledger has STAC items; score again"
    assert wrong_with({collection: None}) == {"collection.json": missing}
    assert wrong_with({table: None}) == {"items.parquet": missing}
    assert wrong_with({collection: None, table: None}) == {"collection.json": missing, "items.parquet": missing}
    assert "not a JSON file" in wrong_with({collection: whole[collection][:-9]})["collection.json"]
    assert "names no checksum" in wrong_with({collection: b'{"assets": []}'})["collection.json"]
    flipped = bytearray(whole[table])
    flipped[100] ^= 1
    assert "collection.json says" in wrong_with({table: bytes(flipped)})["items.parquet"]
    ledger.compact(str(scored), dropped=["a"])
    assert "4 STAC items, where the ledger has 3" in wrong_with({})["items.parquet"]
    ledger.compact(str(scored), dropped="abcd")
    assert wrong_with({}).keys() == {*(f"{name}.tif" for name in "abcd"), *(f"{name}.json" for name in "abcd")} | {
        "collection.json",
        "items.parquet",
    }


def test_without_stac_items_there_is_no_catalogue(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60), crs=None)
    work = work_at(tmp_path / "out")
    claim_destination(work.destination, work.scoring)
    do_all([Unit(kind="scene", scene=scene) for scene in scenes_of(tmp_path / "in")], work)
    assert verified(tmp_path / "out").differences == []
    assert is_catalogue_whole(work.destination)
