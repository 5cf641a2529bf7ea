"""Real gloo processes: any number of ranks does what one rank does on the whole batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("rank_main.py")


def on_ranks(world_size: int, what: str, out: Path) -> None:
    """Run `rank_main.py WHAT OUT` as `world_size` processes of one gloo group; any failure fails the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2])}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), what, str(out)],
            env={**common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, f"rank {rank}:\n{output[-3000:]}"


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    on_ranks(1, "train", folder)
    return folder


@pytest.mark.parametrize("world_size", [2, 3])
def test_n_ranks_equal_one_with_uneven_shares_and_uneven_ignored_pixels(
    one_rank: Path, tmp_path: Path, world_size: int
) -> None:
    on_ranks(world_size, "train", tmp_path)
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (tmp_path, one_rank))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor.double(), theirs[name].double(), atol=2e-4, rtol=1e-3), name
    ours_text, theirs_text = ((folder / "reports.txt").read_text() for folder in (tmp_path, one_rank))
    losses = [[float(line) for line in text.splitlines()] for text in (ours_text, theirs_text)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    counts = [json.loads((folder / "validation.json").read_text()) for folder in (tmp_path, one_rank)]
    assert counts[0] == counts[1], "each tile is counted once, on whichever rank"
    assert sum(union for _, _, union in counts[0]) > 0


def test_global_batch_norm_is_plain_batch_norm_on_the_whole_batch(tmp_path: Path) -> None:
    on_ranks(2, "batch-norm", tmp_path)


def test_diverged_loss_on_one_rank_ends_every_rank(tmp_path: Path) -> None:
    on_ranks(2, "diverge", tmp_path)
