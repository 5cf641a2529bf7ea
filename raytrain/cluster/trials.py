"""The function that Ray Tune runs for each trial, in the trial's actor: it launches ranks, and keeps them for the next.

Tune uses the actor of a trial that has ended for the next one, and the ranks live as long as it does: a place for
trials pays for processes, imports and process groups once. Ranks that nobody needs for a while end, so that no place
waits for one that another holds and does not use.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import ray.tune

from raytrain import logs
from raytrain.cluster.board import start_board
from raytrain.cluster.deaths import Kind
from raytrain.cluster.desk import Desk, Told, TrialWork
from raytrain.cluster.fit import run_ranks
from raytrain.errors import RaytrainError, TrainingDiverged, WorkNotFinished, first_line

POLL_S = 2.0
CONTROLLERS = 3
"""How often the controller of a trial's ranks may be lost."""
RANKS_FOLDER = "ranks"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Places:
    """How the ranks of every trial of a search are started: how many, with GPUs, and whom they tell.

    What Ray Train writes of them goes below `folder`.
    """

    folder: str
    workers: int
    use_gpu: bool
    board: Any


def run_trial(places: Places, work: TrialWork) -> None:
    """Train a trial to its end, reporting to Tune, which may stop it at any report (`SystemExit`).

    A result has `what`: each epoch with its metrics; the end with state, cause and what was judged. A trial whose ranks
    fail for good ends so, too: as `failed`, or as `lost` where the cluster or a store failed, and not the setting.
    """
    logs.begin_worker(run=work.work.run.name)
    _logger.info("trial %s begins", work.name, extra=logs.fields(event="trial begins", trial=work.name))
    ranks = _ranks_of(places)
    ranks.begin(work)
    try:
        while True:
            told = ranks.next_told()
            if told is None:
                if ray.get(places.board.is_stopping.remote()):  # Tune's own way waits for a report
                    return
                continue
            ray.tune.report(_result(told))
            ranks.desk.answer.remote(told)
            if told.what == "end":
                return
    except RaytrainError as error:
        state = "lost" if _may_pass(error) else "failed"
        ray.tune.report(_result(Told(trial=work.name, what="end", state=state, cause=str(error))))
    finally:
        ranks.desk.leave.remote(work.name)


def _may_pass(error: RaytrainError) -> bool:
    """Tell whether what ended ranks for good says nothing of the setting: short memory does, a lost node does not."""
    is_of_setting = isinstance(error, TrainingDiverged) or f": {Kind.OUT_OF_MEMORY}: " in str(error)
    return isinstance(error, WorkNotFinished) and not is_of_setting


def _result(told: Told) -> dict[str, Any]:
    if told.what == "epoch":
        return {"what": "epoch", **told.metrics, "epoch": told.metrics["epoch"] + 1}
    judged = None if told.judged is None else json.dumps(told.judged)  # Tune would flatten it
    return {"what": "end", "state": told.state, "cause": told.cause, "judged": judged}


class _Ranks:
    """The ranks that this process keeps, and the thread that waits for them."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.desk = start_board(Desk, places.board)
        self._thread: threading.Thread | None = None
        self._failed: Exception | None = None
        self._lost = 0

    def begin(self, work: TrialWork) -> None:
        """Put a trial on the desk; what became of the one before is not its fault."""
        self._failed, self._lost = None, 0
        ray.get(self.desk.assign.remote(work))

    def next_told(self) -> Told | None:
        """Return what rank 0 tells next, None for now if it tells nothing; see to it that there are ranks.

        Raises the error of ours that ended them for good.
        """
        if self._thread is None or not self._thread.is_alive():
            self._raise_failure()
            self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)
            self._thread.start()
        told: Told | None = ray.get(self.desk.next_told.remote(POLL_S))
        return told

    def _raise_failure(self) -> None:
        failed, self._failed = self._failed, None
        if failed is None:
            return
        if isinstance(failed, RaytrainError):
            raise failed
        if isinstance(failed, ray.exceptions.RayActorError) and self._lost < CONTROLLERS:
            self._lost += 1
            _logger.warning("the controller of the ranks is lost (%s); another one begins", first_line(failed))
            return
        raise WorkNotFinished(f"{type(failed).__name__}: {first_line(failed)}") from failed

    def _run(self) -> None:
        name = f"{RANKS_FOLDER}-{uuid.uuid4().hex[:12]}"
        places = self._places
        try:
            run_ranks(
                places.folder,
                name,
                _serve_on_rank,
                {"desk": self.desk},
                places.workers,
                places.use_gpu,
                self.desk,
                frees_places=False,  # the search does, which knows when this process is gone
            )
        except Exception as error:  # noqa: BLE001  # a thread's top: whatever comes is raised to the trial
            self._failed = error
        self.desk.free.remote()


_kept: _Ranks | None = None
"""The ranks of this process."""


def _ranks_of(places: Places) -> _Ranks:
    global _kept  # Tune uses a process for many trials, and calls a function for each
    if _kept is None:
        _kept = _Ranks(places)
    return _kept


def _serve_on_rank(config: dict[str, Any]) -> None:
    # Here, since torch and timm take seconds to import; the driver and the trial's actor do without.
    from raytrain.cluster.trial_rank import serve_trials

    serve_trials(config["desk"])
