"""The training step of raytrain beside the same net in a bare torch loop on tensors in memory, and where its time goes.

Both take turns in one process, an epoch each: ours reads shards, crops, augments and goes through `train_member`; the
bare loop has its batches as tensors before it starts, and only computes: forward, the same loss in plain torch,
backward, clipping, SGD. Rates are medians over the turns. Then one epoch is profiled for the parts of a step, reading
and augmenting are timed tile by tile, and the same is run by two gloo processes for what communication takes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile

from raytrain.config import LoaderSettings, MemberSettings, ShardSettings, change, parse
from raytrain.imagery.synth import write_chips
from raytrain.recipes import members
from raytrain.tiles.reader import TileReader
from raytrain.training.checkpoints import TrainingState
from raytrain.training.loop import EpochReport, TrainingData, train_member
from raytrain.training.models import build_model, compute_dtype
from raytrain.training.ranks import Ranks
from raytrain.training.samples import TrainingTransform
from tests.bench import record
from tests.making import shard_chips

NUM_RANKS = 2
PARTS = ("forward", "loss", "backward", "optimiser", "counts")
"""The named ranges of a step."""


@dataclass
class Found:
    """What one process found: images a second by turn, shares of an epoch, seconds an image of its samples."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    reading_s: float = 0.0
    augmenting_s: float = 0.0

    @property
    def ratio(self) -> float:
        """Median over the turns of our rate to the bare one's beside it."""
        return statistics.median(ours / bare for ours, bare in zip(self.ours, self.bare, strict=True))


def main() -> None:
    """Measure each member by one process and by two; as one of two, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", nargs="+", default=["small-effnet-4b-20k"])
    parser.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE", help="for every member")
    parser.add_argument("--tiles", type=int, default=96)
    parser.add_argument("--tile-px", type=int, default=256)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch; a thread of the loader comes on top")
    parser.add_argument("--loader-processes", type=int, default=0, help="instead of a thread of the rank itself")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", metavar="MACHINE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if "RAYTRAIN_BENCH_RANK" in os.environ:
        _as_rank()
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_chips(folder / "chips", count=options.tiles, size_px=options.tile_px, seed=0, num_places=12)
        shard_chips(folder / "chips", folder / "shards", ShardSettings())
        for member in members(tuple(options.members)):
            settings = change(member, dict(each.split("=", 1) for each in options.set))
            settings = change(settings, {"epochs": options.turns + 2})  # the first warms up, the last is profiled
            loader = LoaderSettings(threads=1, processes=options.loader_processes)
            alone = measure(settings, folder / "shards", Ranks(device=torch.device(options.device)), loader)
            rows.append(_row(settings, "1", alone))
            if options.device == "cpu":
                rows.append(_row(settings, str(NUM_RANKS), _by_ranks(settings, folder, loader)))
    headers = [
        "member, crop, batch",
        "ranks",
        "ours, images/s",
        "bare loop, images/s",
        "ours / bare",
        "waiting for samples",
    ]
    headers += [
        *PARTS[:4],
        "counts and the rest",
        "of it in all-reduce",
        "reading, ms an image",
        "augmenting, ms an image",
    ]
    title = f"A step of training and where its time goes ({options.device}, {options.threads} thread a rank)"
    record.keep("step", options.write, title, headers, rows)


def measure(settings: MemberSettings, shards: Path, ranks: Ranks, loader: LoaderSettings) -> Found:
    """Train on all tiles of `shards`, a bare epoch after each of ours; all ranks."""
    reader = TileReader(str(shards), settings.bands)
    tiles = np.arange(len(reader.locations))
    data = TrainingData(reader, tiles, np.arange(0), loader)
    found = Found()
    num_steps = -(-len(tiles) * settings.crops_per_tile // settings.global_batch)
    bare = BareLoop(settings, reader, tiles, ranks, num_steps)
    profiler = profile(activities=[ProfilerActivity.CPU])

    def on_epoch(report: EpochReport, state: TrainingState) -> None:
        if report.epoch == settings.epochs - 1:
            profiler.stop()
            found.parts = _shares(profiler, report.epoch_s)
            return
        rate = bare.epoch()
        if report.epoch > 0:  # the first warms up
            found.ours.append(report.images_per_s)
            found.bare.append(rate)
            found.waiting.append(report.wait_s / report.epoch_s)
        if report.epoch == settings.epochs - 2:
            profiler.start()

    train_member(settings, data, ranks, on_epoch)
    found.reading_s, found.augmenting_s = _samples(settings, reader, tiles)
    return found


class BareLoop:
    """What a script would do: the net, SGD, and batches that lie in memory; on several ranks torch's own wrapper."""

    def __init__(
        self, settings: MemberSettings, reader: TileReader, tiles: np.ndarray, ranks: Ranks, num_steps: int
    ) -> None:
        self._settings, self._ranks, self._num_steps = settings, ranks, num_steps
        net = build_model(settings).to(ranks.device)
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        net = net.to(memory_format=layout).train()
        self._net = net if ranks.world_size == 1 else nn.parallel.DistributedDataParallel(net)
        sgd = settings.optimiser
        self._optimiser = torch.optim.SGD(net.parameters(), lr=sgd.lr, momentum=sgd.momentum)
        share = settings.global_batch // ranks.world_size
        transform = TrainingTransform(settings)
        samples = [_sample(transform, reader, int(tiles[i % len(tiles)]), i) for i in range(4 * share)]
        self._batches = [
            tuple(torch.stack(part).to(ranks.device) for part in zip(*samples[start : start + share], strict=True))
            for start in range(0, len(samples), share)
        ]
        self._batches = [(image.contiguous(memory_format=layout), label) for image, label in self._batches]

    def epoch(self) -> float:
        """Take as many steps as an epoch of ours; return images a second."""
        start = time.monotonic()
        device, precision = self._ranks.device, compute_dtype(self._settings.precision, self._ranks.device)
        for image, label in itertools.islice(itertools.cycle(self._batches), self._num_steps):
            self._optimiser.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
                logits = self._net(image)[:, 0]
            loss = _plain_loss(logits.float(), label)
            loss.backward()
            clip_grad_norm_(self._net.parameters(), self._settings.optimiser.clip_norm)
            self._optimiser.step()
            loss.item()  # every script prints its loss, and ours has the verdict
        return self._num_steps * self._settings.global_batch / (time.monotonic() - start)


def _plain_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return the loss of the recipe as a script writes it: no ignored pixels, one process."""
    p, t = torch.sigmoid(logits), (label == 1).float()
    both = (p * t).sum((1, 2))
    jaccard = 1 - (both + 1e-5) / (p.sum((1, 2)) + t.sum((1, 2)) - both + 1e-5)
    p, t = p.clamp(1e-5, 1 - 1e-5), t.clamp(1e-5, 1 - 1e-5)
    q = p * t + (1 - p) * (1 - t)
    return jaccard.mean() - 0.1 * ((1 - q) ** 2 * q.log()).mean()


def _sample(transform: TrainingTransform, reader: TileReader, tile: int, number: int) -> tuple[Tensor, Tensor]:
    bands, label = reader.read(tile)
    assert label is not None
    return tuple(transform(bands, label, 0, number))


def _shares(profiler: profile, epoch_s: float) -> dict[str, float]:
    """Return the share of each named range in the profiled epoch, and that of gloo's all-reduces."""
    seconds: dict[str, float] = {}
    for event in profiler.key_averages():
        seconds[event.key] = seconds.get(event.key, 0.0) + event.cpu_time_total / 1e6
    shares = {part: seconds.get(f"raytrain: {part}", 0.0) / epoch_s for part in PARTS}
    return shares | {"all-reduce": seconds.get("gloo:all_reduce", 0.0) / epoch_s}


def _samples(settings: MemberSettings, reader: TileReader, tiles: np.ndarray) -> tuple[float, float]:
    """Return the median seconds of reading a tile, and of making a sample of it, on one thread."""
    transform = TrainingTransform(settings)
    reading, augmenting = [], []
    for number in range(min(len(tiles) * settings.crops_per_tile, 200)):
        start = time.perf_counter()
        bands, label = reader.read(int(tiles[number % len(tiles)]))
        middle = time.perf_counter()
        assert label is not None
        transform(bands, label, 0, number)
        reading.append(middle - start)
        augmenting.append(time.perf_counter() - middle)
    return statistics.mean(reading), statistics.mean(augmenting)


def _by_ranks(settings: MemberSettings, folder: Path, loader: LoaderSettings) -> Found:
    """Run this program as two processes of one gloo group; return what rank 0 found."""
    meeting = folder / f"meeting-{settings.name}"
    work = {"settings": settings.model_dump(mode="json"), "loader": loader.model_dump(mode="json")}
    work |= {"shards": str(folder / "shards"), "meeting": str(meeting)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.step"],
            env=os.environ | {"RAYTRAIN_BENCH_RANK": json.dumps(work | {"rank": rank}), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(NUM_RANKS)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a rank failed; what it said stands above")
    return Found(**json.loads(outputs[0].splitlines()[-1]))


def _as_rank() -> None:
    work: dict[str, Any] = json.loads(os.environ["RAYTRAIN_BENCH_RANK"])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{work['meeting']}", rank=work["rank"], world_size=NUM_RANKS
    )
    settings = parse(MemberSettings, work["settings"], "settings")
    loader = parse(LoaderSettings, work["loader"], "loader")
    found = measure(settings, Path(work["shards"]), Ranks(work["rank"], NUM_RANKS), loader)
    print(json.dumps(found.__dict__))
    torch.distributed.destroy_process_group()


def _row(settings: MemberSettings, ranks: str, found: Found) -> list[str]:
    rest = 1 - sum(found.parts[part] for part in PARTS[:4]) - statistics.median(found.waiting)
    return [
        f"{settings.name}, {settings.crop_px} px, {settings.global_batch}",
        ranks,
        f"{statistics.median(found.ours):.1f}",
        f"{statistics.median(found.bare):.1f}",
        f"{found.ratio:.3f} ({', '.join(f'{a / b:.3f}' for a, b in zip(found.ours, found.bare, strict=True))})",
        f"{statistics.median(found.waiting):.1%}",
        *(f"{found.parts[part]:.1%}" for part in PARTS[:4]),
        f"{rest:.1%}",
        f"{found.parts['all-reduce']:.1%}",
        f"{found.reading_s * 1e3:.1f}",
        f"{found.augmenting_s * 1e3:.1f}",
    ]


if __name__ == "__main__":
    main()
