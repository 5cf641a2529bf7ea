"""Bulk scoring on Ray: list, plan, do every unit that is not done on a pool of actors, then close the books.

Only small records come back to the driver, which may be lost at any moment: what is done stands in the ledger of the
destination, and the same command does the rest.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray

from raytrain import storage
from raytrain.cluster import growth, session
from raytrain.cluster.books import Books, OnProgress
from raytrain.cluster.pool import UNITS_IN_FLIGHT, Pool
from raytrain.cluster.room import actors_at_once, cpus_each, has_gpus, resources_of
from raytrain.cluster.scorer import Scorer
from raytrain.config import ScoreSettings, Settings
from raytrain.errors import ConfigError, DataError, RaytrainError, StoreOutOfReach, WorkNotFinished, first_line
from raytrain.scoring import ledger
from raytrain.scoring.catalogue import is_catalogue_whole
from raytrain.scoring.destination import REPORT_PAGE, Scoring, check_destination, check_source, claim_destination
from raytrain.scoring.manifest import EnsembleManifest, check_names_differ, member_names, read_manifest
from raytrain.scoring.pace import Rate
from raytrain.scoring.partials import remove_partials
from raytrain.scoring.plan import Plan, is_started, read_parts, start, write_plan
from raytrain.scoring.planning import Listing, holds_shards
from raytrain.scoring.schedule import Casualty, Schedule
from raytrain.scoring.unseen import find_unseen, of_folds
from raytrain.tiles.selection import Selection

_logger = logging.getLogger(__name__)


class ScoreJob(Settings):
    """What to score with which ensemble, where to; `fold` is a number, `all`, or None for the lowest.

    `out_of_fold` is for shards: each tile is scored by the nets that never saw its location. The work stops when more
    than `max_failures` items can't be scored; None stops for none.
    """

    src: str
    dst: str
    ensemble: str
    fold: int | str | None = None
    out_of_fold: bool = False
    settings: ScoreSettings = ScoreSettings()
    selection: Selection = Selection()
    max_failures: int | None = None


@dataclass(frozen=True)
class ScoreReport:
    """How many items were found and are done, how many of them were before, and which can't be scored.

    `problems` are those that their data is to blame for; `unfinished` says for others why they failed every time: the
    same command tries them again. `notes` count those of finished items, see `Record`. `report` is the URI of the page;
    None where it could not be made.
    """

    num_masks: int
    num_skipped: int
    problems: list[DataError]
    unfinished: dict[str, str]
    notes: dict[str, int] = field(default_factory=dict)
    rate: Rate = field(default_factory=Rate)
    report: str | None = None


def score(job: ScoreJob, cluster: session.Cluster, on_progress: OnProgress | None = None) -> ScoreReport:
    """Score every item of `job` that is not done at the destination.

    What was read and is bad has no outputs, not even ones from an earlier run, and neither has a tile that out of fold
    no net may score; what is gone or can't be reached keeps those that it has. Raises `ConfigError` for a destination
    with outputs of other work, `TooManyFailures` past the limit, `WorkNotFinished` where the cluster can't go on.
    """
    manifest, scoring = scoring_of(job)
    check_source(job.src, job.dst)
    check_destination(job.dst, scoring, (name for name, _ in storage.walk(job.dst)))
    joined = session.joined(cluster, [job.src, job.dst, job.ensemble])
    with contextlib.ExitStack() as stack:
        if cluster.address != session.LOCAL:  # on several nodes a local path is refused before anything is written
            stack.enter_context(joined)
        ledger.compact(job.dst)
        known = ledger.Known(job.dst, scoring.digest(), ledger.standing_at(job.dst))
        listing = listing_of(job, manifest, known)
        is_open, run = is_started(job.dst), uuid.uuid4().hex[:8]
        plan = _plan(job, scoring, listing, run)
        schedule = Schedule(read_parts(job.dst, plan), plan.num_units, job.max_failures)
        books = Books(job.dst, schedule, on_progress)
        with _noted(job, scoring, books):
            for problems, in_data in ((listing.problems, True), (listing.unreached, False)):
                for problem in problems:
                    keeps = problem.item_id not in listing.outdated
                    schedule.add(Casualty(problem, in_data=in_data, keeps_outputs=keeps))
            if plan.num_units:
                if cluster.address == session.LOCAL:  # it takes seconds to start, and may not be needed
                    stack.enter_context(joined)
                remove_partials(job.dst)
                _run(job, scoring, manifest, schedule, books)
        is_due = plan.num_units or is_open or schedule.casualties or not is_catalogue_whole(job.dst)
        if is_due:
            remove_partials(job.dst)  # of workers that were killed, and nobody works any more
            books.close(scoring)
        report = write_report(job, scoring, only_if_missing=not is_due)
    casualties = schedule.casualties
    return ScoreReport(
        num_masks=listing.num_done + schedule.num_finished,
        num_skipped=listing.num_done,
        problems=[DataError(each.problem.item_id, each.problem.found) for each in casualties if each.in_data],
        unfinished={each.problem.item_id: each.problem.found for each in casualties if not each.in_data},
        notes=dict(books.notes),
        rate=books.rate,
        report=report,
    )


@contextlib.contextmanager
def _noted(job: ScoreJob, scoring: Scoring, books: Books) -> Iterator[None]:
    """Write down what the body did, however it ends; where the work ended early by itself, in a report, too."""
    is_over = False
    try:
        try:
            yield
            is_over = True
        finally:
            books.roll()
            books.write_casualties(is_over=is_over)
    except StoreOutOfReach:  # likely that of the report
        raise
    except WorkNotFinished as error:
        write_report(job, scoring, ended_by=str(error))
        raise


def write_report(job: ScoreJob, scoring: Scoring, *, ended_by: str = "", only_if_missing: bool = False) -> str | None:
    """Write the report of a scoring and return the URI of its page.

    The work is done by now: what keeps the report from being made, whatever it is, is logged, and None is returned.
    """
    try:
        from raytrain.evaluation import scoring_report  # it imports matplotlib, which takes a second

        if only_if_missing and scoring_report.is_reported(job.dst):
            return storage.join(job.dst, REPORT_PAGE)
        scored = scoring_report.read_scored(job.dst, scoring, source=job.src, ensemble=job.ensemble, ended_by=ended_by)
        return scoring_report.write_report(job.dst, scored)
    except (RaytrainError, OSError) as error:
        _logger.warning("no report of the scoring: %s", first_line(error))
    except Exception as error:  # a boundary: no fault of the report may cost a scoring its result
        _logger.warning("no report of the scoring: %s", first_line(error), exc_info=True)
    return None


def _plan(job: ScoreJob, scoring: Scoring, listing: Listing, run: str) -> Plan:
    """Write the plan of what is to be done, if there is anything, to a destination that is ours, and return it."""
    units = listing.units()
    first = next(units, None)
    if first is not None or listing.problems or listing.unreached:  # the table of casualties is an output, too
        claim_destination(job.dst, scoring)
    if first is None:
        return Plan(run)
    start(job.dst)
    return write_plan(job.dst, run, itertools.chain([first], units))


def _run(job: ScoreJob, scoring: Scoring, manifest: EnsembleManifest, schedule: Schedule, books: Books) -> None:
    """Do all units of `schedule` on the cluster; on GPUs only if it has any as this begins, or can grow to some."""
    use_gpu = has_gpus()
    room = partial(actors_at_once, job.settings.threads, use_gpu=use_gpu)
    begin = partial(start_actor, job, scoring, manifest, use_gpu=use_gpu)
    needed = partial(resources_of, threads=job.settings.threads, use_gpu=use_gpu)
    with growth.asked_for(needed(schedule.most_workers), use_gpu=use_gpu) as asked:

        def on_need(workers: int) -> None:
            asked.ask(needed(workers))

        pool = Pool(begin, room, books.note_failure, books.note_end, on_need, books.note_workers)
        pool.run(schedule, books.add)


def scoring_of(job: ScoreJob) -> tuple[EnsembleManifest, Scoring]:
    """Return the nets that score, and what all outputs are made with."""
    if job.out_of_fold and job.fold is not None:
        raise ConfigError(
            f"--out-of-fold takes for each tile the nets that never saw its location, --fold {job.fold} the same for "
            "all; leave one of the two out"
        )
    whole = read_manifest(job.ensemble)
    if job.out_of_fold:
        manifest = of_folds(whole)
        names = tuple(dict.fromkeys(member.name for member in manifest.members))  # a tile has a net of each
    else:
        manifest = whole.of_fold(job.fold)
        names = member_names(manifest.members)
        if job.settings.members != "none":
            check_names_differ(names)
    scoring = Scoring(
        ensemble=manifest.nets_digest(), members=names, settings=job.settings, out_of_fold=job.out_of_fold
    )
    return manifest, scoring


def listing_of(job: ScoreJob, manifest: EnsembleManifest, known: ledger.Known) -> Listing:
    """Return the listing of what `job` scores with the nets of `manifest`; raise `ConfigError` as `find_unseen` does.

    That is raised for chips and scenes out of fold, too: no index knows their locations.
    """
    unseen = None
    if job.out_of_fold:
        if not holds_shards(job.src):
            raise ConfigError(
                f"{storage.shown(job.src)}: --out-of-fold is for finished tile shards (a folder with manifest.json and "
                "index.parquet, as raytrain shard makes it), whose locations are known; for chips and scenes leave it "
                "out, or choose a --fold"
            )
        unseen = find_unseen(job.src, manifest)
    return Listing(job.src, job.dst, manifest.bands, job.settings, job.selection, known, unseen)


def start_actor(job: ScoreJob, scoring: Scoring, manifest: EnsembleManifest, *, use_gpu: bool) -> Any:
    """Start an actor: of a GPU, or of some CPUs."""
    resources = {"num_gpus": 1} if use_gpu else {"num_cpus": cpus_each(job.settings.threads)}
    actor: Any = ray.remote(Scorer).options(
        **resources, max_concurrency=UNITS_IN_FLIGHT + 1, max_restarts=0, scheduling_strategy="SPREAD"
    )
    arguments = (scoring.model_dump(mode="json"), manifest.model_dump(mode="json"), use_gpu)
    return actor.remote(job.dst, job.ensemble, *arguments)
