"""The training loop as one rank of `torchrun`, with torch's own process group: what a training without Ray is.

`torchrun --nproc-per-node N -m tests.bench.torchrun_rank WORK`, where WORK is JSON: `settings` of the member, `shards`,
`fold`, `loader`, the `cores` that ranks are bound to (one each, none: not bound), whether to `profile` one epoch
more, and `out`, where rank 0 writes what it found. Must not import Ray.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.profiler import ProfilerActivity, profile

from raytrain.config import LoaderSettings, MemberSettings, parse
from raytrain.tiles.reader import TileReader, select_tiles
from raytrain.training.checkpoints import TrainingState
from raytrain.training.loop import EpochReport, TrainingData, train_member
from raytrain.training.ranks import Ranks


def main() -> None:
    """Train with what the environment says of this rank."""
    work: dict[str, Any] = json.loads(sys.argv[1])
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if work["cores"]:
        os.sched_setaffinity(0, {work["cores"][rank]})
    if world_size > 1:
        torch.distributed.init_process_group("gloo")
    found = measure(work, Ranks(rank, world_size))
    if rank == 0:
        Path(work["out"]).write_text(json.dumps(found | {"threads": torch.get_num_threads()}))
    if world_size > 1:
        torch.distributed.destroy_process_group()


def measure(work: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Train; return `images_per_s` and `epoch_s` of each epoch, and the `all_reduce` share of the one profiled."""
    settings = parse(MemberSettings, work["settings"], "settings")
    loader = parse(LoaderSettings, work["loader"], "loader")
    reader = TileReader(work["shards"], settings.bands, loader)
    train, validation = (select_tiles(reader, work["fold"], part) for part in ("train", "validation"))
    if work["profile"]:
        settings = settings.model_copy(update={"epochs": settings.epochs + 1})
    profiler = profile(activities=[ProfilerActivity.CPU])
    epochs: list[dict[str, float]] = []
    shares: dict[str, float] = {}

    def on_epoch(report: EpochReport, state: TrainingState) -> None:
        if work["profile"] and report.epoch == settings.epochs - 1:
            profiler.stop()
            spent = sum(each.cpu_time_total for each in profiler.key_averages() if each.key == "gloo:all_reduce")
            shares["all_reduce"] = spent / 1e6 / report.epoch_s
            return
        epochs.append({"images_per_s": report.images_per_s, "epoch_s": report.epoch_s})
        if work["profile"] and report.epoch == settings.epochs - 2:
            profiler.start()

    train_member(settings, TrainingData(reader, train, validation, loader), ranks, on_epoch)
    return {"epochs": epochs, **shares}


if __name__ == "__main__":
    main()
