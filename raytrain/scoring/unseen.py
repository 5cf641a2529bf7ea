"""Which nets never saw a tile: those whose training had no labelled tile of its location. Must not know pixels.

The rule is by location, not by tile, since pictures of one place are alike. It is decided by the shards that were
trained on: what is scored may be another version of them, with tiles dropped, labels repaired and locations corrected.
Where such a tile lay then is known by its id; otherwise names are trusted: a place that both name differently, of which
no tile kept its id, passes for one that no net saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raytrain.errors import ConfigError
from raytrain.scoring.manifest import EnsembleManifest
from raytrain.tiles.reader import read_index, read_manifest, shards_digest

TRAIN_ALL = "train --fold all trains a net of each member for every fold"


@dataclass(frozen=True)
class Unseen:
    """The tiles of the shards that were trained on, and the nets of each fold.

    `trained` has the columns tile_id, location, fold, and is_labelled. `names` are the members by fold, in the order of
    the ensemble.
    """

    shards: str
    trained: pa.Table
    names: Mapping[int, tuple[str, ...]]

    def folds_of(self, tiles: pa.Table) -> list[frozenset[int]]:
        """Return for each of `tiles`, with tile_id and location, the folds of the labelled tiles of its place.

        These are the tiles that were of its location in training, those that are of it now, and those that were of the
        location that it had itself in training.
        """
        labelled = self.trained.filter(self.trained["is_labelled"])
        then = _folds_by(labelled["location"], labelled["fold"])
        at = pc.index_in(labelled["tile_id"], value_set=tiles["tile_id"])
        now = _folds_by(tiles["location"].take(at), labelled["fold"])
        at = pc.index_in(tiles["tile_id"], value_set=self.trained["tile_id"])
        none: frozenset[int] = frozenset()

        @cache
        def of_place(location: str, before: str | None) -> frozenset[int]:
            return then.get(location, none) | now.get(location, none) | then.get(before, none)

        return list(map(of_place, _texts(tiles["location"]), _texts(self.trained["location"].take(at))))

    def fold_for(self, folds: frozenset[int]) -> int | None:
        """Return the fold whose nets never saw a place with labelled tiles in `folds`; None where those of all did.

        A net of fold k learnt from all labelled tiles that are not in fold k. Of a place without such tiles no net saw
        anything, and the lowest fold is taken, as by default.
        """
        if not folds:
            return min(self.names)
        return next(iter(folds)) if len(folds) == 1 else None

    def why_none(self, location: str, folds: frozenset[int]) -> str:
        """Return why no net is unseen for a tile of `location`, whose place has labelled tiles in `folds`."""
        return (
            f"location {location} has labelled tiles in the folds {', '.join(map(str, sorted(folds)))} of "
            f"{self.shards}, by the names there or by the ids of its tiles, so every net learnt from it; make shards "
            "with folds by location (shard --folds 4) and train anew"
        )

    def check(self, folds: Iterable[int]) -> None:
        """Raise `ConfigError` unless there are nets of all members for each of `folds`, one a member."""
        every = tuple(dict.fromkeys(name for names in self.names.values() for name in names))
        wanted = sorted(set(folds))
        missing = {fold: [name for name in every if name not in self.names.get(fold, ())] for fold in wanted}
        texts = [f"fold {fold} has no {', '.join(names)}" for fold, names in missing.items() if names]
        if texts:
            raise ConfigError(f"--out-of-fold needs nets that the ensemble lacks: {'; '.join(texts)}; {TRAIN_ALL}")
        twice = [f"{name} of fold {k}" for k in wanted for name in every if self.names[k].count(name) > 1]
        if twice:
            raise ConfigError(f"--out-of-fold needs one net a member and fold; the ensemble has several {twice[0]}")


def of_folds(manifest: EnsembleManifest) -> EnsembleManifest:
    """Return the manifest with the nets of folds alone; raise `ConfigError` for an ensemble without such.

    One trained without a fold learnt from all tiles.
    """
    kept = tuple(member for member in manifest.members if member.fold is not None)
    if not kept:
        raise ConfigError(f"--out-of-fold: the nets of this ensemble have no folds, so all saw every tile; {TRAIN_ALL}")
    return manifest.model_copy(update={"members": kept})


def find_unseen(source: str, manifest: EnsembleManifest) -> Unseen:
    """Return which nets of `manifest`, all of folds, saw which locations, to score the shards at `source`.

    The shards that were trained on are `source` itself or lie where the ensemble says. Raises `ConfigError` where they
    can't be read, or are others by now.
    """
    own = shards_digest(read_manifest(source))
    shards = source if own == manifest.shards_digest else manifest.shards
    try:
        if shards != source:
            found = shards_digest(read_manifest(shards))
            if found != manifest.shards_digest:
                raise ConfigError(f"they are not those that were trained on (digest {found})")
        table = read_index(shards, ["tile_id", "location", "fold", "label_bytes"])
    except (ConfigError, PermissionError) as error:
        raise ConfigError(
            f"--out-of-fold needs the index of the shards that the ensemble was trained on, at {shards} (digest "
            f"{manifest.shards_digest}), to know which net saw which location: {error}; bring them back there"
        ) from error
    names: dict[int, tuple[str, ...]] = {}
    for member in manifest.members:
        assert member.fold is not None, "a net without a fold saw all"
        names[member.fold] = (*names.get(member.fold, ()), member.name)
    is_labelled = table["label_bytes"].is_valid()
    return Unseen(shards, table.drop_columns("label_bytes").append_column("is_labelled", is_labelled), names)


def _texts(values: pa.ChunkedArray) -> NDArray[np.object_]:
    """Return texts `[N]`, or None, of what may be a dictionary, whose `to_pylist` takes 30 times as long."""
    return np.asarray(pc.cast(values, pa.string()).to_numpy(), object)


def _folds_by(locations: pa.ChunkedArray, folds: pa.ChunkedArray) -> dict[str | None, frozenset[int]]:
    """Return the folds `[N]` by location `[N]`; without one are tiles that are not there any more."""
    pairs = pa.table({"location": pc.cast(locations, pa.string()), "fold": folds})
    found: dict[str | None, set[int]] = {}
    for row in pairs.group_by(["location", "fold"]).aggregate([]).to_pylist():
        if row["location"] is not None:
            found.setdefault(row["location"], set()).add(row["fold"])
    return {location: frozenset(each) for location, each in found.items()}
