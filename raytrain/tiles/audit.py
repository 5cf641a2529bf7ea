"""Folds looked at: how alike they are, and whether something of one can be seen in another.

Leakage is looked for in four ways: the same location, the same scene (location and time), footprints that overlap, and
pixels that are nearly equal. Must not know where tiles are stored or who reads them.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.coords import BoundingBox
from rasterio.crs import CRS
from rasterio.errors import RasterioError
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
LEAST_VALID_FRACTION, LEAST_BLOCK_FRACTION, LEAST_SHARED_FRACTION = 0.1, 0.25, 0.25
"""The least data that a tile, a block of one, and what two tiles share, must have to be compared."""
MOST_SATURATED_FRACTION = 0.25
"""A band of which more pixels have its largest value says nothing."""
SIMILAR, NEARLY_EQUAL = 0.95, 0.98
"""Least correlation of two signatures for a closer look; of all pixels to be nearly equal."""


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


def overlapping_footprints(tiles: Tiles) -> tuple[Leak, list[str]]:
    """Return the tiles whose footprint overlaps one in another fold, and the tiles whose place can't be told.

    In one projection boxes are compared, a thousandth of a tile allowed for rounding; across projections, points of one
    box are sought in the other, so that an overlap narrower than 1/16 of a tile may be missed there.
    """
    leak = Leak("overlapping footprints")
    prints = tiles.footprints or []
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    boxes = {i: _degrees(each) for i, each in enumerate(prints) if each is not None}
    known = {i: box for i, box in boxes.items() if box is not None}
    placeless = [tiles.tile_ids[i] for i, each in enumerate(prints) if each is None or i not in known]
    side = max((max(box.right - box.left, box.top - box.bottom) for box in known.values()), default=1.0) or 1.0
    for i, box in known.items():
        met: set[int] = set()
        for cell in _cells_of(box, side):
            met.update(cells[cell])
            cells[cell].append(i)
        for j in sorted(met - {i}):
            if tiles.folds[i] != tiles.folds[j] and _meet(box, known[j]) and _overlap(prints[i], prints[j]):
                leak.add((i, j), _pair(tiles, i, j))
    return leak, placeless


def _cells_of(box: BoundingBox, side: float) -> Iterator[tuple[int, int]]:
    """Yield the cells of a grid of `side` that a box, no larger than a cell, touches: boxes that meet share one."""
    columns = max(1, int(360 // side))  # whole ones around the globe: the last is beside the first
    width = 360 / columns
    for column in range(int(box.left // width), int(box.right // width) + 1):
        for row in range(int(box.bottom // side), int(box.top // side) + 1):
            yield column % columns, row


def _degrees(footprint: Footprint) -> BoundingBox | None:
    """Return the box in degrees, from a west in [-180, 180) to an east that may be beyond 180; None if it has none."""
    try:
        west, south, east, north = transform_bounds(footprint.crs, "EPSG:4326", *footprint.bounds)
    # GDAL's own error, of a private module of rasterio's, is what an engineering CRS raises.
    except (RasterioError, CPLE_BaseError, ValueError):
        return None
    if not np.isfinite([west, south, east, north]).all():
        return None
    east += 360 * (east < west)
    turns = 360 * np.floor((west + 180) / 360)
    return BoundingBox(west - turns, south, east - turns, north)


def _meet(one: BoundingBox, other: BoundingBox) -> bool:
    return (
        one.bottom < other.top
        and other.bottom < one.top
        and any(one.left < other.right + turn and other.left + turn < one.right for turn in (-360, 0, 360))
    )


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


@dataclass(frozen=True)
class Look:
    """What a tile looks like: a hash of its pixels, and from afar `[S] float32`, NaN where a block has little data."""

    digest: bytes
    signature: NDArray[np.float32]


def look_at(bands: NDArray[np.uint16]) -> Look | None:
    """Return what a tile `[C, H, W]` looks like; None if it could be any: constant, saturated, or nearly without data.

    From afar are the means of blocks of each band, over the pixels that have data, less the band's own mean.
    """
    valid = np.any(bands != 0, axis=0)
    if not valid.any() or valid.mean() < LEAST_VALID_FRACTION:
        return None
    if all(_is_saturated(band[valid]) for band in bands):
        return None
    digest = hashlib.blake2b(np.ascontiguousarray(bands).tobytes(), digest_size=16).digest()
    return Look(digest, _from_afar(bands, valid))


def _is_saturated(values: NDArray[np.uint16]) -> bool:
    """Tell whether most of the values are the largest; of a constant band all are."""
    return bool((values == values.max()).mean() > MOST_SATURATED_FRACTION)


def _from_afar(bands: NDArray[np.uint16], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    if min(valid.shape) < BLOCKS:
        return np.full(signature_size(len(bands)), np.nan, np.float32)
    counts = _block_sums(valid[None].astype(np.float64))
    rows, columns = _block_edges(valid.shape)
    areas = np.diff(rows)[:, None] * np.diff(columns)[None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = _block_sums(bands.astype(np.float64)) / counts
    means[:, counts[0] < LEAST_BLOCK_FRACTION * areas] = np.nan
    return np.asarray(means.ravel(), np.float32)


def _block_edges(shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, columns = (np.linspace(0, side, BLOCKS + 1).astype(np.int64) for side in shape)
    return rows, columns


def _block_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums `[C, BLOCKS, BLOCKS]` over the blocks of `values` `[C, H, W]`."""
    rows, columns = _block_edges(values.shape[1:])
    return np.asarray(np.add.reduceat(np.add.reduceat(values, rows[:-1], axis=1), columns[:-1], axis=2))


def similar_pairs(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], our_folds: NDArray[np.int32], their_folds: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Return the pairs `[P, 2]` of positions in `ours` `[N, S]` and `theirs` `[M, S]` that look alike across folds.

    That is by Pearson's correlation over the blocks that both know, covariances and variances added up over the bands.
    """
    shared = np.zeros((len(ours), len(theirs)), np.float32)
    covariance, our_variance, their_variance = (np.zeros_like(shared) for _ in range(3))
    for (a, a_known), (b, b_known) in zip(_bands_of(ours), _bands_of(theirs), strict=True):
        count = a_known @ b_known.T
        shared += count
        count = np.maximum(count, 1)
        a_sum, b_sum = a @ b_known.T, a_known @ b.T
        covariance += a @ b.T - a_sum * b_sum / count
        our_variance += a**2 @ b_known.T - a_sum**2 / count
        their_variance += a_known @ (b**2).T - b_sum**2 / count
    lengths = np.sqrt(np.maximum(our_variance, 0) * np.maximum(their_variance, 0))
    alike = (shared >= LEAST_SHARED_FRACTION * ours.shape[1]) & (lengths > 0) & (covariance > SIMILAR * lengths)
    return np.argwhere(alike & (our_folds[:, None] != their_folds[None, :]))


def _bands_of(signatures: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield of each band `[N, BLOCKS^2]` the values less their mean, 0 where not known, and 1 where known."""
    for band in np.split(signatures, signatures.shape[1] // BLOCKS**2, axis=1):
        known = ~np.isnan(band)
        filled = np.where(known, band, 0)
        means = filled.sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
        yield np.asarray((filled - means) * known, np.float32), known.astype(np.float32)


def nearly_equal(ours: NDArray[np.uint16], theirs: NDArray[np.uint16]) -> bool:
    """Tell whether two tiles `[C, H, W]` show the same: where both have data, their pixels correlate.

    Covariances and variances are added up over the bands; those that are constant or saturated in both are left out.
    """
    if ours.shape != theirs.shape:
        return False
    valid = np.any(ours != 0, axis=0) & np.any(theirs != 0, axis=0)
    if valid.mean() < LEAST_VALID_FRACTION:
        return False
    covariance = our_variance = their_variance = 0.0
    for a, b in zip(ours[:, valid], theirs[:, valid], strict=True):
        if not (_is_saturated(a) and _is_saturated(b)):
            x, y = a - a.mean(), b - b.mean()
            covariance += float(x @ y)
            our_variance += float(x @ x)
            their_variance += float(y @ y)
    length = (our_variance * their_variance) ** 0.5
    return bool(length > 0 and covariance > NEARLY_EQUAL * length)


def equal_digests(digests: Sequence[bytes | None], folds: NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    """Yield pairs of tiles of one digest in different folds: the first of each fold with the tiles of the others."""
    for digest, members in _groups(digests):
        firsts = {int(folds[i]): i for i in reversed(members)}
        if digest is not None and len(firsts) > 1:
            for i in members:
                for fold, first in firsts.items():
                    if fold != folds[i]:
                        yield min(i, first), max(i, first)


def equal_pixels(tiles: Tiles, pairs: Iterable[tuple[int, int]]) -> Leak:
    """Return the leak of pairs of tiles that are nearly equal."""
    leak = Leak("nearly equal pixels")
    for i, j in pairs:
        leak.add((i, j), _pair(tiles, i, j))
    return leak
