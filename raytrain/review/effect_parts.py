"""Which tiles each comparison is made on, and what all of them come to. Must not know who counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raytrain.evaluation.tally import Tally
from raytrain.review.effect import PartEffect, PartName, judge
from raytrain.review.effect_counts import NEW, OLD, CountedTile, tally_of
from raytrain.review.effect_versions import Versions

VersionName = Literal["before", "after"]
VERSION_NAMES: tuple[VersionName, ...] = ("before", "after")


@dataclass(frozen=True)
class Trained:
    """The nets that learnt from one version, with one seed."""

    version: VersionName
    seed: int

    @property
    def name(self) -> str:
        """What their folders are called."""
        return f"{self.version}-seed{self.seed}"


def judge_parts(
    versions: Versions,
    counted: Sequence[CountedTile],
    tested: Sequence[CountedTile],
    trained: Sequence[Trained],
    *,
    resamples: int,
    resampling_seed: int = 0,
) -> tuple[PartEffect, ...]:
    """Return the comparisons that there are tiles for, in the order of `PART_WORDS`.

    `counted` are tiles of the cleaned shards, `tested` those of a test set; the predictions that both were counted for
    are those of `trained`. A tile of whose label no pixel counts says nothing, and would pass for one without a fault:
    it is left out.
    """
    chosen: dict[PartName, tuple[Sequence[CountedTile], int]] = {"test": (tested, NEW)}
    chosen |= tiles_of_parts(versions, counted)
    found = []
    is_changed = dict(zip(versions.tile_ids, versions.is_changed.tolist(), strict=True))
    for name, (labelled, label) in chosen.items():
        tiles = [tile for tile in labelled if tile.counts[label].any()]
        if not tiles:
            continue
        sides: dict[VersionName, dict[int, Tally]] = {version: {} for version in VERSION_NAMES}
        for i, each in enumerate(trained):
            sides[each.version][each.seed] = tally_of(tiles, label, i)
        part = judge(
            name,
            sides["before"],
            sides["after"],
            changed={} if name == "test" else versions.changed_by_place,
            dropped={} if name == "test" else versions.dropped_by_place,
            num_changed=0 if name == "test" else sum(is_changed[tile.tile_id] for tile in tiles),
            num_ignored=len(labelled) - len(tiles),
            resamples=resamples,
            resampling_seed=resampling_seed,
        )
        found.append(part)
    return tuple(found)


def tiles_of_parts(
    versions: Versions, counted: Sequence[CountedTile]
) -> Mapping[PartName, tuple[Sequence[CountedTile], int]]:
    """Return the tiles of each comparison on the cleaned shards, and by which label it is made.

    Tiles of a touched place may be in three of them.
    """
    place = {tile_id: i for i, tile_id in enumerate(versions.tile_ids)}
    at = [place[tile.tile_id] for tile in counted]
    touched = [(tile, i) for tile, i in zip(counted, at, strict=True) if versions.is_touched[i]]
    return {
        "untouched": ([tile for tile, i in zip(counted, at, strict=True) if not versions.is_touched[i]], NEW),
        "unchanged": ([tile for tile, i in touched if not versions.is_changed[i]], NEW),
        "new-labels": ([tile for tile, i in touched if versions.has_label[i]], NEW),
        "old-labels": ([tile for tile, i in touched if versions.had_label[i]], OLD),
    }
