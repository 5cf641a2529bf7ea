"""Bulk scoring on Ray: list, plan, do every unit that is not done on a pool of actors, then close the books.

Only small records come back to the driver, which may be lost at any moment: what is done stands in the ledger of the
destination, and the same command does the rest.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray

from raytrain import storage
from raytrain.cluster import session
from raytrain.cluster.pool import UNITS_IN_FLIGHT, Outcome, Pool
from raytrain.cluster.room import actors_at_once, cpus_each, has_gpus
from raytrain.cluster.scorer import Scorer
from raytrain.cluster.tracking import ScoringGauges
from raytrain.config import ScoreSettings, Settings
from raytrain.errors import ConfigError, DataError, StoreOutOfReach, first_line
from raytrain.scoring import ledger
from raytrain.scoring.catalogue import write_catalogue
from raytrain.scoring.destination import Scoring, check_destination, check_source, claim_destination
from raytrain.scoring.manifest import EnsembleManifest, read_manifest
from raytrain.scoring.pace import Progress, Rate
from raytrain.scoring.partials import CASUALTIES, LOG, remove_partials
from raytrain.scoring.patience import Patience
from raytrain.scoring.plan import is_started, read_parts, remove_plan, start, write_plan
from raytrain.scoring.planning import Listing
from raytrain.scoring.records import Record
from raytrain.scoring.scenes import remove_all_blocks
from raytrain.scoring.schedule import Casualty, Schedule, Task
from raytrain.scoring.units import Answer
from raytrain.scoring.work import remove_outputs
from raytrain.tiles.selection import Selection

CASUALTY_COLUMNS = ["item_id", "source_uri", "in_data", "cause"]
RECORDS_PER_ROLL = 2000
"""Records that the driver holds before it rolls their entries into one table."""
_logger = logging.getLogger(__name__)


class ScoreJob(Settings):
    """What to score with which ensemble, where to; `fold` is a number, `all`, or None for the lowest.

    The work stops when more than `max_failures` items can't be scored; None stops for none.
    """

    src: str
    dst: str
    ensemble: str
    fold: int | str | None = None
    settings: ScoreSettings = ScoreSettings()
    selection: Selection = Selection()
    max_failures: int | None = None


@dataclass(frozen=True)
class ScoreReport:
    """How many items were found and are done, how many of them were before, and which can't be scored.

    `problems` are those that their data is to blame for; `unfinished` says for others why they failed every time: the
    same command tries them again. `notes` count those of finished items, see `Record`.
    """

    num_masks: int
    num_skipped: int
    problems: list[DataError]
    unfinished: dict[str, str]
    notes: dict[str, int] = field(default_factory=dict)
    rate: Rate = field(default_factory=lambda: Rate())


OnProgress = Callable[[Progress], None]


def score(job: ScoreJob, cluster: session.Cluster, on_progress: OnProgress | None = None) -> ScoreReport:
    """Score every item of `job` that is not done at the destination.

    What was read and is bad has no outputs, not even ones from an earlier run; what is gone or can't be reached keeps
    those that it has. Raises `ConfigError` for a destination with outputs of other work, `TooManyFailures` past the
    limit, `WorkNotFinished` where the cluster can't go on.
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
        listing = Listing(job.src, job.dst, manifest.bands, job.settings, job.selection, known)
        is_open, run = is_started(job.dst), uuid.uuid4().hex[:8]
        total = _plan(job, scoring, listing, run)
        schedule = Schedule(read_parts(job.dst, run, total), total, job.max_failures)
        books, is_over = _Books(job.dst, schedule, on_progress), False
        try:
            for problems, in_data in ((listing.problems, True), (listing.unreached, False)):
                for problem in problems:
                    schedule.add(Casualty(problem, in_data=in_data, was_read=False))
            if total:
                if cluster.address == session.LOCAL:  # it takes seconds to start, and may not be needed
                    stack.enter_context(joined)
                remove_partials(job.dst)
                _run(job, scoring, manifest, schedule, books)
            is_over = True
        finally:
            books.roll()
            books.write_casualties(is_over=is_over)
        if total or is_open or schedule.casualties:
            remove_partials(job.dst)  # of workers that were killed, and nobody works any more
            books.close(scoring)
    casualties = schedule.casualties
    return ScoreReport(
        num_masks=listing.num_done + schedule.num_finished,
        num_skipped=listing.num_done,
        problems=[DataError(each.problem.item_id, each.problem.found) for each in casualties if each.in_data],
        unfinished={each.problem.item_id: each.problem.found for each in casualties if not each.in_data},
        notes=dict(books.notes),
        rate=books.rate,
    )


def _plan(job: ScoreJob, scoring: Scoring, listing: Listing, run: str) -> int:
    """Write the plan of what is to be done, if there is anything, to a destination that is ours; return its units."""
    units = listing.units()
    first = next(units, None)
    if first is not None or listing.problems or listing.unreached:  # the table of casualties is an output, too
        claim_destination(job.dst, scoring)
    if first is None:
        return 0
    start(job.dst)
    return write_plan(job.dst, run, itertools.chain([first], units))


def _run(job: ScoreJob, scoring: Scoring, manifest: EnsembleManifest, schedule: Schedule, books: _Books) -> None:
    """Do all units of `schedule` on the cluster; on GPUs only if it has any as this begins."""
    use_gpu = has_gpus()
    room = partial(actors_at_once, job.settings.threads, use_gpu=use_gpu)
    begin = partial(start_actor, job, scoring, manifest, use_gpu=use_gpu)
    Pool(begin, room, books.note_failure, books.note_end).run(schedule, books.add)


def scoring_of(job: ScoreJob) -> tuple[EnsembleManifest, Scoring]:
    """Return the nets that score, and what all outputs are made with."""
    manifest = read_manifest(job.ensemble).of_fold(job.fold)
    names = tuple(member.name for member in manifest.members)
    return manifest, Scoring(ensemble=manifest.nets_digest(), members=names, settings=job.settings)


def start_actor(job: ScoreJob, scoring: Scoring, manifest: EnsembleManifest, *, use_gpu: bool) -> Any:
    """Start an actor: of a GPU, or of some CPUs."""
    resources = {"num_gpus": 1} if use_gpu else {"num_cpus": cpus_each(job.settings.threads)}
    actor: Any = ray.remote(Scorer).options(
        **resources, max_concurrency=UNITS_IN_FLIGHT + 1, max_restarts=0, scheduling_strategy="SPREAD"
    )
    arguments = (scoring.model_dump(mode="json"), manifest.model_dump(mode="json"), use_gpu)
    return actor.remote(job.dst, job.ensemble, *arguments)


class _Books:
    """What the driver writes down: entries of the ledger rolled together, the log, casualties, the catalogue."""

    def __init__(self, destination: str, schedule: Schedule, on_progress: OnProgress | None) -> None:
        self._destination, self._schedule, self._on_progress = destination, schedule, on_progress
        self._records: list[Record] = []
        self._entries: list[str] = []
        self._log: list[dict[str, Any]] = []
        self._log_name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:8]}"
        self._num_rolled = 0
        self._patience = Patience()
        self.notes: Counter[str] = Counter()
        self.rate = Rate()
        self._gauges: ScoringGauges | None = None

    def add(self, task: Task, text: str, where: dict[str, Any]) -> None:
        """Note what came of a task, in the schedule and in the books."""
        answer = Answer.model_validate_json(text)
        self._records += answer.records
        self._entries += [answer.entry] if answer.entry else []
        self.notes.update(note for record in answer.records for note in record.notes)
        self.rate.add(answer, _name_of(where))
        numbers = {"network_s_so_far": round(answer.network_s, 3), "pixels": answer.pixels}
        self._note(task, "done", where, seconds=round(answer.seconds, 3), **numbers)
        if len(self._log) >= RECORDS_PER_ROLL or len(self._records) >= RECORDS_PER_ROLL:
            self._roll_later()  # not where something failed: it may be the store that is away
        self._schedule.finished(task, answer)
        progress = self._schedule.progress(self.rate)
        self._gauges = self._gauges or ScoringGauges(self._destination)  # where Ray runs
        self._gauges.set(progress)
        if self._on_progress is not None:
            self._on_progress(progress)

    def note_failure(self, task: Task, outcome: Outcome, cause: str, where: dict[str, Any]) -> None:
        """Note an attempt at a task that failed or was lost, and why; `failures` and `deaths` are those before it."""
        self._note(task, outcome, where, cause=cause)

    def note_end(self, where: dict[str, Any]) -> None:
        """Note that a worker is no more: its time ends."""
        self.rate.ended(_name_of(where))

    def _note(self, task: Task, outcome: str, where: dict[str, Any], **more: Any) -> None:
        """Add a line to the log."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        counts = {"failures": task.failures, "deaths": task.deaths}
        self._log.append({"time": now, "unit": task.unit.unit_id, "outcome": outcome, **counts, **more, **where})

    def _roll_later(self) -> None:
        """Roll now, or at a later answer if the store is out of reach: workers go on meanwhile, and so does the job."""
        if self._patience.is_wait:
            return
        try:
            self.roll()
        except (StoreOutOfReach, OSError) as error:
            self._patience.failed()
            _logger.warning("%s; the ledger's entries are put together later", first_line(error))
        else:
            self._patience.succeeded()

    def roll(self) -> None:
        """Put the entries of the ledger so far into one table, and what was logged into one file.

        What can't be written is kept for the next time.
        """
        if self._log:
            lines = "".join(f"{json.dumps(line)}\n" for line in self._log)
            name = f"{self._log_name}-{self._num_rolled:05d}.jsonl"
            storage.write_bytes(storage.join(self._destination, LOG, name), lines.encode())
            self._num_rolled += 1
            self._log = []
        if self._entries:
            ledger.roll(self._destination, self._records, self._entries)
            self._records, self._entries = [], []

    def write_casualties(self, *, is_over: bool) -> None:
        """Write the table of what can't be scored, in the order of ids; none where there is none.

        Of a run that was cut short, others that are in the table stay there: it did not come to them.
        """
        target = storage.join(self._destination, CASUALTIES)
        rows = [
            [each.problem.item_id, each.problem.source_uri, str(each.in_data).lower(), each.problem.found]
            for each in self._schedule.casualties
        ]
        if not is_over:
            known = {row[0] for row in rows}
            rows += [row for row in _read_casualties(target) if row[0] not in known]
        if not rows:
            storage.remove(target)
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([CASUALTY_COLUMNS, *sorted(rows, key=lambda row: row[0])])
        storage.write_bytes(target, text.getvalue().encode())

    def close(self, scoring: Scoring) -> None:
        """Bring the ledger into its canonical form and write the catalogue of it; nothing else is left of the run."""
        casualties = self._schedule.casualties
        gone = {each.problem.item_id for each in casualties if each.in_data and each.was_read}
        for item_id in gone:
            remove_outputs(self._destination, item_id)
        ledger.compact(self._destination, dropped=gone)
        write_catalogue(self._destination, scoring)
        remove_all_blocks(self._destination, but={each.problem.item_id for each in casualties if not each.in_data})
        remove_plan(self._destination)  # last: a driver that is lost before it closes the books again


def _read_casualties(uri: str) -> list[list[str]]:
    """Return the rows of a table of casualties; none where there is no such table."""
    try:
        header, *rows = csv.reader(io.StringIO(storage.read_text(uri, "table of casualties")))
    except (FileNotFoundError, ConfigError, ValueError):
        return []
    return rows if header == CASUALTY_COLUMNS else []


def _name_of(where: dict[str, Any]) -> str:
    return f"{where.get('host')}:{where.get('pid')}"
