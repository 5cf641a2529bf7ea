"""`raytrain doctor` on a Ray: its tasks tell of the node and of stores, and what does not answer is told, too."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from raytrain import storage
from raytrain.cli import main
from raytrain.cluster import node_tasks
from raytrain.cluster.doctor import doctor
from raytrain.cluster.examination import DoctorJob
from raytrain.cluster.session import Cluster

pytestmark = pytest.mark.usefixtures("local_ray")


def test_a_machine_and_its_stores_are_told_of_and_nothing_is_left(
    s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, archive = f"{s3}/{tmp_path.name}/runs", f"{s3}/{tmp_path.name}/archive"
    storage.write_bytes(f"{archive}/chip", b"pixels")
    arguments = [place, "s3://absent", "--read-only", archive, "--cache", str(tmp_path)]
    assert main(["doctor", *arguments, "--json"]) == 1  # there is no bucket `absent`
    result = json.loads(capsys.readouterr().out)
    assert (result["reached"], result["nodes"]) == (True, ["this machine"])
    found = {each["check"]: each for each in result["findings"] if each["check"] != "store"}
    assert {"nodes", "versions", "GPUs", "cache", "disk", "shm", "memory", "open files", "token"} <= set(found)
    assert found["versions"]["verdict"] == "ok", found["versions"]
    stores = [(each["verdict"], each["found"]) for each in result["findings"] if each["check"] == "store"]
    assert [verdict for verdict, _ in stores] == ["ok", "failed", "ok"]
    assert stores[0][1].startswith(f"{place}: list, write, read, delete; keys: environment; at http://127.0.0.1")
    assert "has no bucket absent (404 NoSuchBucket)" in stores[1][1]
    assert stores[2][1].startswith(f"{archive}: list, read; keys: environment")
    assert list(storage.find(f"{s3}/{tmp_path.name}")) == ["archive/chip"]
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_does_not_answer_is_a_finding_and_the_limit_holds(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(request: dict[str, Any]) -> Any:
        time.sleep(60)

    monkeypatch.setattr(node_tasks, "stores", never)
    start = time.monotonic()
    report = doctor(DoctorJob(uris=(f"{s3}/x",), limit_s=12), Cluster())
    assert time.monotonic() - start < 25
    (late,) = [each for each in report.findings if each.verdict == "failed"]
    assert "its stores took longer than 12 s; there may be probes: s3://bucket/folder/x/raytrain-doctor-" in late.found
    assert [each.verdict for each in report.findings if each.check == "versions"] == ["ok"]
    monkeypatch.setattr(node_tasks, "look", never)
    report = doctor(DoctorJob(limit_s=3), Cluster())
    assert [(each.verdict, each.found) for each in report.findings] == [("failed", "does not answer within 3 s (look)")]


def test_an_answer_of_another_raytrain_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(request: dict[str, Any]) -> Any:
        return {"versions": {"raytrain": "0.0.9"}, "something": "else"}

    monkeypatch.setattr(node_tasks, "look", other)
    (found,) = doctor(DoctorJob(), Cluster()).findings
    assert (found.verdict, "version 0.0.9" in found.found) == ("failed", True)

    def absent(request: dict[str, Any]) -> Any:
        raise ModuleNotFoundError("No module named 'raytrain.cluster.node_look'")

    monkeypatch.setattr(node_tasks, "look", absent)
    (found,) = doctor(DoctorJob(), Cluster()).findings
    assert "its raytrain can't answer (look): ModuleNotFoundError: No module named 'raytrain.cluster" in found.found
