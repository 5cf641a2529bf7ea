"""Predictions against labels: counts by Ray tasks, scores from all counts at once, `metrics.json` and the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raytrain.cluster import session
from raytrain.cluster.tasks import run_tasks
from raytrain.config import EmptyUnionRule, Settings
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation.masks import Pair, count_pair, pair_up
from raytrain.evaluation.results import Evaluation, Inputs
from raytrain.tiles.archive import read_metadata
from raytrain.tiles.selection import select_rows
from raytrain.training.metrics import scores

PAIRS_PER_TASK = 32


class EvaluateJob(Settings):
    """Which masks to hold against which labels; the rows of `metadata` that `where` leaves say which chips count."""

    predictions: str
    labels: str
    metadata: str
    where: tuple[str, ...] = ()
    empty_union_rule: EmptyUnionRule = "one"


@dataclass(frozen=True)
class _Counted:
    pair: Pair
    intersection: int
    union: int


def evaluate(
    job: EvaluateJob, cluster: session.Cluster, on_progress: Callable[[int, int], None] | None = None
) -> Evaluation:
    """Return the scores over all pairs; what is missing or can't be used is a problem of the result.

    Raises `ConfigError` where nothing can be counted.
    """
    all_rows, row_problems = read_metadata(job.metadata)
    pairs, problems = pair_up(job.predictions, job.labels, select_rows(all_rows, job.where))
    batches = [pairs[start : start + PAIRS_PER_TASK] for start in range(0, len(pairs), PAIRS_PER_TASK)]
    with session.joined(cluster, [job.predictions, job.labels, job.metadata]):
        results = [each for batch in run_tasks(_count, batches, on_progress) for each in batch]
    counted = [each for each in results if isinstance(each, _Counted)]
    problems += [each for each in results if isinstance(each, DataError)]
    if not counted:
        raise ConfigError(f"none of the {len(pairs)} pairs can be counted; the first: {problems[0]}")
    found = scores(
        [each.intersection for each in counted],
        [each.union for each in counted],
        [each.pair.location for each in counted],
        job.empty_union_rule,
    )
    inputs = Inputs(predictions=job.predictions, labels=job.labels, metadata=job.metadata, where=job.where)
    return Evaluation.of(found, [*problems, *row_problems], inputs)


def _count(pairs: list[Pair]) -> list[_Counted | DataError]:
    """Count each of `pairs` (a Ray task)."""
    results: list[_Counted | DataError] = []
    for pair in pairs:
        try:
            results.append(_Counted(pair, *count_pair(pair)))
        except DataError as error:
            results.append(error)
    return results
