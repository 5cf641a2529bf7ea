"""One round of the review loop: wrong labels, predictions, a ranking, a scripted reviewer, new shards, nets again.

Labels are changed only by what reviewers have: entries of the log of decisions, applied by `raytrain review apply`.
What is finished is kept below a folder. Must not know what the nets are scored by.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from raytrain.cluster.review_apply import ApplyJob, apply
from raytrain.cluster.session import Cluster
from raytrain.config import ShardSettings
from raytrain.errors import ConfigError
from raytrain.review.log import DecisionLog
from raytrain.review.regions import encode_mask
from raytrain.review.suspicion import judge
from raytrain.tiles.format import Tile
from raytrain.tiles.reader import MANIFEST, TileReader, read_index
from tests.bench.review_ranking import tile_features
from tests.bench.review_tiles import CORRUPTED_FRACTION, DataSet, Predicted, out_of_fold, predict
from tests.corruption import Corrupted, Label
from tests.deciding import decide, make_review
from tests.making import write_tiles

Labels = Literal["before", "after", "perfect"]
LABELS: tuple[Labels, ...] = get_args(Labels)
LOOKED_AT_FRACTION = CORRUPTED_FRACTION
"""Of all tiles, those that the reviewer looks at, from the top: as many as are wrong, if the ranking were perfect."""


@dataclass(frozen=True)
class Round:
    """What a round came to, by position of the tile.

    `probability` `[N, H, W]` is that of nets that learnt from such labels, at places that they never saw. `looked_at`
    are the tiles that the reviewer saw, `repaired` those of them that were wrong and are right now.
    """

    locations: tuple[str, ...]
    true_labels: NDArray[np.uint8]
    corrupted: dict[int, Corrupted]
    looked_at: tuple[int, ...]
    repaired: tuple[int, ...]
    probability: Mapping[Labels, NDArray[np.float32]]


def make_round(data_set: DataSet, shards: str, seed: int, work: Path) -> Round:
    """Go round once with what `seed` draws: which labels are wrong and how, folds, nets."""
    predicted = predict(data_set, shards, seed, work)
    looked_at = tuple(most_suspicious(predicted))
    # Named by all that was decided, so that no other review's shards are taken for these.
    decided = hashlib.sha256(np.array(looked_at).tobytes() + predicted.labels.tobytes()).hexdigest()[:12]
    left = _reviewed(shards, predicted, looked_at, work / f"{data_set}-{seed}-shards-{decided}")
    after = out_of_fold(data_set, shards, left, seed, work)
    perfect = out_of_fold(data_set, shards, {}, seed, work)
    return Round(
        locations=predicted.locations,
        true_labels=predicted.true_labels,
        corrupted=predicted.corrupted,
        looked_at=looked_at,
        repaired=tuple(i for i in looked_at if i in predicted.corrupted),
        probability={"before": predicted.probability, "after": after[:, 0], "perfect": perfect[:, 0]},
    )


def most_suspicious(predicted: Predicted) -> list[int]:
    """Return the tiles that the reviewer looks at, the most suspicious first, as `raytrain review rank` has them."""
    judgements = judge(tile_features(predicted), predicted.locations)
    suspicion = np.array([each.suspicion for each in judgements])
    return [int(i) for i in np.argsort(-suspicion, kind="stable")[: round(LOOKED_AT_FRACTION * len(suspicion))]]


def _reviewed(shards: str, predicted: Predicted, looked_at: Sequence[int], folder: Path) -> dict[int, Label]:
    """Return the labels that a review leaves, by position, where they are not those of the clean shards.

    That is where they are still wrong; what was repaired is 255 where there is no data, whatever the shards have there.
    """
    before, after, review = (folder / name for name in ("before", "after", "review"))
    if not (after / MANIFEST).exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_tiles(before, _wrong_tiles(shards, predicted), "blosc2-bitshuffle-lz4", bands=ShardSettings().bands)
        make_review(review, before)
        _decide(str(review), before, predicted, looked_at)
        report = apply(ApplyJob(review=str(review), dst=str(after)), Cluster())
        if report.problems:
            raise ConfigError(f"{after}: not all was applied: {report.problems[0]}")
    found = TileReader(str(after), ())
    reader = TileReader(shards, ())
    if found.tile_ids != reader.tile_ids:
        raise ConfigError(f"{after}: not the tiles of {shards}, in their order")
    left = {}
    for i in range(len(found)):
        label, truth = found.read(i)[1], reader.read(i)[1]
        assert label is not None
        if not np.array_equal(label, truth):
            left[i] = label
    return left


def _wrong_tiles(shards: str, predicted: Predicted) -> list[Tile]:
    """Return the tiles with the labels of which a tenth is wrong."""
    reader = TileReader(shards, ShardSettings().bands)
    found = []
    for i, row in enumerate(read_index(shards).to_pylist()):
        pixels, label = reader.read(i)
        if i in predicted.corrupted:
            label = predicted.corrupted[i].label
        found.append(
            Tile(
                tile_id=row["tile_id"],
                location=row["location"],
                taken=row["datetime"],
                bands=dict(zip(reader.bands, pixels, strict=True)),
                label=label,
                valid_fraction=row["valid_fraction"],
                cloud_fraction=row["cloud_fraction"],
                crs=row["crs"],
                transform=None if row["transform"] is None else tuple(row["transform"]),
                source_uri=row["source_uri"],
            )
        )
    return found


def _decide(review: str, before: Path, predicted: Predicted, looked_at: Sequence[int]) -> None:
    """Write what the reviewer decides: a wrong label gets the true one, the others are accepted."""
    rows = read_index(str(before), ["tile_id", "sha256"]).to_pylist()
    log = DecisionLog(review)
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for number, i in enumerate(looked_at, start=1):
        about = {"tile_id": rows[i]["tile_id"], "tile_sha256": rows[i]["sha256"], "time": time}
        is_wrong = i in predicted.corrupted
        mask = encode_mask(predicted.true_labels[i]) if is_wrong else None
        log.append(decide(number, verdict="fix" if is_wrong else "accept", mask=mask, **about))
