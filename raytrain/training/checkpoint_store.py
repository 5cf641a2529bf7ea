"""Which checkpoints of a run are kept, and which one it goes on from; saved in the background of its steps.

Below the run's folder: `checkpoints/<name>/`, each whole or not at all, and `checkpoints.json`, which names those that
count. Attempts to train the run are numbered there, and only the last one may write: a process that was taken for dead,
or a second command, can't harm what another has saved. Must not know Ray.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from raytrain import storage
from raytrain.errors import DataError, RaytrainError, StoreOutOfReach, WorkNotFinished, first_line
from raytrain.training.checkpoint_files import (
    CHECKPOINTS_FILE,
    CHECKPOINTS_FOLDER,
    CheckpointIndex,
    KeptCheckpoint,
    checkpoint_uri,
    read_checkpoint,
    read_index,
)
from raytrain.training.checkpoints import Snapshot, write_checkpoint

RETRY_S = 5.0
"""How long after a failed write the next one begins; the store is asked several times in each."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where an attempt begins: its number, the checkpoint with its files (None at the start of the run), what was torn.

    `torn` has the reason for each newer checkpoint that can't be used.
    """

    attempt: int
    checkpoint: KeptCheckpoint | None
    files: dict[str, bytes] = field(repr=False)
    torn: tuple[DataError, ...] = ()


class CheckpointStore:
    """The checkpoints of one attempt to train a run, whose folder is at the URI `run_folder`. Rank 0 only."""

    def __init__(self, run_folder: str, keep_last: int) -> None:
        self._folder = run_folder
        self._keep_last = keep_last
        self._attempt = 0

    def begin(self) -> Start:
        """Begin the next attempt, and return where it starts: at the newest checkpoint that is whole.

        Torn ones count no longer. Raises `DataError` if there are checkpoints but none that is whole: beginning anew
        would throw away what the run has learnt, which is for a person to decide.
        """
        index = read_index(self._folder)
        torn: list[DataError] = []
        whole, files = list(index.kept), dict[str, bytes]()
        while whole and not files:
            try:
                files = read_checkpoint(checkpoint_uri(self._folder, whole[-1].name))
            except DataError as error:
                torn.append(error)
                whole.pop()
        if torn and not whole:
            raise DataError(self._folder, f"no checkpoint is whole ({torn[0]}); remove this folder to begin anew")
        self._attempt = index.attempt + 1
        begun = CheckpointIndex(self._attempt, tuple(whole))
        self._write_index(begun)
        self._remove_others(begun)
        return Start(self._attempt, begun.last, files, tuple(torn))

    def save(
        self, snapshot: Snapshot, *, metrics: dict[str, Any] | None = None, is_best: bool = False, pause_s: float = 0.0
    ) -> KeptCheckpoint:
        """Save `snapshot`, then remove what is kept no longer.

        Raises `WorkNotFinished` if another attempt has begun since, and has the right to write.
        """
        start = time.monotonic()
        index = self._own_index()
        name = snapshot.name
        uri = checkpoint_uri(self._folder, name)
        known = next((each for each in index.kept if each.name == name), None)
        if known is None:
            self._remove(name)  # a remain of an attempt that ended before this one counted
            write_checkpoint(uri, snapshot)
        size = sum(map(_num_bytes, (*snapshot.weights.values(), *snapshot.momentum.values())))
        kept = KeptCheckpoint(name, snapshot.position, is_best, metrics, pause_s, time.monotonic() - start, size)
        grown = self._own_index().with_checkpoint(kept, self._keep_last)
        self._write_index(grown)
        for gone in {each.name for each in index.kept} - {each.name for each in grown.kept}:
            self._remove(gone)
        return kept

    def _own_index(self) -> CheckpointIndex:
        index = read_index(self._folder)
        if index.attempt != self._attempt:
            raise WorkNotFinished(
                f"{self._folder}: attempt {index.attempt} trains this run now, this one is {self._attempt}; "
                "is the same command running twice?"
            )
        return index

    def _write_index(self, index: CheckpointIndex) -> None:
        text = json.dumps(asdict(index), indent=1)
        storage.write_bytes(storage.join(self._folder, CHECKPOINTS_FILE), text.encode(), durably=True)

    def _remove_others(self, index: CheckpointIndex) -> None:
        """Remove what ended attempts left over, and torn checkpoints."""
        found = {name.partition("/")[0] for name in storage.find(storage.join(self._folder, CHECKPOINTS_FOLDER))}
        for name in found - {each.name for each in index.kept}:
            self._remove(name)

    def _remove(self, name: str) -> None:
        """Remove the files of a checkpoint that counts no longer; what can't be removed now is left over."""
        folder = checkpoint_uri(self._folder, name)
        try:
            for file in storage.find(folder):
                storage.remove(storage.join(folder, file))
            storage.remove_empty_folder(folder)
        except (OSError, RaytrainError) as error:
            _logger.warning("%s: can't be removed: %s", folder, first_line(error))


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
        """Tell whether a disk or a store failed, which may come back; not so the right to write."""
        return storage.is_out_of_reach(error) and not isinstance(error, (PermissionError, FileNotFoundError))


def _no_checkpoint(spent_s: float, error: Exception) -> StoreOutOfReach:
    return StoreOutOfReach(f"no checkpoint could be saved for {spent_s:.0f} s, the last time: {first_line(error)}")
