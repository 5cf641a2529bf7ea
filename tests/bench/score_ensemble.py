"""Seconds a chip of 512 px: the fused ensemble beside the straightforward way, in turn, with random weights."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raytrain.config import ScoreSettings
from raytrain.imagery.synth import write_chips
from raytrain.recipes import members
from raytrain.scoring.ensemble import Ensemble, use_threads
from raytrain.tiles.archive import Chip, open_archive, read_chip
from tests.bench.members import measure as measure_member
from tests.bench.record import Table, keep_tables
from tests.bench.straight import Members, random_nets, straightforward

CHIP_PX = 512
SETTLING_CHIPS = 4
Maps = list[NDArray[np.float32]]
STRAIGHTFORWARD = "straightforward"
_way: Callable[[], Maps]


@dataclass(frozen=True)
class Run:
    """One run of a way: wall and CPU seconds, and the maps."""

    seconds: float
    cpu_seconds: float
    maps: Maps


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--members", nargs="+", default=["all"])
    parser.add_argument("--chips", type=int, default=2, help="chips a run")
    parser.add_argument("--runs", type=int, default=5, help="runs of each way, in turn; the median counts")
    parser.add_argument("--also", nargs="*", default=[], choices=["bfloat16", "compile"], help="further ways of ours")


def main(options: argparse.Namespace) -> None:
    """Measure, print and keep the tables."""
    names = tuple(options.members)
    with tempfile.TemporaryDirectory() as folder:
        write_chips(Path(folder), count=SETTLING_CHIPS + options.chips, size_px=CHIP_PX, seed=7, num_places=3)
        ways = [STRAIGHTFORWARD, "float32", *options.also]
        found = _in_turn([(way, names, folder, options.threads) for way in ways], options.runs)
    gflop = 2 * sum(measure_member(member)["gflop"] for member in members(names))
    tables = [
        _ways_table(found, options.chips),
        floor_table(gflop, "a chip, all members, two flips", options.threads),
    ]
    keep_tables("score-ensemble", "score", options.machine, "The fused ensemble", tables)


def _in_turn(ways: Sequence[tuple[str, tuple[str, ...], str, int]], runs: int) -> dict[str, list[Run]]:
    """Return the runs of each way, after one more for warmth: each way in a process of its own, but in turn."""
    context = multiprocessing.get_context("spawn")
    processes = {way[0]: ProcessPoolExecutor(1, context, _begin, way) for way in ways}
    for process in processes.values():
        process.submit(_run).result()
    found: dict[str, list[Run]] = {name: [] for name in processes}
    for _ in range(runs):
        for name, process in processes.items():
            found[name].append(process.submit(_run).result())
    for process in processes.values():
        process.shutdown()
    return found


def _begin(way: str, names: tuple[str, ...], folder: str, threads: int) -> None:
    global _way
    torch.set_num_threads(threads)
    chips = list(open_archive(folder, ("B02", "B03", "B04", "B08")).chips)
    nets = random_nets(names, chips[:SETTLING_CHIPS])
    measured = chips[SETTLING_CHIPS:]
    if way == STRAIGHTFORWARD:
        _way = one_by_one(nets, measured)
        return
    use_threads(threads)
    changes = {"float32": {}, "bfloat16": {"precision": "bfloat16"}, "compile": {"compile": True}}[way]
    settings = ScoreSettings(threads=threads, precision="float32").model_copy(update=changes)
    _way = fused(Ensemble(nets, settings, torch.device("cpu")), measured)


def _run() -> Run:
    start, cpu = time.perf_counter(), time.process_time()
    maps = _way()
    return Run(time.perf_counter() - start, time.process_time() - cpu, maps)


def one_by_one(nets: Members, chips: Sequence[Chip]) -> Callable[[], Maps]:
    """Return what gives the mean probability of each of `chips` in the straightforward way."""
    return lambda: [straightforward(chip, nets) for chip in chips]


def fused(ensemble: Ensemble, chips: Sequence[Chip]) -> Callable[[], Maps]:
    """Return what reads each of `chips` once and gives the mean probability of each."""

    def way() -> Maps:
        rasters = [read_chip(chip.chip_id, {band: chip.bands[band] for band in ensemble.bands}) for chip in chips]
        return [layers[0] for layers in ensemble.layers([r.pixels for r in rasters], [r.valid for r in rasters])]

    return way


def _ways_table(found: dict[str, list[Run]], num_chips: int) -> Table:
    medians = {name: statistics.median(run.seconds for run in runs) / num_chips for name, runs in found.items()}
    cpu = {name: statistics.median(run.cpu_seconds for run in runs) / num_chips for name, runs in found.items()}
    base = found[STRAIGHTFORWARD]
    rows = []
    for name, runs in found.items():
        each = [run.seconds / num_chips for run in runs]
        difference = max(float(np.abs(a - b).max()) for a, b in zip(runs[0].maps, base[0].maps, strict=True))
        rows.append(
            [
                name if name == STRAIGHTFORWARD else f"fused, {name}",
                f"{medians[name]:.2f}",
                f"{min(each):.2f}-{max(each):.2f}",
                f"{medians[STRAIGHTFORWARD] / medians[name]:.2f}",
                f"{cpu[name]:.2f}",
                f"{cpu[STRAIGHTFORWARD] / cpu[name]:.2f}",
                f"{difference:.1e}",
            ]
        )
    note = (
        f"Medians of {len(base)} runs of {num_chips} chips, in turn, reading included; load of the machine at the end "
        f"{os.getloadavg()[0]:.1f}. CPU seconds change less when others work beside."
    )
    headers = ["way", "s a chip", "from-to", "times as fast", "CPU s a chip", "times as little", "largest difference"]
    return Table("Seconds a chip", headers, rows, note)


def floor_table(gflop: float, what: str, threads: int) -> Table:
    """Return the seconds that `gflop` take at the speed of a large product and a large convolution, float32."""
    torch.set_num_threads(threads)
    side = 3000
    left, right = torch.rand(side, side), torch.rand(side, side)
    channels, px = 128, 256
    net = nn.Conv2d(channels, channels, 3, padding=1)
    net.to(memory_format=torch.channels_last)
    image = torch.rand(1, channels, px, px).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        product_s, convolution_s = _fastest(lambda: left @ right), _fastest(lambda: net(image))
    speeds = {
        f"product of two {side} x {side}": 2 * side**3 / 1e9 / product_s,
        f"convolution 3 x 3, {channels} channels, {px} px, channels last": 2
        * 9
        * channels**2
        * px**2
        / 1e9
        / convolution_s,
    }
    rows = [[name, f"{speed:.0f}", f"{gflop / speed:.2f}"] for name, speed in speeds.items()]
    note = (
        f"{gflop:.0f} GFLOP {what}, as the nets are defined; the doubling convolutions of the rewritten decoder need "
        "fewer. Speeds are the fastest of 7."
    )
    return Table("The floor by operations", ["at the speed of", "GFLOP/s", "s"], rows, note)


def _fastest(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
