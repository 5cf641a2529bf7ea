"""Members trained with Ray Train: each run data-parallel over its ranks, as many side by side as the cluster has room.

A run's name and place are functions of the work, so the same command goes on where it stopped: finished runs are
skipped, a run that was cut off continues from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
import ray.exceptions

from raytrain import __version__, logs, storage
from raytrain.cluster import growth, metrics, session
from raytrain.cluster.board import News, Planned, Post, follow, start_board
from raytrain.cluster.fit import finished, fit
from raytrain.cluster.history import Journal, Restart, history_if_readable
from raytrain.cluster.mlflow_tracking import MlflowRuns
from raytrain.cluster.plan import check_claim, encoder_files, pinned, plan_runs, with_hashes
from raytrain.cluster.runs import RunSettings, TrainJob, run_tags
from raytrain.cluster.tile_pictures import draw_missing
from raytrain.cluster.train_report import Written, gather, write_report
from raytrain.errors import ConfigError, RaytrainError, StoreOutOfReach, WorkNotFinished, first_line
from raytrain.scoring.manifest import ENSEMBLE_FILE, EnsembleManifest, TrainedMember, write_manifest
from raytrain.scoring.manifest import read_manifest as read_ensemble
from raytrain.training.encoder_files import EncoderFile

ABORT_S = 30
"""How long an interrupted process waits for its runs to end on the cluster."""
CONTROLLERS = 3
"""How often a run may lose its controller, which lives on the driver's node."""
ROOM_S = 5
"""How often it is looked whether the cluster has room for one more run."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunReport:
    """What became of one run: its net, or why there is none; the time and the restarts over all commands."""

    name: str
    net: TrainedMember | None
    reason: str | None
    seconds: float
    restarts: tuple[Restart, ...] = ()


@dataclass(frozen=True)
class TrainReport:
    """The ensemble's folder if every run is done, and what became of each run of this job.

    `num_members` counts the nets of the ensemble, with those of earlier jobs in the same experiment. `report_uri` is
    the page of the experiment, `card_uri` the model card of its ensemble, of earlier jobs if not of this one.
    """

    ensemble_uri: str | None
    num_members: int
    runs: list[RunReport] = field(default_factory=list)
    report_uri: str | None = None
    card_uri: str | None = None

    @property
    def trained(self) -> list[TrainedMember]:
        """The nets of this job."""
        return [run.net for run in self.runs if run.net is not None]

    @property
    def failed(self) -> dict[str, str]:
        """Why runs have no net, by name."""
        return {run.name: run.reason for run in self.runs if run.reason is not None}


def train(job: TrainJob, cluster: session.Cluster, on_news: Callable[[News], None]) -> TrainReport:
    """Train every run of `job` that is not done, write `ensemble.json` once all are. `on_news` hears how they go on.

    However it ends, the report of the experiment is written as far as it has come. Nets that the experiment has from
    earlier jobs stay in its ensemble. A run that fails does not stop the others. Raises `ConfigError` where a run can't
    work, before anything starts as far as the driver can see it; what only a rank can see is raised when the others are
    done, if no run is.
    """
    folder = storage.join(job.out, job.experiment)
    planned = plan_runs(job)
    earlier = _earlier_nets(folder, planned[0])
    files = encoder_files(planned, job.weights)
    runs = with_hashes(folder, planned, files)
    for run in runs:
        check_claim(storage.join(folder, run.name), run)
    left = [run for run in runs if finished(folder, run) is None]
    conclude = partial(_conclude, folder, job, runs, earlier)
    with _reported_if_it_fails(folder, runs):
        done = _train_left(job, cluster, folder, runs, left, files, on_news, conclude) if left else conclude({})
        if done.wrong and len(done.wrong) == len(runs):
            raise done.wrong[0]
    written = _reported(folder, runs)
    return TrainReport(
        ensemble_uri=folder if done.num_members else None,
        num_members=done.num_members,
        runs=done.reports,
        report_uri=None if written is None else written.report_uri,
        card_uri=None if written is None else written.card_uri,
    )


def _train_left(
    job: TrainJob,
    cluster: session.Cluster,
    folder: str,
    runs: list[RunSettings],
    left: list[RunSettings],
    files: dict[str, EncoderFile | None],
    on_news: Callable[[News], None],
    conclude: Callable[[dict[str, _Ended]], _Concluded],
) -> _Concluded:
    """Train the runs that are `left` of all `runs`, `conclude` with how each ended, then draw what their nets see."""
    weights = [file.uri for file in files.values() if file is not None and file.uri is not None]
    uris = [job.shards, job.out, *weights]
    with _told_to_mlflow(job, folder, left, on_news) as journal, session.joined(cluster, uris):
        use_gpu = session.uses_gpus(job.fewest_workers)
        board = start_board()
        journal.on_news(Planned(tuple(run.name for run in left)))
        for_all = len(left) * job.most_workers
        with (
            growth.asked_for(for_all, use_gpu=use_gpu, at_least=job.fewest_workers) as asked,
            follow(board, journal.on_news),
        ):
            fits = {run.name: partial(fit, folder, run, pinned(files, run), job, use_gpu, board) for run in left}
            # Runs that are under way ask for their own ranks, through Ray Train.
            ended = _side_by_side(
                fits,
                partial(_room, job, use_gpu),
                board,
                journal,
                lambda num_waiting: asked.ask(num_waiting * job.most_workers),
                job.experiment,
            )
        done = conclude(ended)
        _draw(folder, runs, use_gpu=use_gpu)
        return done


@contextlib.contextmanager
def _reported_if_it_fails(folder: str, runs: list[RunSettings]) -> Iterator[None]:
    """Write the report where the body ends early, an interrupt included; its error counts, not one of the report."""
    try:
        yield
    except StoreOutOfReach:  # likely that of the report, which would ask it for as long again
        raise
    except BaseException:
        _reported(folder, runs)
        raise


def _reported(folder: str, runs: list[RunSettings]) -> Written | None:
    """Write the report; what keeps it from being made is logged: the nets are trained by now."""
    try:
        return write_report(folder, runs)
    except Exception as error:  # noqa: BLE001  # a boundary: no report is worth a training
        _tell_undone("no report of the training", folder, error)
        return None


def _draw(folder: str, runs: list[RunSettings], *, use_gpu: bool) -> None:
    """Draw the pictures that are missing; what keeps all of them from being made is logged."""
    try:
        draw_missing(folder, gather(folder, runs), use_gpu=use_gpu)
    except Exception as error:  # noqa: BLE001  # a boundary, as above
        _tell_undone("no pictures of validation tiles", folder, error)


def _tell_undone(what: str, folder: str, error: Exception) -> None:
    is_ours = isinstance(error, RaytrainError) or storage.is_out_of_reach(error)
    _logger.warning("%s: %s: %s", folder, what, first_line(error), exc_info=None if is_ours else error)


def _conclude(
    folder: str,
    job: TrainJob,
    runs: list[RunSettings],
    earlier: tuple[TrainedMember, ...],
    ended: Mapping[str, _Ended],
) -> _Concluded:
    """Write the ensemble if every run is done; return what became of each."""
    reports = [_report(folder, run, ended.get(run.name)) for run in runs]
    is_whole = all(report.net is not None for report in reports)
    num_members = _write_ensemble(folder, job, runs, earlier, reports) if is_whole else 0
    wrong = [each.error for each in ended.values() if isinstance(each.error, ConfigError)]
    return _Concluded(reports, num_members, wrong)


def _write_ensemble(
    folder: str, job: TrainJob, runs: list[RunSettings], earlier: tuple[TrainedMember, ...], reports: list[RunReport]
) -> int:
    """Write the ensemble of all nets and return how many they are."""
    # An earlier net keeps its place, so that the same nets are the same ensemble.
    nets = {(net.name, net.fold): net for net in [*earlier, *(report.net for report in reports if report.net)]}
    manifest = EnsembleManifest(
        raytrain_version=__version__,
        shards=job.shards,
        shards_digest=runs[0].shards_digest,
        members=tuple(nets.values()),
    )
    write_manifest(folder, manifest)
    return len(nets)


@contextlib.contextmanager
def _told_to_mlflow(
    job: TrainJob, folder: str, runs: list[RunSettings], on_news: Callable[[News], None]
) -> Iterator[Journal]:
    """Give the body a journal, of which the MLflow that the job names is told, too."""
    tags = {run.name: run_tags(job.experiment, run) for run in runs}

    def count(run: str, restart: Restart) -> None:
        metrics.count("raytrain_restarts", 1, **tags[run], cause=str(restart.kind))

    if job.mlflow is None:
        yield Journal(folder, on_news, session.alive_nodes, count)
        return
    with MlflowRuns(job.mlflow, job.experiment) as mlflow:
        for run in runs:
            mlflow.begin(run.name, storage.join(folder, run.name), run)

        def tell(news: News) -> None:
            if isinstance(news, Post):
                mlflow.epoch(news.run, news.metrics)
            on_news(news)

        def restarted(run: str, restart: Restart) -> None:
            count(run, restart)
            mlflow.restarted(run, f"{restart.kind}: {restart.cause}")

        yield Journal(folder, tell, session.alive_nodes, restarted, mlflow.end)


def _report(folder: str, run: RunSettings, ended: _Ended | None) -> RunReport:
    history = history_if_readable(storage.join(folder, run.name))
    net = finished(folder, run) if ended is None else ended.net
    reason = None if ended is None or ended.error is None else str(ended.error)
    return RunReport(run.name, net, reason, history.seconds, history.restarts)


def _earlier_nets(folder: str, run: RunSettings) -> tuple[TrainedMember, ...]:
    """Return the nets of the ensemble that stands in `folder`; raise `ConfigError` if they saw other shards."""
    if not storage.exists(storage.join(folder, ENSEMBLE_FILE)):
        return ()
    manifest = read_ensemble(folder)
    if (manifest.shards, manifest.shards_digest) != (run.shards, run.shards_digest):
        same = " as they are now" if manifest.shards == run.shards else ""
        raise ConfigError(
            f"{folder} holds an ensemble trained on {manifest.shards}, not on {run.shards}{same}; "
            "name another --experiment"
        )
    return manifest.members


def _room(job: TrainJob, use_gpu: bool) -> int:
    """Return how many runs fit into the cluster as it is now, one at least: Ray Train waits for its nodes."""
    return max(1, session.room(job.most_workers, use_gpu))


@dataclass(frozen=True)
class _Ended:
    """How a run ended, after so many seconds."""

    net: TrainedMember | None
    error: RaytrainError | None
    seconds: float


@dataclass(frozen=True)
class _Concluded:
    """What became of all runs, how many nets the ensemble has (0 if it isn't whole), and which runs can't work."""

    reports: list[RunReport]
    num_members: int
    wrong: list[ConfigError]


@dataclass(frozen=True)
class _Running:
    name: str
    begun_at: float


def _side_by_side(
    fits: Mapping[str, Callable[[], TrainedMember]],
    room: Callable[[], int],
    board: Any,
    journal: Journal,
    on_waiting: Callable[[int], None],
    experiment: str = "",
) -> dict[str, _Ended]:
    """Let runs train, by name, as many at once as there is room; return how each ended.

    `on_waiting` hears how many have yet to begin. An interrupt, and an error that is not of one run, ends all of them.
    """
    waiting, running, ended = deque(fits), dict[Future[_Ended], _Running](), dict[str, _Ended]()
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, len(fits)), "run") as pool:
        try:
            while waiting or running:
                while waiting and len(running) < room():
                    name = waiting.popleft()
                    journal.begin(name)
                    running[pool.submit(_ending, name, fits[name], stop)] = _Running(name, time.monotonic())
                on_waiting(len(waiting))
                _tell_states(experiment, len(waiting), len(running), list(ended.values()))
                done, _ = wait(running, timeout=ROOM_S, return_when=FIRST_COMPLETED)
                for future in done:
                    run = running.pop(future)
                    ended[run.name] = each = future.result()
                    _log_end(run.name, each)
                    metrics.count("raytrain_runs_failed", each.error is not None, experiment=experiment)
                    journal.end(run.name, each.seconds, None if each.error is None else str(each.error))
        except BaseException:
            stop.set()
            _abort(board, running)
            for run in running.values():
                journal.leave(run.name, time.monotonic() - run.begun_at)
            raise
    _tell_states(experiment, 0, 0, list(ended.values()))
    return ended


def _tell_states(experiment: str, waiting: int, running: int, ended: list[_Ended]) -> None:
    failed = sum(each.error is not None for each in ended)
    states = {"waiting": waiting, "running": running, "done": len(ended) - failed, "failed": failed}
    for state, number in states.items():
        metrics.set_gauge("raytrain_runs", number, experiment=experiment, state=state)


def _log_end(name: str, ended: _Ended) -> None:
    about = {"run": name, "seconds": round(ended.seconds, 1)}
    if ended.error is None:
        score = None if ended.net is None else ended.net.score
        _logger.info("run %s is done", name, extra=logs.fields(event="run done", score=score, **about))
    else:
        # No error of this process: what the command comes to is told as such when it ends.
        _logger.info("run %s failed: %s", name, ended.error, extra=logs.fields(event="run failed", **about))


def _ending(name: str, run: Callable[[], TrainedMember], stop: threading.Event) -> _Ended:
    with logs.about(run=name):
        return _trained(name, run, stop)


def _trained(name: str, run: Callable[[], TrainedMember], stop: threading.Event) -> _Ended:
    """Train a run; begin again, from where it was saved, if its controller is lost."""
    start = time.monotonic()
    lost = 0
    _logger.info("run %s begins, or goes on", name, extra=logs.fields(event="run begins"))
    while True:
        try:
            return _Ended(run(), None, time.monotonic() - start)
        except RaytrainError as error:
            return _Ended(None, error, time.monotonic() - start)
        except PermissionError:
            raise  # what ends one run so ends all of them
        except ray.exceptions.RayActorError as error:
            lost += 1
            if stop.is_set() or lost == CONTROLLERS:
                found = WorkNotFinished(f"run {name}: its controller was lost {lost} times: {first_line(error)}")
                return _Ended(None, found, time.monotonic() - start)
            _logger.warning("run %s: its controller is lost (%s); another one begins", name, first_line(error))
        except Exception as error:  # a thread's top: the other runs go on
            if isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError):
                raise  # the cluster is lost
            if not storage.is_out_of_reach(error):
                _logger.exception("run %s: internal error", name)
            found = WorkNotFinished(f"run {name}: {type(error).__name__}: {first_line(error)}")
            return _Ended(None, found, time.monotonic() - start)


def _abort(board: Any, running: Mapping[Future[_Ended], _Running]) -> None:
    """End all runs on the cluster, also those that were just about to begin; their threads end with them."""
    deadline = time.monotonic() + ABORT_S
    while time.monotonic() < deadline and not all(future.done() for future in running):
        with contextlib.suppress(ray.exceptions.RayError):
            controllers = ray.get(board.controllers.remote(), timeout=ABORT_S)
            aborted = [controller.abort.remote() for controller in controllers]
            if aborted:
                ray.wait(aborted, num_returns=len(aborted), timeout=ABORT_S)
        wait(running, timeout=1)
