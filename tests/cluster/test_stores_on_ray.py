"""Workers ask stores as the driver was told to; a Ray of its own, since the table is given as it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raytrain import storage
from raytrain.cluster.session import Cluster, joined
from raytrain.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
import os, subprocess, sys
import raytrain.cluster
import ray
from raytrain import storage
from raytrain.cluster.session import Cluster, joined

LOOK = "print(storage.stores.current().settings_of('s3://there/x').endpoint)"

def endpoint():
    return storage.stores.current().settings_of("s3://there/x").endpoint

@ray.remote
def task():
    child = subprocess.run([sys.executable, "-c", "from raytrain import storage; " + LOOK], stdout=-1, check=True)
    return endpoint(), child.stdout.decode().strip(), os.environ.get("OF_THE_JOB")

@ray.remote
class Actor:
    def look(self):
        return endpoint()

if __name__ == "__main__":
    storage.use_stores(storage.read_stores('[stores."s3://there"]\\nendpoint = "http://127.0.0.1:9"', "text"))
    with joined(Cluster(address=os.environ.get("RAY_ADDRESS", "local")), []):
        print(ray.get(task.remote()), ray.get(Actor.remote().look.remote()))
"""
SEEN = "('http://127.0.0.1:9', 'http://127.0.0.1:9', {job!r}) http://127.0.0.1:9\n"
"""What the driver prints: of a task and of a process that it starts, and of an actor."""


def test_tasks_actors_and_their_processes_see_the_table_of_the_driver(tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {name: value for name, value in os.environ.items() if name != storage.stores.VARIABLE}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "driver.py")],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.stdout == SEEN.format(job=None), done.stderr


def test_other_stores_than_those_that_ray_was_started_with_are_refused(local_ray: None) -> None:
    with joined(Cluster(), []):
        pass
    storage.use_stores(storage.read_stores('[stores."s3://there"]\nanonymous = true', "text"))
    try:
        with pytest.raises(ConfigError, match="with other stores"), joined(Cluster(), []):
            pass
    finally:
        storage.use_stores(storage.Stores())
