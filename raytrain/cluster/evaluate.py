"""Predictions against labels: counts by Ray tasks, scores from all counts at once, `metrics.json` and the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raytrain import storage
from raytrain.cluster import session
from raytrain.cluster.tasks import run_tasks
from raytrain.config import EmptyUnionRule, Settings
from raytrain.errors import DataError
from raytrain.evaluation.gallery import find_images, make_gallery
from raytrain.evaluation.html import render_page
from raytrain.evaluation.masks import CountedPair, count_pairs, pair_up
from raytrain.evaluation.report import evaluation_page
from raytrain.evaluation.results import METRICS_NAME, Evaluation, Inputs, write_metrics
from raytrain.tiles.metadata import BadRow, Metadata, read_metadata
from raytrain.training.metrics import scores

PAIRS_PER_TASK = 32
REPORT_FILE = "report.html"


class EvaluateJob(Settings):
    """Which masks to hold against which labels; the rows of `metadata` that `where` leaves say which chips count.

    The columns of `where` are those of `where_metadata`, if it is given. `images` names the scored chips or scenes, for
    the pictures of the page.
    """

    predictions: str
    labels: str
    metadata: str
    out: str
    where: tuple[str, ...] = ()
    where_metadata: str | None = None
    images: str | None = None
    empty_union_rule: EmptyUnionRule = "one"


@dataclass(frozen=True)
class EvaluateReport:
    """The scores, the counts behind them, and where both were written; nothing of it if no pair can be counted.

    `problems` are the pairs that were left out, each with the reason.
    """

    evaluation: Evaluation | None
    counted: list[CountedPair]
    problems: list[DataError]
    metrics_uri: str | None = None
    page_uri: str | None = None


def evaluate(
    job: EvaluateJob, cluster: session.Cluster, on_progress: Callable[[int, int], None] | None = None
) -> EvaluateReport:
    """Score all pairs and write `report.html` and, last, `metrics.json`; what can't be used is a problem of the result.

    Those of an earlier evaluation go, so that nobody takes them for this one's.

    Raises `ConfigError` where not one prediction has a label.
    """
    metadata = _chosen(job)
    images = find_images(job.images) if job.images else None
    pairs, problems = pair_up(job.predictions, job.labels, metadata.rows)
    problems += metadata.problems
    batches = [pairs[start : start + PAIRS_PER_TASK] for start in range(0, len(pairs), PAIRS_PER_TASK)]
    counted: list[CountedPair] = []
    with session.joined(cluster, [job.predictions, job.labels, job.metadata, job.out]):
        for found, bad in run_tasks(count_pairs, batches, len(batches), on_progress):
            counted += found
            problems += bad
    page_uri = storage.join(job.out, REPORT_FILE)
    for earlier in (storage.join(job.out, METRICS_NAME), page_uri):
        storage.remove(earlier)
    if not counted:
        return EvaluateReport(None, [], problems)
    result = scores(
        [each.intersection for each in counted],
        [each.union for each in counted],
        [each.pair.location for each in counted],
        job.empty_union_rule,
    )
    inputs = Inputs(predictions=job.predictions, labels=job.labels, metadata=job.metadata, where=job.where)
    evaluation = Evaluation.of(result, problems, inputs)
    page = evaluation_page(evaluation, "Cloud masks against labels", make_gallery(counted, images))
    storage.write_bytes(page_uri, render_page(page).encode())
    metrics_uri = write_metrics(job.out, evaluation)
    return EvaluateReport(evaluation, counted, problems, metrics_uri, page_uri)


def _chosen(job: EvaluateJob) -> Metadata:
    """Return the rows that count, and what is wrong with bad ones that would."""
    if job.where_metadata is None:
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
