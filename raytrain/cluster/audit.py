"""Folds audited: what metadata say by the driver, what pixels say by Ray tasks over the tiles of shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from raytrain import storage
from raytrain.cluster import session
from raytrain.cluster.tasks import run_tasks
from raytrain.config import Settings
from raytrain.errors import ConfigError, DataError
from raytrain.tiles.audit import (
    SIGNATURE_BANDS,
    FoldSummary,
    Leak,
    Look,
    Tiles,
    equal_digests,
    equal_pixels,
    look_at,
    nearly_equal,
    overlapping_footprints,
    shared_locations,
    shared_scenes,
    signature_size,
    similar_pairs,
    size_spread,
    summarise,
    tiles_of_index,
    tiles_of_rows,
)
from raytrain.tiles.folds import assign_folds
from raytrain.tiles.metadata import read_metadata
from raytrain.tiles.reader import TileReader, read_index, read_manifest, shards_digest

OnProgress = Callable[[int, int], None]
TILES_PER_TASK, PAIRS_PER_TASK, SIGNATURES_PER_TASK = 256, 16, 8192
READS_IN_FLIGHT = 8
DEFAULT_FOLDS = "4"


class AuditJob(Settings):
    """What to audit: shards with their folds, or with `folds` instead; or a metadata CSV with `folds` (4 without)."""

    src: str
    folds: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class AuditReport:
    """The folds, what leaks between them (kinds without a leak included), and what could not be looked at and why.

    `problems` are rows of the metadata or tiles that can't be used.
    """

    summaries: list[FoldSummary]
    size_spread_fraction: float
    leaks: list[tuple[Leak, dict[int, int]]]
    unchecked: list[str]
    problems: list[DataError]

    @property
    def has_leakage(self) -> bool:
        """Whether anything of one fold can be seen in another."""
        return any(leak.tiles for leak, _ in self.leaks)


def audit(job: AuditJob, cluster: session.Cluster, on_progress: OnProgress | None = None) -> AuditReport:
    """Audit the folds of `job`; raise `ConfigError` for what is neither shards nor a metadata CSV."""
    if storage.name_of(job.src).lower().endswith(".csv"):
        metadata = read_metadata(job.src)
        if not metadata.rows:
            raise ConfigError(f"{job.src}: no usable row")
        ids, places = [row.chip_id for row in metadata.rows], [row.location for row in metadata.rows]
        folds = assign_folds(job.folds or DEFAULT_FOLDS, ids, places, job.seed)
        tiles = tiles_of_rows(metadata.rows, folds)
        unchecked = ["overlapping footprints, nearly equal pixels: a metadata file has neither; audit the shards"]
        return _report(tiles, [shared_locations(tiles), shared_scenes(tiles)], unchecked, metadata.problems)
    tiles = _tiles_of_shards(job)
    overlaps, placeless = overlapping_footprints(tiles)
    leaks = [shared_locations(tiles), shared_scenes(tiles), overlaps]
    unchecked = [f"overlapping footprints: {_some(placeless)} without a place on the globe"] if placeless else []
    with session.joined(cluster, [job.src]):
        leak, featureless, problems = _pixel_leak(job, tiles, on_progress)
    if featureless:
        unchecked.append(f"nearly equal pixels: {_some(featureless)}, constant, saturated or nearly without data")
    return _report(tiles, [*leaks, leak], unchecked, problems)


def _some(tile_ids: list[str]) -> str:
    return f"{len(tile_ids)} tiles, {tile_ids[0]} the first,"


def _report(tiles: Tiles, leaks: list[Leak], unchecked: list[str], problems: list[DataError]) -> AuditReport:
    summaries = summarise(tiles)
    by_fold = [(leak, leak.tiles_by_fold(tiles.folds)) for leak in leaks]
    return AuditReport(summaries, size_spread(summaries), by_fold, unchecked, problems)


def _tiles_of_shards(job: AuditJob) -> Tiles:
    read_manifest(job.src)
    columns = ["tile_id", "location", "datetime", "height", "width", "crs", "transform", "cloud_fraction", "fold"]
    index = read_index(job.src, columns)
    if job.folds is None:
        return tiles_of_index(index)
    ids, places = index["tile_id"].to_pylist(), index["location"].to_pylist()
    return tiles_of_index(index, assign_folds(job.folds, ids, places, job.seed))


@dataclass(frozen=True)
class _Shards:
    """Where the tiles are, which bands are looked at, and a hash of what is there."""

    uri: str
    bands: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class _TilesWork:
    shards: _Shards
    positions: range


@dataclass(frozen=True)
class _BlockWork:
    ours: Any
    theirs: Any
    starts: tuple[int, int]


@dataclass(frozen=True)
class _PairsWork:
    shards: _Shards
    pairs: list[tuple[int, int]]


def _pixel_leak(job: AuditJob, tiles: Tiles, on_progress: OnProgress | None) -> tuple[Leak, list[str], list[DataError]]:
    """Return the pairs that are nearly equal, the tiles that could be any, and which can't be read."""
    manifest = read_manifest(job.src)
    shards = _Shards(job.src, tuple(manifest["bands"][:SIGNATURE_BANDS]), shards_digest(manifest))
    count = len(tiles.tile_ids)
    starts = range(0, count, TILES_PER_TASK)
    work = (_TilesWork(shards, range(start, min(start + TILES_PER_TASK, count))) for start in starts)
    found = [each for looks in run_tasks(_look, work, len(starts), on_progress) for each in looks]
    problems = [each for each in found if isinstance(each, DataError)]
    featureless = [tiles.tile_ids[i] for i, each in enumerate(found) if each is None]
    none = np.full(signature_size(len(shards.bands)), np.nan, np.float32)
    signatures = np.stack([each.signature if isinstance(each, Look) else none for each in found])
    blocks = list(_blocks(signatures, tiles.folds))
    like = {pair for pairs in run_tasks(_similar, blocks, len(blocks)) for pair in pairs}
    same = set(equal_digests([each.digest if isinstance(each, Look) else None for each in found], tiles.folds))
    candidates = sorted(like - same)
    chunks = [candidates[start : start + PAIRS_PER_TASK] for start in range(0, len(candidates), PAIRS_PER_TASK)]
    looks = (_PairsWork(shards, chunk) for chunk in chunks)
    alike = {pair for pairs in run_tasks(_compare, looks, len(chunks)) for pair in pairs}
    return equal_pixels(tiles, sorted(same | alike)), featureless, problems


def _look(work: _TilesWork) -> list[Look | DataError | None]:
    """Return what some tiles look like, or that they can't be read (a Ray task)."""
    reader = _reader(work.shards)

    def look(i: int) -> Look | DataError | None:
        try:
            return look_at(reader.read(i)[0])
        except DataError as error:
            return error

    with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
        return list(pool.map(look, work.positions))


@lru_cache(maxsize=2)
def _reader(shards: _Shards) -> TileReader:
    """Return the reader of this worker process, which has many tasks."""
    return TileReader(shards.uri, shards.bands)


def _blocks(signatures: NDArray[np.float32], folds: NDArray[np.int32]) -> Iterator[_BlockWork]:
    """Yield every pair of blocks of signatures once; each block is in Ray's object store once."""
    starts = range(0, len(signatures), SIGNATURES_PER_TASK)
    boxes = [slice(start, start + SIGNATURES_PER_TASK) for start in starts]
    stored = [ray.put((signatures[box], folds[box])) for box in boxes]
    for i in range(len(boxes)):
        for j in range(i, len(boxes)):
            yield _BlockWork(stored[i], stored[j], (starts[i], starts[j]))


def _similar(work: _BlockWork) -> list[tuple[int, int]]:
    """Return the pairs of positions that look alike in two blocks (a Ray task)."""
    (ours, our_folds), (theirs, their_folds) = ray.get([work.ours, work.theirs])
    pairs = similar_pairs(ours, theirs, our_folds, their_folds) + np.array(work.starts)
    return [(int(i), int(j)) for i, j in pairs if i < j]


def _compare(work: _PairsWork) -> list[tuple[int, int]]:
    """Return those of some pairs whose pixels are nearly equal (a Ray task)."""
    reader = _reader(work.shards)
    return [(i, j) for i, j in work.pairs if nearly_equal(reader.read(i)[0], reader.read(j)[0])]
