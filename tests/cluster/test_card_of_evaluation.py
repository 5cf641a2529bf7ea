"""`raytrain evaluate --ensemble`: the model card says of whose nets the scores are, and by which rules."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raytrain import cli
from raytrain.config import ScoreSettings
from raytrain.scoring.destination import SCORING_FILE, Scoring
from raytrain.scoring.manifest import EnsembleManifest, member_names, read_manifest, write_manifest
from raytrain.tiles.reader import read_manifest as read_shards
from raytrain.tiles.reader import shards_digest
from tests.making import make_ensemble, make_tile, write_tiles

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    """Nets of two folds."""
    write_tiles(tmp_path / "shards", [make_tile(i, (32, 32)) for i in range(4)], "raw")
    folder = make_ensemble(tmp_path / "ensemble")
    manifest = read_manifest(folder)
    second = [net.model_copy(update={"fold": 1, "sha256": f"{i}" * 64}) for i, net in enumerate(manifest.members)]
    shards = str(tmp_path / "shards")
    of_shards = {"shards": shards, "shards_digest": shards_digest(read_shards(shards))}
    write_manifest(folder, manifest.model_copy(update={"members": (*manifest.members, *second), **of_shards}))
    return Path(folder)


def evaluate(chips: Path, folder: Path, ensemble: Path, nets: EnsembleManifest) -> int:
    """Evaluate the labels as if `nets` had made them, but one, which has no prediction."""
    masks = Path(shutil.copytree(chips / "train_labels", folder / "masks", dirs_exist_ok=True))
    min(masks.glob("*.tif")).unlink()
    scoring = Scoring(ensemble=nets.nets_digest(), members=member_names(nets.members), settings=ScoreSettings())
    (masks / SCORING_FILE).write_text(scoring.model_dump_json())
    arguments = [str(masks), str(chips / "train_labels"), "--metadata", str(chips / "train_metadata.csv")]
    more = ["--out", str(folder / "scores"), "--resamples", "500", "--allow", "missing-prediction"]
    return cli.main(["evaluate", *arguments, *more, "--ensemble", str(ensemble)])


def test_the_card_says_which_nets_made_the_masks_and_what_was_left_out(
    chips: Path, ensemble: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(str(ensemble))
    titles = {
        "all": "the whole ensemble: 4 of 4 nets",
        0: "the nets of fold 0: 2 of 4",
        1: "the nets of fold 1: 2 of 4",
    }
    for made_by, title in titles.items():
        assert evaluate(chips, tmp_path, ensemble, manifest.of_fold(made_by)) == 1
        text = (ensemble / "model-card.md").read_text()
        assert f"| Masks by | {title}" in text
        assert "| Left out | 1; allowed: missing-prediction |" in text
        assert "| Chips | 11 at " in text
        assert "| Threshold | 0.5 |" in text
    other = manifest.model_copy(update={"members": manifest.members[1:3]})
    assert evaluate(chips, tmp_path, ensemble, other) == 2
    assert "not made by the nets of" in capsys.readouterr().err
