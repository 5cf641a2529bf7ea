"""The search for a member's settings on Ray Tune: trials side by side as the cluster has room, finalists, a verdict.

What is tried, stopped and won is decided by `raytrain.search` from its record in the store; Tune runs it. Tune's own
state is pickled: it goes to a folder of this process and is never read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import ray
import ray.exceptions
import ray.tune
from ray.tune import FailureConfig, PlacementGroupFactory, RunConfig, Stopper, TuneConfig, Tuner
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher

from raytrain import storage
from raytrain.cluster import session
from raytrain.cluster.board import Begun, Ended, Failed, News, Placed, Post, Stepped, Tried, follow, start_board
from raytrain.cluster.desk import SearchBoard, TrialWork
from raytrain.cluster.history import Journal, Restart
from raytrain.cluster.places import HeldPlaces
from raytrain.cluster.runs import RUN_FILE, SCORE, RankWork
from raytrain.cluster.search_plan import SearchPlan, TuneJob, plan_search
from raytrain.cluster.trials import RANKS_FOLDER, Places, run_trial
from raytrain.errors import RaytrainError, WorkNotFinished, first_line
from raytrain.search.outcome import Results
from raytrain.search.records import ORIGINAL, SEARCH_FOLDER, TRIALS_FOLDER, Record, Trial
from raytrain.search.results import write_best, write_results
from raytrain.search.search import Search
from raytrain.search.watchdog import Watchdog

LOST_ACTORS = 5
"""How often a trial may lose its actor, with the node that it is on."""
ROOM_S = 5.0
"""How often it is looked how many trials the cluster has room for."""
END_S = 60.0
"""How long an interrupted search waits for Tune to end its trials."""
REUSE_ACTORS = True
"""Whether a trial takes over the actor of one that has ended, and with it ranks that are up."""
_SMALL = 2**20
"""Bytes that Tune reserves for a trial's actor: it must not take a CPU that a rank could have, and Tune wants some
resource."""
_logger = logging.getLogger(__name__)
# Tune reads these in this process: no event files of its own, results without a score, actors that end soon, as many
# trials waiting for their actors as there is room for, its state written rarely, since it is never read, and nothing
# printed.
for _name_of_variable, _value in {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",
    "TUNE_WARN_THRESHOLD_S": "10",
    "RAY_AIR_NEW_OUTPUT": "0",
}.items():
    os.environ.setdefault(_name_of_variable, _value)


def tune(
    job: TuneJob,
    cluster: session.Cluster,
    on_news: Callable[[News], None],
    on_results: Callable[[Results, bool], None],
) -> Results:
    """Search settings for the member of `job`, from where its record stands, and write what was found.

    `on_results` hears of the results and whether the search is over, also where it ends with an error or an interrupt:
    then they are what was found until then. Raises `ConfigError` before anything starts, and `WorkNotFinished` where
    the cluster holds no trial or none has a score.
    """
    plan = plan_search(job)
    record = Record(plan.folder)
    record.claim(plan.settings)
    search = Search(record, plan.settings, job.budget, job.finals)
    try:
        if not search.is_over:
            with session.joined(cluster, plan.uris):
                _Session(job, plan, search, on_news).run()
    finally:
        search.leave()
        results = write_results(plan.folder, search, job.changes)
        on_results(results, search.is_over)
    if results.best is None:
        causes = [trial.cause for trial in search.trials if trial.cause]
        raise WorkNotFinished(f"no trial has a score{f'; the first says: {causes[0]}' if causes else ''}")
    return results


class _Session:
    """One command's part of a search."""

    def __init__(self, job: TuneJob, plan: SearchPlan, search: Search, on_news: Callable[[News], None]) -> None:
        self._job = job
        self._plan = plan
        self._search = search
        self._on_news = on_news
        self._use_gpu = session.uses_gpus(job.workers)
        self._watchdog = Watchdog()
        self._places = HeldPlaces()
        self._board = start_board(SearchBoard)
        self._journal = Journal(
            storage.join(plan.folder, TRIALS_FOLDER), self._take_in, session.alive_nodes, self._restarted
        )
        self._ranks_folder = storage.join(plan.folder, SEARCH_FOLDER, RANKS_FOLDER)
        self._room = (0.0, 0)
        self._stop = threading.Event()
        self._failed: BaseException | None = None

    def run(self) -> None:
        """Run trials until the search is over; raise what ends it before."""
        with follow(self._board, self._journal.on_news):
            thread = threading.Thread(target=self._tune, name="tune", daemon=True)
            thread.start()
            try:
                while thread.is_alive():
                    thread.join(timeout=1)
                    self._watch()
            finally:
                self._stop.set()
                self._board.stop.remote()
                thread.join(timeout=END_S)
                with contextlib.suppress(OSError, RaytrainError):  # what Ray Train has left there says nothing
                    storage.remove_below(self._ranks_folder)
        if self._failed is not None:
            raise self._failed

    def _tune(self) -> None:
        folder = tempfile.mkdtemp(prefix="raytrain-tune-")
        try:
            self._tuner(folder).fit()
        except BaseException as error:  # noqa: BLE001  # a thread's top: the main one raises it
            self._failed = error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _tuner(self, folder: str) -> Tuner:
        places = Places(
            folder=self._ranks_folder,
            workers=self._job.workers,
            use_gpu=self._use_gpu,
            board=self._board,
        )

        def trial(config: dict[str, Any]) -> None:
            run_trial(places, TrialWork.model_validate(config["work"]))

        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        return Tuner(
            ray.tune.with_resources(trial, PlacementGroupFactory([{"CPU": 0, "memory": _SMALL}])),
            tune_config=TuneConfig(
                search_alg=_Trials(self._next),
                scheduler=_Judge(self._search, self._end),
                num_samples=-1,
                reuse_actors=REUSE_ACTORS,
            ),
            run_config=RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                stop=_StopAll(self._stop),
                failure_config=FailureConfig(max_failures=LOST_ACTORS),
            ),
        )

    def _next(self) -> TrialWork | str | None:
        """Return the work of the next trial; None while there is no room for it, `FINISHED` when none will follow."""
        if self._stop.is_set():
            return str(Searcher.FINISHED)
        if len(self._search.running) >= self._rooms():
            return None
        trial = self._search.next(self._job.workers)
        if trial is None:
            return str(Searcher.FINISHED) if self._search.is_over else None
        try:
            run, encoder_file = self._plan.run_of(self._search.settings_of(trial), is_final=trial.kind == "final")
        except RaytrainError as error:
            self._end(trial.name, "failed", str(error))
            return None
        folder = storage.join(self._plan.folder, TRIALS_FOLDER, run.name)
        storage.write_bytes(storage.join(folder, RUN_FILE), run.model_dump_json(indent=1).encode())
        self._journal.on_news(Tried(run.name, trial))
        return TrialWork(
            name=trial.name,
            known_epochs=len(trial.epochs),
            judge=trial.kind == "final",
            work=RankWork(
                run=run,
                folder=folder,
                checkpointing=self._job.checkpointing,
                loader=self._job.loader,
                encoder_file=encoder_file,
            ),
        )

    def _rooms(self) -> int:
        """Return how many trials the cluster has room for now."""
        at, room = self._room
        if time.monotonic() - at >= ROOM_S:
            room = session.room(self._job.workers, self._use_gpu)
            self._room = (time.monotonic(), room)
        return room

    def _end(
        self, name: str, state: str, cause: str | None = None, judged: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Record the end of a trial, and the best settings if they are others now."""
        trial = self._search.end(name, state, cause, judged)
        run = self._plan.run_name(name)
        self._board.end.remote(name)
        self._watchdog.lose(run)
        self._journal.end(run, trial.seconds, cause if state == "failed" else None)
        write_best(self._plan.folder, self._search, self._job.changes)
        self._board.post.remote(Ended(run, trial))  # behind the news of its last epoch

    def _take_in(self, news: News) -> None:
        if isinstance(news, Failed):
            self._watchdog.lose(news.run)
        elif isinstance(news, (Placed, Begun, Stepped, Post)):
            self._watchdog.place(news.run)
        self._on_news(news)

    def _restarted(self, run: str, restart: Restart) -> None:
        self._search.add_restart(self._plan.trial_name(run), f"{restart.kind}: {restart.cause}")

    def _watch(self) -> None:
        """Give back the places of lost actors; raise `WorkNotFinished` where no trial has had any for long."""
        with contextlib.suppress(ray.exceptions.RayError):  # the board has gone with the cluster: Tune learns of it
            for desk, places in ray.get(self._board.take_held.remote(), timeout=ROOM_S):
                self._places.add(desk, places)
        self._places.look()
        self._watchdog.look(self._rooms())
        waited_s = self._watchdog.waited_s()
        if waited_s is None or self._search.is_over:
            return
        kind = "GPUs" if self._use_gpu else "CPUs"
        have = session.num_gpus() if self._use_gpu else session.num_cpus()
        raise WorkNotFinished(
            f"no trial has had places for {waited_s / 60:.0f} min: each needs {self._job.workers} {kind}, the cluster "
            f"has {have}, for whatever runs on it; the same command goes on"
        )


class _OfThisProcess:
    """What Tune is given to call in this process: it pickles and copies all that it is given, and needs neither."""

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class _Trials(_OfThisProcess, Searcher):
    """Hands the trials of a search to Tune."""

    def __init__(self, next_work: Callable[[], TrialWork | str | None]) -> None:
        super().__init__()
        self._next_work = next_work

    def suggest(self, trial_id: str) -> Any:
        """Return what Tune is to run next."""
        found = self._next_work()
        return {"work": found.model_dump(mode="json")} if isinstance(found, TrialWork) else found

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the search hears of results from the judge."""

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the search has its record."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""


class _StopAll(_OfThisProcess, Stopper):
    """Ends all trials once it is asked to."""

    def __init__(self, asked: threading.Event) -> None:
        self._asked = asked

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: single trials are the judge's."""
        return False

    def stop_all(self) -> bool:
        """Tell whether all trials end."""
        return self._asked.is_set()


def named(name: str) -> Any:
    """Return what a scheduler takes for a trial, by the name that it has in every command; Tune draws its ids anew."""
    return SimpleNamespace(trial_id=name)


class _Judge(_OfThisProcess, AsyncHyperBandScheduler):
    """Records what trials report, and stops those of the search that are behind (ASHA), or out of budget."""

    def __init__(self, search: Search, end: Callable[..., None]) -> None:
        stopping = search.settings.stopping
        self._asha = stopping is not None
        super().__init__(
            time_attr="epoch",
            metric=SCORE,
            mode="max",
            max_t=search.settings.trial_epochs + 1,  # the last epoch is no reason to stop
            grace_period=min(stopping.grace_epochs if stopping else 1, search.settings.trial_epochs),
            reduction_factor=stopping.reduction if stopping else 2,
        )
        self._search = search
        self._end = end
        replay(self, search.trials)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take in a trial."""
        super().on_trial_add(tune_controller, named(_name(trial)))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Record what a trial reports; return whether it goes on."""
        name = _name(trial)
        if result.get("done") or name not in self._search.running:
            return str(TrialScheduler.CONTINUE)
        if result["what"] == "end":
            judged = result.get("judged")
            self._end(name, result["state"], result.get("cause"), None if judged is None else json.loads(judged))
            return str(TrialScheduler.CONTINUE)  # its function returns
        values = {
            "score": result[SCORE],
            "loss": result["loss"],
            "learning_rate": result["learning_rate"],
            "train_s": result["epoch_s"],
            "validation_s": result["validation_s"],
        }
        recorded = self._search.add_epoch(name, result["epoch"], values)
        if recorded.epochs[-1].epoch >= recorded.num_epochs:
            return str(TrialScheduler.CONTINUE)
        cause = self._search.spent(recorded)
        if cause is None and self._asha and recorded.kind == "search":
            decision = super().on_trial_result(tune_controller, named(name), result)
            is_behind = decision == TrialScheduler.STOP and recorded.number != ORIGINAL  # what others are held against
            count = "1 epoch" if result["epoch"] == 1 else f"{result['epoch']} epochs"
            cause = f"behind after {count}" if is_behind else None
        if cause is None:
            return str(TrialScheduler.CONTINUE)
        self._end(name, "stopped", cause)
        return str(TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing: rungs know what they have to."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Do nothing, as above."""

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Record that a trial has failed for good: its actor was lost too often, or a bug of ours."""
        error = trial.get_pickled_error() or trial.get_error()
        if _name(trial) in self._search.running:
            self._end(_name(trial), "failed", f"{type(error).__name__}: {first_line(error)}" if error else "unknown")


def replay(scheduler: AsyncHyperBandScheduler, trials: list[Trial]) -> None:
    """Bring a scheduler to where the epochs of the search's trials leave it."""
    told = [(each.at_s, trial.name, each) for trial in trials if trial.kind == "search" for each in trial.epochs]
    none: Any = None  # the controller, which it does not ask
    for name in dict.fromkeys(trial.name for trial in trials):
        AsyncHyperBandScheduler.on_trial_add(scheduler, none, named(name))
    for _, name, each in sorted(told, key=lambda item: item[:2]):
        result = {"epoch": each.epoch, SCORE: each.score}
        AsyncHyperBandScheduler.on_trial_result(scheduler, none, named(name), result)


def _name(trial: Any) -> str:
    return str(trial.config["work"]["name"])
