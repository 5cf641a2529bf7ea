"""What became of each run, as the driver hears it: its attempts, why they ended, what was done again. Kept on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable

from raytrain import storage
from raytrain.cluster.board import Begun, Failed, News, Placed, Post, Stepped
from raytrain.cluster.failures import Kind
from raytrain.cluster.runs import HISTORY_FILE
from raytrain.config import Settings, parse
from raytrain.errors import RaytrainError, first_line
from raytrain.tiles.order import Position

_logger = logging.getLogger(__name__)


class Restart(Settings):
    """One attempt that ended before its run did, and where the next one went on.

    `reached` is where it stood by its last news, at most a second old; `lost_images` were trained on again. Both are
    None where the command ended with it.
    """

    attempt: int
    kind: Kind
    cause: str
    reached: Position | None
    resumed: Position
    lost_images: int | None


class RunHistory(Settings):
    """The restarts of a run over all commands, the time that they took, and why the last one failed for good."""

    seconds: float = 0.0
    restarts: tuple[Restart, ...] = ()
    failed: str | None = None


def read_history(run_folder: str) -> RunHistory:
    """Return the history of the run in `run_folder`, an empty one where there is none."""
    path = storage.join(run_folder, HISTORY_FILE)
    try:
        return parse(RunHistory, storage.read_json(path), path)
    except FileNotFoundError:
        return RunHistory()


class Journal:
    """Keeps the histories of the runs below `folder` while one command trains them.

    `alive_nodes` returns the ids of the nodes that there are. The news go on to `on_news`, each restart to `on_restart`
    with the name of its run, the end of a run with what it failed of (None for a run that is done) to `on_end`.
    """

    def __init__(
        self,
        folder: str,
        on_news: Callable[[News], None],
        alive_nodes: Callable[[], set[str]],
        on_restart: Callable[[str, Restart], None] = lambda run, restart: None,
        on_end: Callable[[str, str | None], None] = lambda run, failed: None,
    ) -> None:
        self._folder = folder
        self._on_news = on_news
        self._alive_nodes = alive_nodes
        self._on_restart = on_restart
        self._on_end = on_end
        self._histories: dict[str, RunHistory] = {}
        self._ended: dict[str, Failed] = {}
        self._last_step: dict[str, Stepped] = {}
        self._num_ranks: dict[str, int] = {}
        self._nodes: dict[str, tuple[tuple[str, str], ...]] = {}
        self._nodes_before: dict[str, tuple[tuple[str, str], ...]] = {}
        self._doubtful: set[str] = set()

    def history(self, run: str) -> RunHistory:
        """Return the history of a run so far."""
        if run not in self._histories:
            try:
                self._histories[run] = read_history(storage.join(self._folder, run))
            except (OSError, RaytrainError) as error:
                _logger.warning("run %s: its history can't be read, and begins anew: %s", run, first_line(error))
                self._histories[run] = RunHistory()
        return self._histories[run]

    def on_news(self, news: News) -> None:
        """Take in news, in the order in which they were posted."""
        if isinstance(news, Stepped):
            self._last_step[news.run] = news
        elif isinstance(news, Failed):
            self._ended.setdefault(news.run, news)  # what follows before the next attempt comes of this one
            _logger.info("run %s: attempt ended: %s: %s", news.run, news.kind, news.cause)
        elif isinstance(news, Placed):
            self._look_again(news.run)
            self._nodes_before[news.run] = self._nodes.get(news.run, ())
            self._nodes[news.run] = news.nodes
        elif isinstance(news, Begun):
            self._begun(news)
        elif isinstance(news, Post):
            self._look_again(news.run)
        self._on_news(news)

    def end(self, run: str, seconds: float, failed: str | None) -> None:
        """Record that the command is done with a run, after so many seconds, and why it failed for good if it did."""
        self._look_again(run)
        history = self.history(run)
        self._write(run, history.model_copy(update={"seconds": history.seconds + seconds, "failed": failed}))
        self._on_end(run, failed)

    def leave(self, run: str, seconds: float) -> None:
        """Record that the command leaves a run that is not done, after so many seconds."""
        history = self.history(run)
        self._write(run, history.model_copy(update={"seconds": history.seconds + seconds}))

    def _begun(self, begun: Begun) -> None:
        restart = self._restart(begun)
        self._num_ranks[begun.run] = begun.num_ranks
        if restart is None:
            return
        history = self.history(begun.run)
        self._write(begun.run, history.model_copy(update={"restarts": (*history.restarts, restart)}))
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
        )

    def _restart(self, begun: Begun) -> Restart | None:
        """Return what ended the attempt before this one; None for the first of a run."""
        if begun.attempt == 1:
            return None
        failed, step = self._ended.pop(begun.run, None), self._last_step.pop(begun.run, None)
        if failed is not None:
            kind, cause = Kind(failed.kind), failed.cause
            if kind is Kind.WORKER_KILLED:
                lost_nodes = self._lost_nodes(begun.run)
                if lost_nodes:  # which the cluster had not noticed when that was said
                    kind, cause = Kind.NODE_LOST, f"gone: {lost_nodes}"
                else:  # which may mean that it has not noticed yet
                    self._doubtful.add(begun.run)
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
            cause=cause,
            reached=reached,
            resumed=begun.position,
            lost_images=lost,
        )

    def _lost_nodes(self, run: str) -> str:
        """Return the addresses of the nodes that the attempt before had, this one has not, and the cluster neither."""
        now, alive = {node for node, _ in self._nodes.get(run, ())}, self._alive_nodes()
        places = self._nodes_before.get(run, ())
        return ", ".join(sorted({address for node, address in places if node not in now and node not in alive}))

    def _look_again(self, run: str) -> None:
        """Name the node whose loss ended the last attempt, if the cluster noticed it after the next one had begun."""
        if run not in self._doubtful:
            return
        self._doubtful.discard(run)
        if lost_nodes := self._lost_nodes(run):
            history = self.history(run)
            known = {"kind": Kind.NODE_LOST, "cause": f"gone: {lost_nodes}"}
            last = history.restarts[-1].model_copy(update=known)
            self._write(run, history.model_copy(update={"restarts": (*history.restarts[:-1], last)}))

    def _write(self, run: str, history: RunHistory) -> None:
        """Keep a history; a store that is out of reach now costs a line of it, not the run."""
        self._histories[run] = history
        try:
            storage.write_bytes(
                storage.join(self._folder, run, HISTORY_FILE), history.model_dump_json(indent=1).encode()
            )
        except (OSError, RaytrainError) as error:
            _logger.warning("run %s: its history can't be written: %s", run, first_line(error))
