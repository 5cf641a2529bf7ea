"""The losses of 20 steps of three small members on generated tiles, which a refactor must not move.

`python -m tests.golden.losses` prints how far they are from those of the repository; `--write` replaces these, which
wants a reason in the commit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from raytrain.config import ShardSettings, change
from raytrain.imagery.synth import write_chips
from raytrain.recipes import members
from raytrain.tiles.reader import TileReader
from raytrain.training.checkpoints import TrainingState
from raytrain.training.loop import TrainingData, train_member
from raytrain.training.ranks import Ranks
from tests.making import shard_chips

GOLDEN = Path(__file__).with_name("losses.json")
NUM_STEPS = 20
FULL_AUGMENTATION = {
    "augmentation.affine_fraction": 0.7,
    "augmentation.shift_fraction": 0.2,
    "augmentation.gain_fraction": 0.2,
    "augmentation.elastic_fraction": 0.2,
    "augmentation.rectangle_fraction": 0.15,
}
EVERY_TERM = {f"loss.{name}": weight for name, weight in [("dice", 0.3), ("bce", 0.2), ("lovasz", 0.1)]}
CASES: dict[str, dict[str, object]] = {
    "small-effnet-4b-20k": FULL_AUGMENTATION,
    "small-byob-3b": {"batch_norm_group": 4, "optimiser.schedule": "one-cycle", "optimiser.warmup_fraction": 0.3},
    "small-resnet-4b-minmax": EVERY_TERM,
}
"""What of the recipe each member's steps go through, beside its own settings."""


def losses_of(name: str, chips: Path) -> list[float]:
    """Return the losses of 20 steps, in 4 epochs of 5, of a member on the archive `chips`, 12 chips of 64 px.

    The learning rate is that of the recipe: with ten times more, rounding errors of 1e-7 grow to 1e-2 in 20 steps, and
    nothing smaller can be seen.
    """
    small = {"epochs": 4, "global_batch": 12, "crops_per_tile": 5, "crop_px": 32, "optimiser.lr": 0.002}
    settings = change(members((name,))[0], {**small, **CASES[name]})
    with tempfile.TemporaryDirectory() as folder:
        shard_chips(chips, folder, ShardSettings(folds="2"))
        reader = TileReader(folder, settings.bands)
        data = TrainingData(reader, np.arange(12), np.arange(0))
        found: list[float] = []
        sums = [0.0]

        def on_step(state: TrainingState) -> None:
            before = sums[-1] if state.num_steps > 1 else 0.0
            found.append(state.loss_sum - before)
            sums.append(state.loss_sum)

        train_member(settings, data, Ranks(), lambda *_: None, on_step=on_step)
    assert len(found) == NUM_STEPS
    return found


def main() -> None:
    """Compare, or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_chips(Path(folder), count=12, size_px=64, seed=1, num_places=6)
        found = {name: losses_of(name, Path(folder)) for name in CASES}
    if GOLDEN.exists():
        for name, expected in json.loads(GOLDEN.read_text()).items():
            distance = np.abs(np.array(found[name]) / np.array(expected) - 1)
            print(f"{name}: largest relative difference {distance.max():.2e}, at step {distance.argmax()}")
    if options.write:
        rounded = {name: [float(f"{loss:.8g}") for loss in losses] for name, losses in found.items()}
        GOLDEN.write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
