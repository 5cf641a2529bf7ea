"""The real labelled chips: their shards, their sensors, and the folds of each part of the run. Must not know nets.

A fold is chips to train on and chips to test on, which share no place; over the folds of a part each chip of the part
is tested once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raytrain import storage
from raytrain.config import ShardSettings
from raytrain.errors import ConfigError
from raytrain.imagery.rasters import LABEL_IGNORE
from raytrain.tiles.archive import open_archive
from raytrain.tiles.reader import MANIFEST, TileReader
from raytrain.tiles.tables import read_table
from tests.bench.blue import BlueChip
from tests.making import shard_chips

Part = Literal["folds", "val", "all27"]
"""Cross-validation inside the split train; train on it and test on val; cross-validation over all places."""
FOLD_SEED = 0


@dataclass(frozen=True)
class RealChip:
    """A labelled chip: its position in the reader of the shards, its place, its sensor (`Sentinel`, `Landsat`)."""

    position: int
    chip_id: str
    location: str
    sensor: str
    split: str


@dataclass(frozen=True)
class Fold:
    """The positions of the chips that a net is trained on, and of those that it is tested on."""

    name: str
    train: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True)
class RealChips:
    """The chips in the order of their positions, and the URI of the shards they lie in."""

    shards: str
    chips: tuple[RealChip, ...]

    def labels(self) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.uint8]]]:
        """Yield bands `[4, H, W]` and label `[H, W]` of every chip, 255 where there is no data."""
        reader = TileReader(self.shards, ShardSettings().bands)
        for chip in self.chips:
            bands, label = reader.read(chip.position)
            assert label is not None, "every chip has a provenance, so a label"
            yield bands, np.where(bands.any(axis=0), label, np.uint8(LABEL_IGNORE))

    def blue(self) -> list[BlueChip]:
        """Return B02 and label of every chip, in memory (27 chips are 7 MB)."""
        return [(bands[0], label) for bands, label in self.labels()]


def open_chips(archive: Path, out: Path) -> RealChips:
    """Return the chips of `archive`, whose shards are written below `out` unless they stand there.

    Beside the archive's own files, `provenance.csv` has `split` (train, val) and `sensor` of each chip. Raises
    `ConfigError` for a chip without them, and for a chip that can't be used: all are wanted.
    """
    settings = ShardSettings(folds="1")
    found = open_archive(str(archive), settings.bands)
    if found.problems:
        raise ConfigError(f"{archive}: {len(found.problems)} problems, among them {found.problems[0]}")
    # Named by what it is made of, so that shards of another archive are never taken for it.
    made_of = storage.sha256_of("".join([settings.digest(), *(chip.identity for chip in found.chips)]).encode())
    shards = out / f"shards-{made_of[:12]}"
    if not (shards / MANIFEST).exists():
        shard_chips(archive, shards, settings)
    rows = {row["chip_id"]: row for row in read_table(str(archive / "provenance.csv"), "table of provenance")}
    reader = TileReader(str(shards), ())
    missing = [chip_id for chip_id in reader.tile_ids if chip_id not in rows]
    if missing:
        raise ConfigError(f"{archive}/provenance.csv: no row for {', '.join(missing)}")
    chips = [
        RealChip(i, chip_id, location, rows[chip_id]["sensor"].partition("-")[0], rows[chip_id]["split"])
        for i, (chip_id, location) in enumerate(zip(reader.tile_ids, reader.locations, strict=True))
    ]
    return RealChips(str(shards), tuple(chips))


def part_folds(part: Part, chips: Sequence[RealChip], num_folds: int) -> list[Fold]:
    """Return the folds of `part`; `val` is one fold. Raises `ConfigError` where places don't suffice or are shared."""
    train = [chip for chip in chips if chip.split == "train"]
    if part == "val":
        test = [chip for chip in chips if chip.split == "val"]
        return [_checked(Fold("val", _positions(train), _positions(test)), chips)]
    pool = train if part == "folds" else list(chips)
    by_place = deal_places(pool, num_folds)
    return [
        _checked(
            Fold(
                str(i),
                _positions([chip for chip in pool if by_place[chip.location] != i]),
                _positions([chip for chip in pool if by_place[chip.location] == i]),
            ),
            chips,
        )
        for i in range(num_folds)
    ]


def deal_places(chips: Sequence[RealChip], num_folds: int) -> dict[str, int]:
    """Return the fold of each place: dealt out in turn, in an order drawn from a fixed seed, sensor after sensor.

    So each sensor's places are spread over the folds as evenly as can be: the two Sentinel-2 chips of the split train
    are never both held out. Raises `ConfigError` for fewer than 2 folds, or more than places.
    """
    sensors: dict[str, str] = {}
    for chip in sorted(chips, key=lambda chip: (chip.sensor, chip.location)):
        sensors.setdefault(chip.location, chip.sensor)
    if not 2 <= num_folds <= len(sensors):
        raise ConfigError(f"expected from 2 to {len(sensors)} folds, as many as places, found {num_folds}")
    generator = np.random.default_rng(FOLD_SEED)
    dealt: list[str] = []
    for sensor in sorted(set(sensors.values()), reverse=True):
        places = [place for place, theirs in sensors.items() if theirs == sensor]
        dealt += [places[i] for i in generator.permutation(len(places))]
    return {place: i % num_folds for i, place in enumerate(dealt)}


def _positions(chips: Sequence[RealChip]) -> tuple[int, ...]:
    return tuple(chip.position for chip in chips)


def _checked(fold: Fold, chips: Sequence[RealChip]) -> Fold:
    """Return `fold`; raise `ConfigError` where it lacks chips, or a net would be tested on a place that it saw."""
    shared = {chips[i].location for i in fold.train} & {chips[i].location for i in fold.test}
    if shared or not fold.train or not fold.test:
        found = f"share {', '.join(sorted(shared))}" if shared else f"{len(fold.train)} and {len(fold.test)} chips"
        raise ConfigError(f"fold {fold.name}: chips to train on and to test on: {found}")
    return fold
