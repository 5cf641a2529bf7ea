"""The recipe can learn: a net that sees four real chips again and again knows their clouds by heart."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from raytrain.config import AugmentationSettings, MemberSettings, ShardSettings, change
from raytrain.recipes import members
from raytrain.tiles.reader import TileReader
from raytrain.training.loop import TrainingData, train_member, validate, validation_loader
from raytrain.training.ranks import Ranks
from tests.making import shard_chips

CHIPS = ("l8gras00", "l8gras02", "l8shru00", "l8urba00")
"""Of 256 px, each a place of its own; 49 to 100 % cloud."""
NORMALISATIONS = {
    "band-maximum": {"normalisation.kind": "band-maximum", "normalisation.maximum": None},
    "minmax": {"normalisation.kind": "minmax", "normalisation.maximum": None},
    "fixed-maximum": {"normalisation.kind": "fixed-maximum", "normalisation.maximum": 20000},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute by one thread: on a shared machine two wait for each other, and take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shards(real_imagery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four chips as an archive of their own, in shards."""
    source, archive = real_imagery / "labelled", tmp_path_factory.mktemp("four")
    with (source / "train_metadata.csv").open() as file:
        reader = csv.DictReader(file)
        rows, names = [row for row in reader if row["chip_id"] in CHIPS], reader.fieldnames or []
    with (archive / "train_metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    (archive / "train_labels").mkdir()
    for chip in CHIPS:
        shutil.copytree(source / "train_features" / chip, archive / "train_features" / chip)
        shutil.copy(source / "train_labels" / f"{chip}.tif", archive / "train_labels")
    shard_chips(archive, archive / "shards", ShardSettings(folds="2"))
    return archive / "shards"


def by_heart(normalisation: dict[str, object]) -> MemberSettings:
    """Return a small member that takes all four chips, as they are, in each of 100 steps."""
    unchanged = {f"augmentation.{name}": 0 for name in AugmentationSettings.model_fields if name.endswith("fraction")}
    changes = {"crop_px": 256, "crops_per_tile": 1, "global_batch": 4, "epochs": 100, "optimiser.lr": 0.1}
    return change(
        members(("small-effnet-4b-20k",))[0],
        {**changes, **unchanged, "augmentation.rotation_by_90": False, **normalisation},
    )


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_four_real_chips_are_learnt_by_heart(shards: Path, kind: str) -> None:
    settings = by_heart(NORMALISATIONS[kind])
    reader, all_four = TileReader(str(shards), settings.bands), np.arange(4)
    state = train_member(settings, TrainingData(reader, all_four, np.arange(0)), Ranks(), lambda *_: None)
    known = TrainingData(reader, all_four, all_four)
    with validation_loader(settings, known) as samples:
        found = validate(state.net, settings, known, Ranks(), samples)
    assert found.iou_pooled >= 0.97
    assert found.iou_mean >= 0.97
