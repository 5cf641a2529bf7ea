"""Labels held against out-of-fold predictions on Ray: what the predictions are worth at each place, then each tile.

Pixels are read twice, by tasks, since what a tile's probabilities mean is known when all of its place are counted. The
driver holds a few hundred numbers a tile at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from raytrain.review.folder import RANKING, UNLABELLED, Review, read_review, write_review
from raytrain.review.predicted import Predictions, open_predictions
from raytrain.review.ranking import IDENTITY_COLUMNS, ranking_table, write_table
from raytrain.review.suspicion import judge
from raytrain.review.unlabelled import unlabelled_table
from raytrain.scoring.ledger import read_all
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
    """The ranking `table`, how many were ranked as worth a label, and the tiles that could not be looked at."""

    table: pa.Table
    num_unlabelled: int
    problems: list[DataError]


def rank(job: RankJob, cluster: session.Cluster, on_progress: OnProgress | None = None) -> RankReport:
    """Rank the labelled tiles of `job` and what has no label, and write both tables and `review.json`.

    Decisions that stand in the folder stay. Raises `ConfigError` for predictions that can't be used, for shards without
    labels, and for a folder that is the review of other shards.
    """
    manifest, predictions = read_manifest(job.shards), open_predictions(job.predictions)
    digest = shards_digest(manifest)
    _check_source(job, manifest)
    _check_folder(job, digest)
    index = read_index(job.shards, [*IDENTITY_COLUMNS, "label_bytes"])
    index = index.append_column("position", pa.array(np.arange(len(index))))
    labelled = index.filter(pc.is_valid(index["label_bytes"]))
    if not len(labelled):
        raise ConfigError(f"{job.shards}: no tile has a label, so there is none to review")
    work = _Work(job.shards, digest, predictions)
    with session.joined(cluster, [job.shards, job.predictions, job.dst, *job.unlabelled]):
        kept, features, problems = _look(work, labelled, on_progress)
    table = ranking_table(kept, features, judge(features, kept["location"].to_pylist()))
    without = index.filter(pc.is_null(index["label_bytes"]))
    unlabelled = unlabelled_table(predictions, without, job.unlabelled)
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
    return RankReport(table, len(unlabelled), problems)


def _check_source(job: RankJob, manifest: dict[str, Any]) -> None:
    """Raise `ConfigError` for predictions of other shards than these, and those that they were made from by a review.

    The latter have the same pixels; of others a tile of the same id may have any.
    """
    known = {job.shards}
    while parent := manifest.get("parent"):
        known.add(parent["uri"])
        try:
            manifest = read_manifest(parent["uri"])
        except (ConfigError, FileNotFoundError):
            break
    for table in read_all(job.predictions, ["item_id", "source_uri"]):
        others = set(table["source_uri"].unique().to_pylist()) - known
        if others:
            raise ConfigError(
                f"{job.predictions}: predictions of {min(others)}, not of {job.shards}; score these with --out-of-fold"
            )


def _check_folder(job: RankJob, digest: str) -> None:
    try:
        found = read_review(job.dst)
    except ConfigError:
        return
    if found.shards_digest != digest:
        raise ConfigError(
            f"{job.dst}: the review of other shards ({found.shards}), whose decisions may stand there; "
            "choose another folder"
        )


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


def _look(
    work: _Work, labelled: pa.Table, on_progress: OnProgress | None
) -> tuple[pa.Table, list[Features], list[DataError]]:
    """Return the rows that could be looked at, the features of each, and what is wrong with the others."""
    tiles = [
        _Tile(position, tile_id)
        for position, tile_id in zip(labelled["position"].to_pylist(), labelled["tile_id"].to_pylist(), strict=True)
    ]
    total = 2 * len(tiles)

    def told(before: int) -> Callable[[int, int], None]:
        return lambda done, _: on_progress and on_progress(before + min(len(tiles), done * TILES_PER_TASK), total)

    counted, problems, read = _of_all(_histograms, work, tiles, told(0))
    # A label that is ignored as a whole, or has no pixel with data, says nothing that could be wrong.
    telling = [(at, own) for at, own in zip(read, counted, strict=True) if own.any()]
    if not telling:
        first = f" (the first: {problems[0]})" if problems else ""
        raise ConfigError(f"{work.predictions.uri}: no tile of {work.shards} can be held against it{first}")
    locations = labelled["location"].to_pylist()
    calibration = Calibration.of([locations[at] for at, _ in telling], np.stack([own for _, own in telling]))
    usable = [replace(tiles[at], thresholds=calibration.thresholds(locations[at], own)) for at, own in telling]
    features, more, kept = _of_all(_features, work, usable, told(len(tiles)))
    return labelled.take([telling[number][0] for number in kept]), features, [*problems, *more]


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


def _histograms(work: _Tiles) -> list[NDArray[np.int64] | tuple[str, str]]:
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


def _histogram_of(work: _Work, tile: _Tile) -> NDArray[np.int64]:
    return label_histogram(*_label_and_probability(work, tile))


def _features_of(work: _Work, tile: _Tile) -> Features:
    assert tile.thresholds is not None, "a place is looked at before its tiles"
    label, probability = _label_and_probability(work, tile)
    disagreement = work.predictions.read_values("disagreement", tile.tile_id, label.shape)
    return features_of(label, probability, disagreement, tile.thresholds)


def _label_and_probability(work: _Work, tile: _Tile) -> tuple[Any, NDArray[np.float32]]:
    """Return the label `[H, W] uint8` and the probability `[H, W] float32` of a tile."""
    _, label = _labels(work.shards, work.digest).read(tile.position)
    assert label is not None, "only labelled tiles are looked at"
    return label, work.predictions.read_values("probability", tile.tile_id, label.shape)


@lru_cache(maxsize=1)
def _labels(uri: str, digest: str) -> TileReader:
    """Return a reader of the labels alone, kept by a process for its next tasks: its index is read once."""
    if shards_digest(read_manifest(uri)) != digest:
        raise ConfigError(f"{storage.shown(uri)}: the shards changed while they were ranked; rank again")
    return TileReader(uri, ())
