"""The books of a scoring: entries of the ledger rolled together, the log, the table of casualties, the catalogue.

What is written is a function of what was done, but for the log, which tells who did it and when. Must not know how.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from raytrain import storage
from raytrain.cluster.pool import Outcome
from raytrain.cluster.tracking import ScoringMetrics
from raytrain.errors import StoreOutOfReach, first_line
from raytrain.scoring import ledger
from raytrain.scoring.casualties import read_casualties, write_casualties
from raytrain.scoring.catalogue import write_catalogue
from raytrain.scoring.destination import LOG, Scoring
from raytrain.scoring.pace import Progress, Rate
from raytrain.scoring.patience import Patience
from raytrain.scoring.plan import remove_plan
from raytrain.scoring.records import Record
from raytrain.scoring.scenes import remove_all_blocks
from raytrain.scoring.schedule import Schedule, Task
from raytrain.scoring.units import Answer
from raytrain.scoring.work import layers_of, remove_outputs

RECORDS_PER_ROLL = 2000
"""Records that the driver holds before it rolls their entries into one table."""
OnProgress = Callable[[Progress], None]
_logger = logging.getLogger(__name__)


class Books:
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
        self._metrics: ScoringMetrics | None = None

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
        self._told().set(progress)
        self._told().unit_done(answer.seconds)
        if self._on_progress is not None:
            self._on_progress(progress)

    def note_failure(self, task: Task, outcome: Outcome, cause: str, where: dict[str, Any]) -> None:
        """Note an attempt at a task that failed or was lost, and why; `failures` and `deaths` are those before it."""
        self._note(task, outcome, where, cause=storage.without_queries(cause))
        self._told().setback(outcome)

    def note_workers(self, states: Mapping[str, int], failing_s: float) -> None:
        """Note how many workers there are in each state now, and for how long units fail without a success."""
        self._told().workers(states, failing_s)

    def _told(self) -> ScoringMetrics:
        self._metrics = self._metrics or ScoringMetrics(self._destination)  # where Ray runs
        return self._metrics

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
        rows = [
            [each.problem.item_id, each.problem.source_uri, str(each.in_data).lower(), each.problem.found]
            for each in self._schedule.casualties
        ]
        if not is_over:
            known = {row[0] for row in rows}
            rows += [row for row in read_casualties(self._destination) if row[0] not in known]
        write_casualties(self._destination, rows)

    def close(self, scoring: Scoring) -> None:
        """Bring the ledger into its canonical form and write the catalogue of it; nothing else is left of the run."""
        casualties = self._schedule.casualties
        gone = {each.problem.item_id for each in casualties if each.in_data and not each.keeps_outputs}
        for item_id in gone:
            remove_outputs(self._destination, item_id, layers_of(scoring))
        ledger.compact(self._destination, dropped=gone)
        write_catalogue(self._destination, scoring)
        remove_all_blocks(self._destination, but={each.problem.item_id for each in casualties if not each.in_data})
        remove_plan(self._destination)  # last: a driver that is lost before it closes the books again


def _name_of(where: dict[str, Any]) -> str:
    return f"{where.get('host')}:{where.get('pid')}"
