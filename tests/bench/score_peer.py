"""Mpx/s of our masks and of UKIS-CSMASK's on the same pixels and threads, beside the floor by operations.

The peer runs in an environment of its own, made by uv: it is no dependency of ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from raytrain.config import MemberSettings, ScoreSettings
from raytrain.imagery.synth import generate_window, make_places
from raytrain.recipes import members
from raytrain.scoring.ensemble import Ensemble, use_threads
from raytrain.training.models import build_model
from tests.bench.members import measure as measure_member
from tests.bench.record import Table, keep_tables
from tests.bench.score_ensemble import floor_table

WINDOW_PX = 512
SMALL = "small-effnet-4b-20k"
PEER = """
import json, sys, time
import numpy as np
from ukis_csmask.mask import CSmask
path, runs, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pixels = np.load(path)
image = np.ascontiguousarray(pixels.transpose(1, 2, 0)).astype(np.float32) / 10000
seconds = []
for _ in range(runs + 1):
    start = time.perf_counter()
    mask = CSmask(image.copy(), ["blue", "green", "red", "nir"], "l2a", intra_op_num_threads=threads,
                  providers=["CPUExecutionProvider"])
    mask.csm
    seconds.append(time.perf_counter() - start)
print(json.dumps(seconds[1:]))
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size-px", type=int, default=1024, help="side of the generated image")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--with-all", action="store_true", help="the eight members, too")


def main(options: argparse.Namespace) -> None:
    """Measure, print and keep the tables."""
    use_threads(options.threads)
    (place,) = make_places(1, 5)
    pixels = generate_window(place, 0, 0, 0, options.size_px, options.size_px)[0]
    mpx = options.size_px**2 / 1e6
    rows, floors = [], []
    for name, flip in ((SMALL, False), (SMALL, True), *((("all", True),) if options.with_all else ())):
        chosen = members((name,))
        seconds = statistics.median(_ours(chosen, pixels, options, flip))
        passes = f"{len(chosen) * (2 if flip else 1)}"
        rows.append([f"raytrain, {name}", passes, f"{seconds / mpx:.2f}", f"{mpx / seconds:.2f}"])
        gflop = (2 if flip else 1) * sum(measure_member(member)["gflop"] for member in chosen) * 1e6 / WINDOW_PX**2
        floors.append(floor_table(gflop, f"a Mpx, {name}, {passes} passes", options.threads))
    seconds = statistics.median(_peers(pixels, options))
    rows.append(["UKIS-CSMASK, 4 bands, L2A", "1", f"{seconds / mpx:.2f}", f"{mpx / seconds:.2f}"])
    note = (
        f"{options.size_px} x {options.size_px} px, 4 bands, in memory; {options.threads} threads; medians of "
        f"{options.runs} runs. Ours in windows of {WINDOW_PX} px without overlap, float32, random weights."
    )
    tables = [Table("Speed", ["what", "passes a window", "s/Mpx", "Mpx/s"], rows, note), *floors]
    keep_tables("score-peer", "score", options.machine, "Scoring beside a peer", tables)


def _ours(chosen: list[MemberSettings], pixels: np.ndarray, options: argparse.Namespace, flip: bool) -> list[float]:
    nets: list[tuple[MemberSettings, nn.Module]] = []
    for member in chosen:
        torch.manual_seed(0)
        nets.append((member, build_model(member, with_encoder_weights=False)))
    settings = ScoreSettings(threads=options.threads, precision="float32", horizontal_flip=flip)
    ensemble = Ensemble(nets, settings, torch.device("cpu"))
    starts = range(0, options.size_px, WINDOW_PX)
    windows = [pixels[:, row : row + WINDOW_PX, column : column + WINDOW_PX] for row in starts for column in starts]
    valid = [window.any(axis=0) for window in windows]
    seconds = []
    for _ in range(options.runs + 1):
        start = time.perf_counter()
        ensemble.layers(windows, valid)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _peers(pixels: np.ndarray, options: argparse.Namespace) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pixels.npy"
        np.save(path, pixels)
        command = [
            "uv",
            "run",
            "--isolated",
            "--no-project",
            "--with",
            "ukis-csmask",
            "--with",
            "onnxruntime",
            "python",
        ]
        arguments = ["-c", PEER, str(path), str(options.runs), str(options.threads)]
        done = subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return list(json.loads(done.stdout.splitlines()[-1]))
