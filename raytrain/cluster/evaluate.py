"""Predictions against labels: counts by Ray tasks, scores from all counts at once, tables and the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from raytrain import storage
from raytrain.cluster import session
from raytrain.cluster.tasks import run_tasks
from raytrain.cluster.train_report import write_card
from raytrain.config import EmptyUnionRule, Fraction, Settings
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation.card_scores import MadeBy
from raytrain.evaluation.evaluation import evaluation_of
from raytrain.evaluation.gallery import Source, draw_gallery, find_images
from raytrain.evaluation.html import render_page
from raytrain.evaluation.masks import Pair, Reading
from raytrain.evaluation.oddities import KINDS, PROBABILITIES, Oddity, not_allowed
from raytrain.evaluation.page import Gallery
from raytrain.evaluation.predictions import PredictionSet, find_predictions, pair_up
from raytrain.evaluation.report import card_evaluation, evaluation_page, subjects_of
from raytrain.evaluation.resampling import RESAMPLES
from raytrain.evaluation.results import METRICS_NAME, Evaluation, Inputs, write_metrics
from raytrain.evaluation.slices import Column, columns_of, read_columns
from raytrain.evaluation.tables import TABLES, write_tables
from raytrain.evaluation.tally import Tally, count_pairs, joined
from raytrain.scoring.destination import SCORING_FILE
from raytrain.scoring.manifest import ENSEMBLE_FILE, ensemble_folder, read_manifest
from raytrain.tiles.metadata import BadRow, Metadata, read_metadata

PAIRS_PER_TASK = 32
REPORT_FILE = "report.html"


class EvaluateJob(Settings):
    """Which predictions to hold against which labels; the rows of `metadata` that `where` leaves say which chips count.

    The columns of `where` and `by` are those of `where_metadata`, too, if it is given. `against` is another set of
    predictions, compared with the first in pairs. `threshold` makes masks of maps; None takes masks as they are, and
    0.5 for maps. `allowed` names kinds of oddities (`oddities.KINDS`); any other leaves no scores. `images` names the
    scored chips or scenes, for the pictures of the page. `ensemble` made the predictions: its card gets the scores.
    """

    predictions: str
    labels: str
    metadata: str
    out: str
    against: str | None = None
    where: tuple[str, ...] = ()
    where_metadata: str | None = None
    by: tuple[str, ...] = ()
    images: str | None = None
    ensemble: str | None = None
    empty_union_rule: EmptyUnionRule = "one"
    threshold: Fraction | None = None
    scale: float | None = Field(default=None, gt=0)
    edge_px: int = Field(default=5, ge=1, le=64)
    allowed: tuple[str, ...] = ()
    resamples: int = Field(default=RESAMPLES, ge=100)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        unknown = [name for name in self.allowed if name not in KINDS]
        if unknown:
            raise ValueError(f"allow: unknown kind {unknown[0]!r}; known are {', '.join(KINDS)}")
        if self.scale is not None and PROBABILITIES not in self.allowed:
            raise ValueError(f"scale is for maps of probabilities: allow {PROBABILITIES}, too")
        return self

    def inputs(self) -> Inputs:
        """Return what the result says of what it was made from."""
        return Inputs(
            predictions=self.predictions,
            labels=self.labels,
            metadata=self.metadata,
            where=self.where,
            where_metadata=self.where_metadata,
            by=self.by,
            images=self.images,
            against=self.against,
            threshold=self.threshold,
            scale=self.scale,
            edge_px=self.edge_px,
            allowed=self.allowed,
        )


@dataclass(frozen=True)
class EvaluateReport:
    """The scores and where they were written; nothing of it if no pair can be counted, or a problem is not allowed.

    `problems` are the pairs that were left out, each with the reason; `refused` are the kinds among them that are not
    allowed.
    """

    evaluation: Evaluation | None
    problems: list[DataError]
    refused: tuple[str, ...] = ()
    metrics_uri: str | None = None
    page_uri: str | None = None
    card_uri: str | None = None
    gallery: Gallery | None = None


def evaluate(
    job: EvaluateJob, cluster: session.Cluster, on_progress: Callable[[int, int], None] | None = None
) -> EvaluateReport:
    """Score all pairs and write `report.html`, tables and, last, `metrics.json`.

    What can't be used is a problem of the result, and leaves no scores unless its kind is allowed. Files of an earlier
    evaluation go, so that nobody takes them for this one's. Raises `ConfigError` where not one prediction has a label,
    and for settings that nothing can be done with.
    """
    _check_out(job.out)
    metadata = _chosen(job)
    read = read_columns([uri for uri in (job.metadata, job.where_metadata) if uri], job.by)
    images = find_images(job.images) if job.images else None
    sets = [find_predictions(uri) for uri in (job.predictions, job.against) if uri is not None]
    pairs, oddities = pair_up(sets, job.labels, metadata.rows)
    oddities += [Oddity("metadata", problem.subject, problem.found) for problem in metadata.problems]
    made_by = None if job.ensemble is None else _check_ensemble(job.ensemble, sets[0])
    named = (job.predictions, job.labels, job.metadata, job.out, job.against, job.ensemble)
    uris = [uri for uri in named if uri is not None]
    readings = [_reading(job, each) for each in sets]
    tallies, odd = _count(job, cluster, uris, pairs, readings, on_progress)
    oddities += odd
    _remove_earlier(job.out)
    problems = [each.problem for each in sorted(oddities, key=lambda each: (each.chip_id, each.found))]
    # Probabilities that are allowed are no oddity; one of that kind is what can't be read as such.
    refused = {each.kind for each in not_allowed(oddities, set(job.allowed) - {PROBABILITIES})}
    if refused or not len(tallies[0]):
        return EvaluateReport(None, problems, tuple(sorted(refused)))
    months = {row.chip_id: f"{row.taken:%m}" for row in metadata.rows if row.taken is not None}
    columns = columns_of(tallies[0], months, read)
    evaluation = evaluation_of(
        tallies,
        columns,
        job.inputs(),
        oddities,
        rule=job.empty_union_rule,
        members=sets[0].members,
        decided_at=_decided_at(sets[0], readings[0], tallies[0]),
        seed=job.seed,
        resamples=job.resamples,
    )
    gallery = _gallery(tallies[0], pairs, images, readings[0])
    return _written(job, evaluation, tallies[0], columns, gallery, problems, made_by)


@dataclass(frozen=True)
class _Batch:
    """What a task counts."""

    pairs: list[Pair]
    readings: list[Reading]
    edge_px: int


def _count_batch(batch: _Batch) -> tuple[list[Tally], list[Oddity]]:
    return count_pairs(batch.pairs, batch.readings, batch.edge_px)


def _count(
    job: EvaluateJob,
    cluster: session.Cluster,
    uris: list[str],
    pairs: list[Pair],
    readings: list[Reading],
    on_progress: Callable[[int, int], None] | None,
) -> tuple[list[Tally], list[Oddity]]:
    """Return a tally for each of `readings`, counted on the cluster, and what is wrong with pairs that are in none."""
    batches = [
        _Batch(pairs[start : start + PAIRS_PER_TASK], readings, job.edge_px)
        for start in range(0, len(pairs), PAIRS_PER_TASK)
    ]
    parts: list[list[Tally]] = []
    oddities: list[Oddity] = []
    with session.joined(cluster, uris):
        for tallies, odd in run_tasks(_count_batch, batches, len(batches), on_progress):
            parts.append(tallies)
            oddities += odd
    return [joined([part[i] for part in parts]) for i in range(len(readings))], oddities


def _reading(job: EvaluateJob, predictions: PredictionSet) -> Reading:
    """Return how the files of one set are read; raise `ConfigError` for a threshold that nothing can be made with."""
    allowed = PROBABILITIES in job.allowed
    scored = predictions.scoring
    if job.threshold is not None and not (predictions.has_probability or allowed):
        raise ConfigError(
            f"threshold {job.threshold:g}: {predictions.uri} has masks and no probabilities; score with "
            f"--set probability=uint8, or --allow {PROBABILITIES} where the files are maps"
        )
    own = 0.5 if scored is None else scored.settings.threshold
    return Reading(
        threshold=own if job.threshold is None else job.threshold,
        by_map=job.threshold is not None,
        scale=job.scale,
        maps_allowed=allowed,
    )


def _decided_at(predictions: PredictionSet, reading: Reading, tally: Tally) -> float | None:
    """Return the threshold that made cloud of probabilities, here or while scoring; None for masks of somebody else."""
    has_maps = any(each.maps is not None for each in tally.by_location.values())
    return reading.threshold if has_maps or predictions.scoring is not None else None


def _remove_earlier(out: str) -> None:
    for name in (METRICS_NAME, REPORT_FILE, *TABLES):
        storage.remove(storage.join(out, name))


def _gallery(tally: Tally, pairs: list[Pair], images: dict[str, Source] | None, reading: Reading) -> Gallery:
    return draw_gallery(subjects_of(tally, {pair.chip_id: pair for pair in pairs}, images, reading))


def _written(
    job: EvaluateJob,
    evaluation: Evaluation,
    tally: Tally,
    columns: list[Column],
    gallery: Gallery,
    problems: list[DataError],
    made_by: MadeBy | None,
) -> EvaluateReport:
    write_tables(job.out, evaluation, tally, columns)
    page_uri = storage.join(job.out, REPORT_FILE)
    page = evaluation_page(evaluation, "Cloud masks against labels", gallery)
    storage.write_bytes(page_uri, render_page(page).encode())
    metrics_uri = write_metrics(job.out, evaluation)
    card_uri = None
    if job.ensemble is not None and made_by is not None:
        card_uri = write_card(ensemble_folder(job.ensemble), card_evaluation(evaluation, made_by))
    return EvaluateReport(evaluation, problems, (), metrics_uri, page_uri, card_uri, gallery)


def _check_out(out: str) -> None:
    """Raise `ConfigError` for a folder that has a report of another command."""
    for name, what in ((SCORING_FILE, "masks of `raytrain score`"), (ENSEMBLE_FILE, "an ensemble")):
        if storage.exists(storage.join(out, name)):
            raise ConfigError(f"{out} holds {what} and their report; give the scores a folder of their own")


def _check_ensemble(uri: str, predictions: PredictionSet) -> MadeBy:
    """Return whose nets of the ensemble at `uri` made the predictions; raise `ConfigError` for masks of others."""
    if predictions.scoring is None:
        raise ConfigError(f"{predictions.uri}: not made by `raytrain score`, so no ensemble's card can have its scores")
    manifest = read_manifest(uri)
    folds: list[MadeBy] = ["all", *sorted({-1 if net.fold is None else net.fold for net in manifest.members})]
    for made_by in folds:
        if predictions.scoring.ensemble == manifest.of_fold(made_by).nets_digest():
            return made_by
    raise ConfigError(f"{predictions.uri}: not made by the nets of {uri}, as they are now (all, or those of a fold)")


def _chosen(job: EvaluateJob) -> Metadata:
    """Return the rows that count, and what is wrong with bad ones that would."""
    if job.where_metadata is None or not job.where:
        return read_metadata(job.metadata, job.where)
    chosen = read_metadata(job.where_metadata, job.where, with_location=False)
    ids = {row.chip_id for row in chosen.rows}
    metadata = read_metadata(job.metadata)
    rows = [row for row in metadata.rows if row.chip_id in ids]
    bad = [row for row in metadata.bad if row.chip_id in ids]
    known = {row.chip_id for row in rows} | {row.chip_id for row in bad}
    for chip_id in sorted(ids - known):
        found = f"chosen by the filters on {job.where_metadata}, but not in {job.metadata}"
        bad.append(BadRow(chip_id, DataError(chip_id, found)))
    return Metadata(rows, [*bad, *chosen.bad])
