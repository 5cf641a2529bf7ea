"""A cluster of cluster.yaml's node types on Ray's fake provider: from no worker to what work asks for, and back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.test_jobs import ROOT, Head

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
TYPES: dict[str, dict[str, Any]] = CLUSTER["available_node_types"]
FAKE_HEAD = "ray.head.default"
"""What the fake provider takes for the head's type, whatever the file says."""
CPUS = {"gpu": 1, "cpu": 2}
"""In place of 48 and 16, for each of which a node would begin a process here."""
IDLE_S, LATER_S = 6, 120

DRIVER = """
import collections, json, sys, time
import raytrain.cluster
import ray
from raytrain.cluster import growth, session

def types():
    return dict(collections.Counter(
        "gpu" if node["Resources"].get("GPU") else "cpu" if node["Resources"].get("CPU") else "head"
        for node in ray.nodes() if node["Alive"]
    ))

def until(wanted):
    end = time.monotonic() + float(sys.argv[2])
    while types() != wanted and time.monotonic() < end:
        time.sleep(0.5)
    print(json.dumps(types()), flush=True)

@ray.remote(num_gpus=1, num_cpus=0)
class Rank:
    def where(self):
        return ray.get_runtime_context().get_node_id()

with session.joined(session.Cluster(address=sys.argv[1]), []):
    until({"head": 1})
    assert session.uses_gpus(6)
    with growth.asked_for(6, use_gpu=True, at_least=5):
        until({"head": 1, "gpu": 2})
        assert session.room(5, use_gpu=True) == 1
        ranks = [Rank.remote() for _ in range(5)]
        assert len(set(ray.get([rank.where.remote() for rank in ranks]))) == 2
        del ranks
    until({"head": 1})
"""


class GrowingHead(Head):
    """A head that does no work, whose autoscaler has the node types of cluster.yaml, fewer CPUs each."""

    more_environment = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}  # noqa: RUF012

    def more_options(self) -> dict[str, Any]:
        config = self.folder / "autoscaling.json"
        types = {name: self._type(name) for name in CPUS}
        types[FAKE_HEAD] = {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0}
        config.write_text(
            json.dumps(
                {
                    "cluster_name": CLUSTER["cluster_name"],
                    "max_workers": CLUSTER["max_workers"],
                    "upscaling_speed": 1.0,
                    "idle_timeout_minutes": IDLE_S / 60,
                    "provider": {
                        "type": "fake_multinode",
                        "gcs_address": self.gcs,
                        "use_node_id_as_ip": True,
                        "disable_node_updaters": True,
                        "disable_launch_config_check": True,
                    },
                    "available_node_types": types,
                    "head_node_type": FAKE_HEAD,
                    "auth": {},
                    "docker": {},
                    "file_mounts": {},
                    "cluster_synced_files": [],
                    "file_mounts_sync_continuously": False,
                    "rsync_exclude": [],
                    "rsync_filter": [],
                    "initialization_commands": [],
                    "setup_commands": [],
                    "head_setup_commands": [],
                    "worker_setup_commands": [],
                    "head_start_ray_commands": [],
                    "worker_start_ray_commands": [],
                }
            )
        )
        return {"num-cpus": 0, "autoscaling-config": config, "labels": self._labels()}

    def _type(self, name: str) -> dict[str, Any]:
        kept = {key: TYPES[name][key] for key in ("min_workers", "max_workers")}
        resources = TYPES[name]["resources"] | {"CPU": CPUS[name], "object_store_memory": 100_000_000}
        return {"resources": resources, "node_config": {}, **kept}

    def _labels(self) -> str:
        gpus = sum(TYPES[name]["resources"].get("GPU", 0) * TYPES[name]["max_workers"] for name in CPUS)
        cpus = CPUS["cpu"] * TYPES["cpu"]["max_workers"]
        return f"raytrain.most-gpus={gpus},raytrain.most-cpus={cpus}"


@pytest.fixture(scope="module")
def head() -> Iterator[GrowingHead]:
    head = GrowingHead()
    try:
        head.wait_until_ready()
        yield head
    finally:
        head.stop()


def test_gpu_nodes_come_for_ranks_that_no_node_could_hold_and_go_when_they_are_done(
    head: GrowingHead, tmp_path: Path
) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    done = subprocess.run(
        [sys.executable, tmp_path / "driver.py", head.gcs, str(LATER_S)],
        env=head.environment | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert seen == [{"head": 1}, {"head": 1, "gpu": 2}, {"head": 1}]
    assert (
        "waiting for nodes: the cluster has 0 GPUs, 5 are the least to begin with, and 6 are asked for" in done.stderr
    )


def test_command_shards_on_a_cluster_that_had_no_workers(head: GrowingHead, chips: Path, tmp_path: Path) -> None:
    shards = str(tmp_path / "shards")
    command = [sys.executable, "-m", "raytrain.cli", "shard", str(chips), shards, "--shared-path"]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, "--address", head.gcs],
        env=head.environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 tiles of 6 locations" in done.stdout
    assert "waiting for nodes: the cluster has 0 CPUs" in done.stderr, f"{time.monotonic() - begun:.0f} s"
