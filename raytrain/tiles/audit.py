"""Folds looked at: how alike they are, and whether something of one can be seen in another.

Leakage is looked for in four ways: the same location, the same scene (location and time), footprints that overlap, and
pixels that are nearly equal. Must not know where tiles are stored or who reads them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rasterio.coords import BoundingBox
from rasterio.crs import CRS
from rasterio.warp import transform, transform_bounds

from raytrain.tiles.metadata import MetadataRow

EXAMPLES = 5
"""Examples that are kept of each kind of leak."""
CLEAR_FRACTION, OVERCAST_FRACTION = 0.01, 0.99
KeyT = TypeVar("KeyT")
GRID = 16
"""Points a side by which the overlap of footprints in different projections is seen."""
BLOCKS = 6
"""A signature has so many means of blocks along each side of a tile, for each band."""
SIGNATURE_BANDS = 4
LEAST_VALID_FRACTION, LEAST_CONTRAST = 0.1, 0.02
"""A tile with less data, or whose blocks differ by less than this share of their mean, can't be told from others."""
MOST_SATURATED_FRACTION = 0.5
SIMILAR, NEARLY_EQUAL = 0.98, 0.98
"""Least correlation of two signatures for a closer look; of all pixels, in every band, to be nearly equal."""


@dataclass(frozen=True)
class Tiles:
    """What an audit knows of tiles, each field one entry a tile; nothing of what a table of metadata does not say."""

    tile_ids: list[str]
    locations: list[str]
    taken: list[datetime | None]
    folds: NDArray[np.int32]
    cloud_fractions: NDArray[np.float64] | None = None
    footprints: list[Footprint | None] | None = None


@dataclass(frozen=True)
class Footprint:
    """The box of a tile in its projection."""

    crs: str
    bounds: BoundingBox


@dataclass(frozen=True)
class FoldSummary:
    """One fold: its tiles, its places, and how much cloud they have (None where it is not known)."""

    fold: int
    num_tiles: int
    num_locations: int
    cloud_fraction_mean: float | None
    clear_tiles_fraction: float | None
    overcast_tiles_fraction: float | None


@dataclass
class Leak:
    """One way in which folds share something: how many tiles of each fold are concerned, some of them by name."""

    kind: str
    tiles: set[int] = field(default_factory=set)
    examples: list[str] = field(default_factory=list)

    def add(self, tiles: Iterable[int], example: str) -> None:
        """Add tiles that share something with another fold, and say what."""
        self.tiles.update(tiles)
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)

    def tiles_by_fold(self, folds: NDArray[np.int32]) -> dict[int, int]:
        """Return the number of tiles concerned in each fold that has any."""
        found, counts = np.unique(folds[sorted(self.tiles)], return_counts=True)
        return {int(fold): int(count) for fold, count in zip(found, counts, strict=True)}


def tiles_of_rows(rows: Sequence[MetadataRow], folds: Sequence[int]) -> Tiles:
    """Return what metadata say of chips."""
    return Tiles(
        [row.chip_id for row in rows],
        [row.location for row in rows],
        [row.taken for row in rows],
        np.array(folds, np.int32),
    )


def tiles_of_index(index: pa.Table, folds: Sequence[int] | None = None) -> Tiles:
    """Return what an index says of tiles; `folds` instead of its own, if given."""
    rows = zip(*(index[name].to_pylist() for name in ("crs", "transform", "height", "width")), strict=True)
    return Tiles(
        index["tile_id"].to_pylist(),
        index["location"].to_pylist(),
        index["datetime"].to_pylist(),
        index["fold"].to_numpy() if folds is None else np.array(folds, np.int32),
        index["cloud_fraction"].to_numpy().astype(np.float64),
        [_footprint(*row) for row in rows],
    )


def _footprint(crs: str | None, affine: Sequence[float] | None, height: int, width: int) -> Footprint | None:
    if crs is None or affine is None:
        return None
    a, b, c, d, e, f = affine
    xs = [c + a * i + b * j for i in (0, width) for j in (0, height)]
    ys = [f + d * i + e * j for i in (0, width) for j in (0, height)]
    return Footprint(crs, BoundingBox(min(xs), min(ys), max(xs), max(ys)))


def summarise(tiles: Tiles) -> list[FoldSummary]:
    """Return the summary of every fold, in their order."""
    locations = np.asarray(tiles.locations, object)
    return [_summary(tiles, locations, int(fold)) for fold in np.unique(tiles.folds)]


def _summary(tiles: Tiles, locations: NDArray[np.object_], fold: int) -> FoldSummary:
    inside = tiles.folds == fold
    clouds = np.empty(0) if tiles.cloud_fractions is None else tiles.cloud_fractions[inside]
    clouds = clouds[~np.isnan(clouds)]
    known = clouds.size > 0
    return FoldSummary(
        fold=fold,
        num_tiles=int(inside.sum()),
        num_locations=len(set(locations[inside])),
        cloud_fraction_mean=float(clouds.mean()) if known else None,
        clear_tiles_fraction=float((clouds < CLEAR_FRACTION).mean()) if known else None,
        overcast_tiles_fraction=float((clouds > OVERCAST_FRACTION).mean()) if known else None,
    )


def size_spread(summaries: Sequence[FoldSummary]) -> float:
    """Return by which fraction the largest fold is larger than the smallest."""
    sizes = [each.num_tiles for each in summaries]
    return max(sizes) / min(sizes) - 1


def shared_locations(tiles: Tiles) -> Leak:
    """Return the tiles whose location has tiles in another fold."""
    leak = Leak("same location")
    for location, members in _groups(tiles.locations):
        _add_group(leak, tiles, members, f"location {location}")
    return leak


def shared_scenes(tiles: Tiles) -> Leak:
    """Return the tiles whose scene, a location at a time, has tiles in another fold; a blank time equals nothing."""
    leak = Leak("same scene")
    scenes = [None if time is None else (place, time) for place, time in zip(tiles.locations, tiles.taken, strict=True)]
    for scene, members in _groups(scenes):
        if scene is not None:
            _add_group(leak, tiles, members, f"scene {scene[0]}, {scene[1]:%Y-%m-%dT%H:%M:%SZ}")
    return leak


def _groups(keys: Sequence[KeyT]) -> Iterator[tuple[KeyT, list[int]]]:
    groups: dict[KeyT, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        groups[key].append(i)
    yield from groups.items()


def _add_group(leak: Leak, tiles: Tiles, members: list[int], what: str) -> None:
    folds = sorted({int(tiles.folds[i]) for i in members})
    if len(folds) > 1:
        leak.add(members, f"{what}: {len(members)} tiles in folds {', '.join(map(str, folds))}")


def overlapping_footprints(tiles: Tiles) -> Leak:
    """Return the tiles whose footprint overlaps one in another fold by more than half a pixel's width of rounding.

    In one projection boxes are compared; across projections, points of one box are sought in the other, so that an
    overlap narrower than 1/16 of a tile may be missed there.
    """
    leak = Leak("overlapping footprints")
    prints = tiles.footprints or []
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    boxes = {i: _degrees(each) for i, each in enumerate(prints) if each is not None}
    if not boxes:
        return leak
    side = max(max(box.right - box.left, box.top - box.bottom) for box in boxes.values())
    for i, box in boxes.items():
        for cell in _cells_of(box, side):
            for j in cells[cell]:
                if tiles.folds[i] != tiles.folds[j] and _meet(box, boxes[j]) and _overlap(prints[i], prints[j]):
                    leak.add((i, j), _pair(tiles, i, j))
            cells[cell].append(i)
    return leak


def _cells_of(box: BoundingBox, side: float) -> Iterator[tuple[int, int]]:
    """Yield the cells of a grid of `side` that a box, no larger than a cell, touches: boxes that meet share one."""
    for column in range(int(box.left // side), int(box.right // side) + 1):
        for row in range(int(box.bottom // side), int(box.top // side) + 1):
            yield column, row


def _degrees(footprint: Footprint) -> BoundingBox:
    return BoundingBox(*transform_bounds(footprint.crs, "EPSG:4326", *footprint.bounds))


def _meet(one: BoundingBox, other: BoundingBox) -> bool:
    return bool(one.left < other.right and other.left < one.right and one.bottom < other.top and other.bottom < one.top)


def _overlap(one: Footprint | None, other: Footprint | None) -> bool:
    if one is None or other is None:
        return False
    if one.crs == other.crs or CRS.from_string(one.crs) == CRS.from_string(other.crs):
        width = min(one.bounds.right, other.bounds.right) - max(one.bounds.left, other.bounds.left)
        height = min(one.bounds.top, other.bounds.top) - max(one.bounds.bottom, other.bounds.bottom)
        rounding = (one.bounds.right - one.bounds.left) * 1e-3
        return bool(width > rounding and height > rounding)
    return _has_points_in(one, other) or _has_points_in(other, one)


def _has_points_in(one: Footprint, other: Footprint) -> bool:
    """Tell whether some of a grid of points within `one` lies in `other`."""
    steps = (np.arange(GRID) + 0.5) / GRID
    box = one.bounds
    x, y = np.meshgrid(box.left + steps * (box.right - box.left), box.bottom + steps * (box.top - box.bottom))
    xs, ys = (np.asarray(each) for each in transform(one.crs, other.crs, x.ravel(), y.ravel())[:2])
    box = other.bounds
    return bool(((xs > box.left) & (xs < box.right) & (ys > box.bottom) & (ys < box.top)).any())


def _pair(tiles: Tiles, i: int, j: int) -> str:
    return f"{tiles.tile_ids[i]} (fold {tiles.folds[i]}) and {tiles.tile_ids[j]} (fold {tiles.folds[j]})"


def signature_size(num_bands: int) -> int:
    """Return the size of a signature of so many bands."""
    return num_bands * BLOCKS**2


def signature(bands: NDArray[np.uint16]) -> NDArray[np.float32] | None:
    """Return what a tile `[C, H, W]` looks like from afar, `[S] float32` of length 1; None if it could be any.

    It is the means of blocks of each band without the band's mean. Tiles that are nearly constant, saturated, or have
    little data have none: they equal each other and are no duplicates.
    """
    valid = np.any(bands != 0, axis=0)
    if min(valid.shape) < BLOCKS or valid.mean() < LEAST_VALID_FRACTION:
        return None
    if (bands.max(axis=0) == bands[:, valid].max()).mean() > MOST_SATURATED_FRACTION:
        return None
    rows, columns = (np.linspace(0, side, BLOCKS + 1).astype(int) for side in valid.shape)
    sums = np.add.reduceat(np.add.reduceat(bands.astype(np.float64), rows[:-1], axis=1), columns[:-1], axis=2)
    means = sums / (np.diff(rows)[:, None] * np.diff(columns)[None, :])
    level = means.mean()
    means = (means - means.mean(axis=(1, 2), keepdims=True)).ravel()
    length = float(np.linalg.norm(means))
    if length < LEAST_CONTRAST * level * np.sqrt(means.size):
        return None
    return np.asarray(means / length, np.float32)


def similar_pairs(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], our_folds: NDArray[np.int32], their_folds: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Return the pairs `[P, 2]` of positions in `ours` `[N, S]` and `theirs` `[M, S]` that look alike across folds.

    Signatures of NaN are like nothing.
    """
    alike = (ours @ theirs.T > SIMILAR) & (our_folds[:, None] != their_folds[None, :])
    return np.argwhere(alike)


def nearly_equal(ours: NDArray[np.uint16], theirs: NDArray[np.uint16]) -> bool:
    """Tell whether two tiles `[C, H, W]` show the same: in every band their pixels correlate, where both have data."""
    if ours.shape != theirs.shape:
        return False
    valid = np.any(ours != 0, axis=0) & np.any(theirs != 0, axis=0)
    if valid.mean() < LEAST_VALID_FRACTION:
        return False
    return all(_correlation(a[valid], b[valid]) > NEARLY_EQUAL for a, b in zip(ours, theirs, strict=True))


def _correlation(a: NDArray[np.uint16], b: NDArray[np.uint16]) -> float:
    x, y = a - a.mean(), b - b.mean()
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / length if length else 0.0


def equal_pixels(tiles: Tiles, pairs: Iterable[tuple[int, int]]) -> Leak:
    """Return the leak of pairs of tiles that are nearly equal."""
    leak = Leak("nearly equal pixels")
    for i, j in pairs:
        leak.add((i, j), _pair(tiles, i, j))
    return leak
