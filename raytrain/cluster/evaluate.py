"""Predictions against labels: counts by Ray tasks, scores from all counts at once, tables and the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from raytrain import storage
from raytrain.cluster import session
from raytrain.cluster.evaluate_checks import REPORT_FILE, check_ensemble, check_out, choose_rows, reading_of
from raytrain.cluster.tasks import run_tasks
from raytrain.config import EmptyUnionRule, Fraction, Settings
from raytrain.errors import DataError
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
from raytrain.evaluation.slices import Column, columns_of, read_columns, read_parts
from raytrain.evaluation.tables import TABLES, write_tables
from raytrain.evaluation.tally import Gathering, Tally, count_pairs
from raytrain.scoring.manifest import ensemble_folder

PAIRS_PER_TASK = 32


class EvaluateJob(Settings):
    """Which predictions to hold against which labels; the rows of `metadata` that `where` leaves say which chips count.

    The columns of `where` and `by` are those of `metadata`, or else of `where_metadata`, if it is given. `against` is
    another set of predictions, compared with the first in pairs. `threshold` makes masks of maps; None takes masks as
    they are, and 0.5 for maps. `scale` makes probabilities of whole numbers in `predictions` whose file names no scale.
    `allowed` names kinds of oddities (`oddities.KINDS`); any other leaves no scores. `images` names the scored chips or
    scenes, for the pictures of the page. `ensemble` made the predictions: its card gets the scores.
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
    scale: float | None = Field(default=None, gt=0, lt=1)
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
    evaluation go as this one ends, with scores or without, so that nobody takes them for its own. Raises `ConfigError`
    where not one prediction has a label, and for settings that nothing can be done with, before anything is counted.
    """
    check_out(job.out)
    metadata = choose_rows(job.metadata, job.where_metadata, job.where)
    read = read_columns([uri for uri in (job.metadata, job.where_metadata) if uri], job.by)
    images = find_images(job.images) if job.images else None
    sets = [find_predictions(uri) for uri in (job.predictions, job.against) if uri is not None]
    readings = [
        reading_of(each, threshold=job.threshold, allowed=job.allowed, scale=scale)
        for each, scale in zip(sets, (job.scale, None), strict=False)
    ]
    pairs, oddities = pair_up(sets, job.labels, metadata.rows, metadata.problems)
    read_parts([pair.chip_id for pair in pairs], read)
    made_by = None if job.ensemble is None else check_ensemble(job.ensemble, sets[0])
    named = (job.predictions, job.labels, job.metadata, job.out, job.against, job.ensemble)
    uris = [uri for uri in named if uri is not None]
    tallies, odd = _count(job, cluster, uris, pairs, readings, on_progress)
    oddities += odd
    problems = [each.problem for each in sorted(oddities, key=lambda each: (each.chip_id, each.found))]
    refused = {each.kind for each in not_allowed(oddities, job.allowed)}
    if refused or not len(tallies[0]):
        _remove_earlier(job.out)
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
    gallery = _gallery(job, tallies[0], pairs, images, readings[0])
    _remove_earlier(job.out)
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
    gathered = [Gathering() for _ in readings]
    oddities: list[Oddity] = []
    with session.joined(cluster, uris):
        for tallies, odd in run_tasks(_count_batch, batches, len(batches), on_progress):
            for gathering, tally in zip(gathered, tallies, strict=True):
                gathering.add(tally)
            oddities += odd
    return [gathering.tally() for gathering in gathered], oddities


def _decided_at(predictions: PredictionSet, reading: Reading, tally: Tally) -> float | None:
    """Return the threshold that made cloud of probabilities, here or while scoring; None for masks of somebody else."""
    has_maps = any(each.maps is not None for each in tally.by_location.values())
    return reading.threshold if has_maps or predictions.scoring is not None else None


def _remove_earlier(out: str) -> None:
    for name in (METRICS_NAME, REPORT_FILE, *TABLES):
        storage.remove(storage.join(out, name))


def _gallery(
    job: EvaluateJob, tally: Tally, pairs: list[Pair], images: dict[str, Source] | None, reading: Reading
) -> Gallery:
    subjects = subjects_of(tally, {pair.chip_id: pair for pair in pairs}, images, reading)
    without = sum(each.image is None for each in subjects) if images is not None else 0
    caption = f"{job.images} has no image of {without} of these {len(subjects)}." if without else ""
    return draw_gallery(subjects, caption=caption)


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
        # Here, since it brings torch with it: 500 MiB and seconds that other evaluations do without.
        from raytrain.cluster.train_report import write_card

        card_uri = write_card(ensemble_folder(job.ensemble), card_evaluation(evaluation, made_by))
    return EvaluateReport(evaluation, problems, (), metrics_uri, page_uri, card_uri, gallery)
