"""What became of each run, as the driver hears it: its attempts, why they ended, what was done again. Kept on disk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import ray.exceptions

from raytrain import logs, storage
from raytrain.cluster import code
from raytrain.cluster.board import Begun, Failed, News, Placed, Post, Stepped
from raytrain.cluster.deaths import Kind
from raytrain.cluster.runs import HISTORY_FILE
from raytrain.config import Settings, parse
from raytrain.errors import RaytrainError, first_line
from raytrain.tiles.order import Position
from raytrain.training.metrics import LocationScore, TileScore

DOUBT_S = 60.0
"""How long after an attempt has begun a node may turn out to be what the one before has lost: heads notice in 15 s."""
EARLIER_BESTS = 8
"""So many are kept: attempts rarely go back by more than an epoch or two, and the locations of each take kilobytes."""
_logger = logging.getLogger(__name__)
_Places = tuple[tuple[str, str], ...]


class Restart(Settings):
    """One attempt that ended before its run did, and where the next one went on.

    `reached` is where it stood by its last news, at most a second old; `lost_images` were trained on again. Both are
    None where the command ended with it. `seconds` of the run had gone when the next attempt began, None where nobody
    keeps its time.
    """

    attempt: int
    kind: Kind
    cause: str
    reached: Position | None
    resumed: Position
    lost_images: int | None
    seconds: float | None = None


class Epoch(Settings):
    """One epoch, by its number from 1: its metrics, when the driver heard of its end, how long the run had gone."""

    number: int
    metrics: dict[str, int | float | str]
    ended: datetime
    seconds: float


class BestEpoch(Settings):
    """What the validation of the best epoch so far found: the locations by name, and tiles worth a look."""

    number: int
    locations: dict[str, LocationScore]
    tiles: tuple[TileScore, ...]


class RunHistory(Settings):
    """What became of a run over all commands: restarts and epochs, the time, why the last command failed for good.

    An epoch that was done again is there once, as it was done last. A killed command's time counts as far as its last
    epoch. `earlier_bests` are the last ones before `best`, to go back to where its epoch is thrown away. `programs` are
    those that trained it, each once: raytrain by version and digest, and libraries.
    """

    seconds: float = 0.0
    restarts: tuple[Restart, ...] = ()
    failed: str | None = None
    epochs: tuple[Epoch, ...] = ()
    best: BestEpoch | None = None
    earlier_bests: tuple[BestEpoch, ...] = ()
    programs: tuple[str, ...] = ()


def read_history(run_folder: str) -> RunHistory:
    """Return the history of the run in `run_folder`, an empty one where there is none."""
    path = storage.join(run_folder, HISTORY_FILE)
    try:
        return parse(RunHistory, storage.read_json(path), path)
    except FileNotFoundError:
        return RunHistory()


def history_if_readable(run_folder: str) -> RunHistory:
    """Return what `read_history` does; where a history can't be read that is a warning, and it is empty."""
    try:
        return read_history(run_folder)
    except (OSError, RaytrainError) as error:
        _logger.warning("run %s: its history can't be read: %s", storage.name_of(run_folder), first_line(error))
        return RunHistory()


@dataclass(frozen=True)
class _Doubt:
    """A killed worker's attempt may have lost a node, which the cluster has yet to notice: where it ran; until when."""

    places: _Places
    until: float


class Journal:
    """Keeps the histories of the runs below `folder` while one command trains them; for any thread.

    `alive_nodes` returns the ids of the nodes that there are. The news go on to `on_news`, each restart to `on_restart`
    with the name of its run, the end of a run with what it failed of (None for a run that is done) to `on_end`.
    A lost node that the cluster notices when the next attempt has begun is named in the history, not to `on_restart`.
    Without `keeps_epochs` they are left to somebody else to keep.
    """

    def __init__(
        self,
        folder: str,
        on_news: Callable[[News], None],
        alive_nodes: Callable[[], set[str]],
        on_restart: Callable[[str, Restart], None] = lambda run, restart: None,
        on_end: Callable[[str, str | None], None] = lambda run, failed: None,
        *,
        keeps_epochs: bool = True,
    ) -> None:
        self._folder = folder
        self._keeps_epochs = keeps_epochs
        self._begun_at: dict[str, float] = {}
        self._on_news = on_news
        self._alive_nodes = alive_nodes
        self._on_restart = on_restart
        self._on_end = on_end
        self._histories: dict[str, RunHistory] = {}
        self._ended: dict[str, Failed] = {}
        self._last_step: dict[str, Stepped] = {}
        self._num_ranks: dict[str, int] = {}
        self._placed: dict[str, _Places] = {}
        self._places: dict[str, _Places] = {}
        self._doubts: dict[str, _Doubt] = {}
        self._unwritten: set[str] = set()
        self._lock = threading.RLock()
        self._writing = threading.Lock()

    def history(self, run: str) -> RunHistory:
        """Return the history of a run so far."""
        if run not in self._histories:
            self._histories[run] = history_if_readable(storage.join(self._folder, run))
        return self._histories[run]

    def begin(self, run: str) -> None:
        """Say that the command has begun with a run: its clock goes on from where it stood."""
        with self._lock:
            history = self.history(run)
            known = [*(each.seconds for each in history.epochs), *(each.seconds or 0.0 for each in history.restarts)]
            # A command that was killed could not say how long it took.
            programs = tuple(dict.fromkeys([*history.programs, code.identity()]))
            update = {"seconds": max([history.seconds, *known]), "programs": programs}
            self._histories[run] = history.model_copy(update=update)
            self._begun_at[run] = time.monotonic()

    def on_news(self, news: News) -> None:
        """Take in news, in the order in which they were posted."""
        with self._lock:
            self._take_in(news)
        self._write()
        self._on_news(news)

    def end(self, run: str, seconds: float, failed: str | None) -> None:
        """Record that the command is done with a run, after so many seconds, and why it failed for good if it did."""
        with self._lock:
            self._look_again(run)
            self._begun_at.pop(run, None)
            told = None if failed is None else storage.without_queries(failed)
            history = self.history(run)
            self._keep(run, history.model_copy(update={"seconds": history.seconds + seconds, "failed": told}))
        self._write()
        self._on_end(run, failed)

    def leave(self, run: str, seconds: float) -> None:
        """Record that the command leaves a run that is not done, after so many seconds."""
        with self._lock:
            self._begun_at.pop(run, None)
            history = self.history(run)
            self._keep(run, history.model_copy(update={"seconds": history.seconds + seconds}))
        self._write()

    def _take_in(self, news: News) -> None:
        if isinstance(news, Stepped):
            self._last_step[news.run] = news
            self._look_again(news.run)
        elif isinstance(news, Failed):
            self._ended.setdefault(news.run, news)  # what follows before the next attempt comes of this one
            _logger.info("run %s: attempt ended: %s: %s", news.run, news.kind, news.cause)
        elif isinstance(news, Placed):
            self._placed[news.run] = news.nodes
            addresses = [address for _, address in news.nodes]
            places = ", ".join(f"rank {rank} on {address}" for rank, address in enumerate(addresses))
            event = logs.fields(event="ranks placed", run=news.run, ranks=len(addresses), nodes=addresses)
            _logger.info("run %s: %s", news.run, places, extra=event)
        elif isinstance(news, Begun):
            self._look_again(news.run)
            self._begun(news)
        elif isinstance(news, Post) and self._keeps_epochs:
            self._add_epoch(news)

    def _add_epoch(self, post: Post) -> None:
        history = self.history(post.run)
        number = post.metrics["epoch"] + 1
        metrics = {name: value for name, value in post.metrics.items() if name != "epoch"}
        epoch = Epoch(
            number=number, metrics=metrics, ended=datetime.now(UTC), seconds=self._seconds_gone(post.run, history)
        )
        # Those that were done from here on belong to an attempt that was thrown away.
        epochs = (*(each for each in history.epochs if each.number < number), epoch)
        known = [*history.earlier_bests, *([] if history.best is None else [history.best])]
        bests = [each for each in known if each.number < number]
        if post.best is not None:
            bests.append(BestEpoch(number=number, locations=post.best.locations, tiles=post.best.tiles))
        update = {
            "epochs": epochs,
            "best": bests[-1] if bests else None,
            "earlier_bests": tuple(bests[:-1][-EARLIER_BESTS:]),
        }
        self._keep(post.run, history.model_copy(update=update))

    def _seconds_gone(self, run: str, history: RunHistory) -> float:
        begun_at = self._begun_at.get(run)
        return history.seconds + (0.0 if begun_at is None else time.monotonic() - begun_at)

    def _begun(self, begun: Begun) -> None:
        places = self._places.get(begun.run, ())
        self._places[begun.run] = self._placed.get(begun.run, ())
        self._doubts.pop(begun.run, None)
        restart = self._restart(begun, places)
        self._num_ranks[begun.run] = begun.num_ranks
        if restart is None:
            return
        history = self.history(begun.run)
        self._keep(begun.run, history.model_copy(update={"restarts": (*history.restarts, restart)}))
        self._on_restart(begun.run, restart)
        lost = "an unknown number of" if restart.lost_images is None else f"about {restart.lost_images}"
        _logger.info(
            "run %s: attempt %d goes on in epoch %d behind image %d, on %d ranks; %s images are trained on again",
            begun.run,
            begun.attempt,
            begun.position.epoch + 1,
            begun.position.samples_done,
            begun.num_ranks,
            lost,
            extra=logs.fields(
                event="restart",
                run=begun.run,
                attempt=begun.attempt,
                kind=str(restart.kind),
                cause=restart.cause,
                lost_images=restart.lost_images,
                ranks=begun.num_ranks,
            ),
        )

    def _restart(self, begun: Begun, places: _Places) -> Restart | None:
        """Return what ended the attempt before this one, which ran at `places`; None for the first of a run."""
        if begun.attempt == 1:
            return None
        failed, step = self._ended.pop(begun.run, None), self._last_step.pop(begun.run, None)
        if failed is not None:
            kind, cause = Kind(failed.kind), failed.cause
            if kind is Kind.WORKER_KILLED and places:
                if gone := self._lost_nodes(begun.run, places):  # which was not noticed yet when that was said
                    kind, cause = Kind.NODE_LOST, gone
                else:
                    self._doubts[begun.run] = _Doubt(places, time.monotonic() + DOUBT_S)
        elif begun.run in self._num_ranks:
            kind, cause = Kind.RESIZED, f"{self._num_ranks[begun.run]} to {begun.num_ranks} ranks"
        else:
            before = self.history(begun.run).failed
            kind, cause = Kind.JOB_ENDED, before or "the command before this one ended before the run did"
        reached = None if step is None else max(step.position, begun.position)
        lost = None
        if step is not None and reached is not None:
            epochs = reached.epoch - begun.position.epoch
            lost = epochs * step.progress.num_samples + reached.samples_done - begun.position.samples_done
        elif begun.run in self._num_ranks:
            reached, lost = begun.position, 0  # no step since the attempt before began
        return Restart(
            attempt=begun.attempt - 1,
            kind=kind,
            cause=storage.without_queries(cause),
            reached=reached,
            resumed=begun.position,
            lost_images=lost,
            seconds=self._seconds_gone(begun.run, self.history(begun.run)) if begun.run in self._begun_at else None,
        )

    def _lost_nodes(self, run: str, places: _Places) -> str | None:
        """Return which of the nodes in `places` are gone, and have no rank of the attempt that runs now."""
        now = {node for node, _ in self._places.get(run, ())}
        try:
            alive = self._alive_nodes()
        except ray.exceptions.RayError as error:  # the cause stays as it was told
            _logger.warning("run %s: the nodes are not known: %s", run, first_line(error))
            return None
        gone = sorted({address for node, address in places if node not in now and node not in alive})
        return f"gone: {', '.join(gone)}" if gone else None

    def _look_again(self, run: str) -> None:
        """Name the node whose loss ended the attempt before, once the cluster has noticed it."""
        doubt = self._doubts.get(run)
        if doubt is None:
            return
        if time.monotonic() > doubt.until:
            del self._doubts[run]
        elif gone := self._lost_nodes(run, doubt.places):
            del self._doubts[run]
            history = self.history(run)
            restart = history.restarts[-1]
            _logger.info("run %s: attempt %d was ended by a lost node: %s", run, restart.attempt, gone)
            known = restart.model_copy(update={"kind": Kind.NODE_LOST, "cause": gone})
            self._keep(run, history.model_copy(update={"restarts": (*history.restarts[:-1], known)}))

    def _keep(self, run: str, history: RunHistory) -> None:
        self._histories[run] = history
        self._unwritten.add(run)

    def _write(self) -> None:
        """Write the histories that have changed, as they are now; no news wait for a store that is slow.

        One that is out of reach costs a line of a history, not the run.
        """
        with self._writing:  # one thread after the other, so that the last one written is the newest
            with self._lock:
                due = {run: self._histories[run] for run in self._unwritten}
                self._unwritten.clear()
            for run, history in due.items():
                path = storage.join(self._folder, run, HISTORY_FILE)
                try:
                    storage.write_bytes(path, history.model_dump_json(indent=1).encode())
                except (OSError, RaytrainError) as error:
                    _logger.warning("run %s: its history can't be written: %s", run, first_line(error))
