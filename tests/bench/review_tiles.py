"""Tiles with known errors in their labels, and what nets that never saw their place make of them; in a process, no Ray.

What is finished is kept below a folder, by the seed of its corruption. Must not know how labels are ranked.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from raytrain.config import LoaderSettings, MemberSettings, ScoreSettings, ShardSettings, change
from raytrain.imagery.synth import write_chips
from raytrain.recipes import members
from raytrain.scoring.ensemble import Ensemble, use_threads
from raytrain.tiles.archive import open_archive
from raytrain.tiles.folds import deal_folds
from raytrain.tiles.format import Tile
from raytrain.tiles.ingest import read_tile
from raytrain.tiles.reader import MANIFEST, TileReader
from raytrain.training.loop import TrainingData, train_member
from raytrain.training.ranks import Ranks
from tests.corruption import Corrupted, Label, corrupt_some
from tests.making import write_tiles

DataSet = Literal["generated", "real"]
TILE_PX = 128
GENERATED_TILES, GENERATED_PLACES = 1_008, 63
LEAST_VALID_FRACTION = 0.5
"""Of the pixels of a real chip's tile: what has less data is left out."""
CORRUPTED_FRACTION = 0.1
FOLDS = 4
MEMBERS = ("small-effnet-4b-20k", "small-byob-4b", "small-byob-3b")
"""Three, so that their disagreement says something."""
BATCH = 24
EPOCHS = 6
CROPS = {"generated": 1, "real": 6}
"""Crops of 64 px of a tile in an epoch: some 4,600 in all for a net."""
LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Predicted:
    """Tiles of which some labels were corrupted, and what the members that never saw their place made of them.

    By position: `labels` as they were trained on, `corrupted` (those among them), probability and disagreement
    `[N, H, W] float32`, NaN where there is no data.
    """

    locations: tuple[str, ...]
    true_labels: NDArray[np.uint8]
    corrupted: dict[int, Corrupted]
    probability: NDArray[np.float32]
    disagreement: NDArray[np.float32]

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The labels with their errors, `[N, H, W]`."""
        found = self.true_labels.copy()
        for i, each in self.corrupted.items():
            found[i] = each.label
        return found


def make_tiles(data_set: DataSet, archive: Path, out: Path) -> str:
    """Return the URI of the clean tiles' shards below `out`, written unless they stand there."""
    shards = out / f"{data_set}-tiles"
    if not (shards / MANIFEST).exists():
        if data_set == "real":
            _write_cut(archive, shards)
        else:
            with tempfile.TemporaryDirectory() as folder:
                count, places = GENERATED_TILES, GENERATED_PLACES
                write_chips(Path(folder), count=count, size_px=TILE_PX, seed=0, num_places=places)
                _write_cut(Path(folder), shards)
    return str(shards)


def _write_cut(archive: Path, shards: Path) -> None:
    """Write the chips of `archive`, cut to tiles of `TILE_PX`, those with too little data left out."""
    bands = ShardSettings().bands
    found = open_archive(str(archive), bands)
    tiles = [part for chip in found.chips for part in _cut(read_tile(chip, "before-04.00")[0])]
    write_tiles(shards, tiles, "blosc2-bitshuffle-lz4", bands=bands)


def _cut(tile: Tile) -> list[Tile]:
    parts = []
    height, width = tile.shape
    assert tile.label is not None
    for row in range(0, height - TILE_PX + 1, TILE_PX):
        for column in range(0, width - TILE_PX + 1, TILE_PX):
            box = (slice(row, row + TILE_PX), slice(column, column + TILE_PX))
            bands = {name: np.ascontiguousarray(pixels[box]) for name, pixels in tile.bands.items()}
            label = np.ascontiguousarray(tile.label[box])
            valid = float(np.any([pixels != 0 for pixels in bands.values()], axis=0).mean())
            if valid >= LEAST_VALID_FRACTION:
                name = f"{tile.tile_id}-{row}-{column}"
                parts.append(replace(tile, tile_id=name, bands=bands, label=label, valid_fraction=valid))
    return parts


class _WrongLabels(TileReader):
    """A reader that gives some tiles another label than their shards do."""

    def __init__(self, uri: str, bands: Sequence[str], labels: dict[int, Label]) -> None:
        super().__init__(uri, bands)
        self._wrong = labels

    def read(self, i: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8] | None]:
        bands, label = super().read(i)
        return bands, self._wrong.get(i, label)


def true_labels(shards: str) -> NDArray[np.uint8]:
    """Return the labels of all tiles, `[N, H, W]`, 255 where there is no data."""
    reader = TileReader(shards, ShardSettings().bands)
    found = []
    for i in range(len(reader)):
        bands, label = reader.read(i)
        assert label is not None
        found.append(np.where(bands.any(axis=0), label, np.uint8(255)))
    return np.stack(found)


def predict(data_set: DataSet, shards: str, seed: int, out: Path) -> Predicted:
    """Return the tiles corrupted by `seed` with out-of-fold predictions; what stands below `out` is not made again."""
    truth = true_labels(shards)
    corrupted = corrupt_some(list(truth), CORRUPTED_FRACTION, seed)
    layers = out_of_fold(data_set, shards, {i: each.label for i, each in corrupted.items()}, seed, out)
    locations = TileReader(shards, ()).locations
    return Predicted(tuple(locations), truth, corrupted, layers[:, 0], layers[:, 1])


def out_of_fold(data_set: DataSet, shards: str, labels: dict[int, Label], seed: int, out: Path) -> NDArray[np.float32]:
    """Return probability and disagreement `[N, 2, H, W]` of all tiles by nets that never saw their place.

    These learnt from `labels`, by position, and where there is none from that of the shards. Folds by location, members
    and the order of samples are drawn from the seed. What stands below `out` is not made again.
    """
    use_threads(1)
    truth = true_labels(shards)
    locations = TileReader(shards, ()).locations
    by_place = deal_folds(locations, FOLDS, seed)
    folds = np.asarray([by_place[location] for location in locations])
    settings = _settings(data_set, seed)
    # Named by all that the predictions depend on but the code, so that those of other labels are never taken for them.
    made_of = hashlib.sha256(truth.tobytes() + folds.tobytes())
    for i in sorted(labels):
        made_of.update(b"%d" % i + labels[i].tobytes())
    made_of.update(json.dumps([member.digest() for member in settings]).encode())
    path = out / f"{data_set}-{seed}-{made_of.hexdigest()[:12]}.npz"
    if not path.exists():
        layers = np.zeros((len(truth), 2, TILE_PX, TILE_PX), np.float32)
        for fold in range(FOLDS):
            train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            layers[test] = _of_fold(settings, shards, labels, train, test)
        _write_whole(path, layers)
    with np.load(path) as arrays:
        return np.asarray(arrays["layers"].astype(np.float32))


def _settings(data_set: DataSet, seed: int) -> list[MemberSettings]:
    changes = {
        "seed": seed,
        "epochs": EPOCHS,
        "crops_per_tile": CROPS[data_set],
        "global_batch": BATCH,
        "optimiser.lr": LEARNING_RATE,
    }
    return [change(member, changes) for member in members(MEMBERS)]


def _of_fold(
    settings: Sequence[MemberSettings],
    shards: str,
    labels: dict[int, Label],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return probability and disagreement of the tiles `test` by nets trained on `train`, `[N, 2, H, W]`."""
    loader = LoaderSettings(threads=1)
    nets: list[tuple[MemberSettings, torch.nn.Module]] = []
    for member in settings:
        reader = _WrongLabels(shards, member.bands, labels)
        data = TrainingData(reader, train, np.zeros(0, np.int64), loader)
        state = train_member(member, data, Ranks(), lambda report, state: None)
        nets.append((member, state.net))
    ensemble = Ensemble(nets, ScoreSettings(threads=1), torch.device("cpu"), disagreement=True)
    pixels = TileReader(shards, ensemble.bands)
    found = []
    for i in test:
        bands, _ = pixels.read(int(i))
        valid = np.asarray(bands.any(axis=0))
        (layers,) = ensemble.layers([bands], [valid])
        found.append(np.where(valid, layers, np.float32(np.nan)))
    return np.stack(found)


def _write_whole(path: Path, layers: NDArray[np.float32]) -> None:
    """Keep the layers as float16, which is finer than the 1/254 that masks of probability are stored in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, layers=layers.astype(np.float16))
    os.replace(partial, path)
