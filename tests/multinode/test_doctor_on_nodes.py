"""`raytrain doctor` as a job on a head and two nodes: each tells of itself, and the one that differs is named."""

from __future__ import annotations

import json
import os

import pytest

from raytrain import storage
from tests.multinode.lab import BUCKET, Lab

LIMIT_S = 240


def test_the_node_whose_disk_is_full_is_named_and_the_others_are_well(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in lab.swift.environment().items():
        monkeypatch.setenv(name, value)
    if not storage.exists(f"s3://{BUCKET}"):
        storage.filesystem(f"s3://{BUCKET}").mkdir(BUCKET)
    head, good, full = (lab.network.address(node) for node in (0, 1, 2))
    ballast = lab._ballast(2)[0]
    try:
        with ballast.open("wb") as file:
            room = os.statvfs(ballast.parent)
            os.posix_fallocate(file.fileno(), 0, int(room.f_bavail * room.f_frsize * 0.97))
        job = lab.submit("doctor", f"s3://{BUCKET}/doctor", "--json", "--limit-s", "100")
        ended, log = lab.wait(job, LIMIT_S), lab.logs(job)
    finally:
        ballast.unlink(missing_ok=True)
    assert ended["driver_exit_code"] == 1, log
    result = json.loads(log[log.index("{\n") : log.rindex("}") + 1])
    everywhere = [f"{head} (head)", good, full]
    assert result["nodes"] == everywhere
    by_check: dict[str, list[tuple[str, list[str]]]] = {}
    for each in result["findings"]:
        by_check.setdefault(each["check"], []).append((each["verdict"], each["nodes"]))
    for check in ("nodes", "versions", "clock", "shm", "memory", "network", "store", "token"):
        assert by_check[check] == [("ok", everywhere)], (check, log)
    assert by_check["job API"] == [("ok", everywhere[:1])], log
    assert ("failed", [full]) in by_check["disk"], log
    assert [verdict for verdict, nodes in by_check["disk"] if nodes != [full]] == ["ok", "ok"], log
    assert not storage.find(f"s3://{BUCKET}/doctor")
