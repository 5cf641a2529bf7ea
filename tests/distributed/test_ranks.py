"""Real gloo processes: any number of ranks does what one rank does on the whole batch."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from raytrain.config import LossWeights

SAME = 2e-3
WORKER = Path(__file__).with_name("rank_main.py")


def on_ranks(world_size: int, what: str, out: Path, **options: Any) -> None:
    """Run `rank_main.py WHAT OUT OPTIONS` as `world_size` processes of one gloo group; any failure fails the test."""
    meeting = out / f"meeting-{uuid.uuid4().hex}"  # a file: a port may be taken before rank 0 listens
    common = {**os.environ, "MEETING": str(meeting), "WORLD_SIZE": str(world_size)}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2])}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), what, str(out), json.dumps(options)],
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


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    on_ranks(2, "train", folder)
    return folder


def difference(ours: Path, theirs: Path) -> float:
    """Return how far apart the weights of two runs are after their last epoch, as a share of what training changed."""
    found, expected = (load_file(folder / "epoch-1" / "weights.safetensors") for folder in (ours, theirs))
    start = load_file(ours / "untrained.safetensors")
    assert found.keys() == expected.keys() == start.keys()

    def shares(which: Callable[[str], bool]) -> float:
        names = [name for name in found if which(name)]
        apart = sum(float((found[name] - expected[name]).double().square().sum()) for name in names)
        moved = sum(float((expected[name] - start[name]).double().square().sum()) for name in names)
        return math.sqrt(apart / moved)

    statistics = shares(lambda name: name.endswith(("running_mean", "running_var")))
    parameters = shares(lambda name: not name.endswith(("running_mean", "running_var", "num_batches_tracked")))
    return max(statistics, parameters)


def assert_same_weights(ours: Path, theirs: Path) -> None:
    """Check that two runs differ by no more than sums of another order do; 1 % more learning rate makes 5 times it."""
    assert difference(ours, theirs) < SAME


def losses(folder: Path) -> list[float]:
    return [float(line) for line in (folder / "reports.txt").read_text().splitlines()]


@pytest.mark.parametrize("world_size", [2, 3])
def test_n_ranks_equal_one_with_uneven_shares_and_uneven_ignored_pixels(
    one_rank: Path, tmp_path: Path, world_size: int
) -> None:
    on_ranks(world_size, "train", tmp_path)
    assert_same_weights(tmp_path, one_rank)
    assert losses(tmp_path) == pytest.approx(losses(one_rank), rel=1e-4)
    counts = [json.loads((folder / "validation.json").read_text()) for folder in (tmp_path, one_rank)]
    assert counts[0] == counts[1], "each tile is counted once, on whichever rank"
    assert sum(union for _, _, union in counts[0]) > 0


@pytest.mark.parametrize(
    "changes", [{"optimiser.lr": 0.0303}, {"optimiser.clip_norm": 0.099}, {"loss.focal": 0.11}], ids=str
)
def test_comparison_of_runs_sees_small_changes(one_rank: Path, tmp_path: Path, changes: dict[str, float]) -> None:
    on_ranks(1, "train", tmp_path, changes=changes)
    assert difference(tmp_path, one_rank) > SAME


def test_groups_of_a_batch_are_the_same_on_any_number_of_ranks(tmp_path: Path, one_rank: Path) -> None:
    """Two groups a batch, with every term of the loss: gradients add up over groups and ranks."""
    changes = {
        "batch_norm_group": 3,
        "global_batch": 5,
        "optimiser.lr": 0.003,
        **{f"loss.{name}": 0.5 for name in LossWeights.model_fields},
    }
    for world_size in (1, 2):
        (tmp_path / str(world_size)).mkdir()
        on_ranks(world_size, "train", tmp_path / str(world_size), changes=changes)
    assert_same_weights(tmp_path / "2", tmp_path / "1")
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-4)
    assert losses(tmp_path / "1") != pytest.approx(losses(one_rank), rel=1e-2)


@pytest.mark.parametrize("stop", [1, 3])
def test_run_stopped_within_an_epoch_goes_on_to_the_same_bits_on_as_many_ranks(
    two_ranks: Path, tmp_path: Path, stop: int
) -> None:
    on_ranks(2, "train", tmp_path, stop=stop)
    (tmp_path / "rest").mkdir()
    on_ranks(2, "train", tmp_path / "rest", resume=str(tmp_path / "cut"))
    for name in ("weights.safetensors", "momentum.safetensors"):
        found, expected = ((folder / "epoch-1" / name).read_bytes() for folder in (tmp_path / "rest", two_ranks))
        assert found == expected
    assert losses(tmp_path / "rest")[-1] == losses(two_ranks)[-1]


def test_run_stopped_within_an_epoch_goes_on_on_another_number_of_ranks(two_ranks: Path, tmp_path: Path) -> None:
    on_ranks(2, "train", tmp_path, stop=1)
    (tmp_path / "rest").mkdir()
    on_ranks(3, "train", tmp_path / "rest", resume=str(tmp_path / "cut"))
    assert_same_weights(tmp_path / "rest", two_ranks)
    assert losses(tmp_path / "rest") == pytest.approx(losses(two_ranks), rel=1e-4)


@pytest.mark.parametrize("mean", [5, 3000])
def test_global_batch_norm_is_plain_batch_norm_on_the_whole_batch(tmp_path: Path, mean: float) -> None:
    on_ranks(2, "batch-norm", tmp_path, mean=mean)


def test_diverged_loss_on_one_rank_ends_every_rank(tmp_path: Path) -> None:
    on_ranks(2, "diverge", tmp_path)


def test_compile_on_several_cpu_ranks_is_refused_on_every_rank(tmp_path: Path) -> None:
    on_ranks(2, "compiled", tmp_path)
