"""Which checkpoints of a run are kept, and which one it goes on from; saved in the background of its steps.

Attempts to train a run are numbered, and only the last one may write: a process that was taken for dead, or a second
command, stops once it sees that there is another, and until then writes to places of its own. Must not know Ray.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from raytrain import storage
from raytrain.errors import DataError, StoreOutOfReach, WorkNotFinished, first_line
from raytrain.training.checkpoint_files import (
    CHECKPOINTS_FOLDER,
    CheckpointIndex,
    KeptCheckpoint,
    checkpoint_uri,
    index_uri,
    read_checkpoint,
    read_index,
)
from raytrain.training.checkpoints import Snapshot, write_checkpoint

RETRY_S = 5.0
"""How long after a failed write the next one begins; the store is asked several times in each."""
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ENOTCONN)
"""What a disk, or one in a network, may say and take back."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where an attempt begins: its number, the checkpoint with its files (None at the start of the run), what was torn.

    `torn` has the reason for each newer checkpoint that can't be used; `metrics` are those of the last epoch that
    ended.
    """

    attempt: int
    checkpoint: KeptCheckpoint | None
    files: dict[str, bytes] = field(repr=False)
    torn: tuple[DataError, ...] = ()
    metrics: dict[str, Any] | None = None


class CheckpointStore:
    """The checkpoints of one attempt to train a run, whose folder is at the URI `run_folder`. Rank 0 only."""

    def __init__(self, run_folder: str, keep_last: int) -> None:
        self._folder = run_folder
        self._keep_last = keep_last
        self._index = CheckpointIndex()
        self._is_tidy = False

    def begin(self) -> Start:
        """Begin the next attempt, and return where it starts: at the newest checkpoint that is whole.

        Torn ones count no longer. Raises `DataError` if there are checkpoints but none that is whole: beginning anew
        would throw away what the run has learnt, which is for a person to decide.
        """
        before = read_index(self._folder)
        torn: list[DataError] = []
        whole, files = list(before.kept), dict[str, bytes]()
        while whole and not files:
            try:
                files = read_checkpoint(checkpoint_uri(self._folder, whole[-1].name))
            except DataError as error:
                torn.append(error)
                whole.pop()
        if torn and not whole:
            raise DataError(self._folder, f"no checkpoint is whole ({torn[0]}); remove this folder to begin anew")
        self._index = CheckpointIndex(before.attempt + 1, uuid.uuid4().hex, tuple(whole))
        self._write_index(self._index)
        metrics = next((each.metrics for each in reversed(whole) if each.metrics is not None), None)
        return Start(self._index.attempt, self._index.last, files, tuple(torn), metrics)

    def save(
        self, snapshot: Snapshot, *, metrics: dict[str, Any] | None = None, is_best: bool = False, pause_s: float = 0.0
    ) -> KeptCheckpoint:
        """Save `snapshot`, then remove what is kept no longer.

        Raises `WorkNotFinished` if another attempt has begun since, and has the right to write.
        """
        start = time.monotonic()
        self._check_right()
        name = f"{snapshot.name}-a{self._index.attempt:04d}"
        if all(each.name != name for each in self._index.kept):
            self._remove(name)  # what a write that failed has left
            write_checkpoint(checkpoint_uri(self._folder, name), snapshot)
        size = sum(map(_num_bytes, (*snapshot.weights.values(), *snapshot.momentum.values())))
        kept = KeptCheckpoint(name, snapshot.position, is_best, metrics, pause_s, time.monotonic() - start, size)
        self._check_right()
        grown = self._index.with_checkpoint(kept, self._keep_last)
        self._write_index(grown)
        before, self._index = self._index, grown
        self._check_right()
        for gone in {each.name for each in before.kept} - {each.name for each in self._index.kept}:
            self._remove(gone)
        if not self._is_tidy:
            self._remove_leftovers()
        return kept

    def _check_right(self) -> None:
        """Raise `WorkNotFinished` if there is an attempt after this one, or one of the same number began after it."""
        index = read_index(self._folder)
        if (index.attempt, index.owner) != (self._index.attempt, self._index.owner):
            raise WorkNotFinished(
                f"{self._folder}: attempt {index.attempt} trains this run now, not this one of number "
                f"{self._index.attempt}; is the same command running twice?"
            )

    def _write_index(self, index: CheckpointIndex) -> None:
        text = json.dumps(asdict(index), indent=1)
        storage.write_bytes(index_uri(self._folder, index.attempt), text.encode(), durably=True)

    def _remove_leftovers(self) -> None:
        """Remove what earlier attempts left: checkpoints that count no longer, torn ones, old indexes."""
        stay = {each.name for each in self._index.kept}
        stay |= {storage.name_of(index_uri(self._folder, self._index.attempt - back)) for back in (0, 1)}
        found = {name.partition("/")[0] for name in storage.find(storage.join(self._folder, CHECKPOINTS_FOLDER))}
        for name in found - stay:
            self._remove(name)
        self._is_tidy = True

    def _remove(self, name: str) -> None:
        """Remove a checkpoint, or an index, that counts no longer; what can't be removed at once is left over.

        Each object is asked for once: a request that is repeated for minutes may come when it is not true any more.
        """
        uri = storage.join(self._folder, CHECKPOINTS_FOLDER, name)
        try:
            files = [storage.join(uri, file) for file in storage.find(uri)]
            for file in files or ([uri] if name.endswith(".json") else []):
                storage.remove_once(file)
            storage.remove_empty_folder(uri)
        except Exception as error:
            if not (storage.is_out_of_reach(error) or storage.is_passing(error)):
                raise
            _logger.warning("%s: can't be removed: %s", uri, first_line(error))


def _num_bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


@dataclass(frozen=True)
class _Waiting:
    snapshot: Snapshot
    metrics: dict[str, Any] | None
    is_best: bool
    pause_s: float


class BackgroundWriter:
    """Saves snapshots in a thread of its own, so that training never waits for a store. Rank 0 only.

    At most the last snapshot and the best one wait; where snapshots come faster than they can be written, those between
    are left out. A write that fails is told in the log and tried again, with what is newest then; once nothing
    could be saved for `give_up_s`, or another attempt has the right to write, the next call raises the reason.
    """

    def __init__(
        self,
        store: CheckpointStore,
        give_up_s: float,
        on_saved: Callable[[KeptCheckpoint], None],
        *,
        retry_s: float = RETRY_S,
    ) -> None:
        self._store = store
        self._give_up_s = give_up_s
        self._retry_s = retry_s
        self._on_saved = on_saved
        self._changed = threading.Condition()
        self._last: _Waiting | None = None
        self._best: _Waiting | None = None
        self._closing = False
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether everything that was submitted is saved."""
        with self._changed:
            return self._last is None and self._best is None

    def submit(
        self, snapshot: Snapshot, *, metrics: dict[str, Any] | None = None, is_best: bool = False, pause_s: float = 0.0
    ) -> None:
        """Have `snapshot` saved; returns at once."""
        self.check()
        waiting = _Waiting(snapshot, metrics, is_best, pause_s)
        with self._changed:
            if is_best:
                self._best, self._last = waiting, None  # newer than what else waits
            else:
                self._last = waiting
            self._changed.notify_all()

    def check(self) -> None:
        """Raise why nothing can be saved any more."""
        if self._failed is not None:
            raise self._failed

    def close(self) -> None:
        """Wait until everything that was submitted is saved; raise why it can't be."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self.check()

    def abandon(self) -> None:
        """Save nothing more; wait for what is being written."""
        with self._changed:
            self._last = self._best = None
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        failing_since: float | None = None
        while (waiting := self._next()) is not None:
            try:
                kept = self._store.save(
                    waiting.snapshot, metrics=waiting.metrics, is_best=waiting.is_best, pause_s=waiting.pause_s
                )
            except Exception as error:  # noqa: BLE001  # a thread's top: whatever comes is raised by the next call
                if not self._is_worth_another_try(error):
                    self._failed = error
                    return
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since >= self._give_up_s:
                    spent_s = time.monotonic() - failing_since
                    self._failed = _no_checkpoint(spent_s, error)
                    return
                _logger.warning(
                    "checkpoint %s is not saved: %s; training goes on, again in %.0f s",
                    waiting.snapshot.name,
                    first_line(error),
                    self._retry_s,
                )
                with self._changed:
                    self._changed.wait(self._retry_s)
                continue
            failing_since = None
            with self._changed:
                self._last = None if self._last is waiting else self._last
                self._best = None if self._best is waiting else self._best
            with contextlib.suppress(Exception):  # news; they are not worth a run
                self._on_saved(kept)

    def _next(self) -> _Waiting | None:
        """Return what is to be saved next, the best first: it is the older one; None when all is done."""
        with self._changed:
            while self._best is None and self._last is None and not self._closing:
                self._changed.wait()
            return self._best or self._last

    @staticmethod
    def _is_worth_another_try(error: Exception) -> bool:
        """Tell whether a disk or a store failed in a way that may pass; not so the right to write."""
        passes = isinstance(error, StoreOutOfReach) or storage.is_passing(error)
        return passes or (isinstance(error, OSError) and error.errno in _PASSING)


def _no_checkpoint(spent_s: float, error: Exception) -> StoreOutOfReach:
    return StoreOutOfReach(f"no checkpoint could be saved for {spent_s:.0f} s, the last time: {first_line(error)}")
