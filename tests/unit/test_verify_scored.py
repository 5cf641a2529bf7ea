"""What is wrong with a scored archive is named, each object by itself, whatever else is wrong."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from raytrain.cluster import session
from raytrain.cluster import verify as cluster_verify
from raytrain.cluster.verify import VerifyJob, VerifyReport
from raytrain.scoring import ledger
from raytrain.scoring.destination import claim_destination
from raytrain.scoring.units import Unit
from tests.unit.test_perform import do_all, noise, scenes_of, work_at, write_scene


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

    def in_order(function, work, total, on_progress):  # type: ignore[no-untyped-def]
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
