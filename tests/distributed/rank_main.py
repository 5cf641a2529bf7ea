"""One rank of a test: `rank_main.py WHAT OUT [OPTIONS]`, with RANK, WORLD_SIZE and MEETING set.

OPTIONS are JSON: `changes` of the settings, `stop` after so many steps, with a checkpoint OUT/cut, `resume` from one.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed
from safetensors.torch import save_file
from torch import Tensor, nn

from raytrain.config import change
from raytrain.errors import ConfigError, TrainingDiverged
from raytrain.recipes import members
from raytrain.training import loop, step
from raytrain.training.batch_norm import over_all_ranks
from raytrain.training.checkpoints import TrainingState
from raytrain.training.loop import EpochReport, TrainingData, train_member
from raytrain.training.models import build_model
from raytrain.training.ranks import Ranks
from tests.making import restore_from, save_to

SETTINGS = change(
    members(("small-effnet-4b-20k",))[0],
    {
        "epochs": 2,
        "crop_px": 64,
        "crops_per_tile": 1,
        "global_batch": 4,
        "decoder_channels": [8, 8, 8, 4, 4],
        "optimiser.lr": 0.03,
        "optimiser.clip_norm": 0.1,
    },
)


class MemoryReader:
    """Tiles in memory, in the reader's terms: 10 of two sizes; ignored pixels are very uneven, tile 3 has no other."""

    def __init__(self) -> None:
        self.shapes = [(64, 64) if i % 3 else (70, 90) for i in range(10)]
        self.locations = [f"place{i % 4}" for i in range(10)]
        self.tile_ids = [f"tile{i}" for i in range(10)]

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(i)
        bands = generator.integers(1, 9000, (4, *self.shapes[i])).astype(np.uint16)
        label = (bands.mean(0) > 4500).astype(np.uint8)
        label[: 255 if i == 3 else 7 * i] = 255
        return bands, label


class Stopped(Exception):
    pass


def train(ranks: Ranks, out: Path, options: dict[str, Any]) -> None:
    settings = change(SETTINGS, options.get("changes", {}))
    reports: list[EpochReport] = []
    steps = 0

    def on_epoch(report: EpochReport, state: TrainingState) -> None:
        reports.append(report)
        if ranks.leads:
            save_to(out / f"epoch-{report.epoch}", state, settings)

    def on_step(state: TrainingState) -> None:
        nonlocal steps
        steps += 1
        if steps == options.get("stop"):
            if ranks.leads:
                save_to(out / "cut", state, settings)
            raise Stopped

    def restore(state: TrainingState) -> None:
        restore_from(Path(options["resume"]), state, settings)

    # Batches of 4 and 3: of uneven shares on 2 ranks, and on 3.
    data = TrainingData(cast(Any, MemoryReader()), np.arange(7), np.arange(5, 10))
    torch.manual_seed(settings.seed)
    net = build_model(settings)
    if ranks.leads:
        save_file(net.state_dict(), out / "untrained.safetensors")
    with loop.validation_loader(settings, data) as samples:
        untrained = loop.validate(net, settings, data, ranks, samples)
    with contextlib.suppress(Stopped):
        train_member(settings, data, ranks, on_epoch, restore if "resume" in options else None, on_step)
    if ranks.leads:
        lines = [str(report.loss) for report in reports]
        counts = [[name, each.intersection, each.union] for name, each in sorted(untrained.locations.items())]
        (out / "validation.json").write_text(json.dumps(counts))
        (out / "reports.txt").write_text("\n".join(lines))


def batch_norm(ranks: Ranks, out: Path, options: dict[str, Any]) -> None:
    """Compare two passes, and the gradients, with plain batch normalisation of the whole batch.

    Both are off the exact values, those in float64; ours may be three times as far off as torch's float32.
    """
    torch.manual_seed(0)
    images = torch.randn(7, 3, 6, 5, dtype=torch.float32) * 3 + options["mean"]
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    exact = copy.deepcopy(plain).double()
    ours = cast(nn.Sequential, over_all_ranks(copy.deepcopy(plain), ranks))
    share = slice(0, 2) if ranks.rank == 0 else slice(2, 7)

    def check(what: str, found: Tensor, theirs: Tensor, truth: Tensor) -> None:
        off, limit = (float((each.double() - truth).abs().max()) for each in (found, theirs))
        assert off <= 3 * limit + 1e-6 * float(truth.abs().max()), f"{what}: {off} off, torch's {limit}"

    for _ in range(2):
        part, whole, truth = ours(images[share]), plain(images), exact(images.double())
        check("output", part, whole[share], truth[share])
    for output in (part, whole, truth):
        output.square().sum().backward()
    for (name, theirs), found, true in zip(
        plain.named_parameters(), ours.parameters(), exact.parameters(), strict=True
    ):
        assert found.grad is not None
        assert theirs.grad is not None
        assert true.grad is not None
        check(f"gradient of {name}", ranks.total(found.grad), theirs.grad, true.grad)
    for name, buffer in exact.named_buffers():
        check(name, dict(ours.named_buffers())[name], dict(plain.named_buffers())[name], buffer)
    for net in (ours, plain, exact):
        net.eval()
    check("evaluation", ours(images), plain(images), exact(images.double()))


def compiled(ranks: Ranks, out: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="2 CPU ranks"):
        train(ranks, out, {"changes": {"compile": True}})


def diverge(ranks: Ranks, out: Path, options: dict[str, Any]) -> None:
    def broken(*arguments: Any) -> Any:
        loss = true_loss(*arguments)
        return loss * float("nan") if ranks.rank == 1 else loss

    true_loss, step.segmentation_loss = step.segmentation_loss, broken
    with pytest.raises(TrainingDiverged):
        train(ranks, out, options)


def main() -> None:
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world_size > 1:
        meeting = f"file://{os.environ['MEETING']}"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    ranks = Ranks(rank, world_size)
    options = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    {"train": train, "batch-norm": batch_norm, "diverge": diverge, "compiled": compiled}[sys.argv[1]](
        ranks, Path(sys.argv[2]), options
    )


if __name__ == "__main__":
    main()
