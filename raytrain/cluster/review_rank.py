"""Labels held against out-of-fold predictions on Ray: what the predictions are worth at each place, then each tile.

Pixels are read twice, by tasks, since what a tile's probabilities mean is known when all of its place are counted. The
driver holds a few hundred numbers a tile at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raytrain import storage
from raytrain.cluster import session
from raytrain.cluster.tasks import run_tasks
from raytrain.config import Settings
from raytrain.errors import ConfigError, DataError
from raytrain.review.calibration import Calibration, Thresholds, label_histogram
from raytrain.review.features import Features, features_of
from raytrain.review.folder import (
    RANKING,
    UNLABELLED,
    Review,
    check_apart,
    is_of_review,
    is_ranked,
    read_review,
    withdraw,
    write_review,
)
from raytrain.review.matching import match
from raytrain.review.predicted import Predictions, open_predictions
from raytrain.review.ranking import IDENTITY_COLUMNS, ranking_table, write_table
from raytrain.review.suspicion import judge
from raytrain.review.unlabelled import unlabelled_table
from raytrain.tiles.reader import TileReader, read_index, read_manifest, shards_digest

OnProgress = Callable[[int, int], None]
TILES_PER_TASK = 32
FoundT = TypeVar("FoundT")


class RankJob(Settings):
    """Which labels to rank by which predictions, into which folder; `unlabelled` are scorings of what has no label."""

    shards: str
    predictions: str
    dst: str
    unlabelled: tuple[str, ...] = ()


@dataclass(frozen=True)
class RankReport:
    """The ranking `table`, how many were ranked as worth a label, and the tiles that could not be looked at.

    `num_blank` labels are ignored as a whole, or have no pixel with data: there is nothing that could be wrong.
    """

    table: pa.Table
    num_unlabelled: int
    num_blank: int
    num_members: int
    problems: list[DataError]


def rank(job: RankJob, cluster: session.Cluster, on_progress: OnProgress | None = None) -> RankReport:
    """Rank the labelled tiles of `job` and what has no label, and write both tables and `review.json`.

    Decisions that stand in the folder stay. Raises `ConfigError` for predictions that can't be used, for shards without
    labels or that change meanwhile, and for a folder that is the review of other shards.
    """
    manifest, predictions = read_manifest(job.shards), open_predictions(job.predictions)
    digest = shards_digest(manifest)
    _check_folder(job, digest)
    index = read_index(job.shards, [*IDENTITY_COLUMNS, "crs", "transform", "label_bytes"])
    index = index.append_column("position", pa.array(np.arange(len(index))))
    labelled = index.filter(pc.is_valid(index["label_bytes"]))
    if not len(labelled):
        raise ConfigError(f"{job.shards}: no tile has a label, so there is none to review")
    with session.joined(cluster, [job.shards, job.predictions, job.dst, *job.unlabelled]):
        kept, problems = match(predictions, job.shards, labelled)
        looked = _Looked(labelled.take(pa.array(kept, pa.int64())), problems=problems)
        _look(looked, _Work(job.shards, digest, predictions), on_progress)
    if shards_digest(read_manifest(job.shards)) != digest:
        raise ConfigError(_changed(job.shards))
    judged = judge(looked.features, looked.rows["location"].to_pylist())
    table = ranking_table(looked.rows, looked.features, judged)
    unlabelled = unlabelled_table(predictions, index.filter(pc.is_null(index["label_bytes"])), job.unlabelled)
    withdraw(job.dst)
    write_table(job.dst, RANKING, table)
    write_table(job.dst, UNLABELLED, unlabelled)
    review = Review(
        shards=job.shards,
        shards_digest=digest,
        predictions=job.predictions,
        scoring_digest=predictions.scoring.digest(),
        threshold=predictions.scoring.settings.threshold,
        bands=tuple(manifest["bands"]),
        num_labelled=len(table),
        num_unlabelled=len(unlabelled),
    )
    write_review(job.dst, review)
    num_members = len(predictions.scoring.members)
    return RankReport(table, len(unlabelled), looked.num_blank, num_members, looked.problems)


def _check_folder(job: RankJob, digest: str) -> None:
    """Raise `ConfigError` for a folder whose decisions, or whose contents, are not of this review."""
    check_apart(job.dst, {"shards": job.shards, "predictions": job.predictions})
    if not is_ranked(job.dst):
        foreign = storage.foreign_file(job.dst, is_of_review)
        if foreign is not None:
            raise ConfigError(f"{job.dst} holds what is no review's, among it {foreign}; name an empty folder")
    elif (found := read_review(job.dst)).shards_digest != digest:
        raise ConfigError(
            f"{job.dst}: the review of other shards ({found.shards}), whose decisions may stand there; "
            "choose another folder, and take them over with raytrain review merge"
        )


def _changed(shards: str) -> str:
    return f"{storage.shown(shards)}: the shards changed while they were ranked; rank again"


@dataclass(frozen=True)
class _Work:
    """The shards, a hash of what they were when the ranking began, and the predictions."""

    shards: str
    digest: str
    predictions: Predictions


@dataclass(frozen=True)
class _Tile:
    position: int
    tile_id: str
    thresholds: Thresholds | None = None


@dataclass(frozen=True)
class _Tiles:
    """Some tiles for one task; those of the second pass come with what probabilities mean at their place."""

    work: _Work
    tiles: tuple[_Tile, ...]


@dataclass
class _Looked:
    """Rows of the index and, once they are looked at, those that could be, with their features."""

    rows: pa.Table
    problems: list[DataError]
    features: list[Features] = field(default_factory=list)
    num_blank: int = 0

    def keep(self, numbers: Sequence[int], problems: Sequence[DataError], predictions: Predictions) -> None:
        """Keep some rows; raise `ConfigError` where none is left."""
        self.problems += problems
        self.rows = self.rows.take(pa.array(numbers, pa.int64()))
        if not len(self.rows):
            first = f" (the first: {self.problems[0]})" if self.problems else ""
            raise ConfigError(f"{predictions.uri}: no label can be held against what was predicted there{first}")


def _look(looked: _Looked, work: _Work, on_progress: OnProgress | None) -> None:
    """Look at all rows, twice; `looked` has those that could be looked at afterwards."""
    looked.keep(range(len(looked.rows)), [], work.predictions)
    tiles = _tiles(looked.rows)
    total = 2 * len(tiles)

    def told(before: int) -> Callable[[int, int], None]:
        return lambda done, _: on_progress and on_progress(before + min(len(tiles), done * TILES_PER_TASK), total)

    counted, problems, read = _of_all(_histograms, work, tiles, told(0))
    telling = [n for n, own in enumerate(counted) if own.any()]
    looked.num_blank = len(counted) - len(telling)
    looked.keep([read[n] for n in telling], problems, work.predictions)
    locations = looked.rows["location"].to_pylist()
    calibration = Calibration.of(locations, np.stack([counted[n] for n in telling]))
    usable = [
        replace(tile, thresholds=calibration.thresholds(location, counted[n]))
        for tile, location, n in zip(_tiles(looked.rows), locations, telling, strict=True)
    ]
    looked.features, problems, kept = _of_all(_features, work, usable, told(len(tiles)))
    looked.keep(kept, problems, work.predictions)


def _tiles(rows: pa.Table) -> list[_Tile]:
    columns = (rows[name].to_pylist() for name in ("position", "tile_id"))
    return [_Tile(position, tile_id) for position, tile_id in zip(*columns, strict=True)]


def _of_all(
    function: Callable[[_Tiles], list[Any]], work: _Work, tiles: Sequence[_Tile], on_done: Callable[[int, int], None]
) -> tuple[list[Any], list[DataError], list[int]]:
    """Return what `function` found of each tile, what is wrong with others, and the numbers of those it found."""
    found: list[Any] = []
    problems: list[DataError] = []
    at: list[int] = []
    number = 0
    for results in run_tasks(function, _parts(work, tiles), -(-len(tiles) // TILES_PER_TASK), on_done):
        for each in results:
            if isinstance(each, tuple):
                problems.append(DataError(*each))
            else:
                found.append(each)
                at.append(number)
            number += 1
    return found, problems, at


def _parts(work: _Work, tiles: Sequence[_Tile]) -> Iterator[_Tiles]:
    for start in range(0, len(tiles), TILES_PER_TASK):
        yield _Tiles(work, tuple(tiles[start : start + TILES_PER_TASK]))


def _histograms(work: _Tiles) -> list[NDArray[np.uint32] | tuple[str, str]]:
    """Count the probabilities of each tile by label, or say what is wrong with it (a Ray task)."""
    return [_guarded(_histogram_of, work.work, tile) for tile in work.tiles]


def _features(work: _Tiles) -> list[Features | tuple[str, str]]:
    """Look at each tile, or say what is wrong with it (a Ray task)."""
    return [_guarded(_features_of, work.work, tile) for tile in work.tiles]


def _guarded(look: Callable[[_Work, _Tile], FoundT], work: _Work, tile: _Tile) -> FoundT | tuple[str, str]:
    """Return what was found, or the subject of what is wrong and what that is: the other tiles go on."""
    try:
        return look(work, tile)
    except DataError as error:
        return error.subject, error.found
    except PermissionError as error:
        return tile.tile_id, f"no right to it: {error}"


def _histogram_of(work: _Work, tile: _Tile) -> NDArray[np.uint32]:
    return label_histogram(*_label_and_probability(work, tile)).astype(np.uint32)  # of a million tiles half a GB


def _features_of(work: _Work, tile: _Tile) -> Features:
    assert tile.thresholds is not None, "a place is looked at before its tiles"
    label, probability = _label_and_probability(work, tile)
    disagreement = work.predictions.read_values("disagreement", tile.tile_id, label.shape)
    try:
        threshold = work.predictions.scoring.settings.threshold
        return features_of(label, probability, disagreement, tile.thresholds, threshold)
    except ValueError as error:  # it was counted before
        raise DataError(tile.tile_id, f"its prediction changed while it was ranked ({error}); rank again") from error


def _label_and_probability(work: _Work, tile: _Tile) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the label `[H, W] uint8` and the probability `[H, W] float32` of a tile."""
    reader = _labels(work.shards, work.digest)
    if reader.tile_id(tile.position) != tile.tile_id:
        raise ConfigError(_changed(work.shards))
    _, label = reader.read(tile.position)
    assert label is not None, "only labelled tiles are looked at"
    return label, work.predictions.read_values("probability", tile.tile_id, label.shape)


@lru_cache(maxsize=1)
def _labels(uri: str, digest: str) -> TileReader:
    """Return a reader of the labels alone, kept by a process for its next tasks: its index is read once."""
    if shards_digest(read_manifest(uri)) != digest:
        raise ConfigError(_changed(uri))
    return TileReader(uri, ())
