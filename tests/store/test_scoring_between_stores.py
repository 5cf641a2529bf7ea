"""Scenes of several stores and a web server, each with its own keys, are scored into another store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rasterio

from raytrain import storage
from raytrain.cluster.score import ScoreJob, score
from raytrain.cluster.session import Cluster
from raytrain.cluster.verify import VerifyJob, verify
from raytrain.config import ScoreSettings
from raytrain.scoring import ledger
from raytrain.storage import Stores, StoreSettings, stores
from tests.making import make_ensemble
from tests.store.swift import Swift
from tests.store.test_several_stores import no_table, other_server, profiles
from tests.webserver import WebServer

__all__ = ["no_table", "other_server", "profiles"]
SETTINGS = ScoreSettings(window_px=96, overlap_px=32, threads=1)
pytestmark = pytest.mark.own_ray


def test_scenes_of_two_stores_and_a_server_go_to_a_third_and_what_is_refused_is_listed(
    profiles: dict[str, Swift], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sorted((scenes / "scenes").glob("*.tif"))
    storage.write_bytes("s3://source/in/one.tif", first.read_bytes())
    storage.write_bytes("s3://destination/in/two.tif", second.read_bytes())
    item = json.loads((scenes / "scenes.json").read_bytes())["features"][0]
    (key,) = item["assets"]
    item["assets"][key]["href"] = "../in/one.tif"
    item["id"] = "item"
    storage.write_bytes("s3://source/items/item.json", json.dumps(item).encode())
    truncated = first.read_bytes()[:20000]
    with WebServer({"/web.tif": first.read_bytes(), "/cut.tif": truncated}) as web:
        web.answers["/secret.tif"] = [(403, {}, b"")] * 50
        allowed = {**stores.current().stores, web.origin: StoreSettings(private_address=True)}
        storage.use_stores(Stores(stores=allowed))
        listed = [
            "s3://source/in/one.tif",
            "s3://destination/in/two.tif",
            "s3://source/items/item.json",
            f"{web.origin}/web.tif?X-Signature=verysecret",
            f"{web.origin}/cut.tif",
            f"{web.origin}/secret.tif?X-Signature=verysecret",
            "s3://source/in/absent.tif",
            web.origin.replace("127.0.0.1", "localhost") + "/web2.tif",
        ]
        (tmp_path / "list.txt").write_text("\n".join(listed))
        job = ScoreJob(
            src=str(tmp_path / "list.txt"),
            dst="s3://destination/masks",
            ensemble=make_ensemble(tmp_path / "ensemble"),
            settings=SETTINGS,
        )
        report = score(job, Cluster())
        again = score(job, Cluster())
    assert (report.num_masks, report.unfinished) == (4, {})
    assert (again.num_masks, again.num_skipped) == (4, 4)
    found = {problem.subject.rsplit("/", 1)[-1]: problem.found for problem in report.problems}
    assert found.keys() == {"cut", "secret", "absent", "web2"}
    assert "is not a readable GeoTIFF" in found["cut"]
    assert "403" in found["secret"] or "refused" in found["secret"]
    assert "no such file" in found["absent"]
    assert "private_address" in found["web2"]
    masks = {record.item_id: record for record in ledger.read_records(job.dst)}
    assert masks.keys() == {"one", "two", "item", "web"}
    assert masks["one"].outputs["mask"].sha256 == masks["web"].outputs["mask"].sha256
    assert masks["one"].outputs["mask"].sha256 == masks["item"].outputs["mask"].sha256
    assert masks["item"].source_item_uri == "s3://source/items/item.json"
    with storage.gdal_environment(), rasterio.open(first) as source:
        assert (masks["web"].height, masks["web"].width) == source.shape
    names = storage.find("s3://destination/masks")
    assert not any(b"verysecret" in storage.read_bytes(f"s3://destination/masks/{name}") for name in names)
    assert "casualties.csv" in names
    assert not storage.find("s3://source/masks")
    verified = verify(VerifyJob(uri=job.dst), Cluster())
    assert (verified.kind, verified.differences) == ("scored archive", [])
