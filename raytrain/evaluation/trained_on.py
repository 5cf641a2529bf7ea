"""What nets learnt from, as a person wants to know it: counts, places, dates and values of a set of shards.

Must not know nets, or who asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow.compute as pc

from raytrain.errors import ConfigError
from raytrain.tiles.reader import read_index, read_manifest, shards_digest


@dataclass(frozen=True)
class FoldContent:
    """The labelled tiles of a fold: how many, and the names of their locations."""

    num_tiles: int
    locations: tuple[str, ...]


@dataclass(frozen=True)
class TrainedOn:
    """A set of shards: where it is, what it was made of, and its labelled tiles by fold.

    `baseline` says what the values of the source were (see `ShardSettings`), None where nobody recorded it. `first` and
    `last` are the dates of the labelled tiles, None where none has one; `num_undated` have none. `pixel_sizes` are
    those of the tiles that have a transform, in units of their CRS.
    """

    shards: str
    digest: str
    source: str | None
    bands: tuple[str, ...]
    baseline: str | None
    num_unlabelled: int
    first: datetime | None
    last: datetime | None
    num_undated: int
    pixel_sizes: tuple[float, ...] = ()
    folds: Mapping[int, FoldContent] = field(default_factory=dict)

    @property
    def num_tiles(self) -> int:
        """All labelled tiles."""
        return sum(fold.num_tiles for fold in self.folds.values())

    @property
    def locations(self) -> list[str]:
        """The locations of all labelled tiles, by name."""
        return sorted({name for fold in self.folds.values() for name in fold.locations})

    def learnt(self, fold: int | None) -> set[str]:
        """Return the locations that a net validated on `fold` learnt from: those of all other folds."""
        return {name for number, each in self.folds.items() if number != fold for name in each.locations}

    def num_learnt(self, fold: int | None) -> int:
        """Return how many tiles a net validated on `fold` learnt from."""
        return sum(each.num_tiles for number, each in self.folds.items() if number != fold)


def describe_shards(uri: str, digest: str) -> TrainedOn:
    """Return what the shards at `uri` hold; raise `ConfigError` if they are gone, or not those of `digest` any more."""
    manifest = read_manifest(uri)
    found = shards_digest(manifest)
    if found != digest:
        raise ConfigError(f"{uri}: the shards are not those that were trained on (digest {found}, not {digest})")
    index = read_index(uri, ["location", "datetime", "fold", "label_bytes", "transform"])
    is_labelled = index["label_bytes"].is_valid()
    labelled = index.filter(is_labelled)
    locations = np.asarray(labelled["location"].to_pylist(), dtype=object)
    fold_of = labelled["fold"].to_numpy()
    times = pc.min_max(labelled["datetime"]).as_py() if len(labelled) else {"min": None, "max": None}
    return TrainedOn(
        shards=uri,
        digest=digest,
        source=manifest["source"].get("uri"),
        bands=tuple(manifest["bands"]),
        baseline=manifest["settings"].get("baseline"),
        num_unlabelled=len(index) - len(labelled),
        first=times["min"],
        last=times["max"],
        num_undated=labelled["datetime"].null_count,
        pixel_sizes=_pixel_sizes(labelled["transform"]),
        folds={
            int(fold): FoldContent(int((fold_of == fold).sum()), tuple(sorted(set(locations[fold_of == fold]))))
            for fold in np.unique(fold_of)
        },
    )


def _pixel_sizes(transforms: Any) -> tuple[float, ...]:
    known = transforms.drop_null()
    if not len(known):
        return ()
    widths = pc.abs(pc.list_element(known, 0))
    return tuple(sorted(float(each) for each in pc.unique(widths).to_pylist()))
