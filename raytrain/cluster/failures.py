"""Why an attempt to train a run ended, and whether another one is worth it.

Ray Train asks the policy, in the controller of the run. A retry is for what may pass: lost nodes, killed workers,
memory that was short once, a store out of reach. Wrong settings, bad data and a diverged loss end the run at once.
Failures count while nothing is saved in between: a run that moves on is not given up because its nodes come and go.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from typing import Any

import ray
import ray.exceptions
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError

from raytrain import logs, storage
from raytrain.cluster.board import Failed
from raytrain.cluster.deaths import Cause, Kind, cause_of_death, last_cause, other_code
from raytrain.errors import RaytrainError, StoreOutOfReach, WorkNotFinished, first_line

ASK_S = 10
STARTS = 3
"""How often ranks may fail to begin an attempt, one time after the other."""
_logger = logging.getLogger(__name__)
_SHORT = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)
_PEER_GONE = re.compile(
    r"gloo|nccl|connection (closed|reset)|broken pipe|socket|process group|all_?reduce", re.IGNORECASE
)
_SAID_CHARACTERS = 120
"""How much of what gloo or NCCL says of a lost peer; the rest is advice."""


RETRIES = {
    Kind.NODE_LOST: 5,
    Kind.WORKER_KILLED: 3,
    Kind.OUT_OF_MEMORY: 1,
    Kind.UNEXPECTED: 1,
    Kind.FINAL: 0,
}
"""How many attempts of a kind may fail without a checkpoint saved in between, and yet another one is begun.

Preemptions are no failures, and workers that can't be had are waited for: neither is counted. A store out of reach has
`STORE_LIMIT_S` to come back.
"""
STORE_LIMIT_S = 3600.0


def cause_of(error: Exception) -> Cause:
    """Return why the attempt that ended with Ray Train's `error` did.

    An error of ours counts before what it does to other ranks, and a lost node before what its peers say of it.
    """
    if isinstance(error, PreemptionError):
        return Cause(Kind.PREEMPTED, "a node was taken away, with notice")
    if isinstance(error, ControllerError):
        return _cause_of_controller(error.controller_failure)
    if not isinstance(error, WorkerGroupError):
        return Cause(Kind.UNEXPECTED, last_cause(error))
    causes = [_cause_of_rank(rank, each) for rank, each in sorted(error.worker_failures.items())]
    return min(
        causes, key=lambda cause: _IMPORTANCE.index(cause.kind), default=Cause(Kind.UNEXPECTED, last_cause(error))
    )


_IMPORTANCE: tuple[Kind, ...] = (
    Kind.FINAL,
    Kind.PREEMPTED,
    Kind.OUT_OF_MEMORY,
    Kind.NODE_LOST,
    Kind.STORE_OUT_OF_REACH,
    Kind.WORKER_KILLED,
    Kind.UNEXPECTED,
)


def _cause_of_controller(error: Exception) -> Cause:
    """Return why ranks could not be started, or their controller failed."""
    if isinstance(error, WorkerGroupStartupTimeoutError):
        return Cause(Kind.NO_WORKERS, first_line(error))
    if isinstance(error, WorkerGroupStartupFailedError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what became of a rank before it could begin
    if isinstance(error, (ray.exceptions.RayError, WorkerGroupStartupFailedError)):
        return cause_of_death("a rank, or of what serves it,", error, _LESS)
    return Cause(Kind.FINAL, first_line(error))


def _cause_of_rank(rank: int, error: Exception) -> Cause:
    """Return why one rank ended."""
    if differs := other_code(error):
        return differs
    if isinstance(error, WorkerHealthCheckFailedError):
        return cause_of_death(f"rank {rank}", error.health_check_failure, _LESS)
    if isinstance(error, StoreOutOfReach):
        return Cause(Kind.STORE_OUT_OF_REACH, str(error), error)
    if isinstance(error, RaytrainError):
        return Cause(Kind.FINAL, str(error), error)
    if _is_short_of_memory(error):
        return Cause(Kind.OUT_OF_MEMORY, f"rank {rank}: {first_line(error)}; {_LESS}")
    if isinstance(error, PermissionError):
        return Cause(Kind.FINAL, f"no right to it: {first_line(error)}")
    is_of_ray = isinstance(error, (ConnectionError, ray.exceptions.RayError))
    if storage.is_out_of_reach(error) and not is_of_ray:
        return Cause(Kind.STORE_OUT_OF_REACH, f"{type(error).__name__}: {first_line(error)}")
    if _PEER_GONE.search(str(error)):  # why the peer went may not be known yet
        return Cause(Kind.WORKER_KILLED, f"rank {rank} has lost a peer ({first_line(error)[:_SAID_CHARACTERS]})")
    return Cause(Kind.UNEXPECTED, f"rank {rank}: {type(error).__name__}: {first_line(error)}")


def _is_short_of_memory(error: Exception) -> bool:
    """Tell whether a rank could not have the memory that it asked for."""
    # By name and text: torch, whose errors these are, is not imported here.
    of_torch = type(error).__name__ == "OutOfMemoryError" or bool(_SHORT.search(str(error)))
    of_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or of_torch or of_system


_LESS = "lower global_batch, crop_px or the number of ranks on a node"


class RunFailurePolicy(FailurePolicy):
    """Decides about the failures of one run, and posts them."""

    def __init__(self, failure_config: FailureConfig, run: str, board: Any) -> None:
        super().__init__(failure_config)
        self._run = run
        self._board = board
        self._counts: dict[Kind, int] = {}
        self._attempt = self._saves = self._starts = 0
        self._away_since: float | None = None

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Return whether there is another attempt; counts begin anew where a checkpoint was saved in between.

        A kind counts once an attempt that began: one event may end ranks, and then those that were to follow them.
        """
        cause = cause_of(training_failed_error)
        is_new = self._look()
        is_retried = self._is_in_reach_again() if cause.kind is Kind.STORE_OUT_OF_REACH else self._count(cause, is_new)
        event = logs.fields(event="attempt ended", kind=str(cause.kind), is_retried=is_retried, counts=self._counts)
        _logger.info("run %s: %s: %s; counts: %s", self._run, cause.kind, cause.text, self._counts, extra=event)
        if cause.kind is not Kind.NO_WORKERS:  # no attempt has ended
            self._board.post.remote(Failed(self._run, cause.kind, cause.text, is_retried))
        return FailureDecision.RETRY if is_retried else FailureDecision.RAISE

    def _look(self) -> bool:
        """Return whether an attempt has begun since the last failure; forget counts where something was saved."""
        try:
            found: tuple[int, int] = ray.get(self._board.state.remote(self._run), timeout=ASK_S)
        except ray.exceptions.RayError as error:  # the driver is slow, or gone: then all of this ends soon
            _logger.warning("run %s: the board does not answer: %s", self._run, first_line(error))
            return True
        attempt, saves = found
        if saves != self._saves:
            self._counts, self._away_since = {}, None
        is_new = attempt != self._attempt
        self._attempt, self._saves = attempt, saves
        return is_new

    def _count(self, cause: Cause, is_new: bool) -> bool:
        """Count a failure and return whether there may be another attempt."""
        limit = RETRIES.get(cause.kind)
        if limit is None:
            return True
        if is_new:
            self._counts[cause.kind] = self._counts.get(cause.kind, 0) + 1
            self._starts = 0
        else:
            self._starts += 1
        return 0 < limit >= self._counts.get(cause.kind, 0) and self._starts <= STARTS

    def _is_in_reach_again(self) -> bool:
        """Return whether a store that is out of reach still has time to come back; each attempt asks it for a while."""
        now = time.monotonic()
        self._away_since = self._away_since or now
        return now - self._away_since < STORE_LIMIT_S


def final_error(run: str, error: TrainingFailedError) -> RaytrainError:
    """Return the error of ours that says why a run ended for good."""
    cause = cause_of(error)
    return cause.error or WorkNotFinished(f"run {run}: {cause.kind}: {cause.text}")
