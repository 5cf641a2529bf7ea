"""A rank that takes more memory than its node has: `python -m tests.chaos.memory --times 1`.

Ray's memory monitor kills a worker then. Once is told and survived; twice in a row without a checkpoint ends the run
with the advice. Prints what came of it, and exits with 1 if it went otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import raytrain.cluster  # noqa: F401  # it sets what Ray reads as it is imported
from tests.chaos.trace import LOOP, WhenImported

HOG_FOLDER, HOG_TIMES = "RAYTRAIN_HOG_FOLDER", "RAYTRAIN_HOG_TIMES"
ROOM_BYTES, PIECE_BYTES = 7 * 2**30, 2**28
"""What Ray's node may take beyond what the machine uses now, and in which pieces the hog takes it."""
STEPS_BEFORE = 3
MOST_BYTES = 2 * ROOM_BYTES


def install() -> None:
    """Let a rank of this worker hog memory (a `worker_process_setup_hook`)."""
    if os.environ.get(HOG_FOLDER) and LOOP not in sys.modules:
        sys.meta_path.insert(0, WhenImported(_hog))


def _hog(loop: Any) -> None:
    step, taken = loop.take_step, 0

    def take_step(net: Any, state: Any, settings: Any, samples: Any, ranks: Any) -> Any:
        nonlocal taken
        taken += 1
        if ranks.rank == ranks.world_size - 1 and taken > STEPS_BEFORE and _is_my_turn():
            held = []
            while len(held) * PIECE_BYTES < MOST_BYTES:
                held.append(b"\1" * PIECE_BYTES)
                time.sleep(0.05)
            time.sleep(60)  # until the monitor has seen it
        return step(net, state, settings, samples, ranks)

    loop.take_step = take_step


def _is_my_turn() -> bool:
    """Tell whether a rank may still hog; each turn is taken once."""
    for turn in range(int(os.environ[HOG_TIMES])):
        with contextlib.suppress(FileExistsError):
            Path(os.environ[HOG_FOLDER], str(turn)).touch(exist_ok=False)
            return True
    return False


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=1, help="how many attempts run out of memory")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as temporary:
        return _run(Path(temporary), times)


def _run(folder: Path, times: int) -> int:
    memory = {
        line.split(":")[0]: int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines()
    }
    used = memory["MemTotal"] - memory["MemAvailable"]
    limits = {"memory_usage_threshold": (used + ROOM_BYTES) / memory["MemTotal"], "memory_monitor_refresh_ms": 100}
    os.environ |= {f"RAY_{name}": str(value) for name, value in limits.items()}
    os.environ[HOG_FOLDER], os.environ[HOG_TIMES] = str(folder / "turns"), str(times)
    (folder / "turns").mkdir()

    import ray

    from raytrain.cluster.deaths import Kind
    from raytrain.cluster.runs import Checkpointing, TrainJob
    from raytrain.cluster.session import Cluster
    from raytrain.cluster.train import train
    from raytrain.config import ShardSettings
    from raytrain.imagery.synth import write_chips
    from tests.making import shard_chips

    write_chips(folder / "chips", count=12, size_px=64, seed=1, num_places=6)
    shard_chips(folder / "chips", folder / "shards", ShardSettings(folds="3"))
    hook = {"worker_process_setup_hook": "tests.chaos.memory.install"}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=hook)
    changes = {"epochs": 1, "crop_px": 32, "crops_per_tile": 8, "global_batch": 8, "decoder_channels": [8, 8, 8, 4, 4]}
    job = TrainJob(
        shards=str(folder / "shards"),
        out=str(folder / "runs"),
        members=("small-byob-3b",),
        workers=2,
        changes=changes,
        checkpointing=Checkpointing(interval_s=600),
    )
    (found,) = train(job, Cluster(), lambda news: None).runs
    kinds = [str(restart.kind) for restart in found.restarts]
    print(f"{times} times out of memory: {'finished' if found.net else found.reason}; restarts: {kinds}", flush=True)
    for restart in found.restarts:
        print(f"  {restart.cause}", flush=True)
    is_as_told = kinds == [Kind.OUT_OF_MEMORY] and "out of memory on a node (" in found.restarts[0].cause
    if times == 1:
        return int(not (is_as_told and found.net is not None))
    advice = "lower global_batch, crop_px or the number of ranks on a node"
    return int(not (is_as_told and found.net is None and advice in str(found.reason)))


if __name__ == "__main__":
    sys.exit(main())
