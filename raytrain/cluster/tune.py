"""The search for a member's settings on Ray Tune: trials side by side as the cluster has room, finalists, a verdict.

What is tried, stopped and won is decided by `raytrain.search` from its record in the store; Tune runs it. Tune's own
state is pickled: it goes to a folder of this process and is never read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, get_args

import ray
import ray.exceptions
import ray.tune
from ray.tune import FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from raytrain import storage
from raytrain.cluster import growth, metrics, session
from raytrain.cluster.board import (
    Begun,
    Ended,
    Failed,
    News,
    Placed,
    Post,
    Stepped,
    Tried,
    Unplaced,
    follow,
    start_board,
)
from raytrain.cluster.deaths import Kind
from raytrain.cluster.desk import SearchBoard, TrialWork
from raytrain.cluster.history import Journal, Restart
from raytrain.cluster.judge import AtEachStep, Judge, StopAll, Trials
from raytrain.cluster.places import HeldPlaces
from raytrain.cluster.runs import RUN_FILE, RankWork, run_tags
from raytrain.cluster.search_plan import SearchPlan, TuneJob, plan_search
from raytrain.cluster.trials import RANKS_FOLDER, Places, run_trial
from raytrain.errors import RaytrainError, WorkNotFinished, first_line
from raytrain.search.outcome import Results
from raytrain.search.records import SEARCH_FOLDER, TRIALS_FOLDER, Record, State
from raytrain.search.results import write_best, write_results
from raytrain.search.search import Search
from raytrain.search.watchdog import Watchdog
from raytrain.training.checkpoint_files import CHECKPOINTS_FOLDER, remove_checkpoints

LOSSES = 5
"""How often a trial may lose its actor, or its ranks for good to what is no fault of its setting, in one command."""
LOOK_S = 15.0
"""How often it is looked whether another command leads the search, and for places that nobody holds."""
WRITE_S = 300.0
"""How often what was found so far is written."""
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
# Tune gives trials the keys of this process in their runtime environment, which Ray keeps in the GCS, writes into logs
# and shows to whoever asks its state API. Nodes have keys of their own. The set is private to Ray, of a bound version.
for _name_of_variable in list(class_cache.ENV_VARS_TO_PROPAGATE):
    if _name_of_variable.startswith("AWS_"):
        class_cache.ENV_VARS_TO_PROPAGATE.discard(_name_of_variable)


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
                _Session(job, plan, record, search, on_news).run()
        search.leave()
        is_over, results = search.is_over, write_results(plan.folder, search, job.changes)
    except _Superseded:
        raise  # the record is another command's
    except BaseException:
        # The error is what matters; the record says what was found, whether or not this can be written now.
        with contextlib.suppress(Exception):
            search.leave()
            on_results(write_results(plan.folder, search, job.changes), False)
        raise
    on_results(results, is_over)
    if results.best is None:
        causes = [trial.cause for trial in search.trials if trial.cause]
        first = f"; the first says: {causes[0]}" if causes else ""
        raise WorkNotFinished(f"no trial has a score{first}; name another --experiment for another space or settings")
    return results


class _Superseded(WorkNotFinished):
    """Another command leads the search."""


class _Session:
    """One command's part of a search."""

    def __init__(
        self,
        job: TuneJob,
        plan: SearchPlan,
        record: Record,
        search: Search,
        on_news: Callable[[News], None],
    ) -> None:
        self._job = job
        self._plan = plan
        self._record = record
        self._owner = uuid.uuid4().hex
        self._search = search
        self._on_news = on_news
        self._use_gpu = session.uses_gpus(job.workers)
        self._watchdog: Watchdog
        self._asked: growth.Growth
        self._places = HeldPlaces(job.workers, self._use_gpu)
        self._tune_trials: dict[str, Any] = {}
        self._losses: Counter[str] = Counter()
        self._tags: dict[str, dict[str, str]] = {}
        self._looked_at = self._written_at = time.monotonic()
        self._board = start_board(SearchBoard)
        self._journal = Journal(
            storage.join(plan.folder, TRIALS_FOLDER),
            self._take_in,
            session.alive_nodes,
            self._restarted,
            keeps_epochs=False,  # the search's record has them
        )
        self._ranks_folder = storage.join(plan.folder, SEARCH_FOLDER, f"{RANKS_FOLDER}-{self._owner[:12]}")
        self._room = (0.0, 0)
        self._stop = threading.Event()
        self._failed: BaseException | None = None

    def run(self) -> None:
        """Run trials until the search is over; raise what ends it before."""
        workers = self._job.workers
        with growth.asked_for(workers, use_gpu=self._use_gpu, at_least=workers) as self._asked:
            self._watchdog = Watchdog()  # it counts from here on
            self._search_on_ray()

    def _search_on_ray(self) -> None:
        self._record.lead(self._owner)
        self._remove_checkpoints()
        with follow(self._board, self._journal.on_news):
            thread = threading.Thread(target=self._tune, name="tune", daemon=True)
            thread.start()
            try:
                while thread.is_alive():
                    thread.join(timeout=1)
                    self._watch()
            except _Superseded:
                raise
            except BaseException:
                self._stop.set()
                with contextlib.suppress(Exception):  # before all have ended: who interrupts may not wait long
                    write_results(self._plan.folder, self._search, self._job.changes)
                raise
            finally:
                self._stop.set()
                self._board.stop.remote()
                thread.join(timeout=END_S)
                self._hear_of_places()
                self._places.free_all()
                with contextlib.suppress(OSError, RaytrainError):  # what Ray Train has left there says nothing
                    storage.remove_below(self._ranks_folder)
        if self._failed is not None:
            raise self._failed
        self._remove_checkpoints()

    def _remove_checkpoints(self) -> None:
        """Remove the checkpoints of ended trials that their ranks had no time to remove: nothing goes on from them."""
        folder = storage.join(self._plan.folder, TRIALS_FOLDER)
        left = {name.split("/")[0] for name in storage.find(folder) if f"/{CHECKPOINTS_FOLDER}/" in name}
        for trial in self._search.trials:
            run = self._plan.run_name(trial.name)
            if trial.state != "running" and run in left:
                remove_checkpoints(storage.join(folder, run))

    def fail(self, error: BaseException) -> None:
        """End the search with `error`."""
        self._failed = self._failed or error
        self._stop.set()

    def _tune(self) -> None:
        folder = tempfile.mkdtemp(prefix="raytrain-tune-")
        try:
            self._tuner(folder).fit()
        except BaseException as error:  # noqa: BLE001  # a thread's top: the main one raises it
            self.fail(error)
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

        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what it has to say, the search tells
        return Tuner(
            ray.tune.with_resources(trial, PlacementGroupFactory([{"CPU": 0, "memory": _SMALL}])),
            tune_config=TuneConfig(
                search_alg=Trials(self._next, self.fail),
                scheduler=Judge(self._search, self._end, self._lose, self._take, self.fail),
                num_samples=-1,
                reuse_actors=REUSE_ACTORS,
            ),
            run_config=RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                stop=StopAll(self._stop),
                failure_config=FailureConfig(max_failures=0),  # a lost trial is handed out again, by the search
                callbacks=[AtEachStep(self._look_after_trials)],
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
        self._tags[run.name] = run_tags(self._job.experiment, run)
        self._journal.on_news(Tried(run.name, trial))
        return TrialWork(
            name=trial.name,
            known_epochs=len(trial.epochs),
            judge=trial.kind == "final",
            work=RankWork(
                experiment=self._job.experiment,
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
            self._ask_for_more()
        return room

    def _ask_for_more(self) -> None:
        """Ask for as many ranks again as trials have now, and a trial's more; those that they have, they ask for.

        Not for all at once: how many trials a budget of hours is for shows as they end.
        """
        if self._asked.is_possible:
            more = len(self._search.running) + 1 if self._search.has_next else 0
            self._asked.ask(more * self._job.workers)

    def _end(
        self, name: str, state: str, cause: str | None = None, judged: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Record the end of a trial, and the best settings if they are others now."""
        trial = self._search.end(name, state, cause, judged)
        run = self._plan.run_name(name)
        self._board.end.remote(name)
        self._journal.end(run, trial.seconds, cause if state == "failed" else None)
        write_best(self._plan.folder, self._search, self._job.changes)
        self._board.post.remote(Ended(run, trial))  # behind the news of its last epoch

    def _take(self, name: str, trial: Any) -> None:
        """Hear which trial of Tune's stands for one of ours now."""
        self._tune_trials[name] = trial

    def _lose(self, name: str, cause: str) -> None:
        """Put back a trial that ended through no fault of its setting; after too many times it is a failed one."""
        self._losses[name] += 1
        run = self._plan.run_name(name)
        if self._losses[name] > LOSSES:
            self._end(name, "failed", f"lost {self._losses[name]} times: {cause}")
            return
        self._board.post.remote(Failed(run, Kind.ACTOR_LOST, cause, True))
        self._search.put_back(name)

    def _look_after_trials(self) -> None:
        """Lose trials that Tune has ended by itself, as where their actor or its node is gone."""
        if self._stop.is_set():
            return
        for name in self._search.running:
            trial = self._tune_trials.get(name)
            if trial is not None and trial.status in ("ERROR", "TERMINATED"):
                del self._tune_trials[name]
                error = trial.get_pickled_error() if trial.has_reported_at_least_once else None
                self._lose(name, f"its actor is gone{f' ({first_line(error)})' if error else ''}")

    def _take_in(self, news: News) -> None:
        if isinstance(news, (Failed, Unplaced, Ended)):
            self._watchdog.lose(news.run)
        elif isinstance(news, (Placed, Begun, Stepped, Post)):
            self._watchdog.place(news.run)
        self._on_news(news)

    def _restarted(self, run: str, restart: Restart) -> None:
        metrics.count("raytrain_restarts", 1, **self._tags[run], cause=str(restart.kind))
        self._search.add_restart(self._plan.trial_name(run), f"{restart.kind}: {restart.cause}")

    def _tell_states(self) -> None:
        """Set the gauges of the search."""
        states = Counter(str(trial.state) for trial in self._search.trials)
        for state in get_args(State):
            metrics.set_gauge("raytrain_trials", states[state], experiment=self._job.experiment, state=state)
        scores = [trial.score for trial in self._search.trials if trial.is_usable and trial.score is not None]
        metrics.set_gauge("raytrain_search_best_score", max(scores, default=None), experiment=self._job.experiment)

    def _hear_of_places(self) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the board has gone with the cluster: Tune learns of it
            for desk, places, controller in ray.get(self._board.take_held.remote(), timeout=ROOM_S):
                self._places.add(desk, places, controller)

    def _watch(self) -> None:
        """Give back the places of lost actors; raise `WorkNotFinished` where no trial has had any for long."""
        self._hear_of_places()
        self._places.free_lost()
        if time.monotonic() - self._looked_at >= LOOK_S:
            self._looked_at = time.monotonic()
            self._places.free_unknown()
            owner = self._record.owner()
            if owner != self._owner:
                raise _Superseded(f"{self._plan.folder}: another command leads this search now, this one ends")
        if time.monotonic() - self._written_at >= WRITE_S:
            self._written_at = time.monotonic()
            write_results(self._plan.folder, self._search, self._job.changes)
        self._tell_states()
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
