"""Two versions of the same shards side by side: which labels differ, which tiles were dropped, and at which places.

Only indexes are compared, never pixels. Must not know what is trained on the versions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raytrain.errors import ConfigError
from raytrain.tiles.reader import read_index, read_manifest, shards_digest

_SAME = {"location": "location", "fold": "fold", "height": "height", "width": "width"}
"""Columns of the index in which a tile must not differ between the versions, and what they are called."""


@dataclass(frozen=True)
class Version:
    """A set of shards: where it is, its hash, its manifest, and of its index what versions are compared by."""

    uri: str
    digest: str
    manifest: Mapping[str, Any]
    index: pa.Table

    @property
    def bands(self) -> tuple[str, ...]:
        """The bands that it has."""
        return tuple(self.manifest["bands"])


@dataclass(frozen=True)
class Versions:
    """The tiles of `after`, in the order of its index, beside what they are in `before`.

    `folds` are those that there are, `positions` `[N]` places in the index of `before`. `is_changed` `[N]` says that
    the label is another one, given or taken away included. `dropped` has the location of each tile that `after` lacks,
    by its id. `is_child` says that `after` names `before` as its parent.
    """

    before: str
    after: str
    before_digest: str
    after_digest: str
    is_child: bool
    tile_ids: list[str]
    locations: list[str]
    folds: list[int]
    positions: NDArray[np.int64]
    has_label: NDArray[np.bool_]
    had_label: NDArray[np.bool_]
    is_changed: NDArray[np.bool_]
    dropped: dict[str, str] = field(default_factory=dict)

    @cached_property
    def changed_by_place(self) -> dict[str, int]:
        """How many labels differ at each location where any does, or from which a tile was dropped."""
        counts = {name: 0 for name in self.dropped.values()}
        for i in np.flatnonzero(self.is_changed):
            counts[self.locations[i]] = counts.get(self.locations[i], 0) + 1
        return counts

    @cached_property
    def dropped_by_place(self) -> dict[str, int]:
        """How many tiles were dropped at each location where any was."""
        return dict(Counter(self.dropped.values()))

    @cached_property
    def is_touched(self) -> NDArray[np.bool_]:
        """Whether a tile `[N]` lies at a place where a label differs, or from which a tile was dropped."""
        return np.array([name in self.changed_by_place for name in self.locations], np.bool_)

    @property
    def lost_places(self) -> list[str]:
        """The locations of which no tile is left."""
        return sorted(set(self.dropped.values()) - set(self.locations))


def read_version(uri: str) -> Version:
    """Return the version of shards at `uri`; raise `ConfigError` where it can't be read."""
    manifest = read_manifest(uri)
    cells = [f"{band}_{part}" for band in manifest["bands"] for part in ("bytes", "crc32")]
    columns = ["tile_id", "sha256", "label_bytes", *_SAME, *cells]
    return Version(uri, shards_digest(manifest), manifest, read_index(uri, columns))


def compare_versions(before: Version, after: Version) -> Versions:
    """Return both versions side by side.

    `after` may lack tiles of `before`; raises `ConfigError` that names what else differs than labels, and where no
    label does: there is no effect to look for.
    """
    _check_manifests(before, after)
    ids = after.index["tile_id"]
    found = pc.index_in(ids, before.index["tile_id"])
    new = ids.filter(pc.is_null(found)).to_pylist()
    if new:
        raise ConfigError(
            f"{after.uri} has {len(new)} tiles that {before.uri} has not, among them {new[0]}; expected the same "
            "tiles, or fewer: name the shards that it was made of"
        )
    positions = found.to_numpy(zero_copy_only=False).astype(np.int64)
    same = before.index.take(pa.array(positions))
    _check_tiles(before, after, same)
    is_changed = _differs(same["sha256"], after.index["sha256"])
    dropped = _dropped(before, positions)
    if not is_changed.any() and not dropped:
        raise ConfigError(
            f"{after.uri}: no label differs from those of {before.uri}, so there is no effect to look for"
        )
    return Versions(
        before=before.uri,
        after=after.uri,
        before_digest=before.digest,
        after_digest=after.digest,
        is_child=_is_child(after, before),
        tile_ids=ids.to_pylist(),
        locations=after.index["location"].to_pylist(),
        folds=sorted(set(after.index["fold"].to_pylist())),
        positions=positions,
        has_label=_is_labelled(after.index),
        had_label=_is_labelled(same),
        is_changed=is_changed,
        dropped=dropped,
    )


def _is_child(version: Version, other: Version) -> bool:
    """Tell whether the manifest of a version names the other as its parent."""
    parent: Mapping[str, Any] = version.manifest.get("parent") or {}
    return bool(parent.get("shards_digest") == other.digest)


def _check_manifests(before: Version, after: Version) -> None:
    if before.digest == after.digest:
        raise ConfigError(f"{after.uri} has the same tiles, labels and folds as {before.uri}: nothing to compare")
    if _is_child(before, after):
        raise ConfigError(
            f"{before.uri} was made of {after.uri}, which its manifest names as its parent; give them the other way "
            "round, the shards as they were first"
        )
    if before.bands != after.bands:
        raise ConfigError(
            f"{after.uri} has the bands {', '.join(after.bands)}, but {before.uri} has {', '.join(before.bands)}; "
            "expected the same images with other labels"
        )
    encodings = [version.manifest["cell_encoding"] for version in (before, after)]
    if encodings[0] != encodings[1]:
        raise ConfigError(
            f"{after.uri} has {encodings[1]} cells, but {before.uri} has {encodings[0]}: it can't be told whether "
            "images differ; make one of them again with the other's --cell-encoding"
        )


def _check_tiles(before: Version, after: Version, same: pa.Table) -> None:
    """Raise `ConfigError` for the first tile of `after` that is not what it is in `before`, its label aside."""
    for column, name in _SAME.items():
        differs = _differs(same[column], after.index[column])
        if differs.any():
            i = int(np.flatnonzero(differs)[0])
            raise ConfigError(
                f"tile {after.index['tile_id'][i]}: {name} {after.index[column][i]} in {after.uri}, but "
                f"{same[column][i]} in {before.uri} ({int(differs.sum())} tiles differ so); nets are compared on the "
                "same places and folds"
            )
    for band in after.bands:
        pairs = [(same[f"{band}_{part}"], after.index[f"{band}_{part}"]) for part in ("bytes", "crc32")]
        differs = np.logical_or.reduce([_differs(*pair) for pair in pairs])
        if differs.any():
            i = int(np.flatnonzero(differs)[0])
            raise ConfigError(
                f"tile {after.index['tile_id'][i]}: band {band} has other bytes in {after.uri} than in {before.uri} "
                f"({int(differs.sum())} tiles differ so); expected the same images with other labels"
            )


def _differs(left: pa.ChunkedArray, right: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Tell of every row, none of which is null, whether two columns differ; text may be stored as a dictionary."""
    plain = [each.cast(pa.string()) if pa.types.is_dictionary(each.type) else each for each in (left, right)]
    return np.asarray(pc.not_equal(*plain).to_numpy(), np.bool_)


def _is_labelled(index: pa.Table) -> NDArray[np.bool_]:
    return np.asarray(index["label_bytes"].is_valid().to_numpy(), np.bool_)


def _dropped(before: Version, positions: NDArray[np.int64]) -> dict[str, str]:
    """Return the location of each tile of `before` at none of `positions`, by its id."""
    left = np.ones(before.index.num_rows, np.bool_)
    left[positions] = False
    chosen = before.index.select(["tile_id", "location"]).filter(pa.array(left))
    return dict(zip(chosen["tile_id"].to_pylist(), chosen["location"].to_pylist(), strict=True))
