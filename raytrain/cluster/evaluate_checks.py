"""What an evaluation makes sure of before it counts: the folder of results, the ensemble, the rows, how files are read.

Must not know how anything is counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from raytrain import storage
from raytrain.config import choose
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation.card_scores import MadeBy
from raytrain.evaluation.masks import Reading
from raytrain.evaluation.oddities import PROBABILITIES
from raytrain.evaluation.predictions import PredictionSet
from raytrain.evaluation.results import METRICS_NAME
from raytrain.evaluation.tables import CHIPS
from raytrain.evaluation.trained_on import describe_shards
from raytrain.scoring.destination import SCORING_FILE
from raytrain.scoring.manifest import ENSEMBLE_FILE, read_manifest
from raytrain.tiles.metadata import BadRow, Metadata, read_metadata
from raytrain.tiles.tables import read_table

REPORT_FILE = "report.html"
FOREIGN = {
    SCORING_FILE: "masks of `raytrain score`",
    ENSEMBLE_FILE: "an ensemble",
    "report.json": "a training or scoring",
    "epochs.parquet": "a training",
    "best.toml": "a search",
    "trials.parquet": "a search",
}


def check_out(out: str) -> None:
    """Raise `ConfigError` for a folder that has what another command left, whose report would be overwritten."""
    for name, what in FOREIGN.items():
        if storage.exists(storage.join(out, name)):
            raise ConfigError(f"{out} holds {what} ({name}); give the scores a folder of their own")
    # An evaluation that was stopped while it wrote has left its chips.
    if storage.exists(storage.join(out, REPORT_FILE)) and not any(
        storage.exists(storage.join(out, name)) for name in (METRICS_NAME, CHIPS)
    ):
        raise ConfigError(f"{out} holds a {REPORT_FILE} that is no evaluation's; give the scores a folder of their own")


def check_ensemble(uri: str, predictions: PredictionSet) -> MadeBy:
    """Return whose nets of the ensemble at `uri` made the predictions.

    Raises `ConfigError` for masks of others, or of other nets for each tile, and where what it was trained on is gone:
    its card can't be written then.
    """
    if predictions.scoring is None:
        raise ConfigError(f"{predictions.uri}: not made by `raytrain score`, so no ensemble's card can have its scores")
    if predictions.scoring.out_of_fold:
        raise ConfigError(
            f"{predictions.uri}: scored out of fold, each tile by the nets of its fold, so a card would give nets the "
            "scores of others; evaluate without --ensemble"
        )
    manifest = read_manifest(uri)
    describe_shards(manifest.shards, manifest.shards_digest)
    folds: list[MadeBy] = ["all", *sorted({-1 if net.fold is None else net.fold for net in manifest.members})]
    for made_by in folds:
        if predictions.scoring.ensemble == manifest.of_fold(made_by).nets_digest():
            return made_by
    raise ConfigError(f"{predictions.uri}: not made by the nets of {uri}, as they are now (all, or those of a fold)")


def reading_of(
    predictions: PredictionSet, *, threshold: float | None, allowed: Sequence[str], scale: float | None
) -> Reading:
    """Return how the files of one set are read: as masks if `raytrain score` wrote them, else also as maps if allowed.

    Raises `ConfigError` for a threshold or a scale that nothing can be done with.
    """
    scored, maps_allowed = predictions.scoring, PROBABILITIES in allowed and predictions.scoring is None
    if threshold is not None and not (predictions.has_probability or maps_allowed):
        remedy = (
            "score with --set probability=uint8"
            if scored is not None
            else f"score with --set probability=uint8, or --allow {PROBABILITIES} where the files are maps"
        )
        raise ConfigError(f"threshold {threshold:g}: {predictions.uri} has masks and no probabilities; {remedy}")
    if scale is not None and scored is not None:
        raise ConfigError(f"scale {scale:g}: {predictions.uri} has masks of `raytrain score`, which are no maps")
    own = 0.5 if scored is None else scored.settings.threshold
    return Reading(
        threshold=own if threshold is None else threshold,
        by_map=threshold is not None,
        scale=scale,
        maps_allowed=maps_allowed,
    )


def choose_rows(uri: str, more_uri: str | None, where: Sequence[str]) -> Metadata:
    """Return the rows of the metadata at `uri` that the filters leave, and the bad rows that they would have taken.

    A filter is on the first table that has its column: that at `uri`, or the one at `more_uri`, a chip of which is bad
    if either has it twice. Raises `ConfigError` as `read_metadata` does.
    """
    if more_uri is None:
        return read_metadata(uri, where)
    first, second = (read_table(each, "metadata file").columns for each in (uri, more_uri))
    column_of = {text: text.partition("=")[0].strip() for text in where}
    choose("column", [column for text, column in column_of.items() if "=" in text], {*first, *second})
    here = [text for text in where if column_of[text] in first]
    there = [text for text in where if text not in here]
    metadata, more = read_metadata(uri, here), read_metadata(more_uri, there, with_location=False)
    broken = {row.chip_id for row in more.bad}
    chosen = {row.chip_id for row in more.rows} - broken
    named = {row.chip_id for row in metadata.rows} | {row.chip_id for row in metadata.bad}
    rows = [row for row in metadata.rows if (row.chip_id in chosen if there else row.chip_id not in broken)]
    bad = [row for row in metadata.bad if not there or row.chip_id in chosen | broken]
    for chip_id, error in ((row.chip_id, row.error) for row in more.bad if row.chip_id in named):
        bad.append(BadRow(chip_id, DataError(error.subject, f"{error.found} ({more_uri})")))
    if there:
        everything = read_metadata(uri)
        known = {row.chip_id for row in everything.rows} | {row.chip_id for row in everything.bad}
        found = f"chosen by the filters on {more_uri}, but not in {uri}"
        bad += [BadRow(chip_id, DataError(chip_id, found)) for chip_id in sorted(chosen - known)]
    return Metadata(rows, bad)
