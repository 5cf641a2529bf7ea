"""A real search on this machine: a rank of a trial is killed, the command interrupted, and the same command goes on."""

from __future__ import annotations

import _thread
import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from raytrain.cluster import tune as tuning
from raytrain.cluster.board import Begun, News, Post, Tried
from raytrain.cluster.runs import RunSettings
from raytrain.cluster.search_plan import TuneJob
from raytrain.cluster.session import Cluster
from raytrain.cluster.shard import ShardJob, shard
from raytrain.cluster.tune import tune
from raytrain.command import load_changes
from raytrain.config import ShardSettings, change, parse
from raytrain.errors import ConfigError, WorkNotFinished
from raytrain.imagery.synth import write_chips
from raytrain.recipes import members
from raytrain.search.budget import Budget
from raytrain.search.finals import Finals
from raytrain.search.outcome import Results
from raytrain.search.records import Record
from raytrain.search.space import settings_of
from raytrain.search.watchdog import Watchdog
from tests.cluster.processes import ranks, trial_actors

pytestmark = pytest.mark.usefixtures("local_ray")
MEMBER = "small-byob-3b"
EPOCHS = 14
"""So many that a trial is not over before an interrupt has come through."""
AGAIN_S = 5.0
CHANGES = {
    "epochs": EPOCHS,
    "crop_px": 32,
    "crops_per_tile": 12,
    "global_batch": 8,
    "decoder_channels": [8, 8, 8, 4, 4],
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    write_chips(folder / "chips", count=16, size_px=64, seed=1, num_places=8)
    shard(ShardJob(src=str(folder / "chips"), dst=str(folder / "shards"), settings=ShardSettings(folds="4")), Cluster())
    return folder / "shards"


def job(shards: Path, out: Path, **values: Any) -> TuneJob:
    defaults: dict[str, Any] = {
        "shards": str(shards),
        "out": str(out),
        "member": MEMBER,
        "changes": CHANGES,
        "budget": Budget(trials=3),
        "finals": Finals(finalists=1, seeds=2),
    }
    return TuneJob(**defaults | values)


class Watcher:
    """What a test hears of a search, and what it does about it once."""

    def __init__(self) -> None:
        self.news: list[News] = []
        self.results: list[tuple[Results, bool]] = []
        self.killed: str | None = None
        self.num_killed = 0
        self.interrupted_at: float | None = None

    def on_results(self, results: Results, is_over: bool) -> None:
        self.results.append((results, is_over))

    def kill_and_interrupt(self, news: News) -> None:
        """Kill the ranks of whatever runs after the third epoch of the original, interrupt once it has gone on.

        Interrupt again where it still goes on: a library may have caught what an interrupt raised inside of it.
        """
        self.news.append(news)
        if isinstance(news, Post) and self.killed is None and news.metrics["epoch"] == 2 and "0000" in news.run:
            self.killed = news.run
            for pid in ranks():
                os.kill(pid, signal.SIGKILL)
        has_gone_on = isinstance(news, Begun) and news.run == self.killed and news.attempt == 2
        was_caught = self.interrupted_at is not None and time.monotonic() - self.interrupted_at > AGAIN_S
        if has_gone_on or was_caught:
            self._interrupt()

    def _interrupt(self) -> None:
        self.interrupted_at = time.monotonic()
        _thread.interrupt_main()

    def kill_actors(self, news: News) -> None:
        """Kill the actors of all trials in the second epoch of a finalist: they hold all places of this machine."""
        self.news.append(news)
        if (
            isinstance(news, Post)
            and self.killed is None
            and news.run.startswith("final")
            and news.metrics["epoch"] == 1
        ):
            self.killed = news.run
            for pid in trial_actors():
                os.kill(pid, signal.SIGKILL)
                self.num_killed += 1


def test_search_goes_on_through_killed_ranks_an_interrupt_and_killed_actors(shards: Path, tmp_path: Path) -> None:
    """The original's trial is the one that is struck: its scores are those of the same training undisturbed."""
    watcher = Watcher()
    with pytest.raises(KeyboardInterrupt):
        tune(job(shards, tmp_path), Cluster(), watcher.kill_and_interrupt, watcher.on_results)
    ((so_far, is_over),) = watcher.results
    assert not is_over
    assert so_far.best is not None, "an interrupted search leaves what it has"
    assert (tmp_path / "main" / "report.html").exists()
    before = {trial.name: trial for trial in so_far.trials}
    struck = before["trial-0000"]
    assert struck.state == "running"
    assert struck.restarts, "a killed rank is told"
    assert struck.restarts[0].startswith("worker killed: ")
    done = len(struck.epochs)
    assert 3 <= done < EPOCHS

    watcher = Watcher()
    results = tune(job(shards, tmp_path), Cluster(), watcher.kill_actors, watcher.on_results)
    assert watcher.killed is not None
    assert watcher.num_killed > 0
    trials = {trial.name: trial for trial in results.trials}
    first = next(news for news in watcher.news if isinstance(news, Begun) and news.run == "trial-0000-fold0")
    assert first.position.epoch >= done - 1, "it began again at the start"
    for name, trial in trials.items():
        assert [each.epoch for each in trial.epochs] == list(range(1, len(trial.epochs) + 1)), name
        assert trial.state == "finished" or (trial.state == "stopped" and len(trial.epochs) < EPOCHS), name
        assert trial.seconds > trial.training_s > 0, name
    for name, trial in before.items():
        assert trials[name].point == trial.point, name
        assert trials[name].epochs[: len(trial.epochs)] == trial.epochs, name
    again = trials[str(watcher.killed).removesuffix("-fold0")]
    assert again.begun == 2, "a trial whose actor was killed is handed out again"
    assert any(text.startswith("actor lost: ") for text in again.restarts)
    alone = {"budget": Budget(trials=1), "finals": Finals(finalists=0)}
    (undisturbed,) = tune(job(shards, tmp_path / "alone", **alone), Cluster(), print, lambda *found: None).trials
    assert [each.score for each in trials["trial-0000"].epochs] == [each.score for each in undisturbed.epochs]
    assert [each.loss for each in trials["trial-0000"].epochs] == [each.loss for each in undisturbed.epochs]
    assert [trial.number for trial in results.trials if trial.kind == "search"] == [0, 1, 2]

    judged = trials["final-0000-seed1"].judged
    assert judged is not None
    folder = tmp_path / "main"
    run = parse(RunSettings, json.loads((folder / "trials" / "final-0000-seed1-fold0" / "run.json").read_text()))
    assert (run.fold, run.kept_back, run.member.seed) == (0, 3, 1)
    assert all(0 <= each.iou <= 1 and each.num_chips == 2 for each in judged.values())
    assert len(judged) == 2
    assert results.verdict is not None
    assert results.verdict.seeds == (1, 2)
    assert results.best is not None
    member = change(members((MEMBER,))[0], CHANGES)
    best = change(members((MEMBER,))[0], load_changes(folder / "best.toml"))
    assert best == settings_of(member, results.best.point)
    left = sorted(path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file())
    assert not [parts for parts in left if parts[0] == "trials" and "checkpoints" in parts], "ended trials keep none"
    assert not [parts for parts in left if "ranks" in parts]
    assert {parts[-1].partition(".")[0] for parts in left if parts[0] == "trials"} == {"run", "history", "events"}

    known = tune(job(shards, tmp_path), Cluster(), watcher.news.append, watcher.on_results)
    assert known.trials == results.trials, "a search that is over does nothing"


def test_trials_that_diverge_are_results_also_on_two_ranks(shards: Path, tmp_path: Path) -> None:
    space = ("lr=loguniform(1e-2,1e12)", "global_batch=choice(8,500)", "batch_norm_group=choice(8,400)")
    values: dict[str, Any] = {"space": space, "only_space": True, "method": "random", "seed": 5, "workers": 2}
    values |= {"budget": Budget(trials=6), "finals": Finals(finalists=0), "trial_epochs": 1}
    watcher = Watcher()
    results = tune(job(shards, tmp_path, **values), Cluster(), watcher.news.append, watcher.on_results)
    by_state = {
        state: [trial for trial in results.trials if trial.state == state] for state in ("finished", "diverged")
    }
    assert len(by_state["finished"]) + len(by_state["diverged"]) == 6
    assert by_state["diverged"], "no learning rate was too high"
    assert all("not finite" in str(trial.cause) for trial in by_state["diverged"])
    assert by_state["finished"][0].number == 0
    assert {trial.num_ranks for trial in results.trials} == {2}
    assert not any(trial.restarts for trial in results.trials), "the ranks live on"


def test_a_search_that_no_cluster_can_hold_ends_with_the_reason(shards: Path, tmp_path: Path) -> None:
    watcher = Watcher()
    with pytest.raises(ConfigError, match="90 workers need as many CPUs, the cluster has 2"):
        tune(job(shards, tmp_path, workers=90, changes=CHANGES | {"global_batch": 144}), Cluster(), print, print)
    assert not watcher.news


@pytest.fixture
def taken(local_ray: None) -> Iterator[None]:
    """All CPUs of this machine's Ray are somebody else's."""

    class Holder:
        def ping(self) -> None:
            return None

    holder: Any = ray.remote(num_cpus=2)(Holder).remote()
    ray.get(holder.ping.remote())
    yield
    ray.kill(holder)


def test_a_search_whose_places_others_hold_ends_with_the_reason(
    shards: Path, tmp_path: Path, taken: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "Watchdog", partial(Watchdog, limit_s=8))
    with pytest.raises(WorkNotFinished, match=r"no trial has had places .* each needs 1 CPUs, the cluster has 2"):
        tune(job(shards, tmp_path), Cluster(), lambda news: None, lambda *found: None)


def test_of_two_commands_on_one_search_the_older_ends(
    shards: Path, tmp_path: Path, taken: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "LOOK_S", 1.0)

    def on_news(news: News) -> None:
        if isinstance(news, Tried):
            Record(str(tmp_path / "main")).lead("another")

    with pytest.raises(WorkNotFinished, match="another command leads this search now"):
        tune(job(shards, tmp_path), Cluster(), on_news, lambda *found: None)
    (trial,) = (trial for trial in Record(str(tmp_path / "main")).trials() if trial.number == 0)
    assert trial.state == "running", "it is the other's to go on with"


def test_a_search_without_any_score_is_not_finished(shards: Path, tmp_path: Path) -> None:
    changes = CHANGES | {"optimiser.lr": 1e30}
    with pytest.raises(WorkNotFinished, match=r"no trial has a score; the first says: .*(loss nan|not finite)"):
        tune(
            job(shards, tmp_path, changes=changes, budget=Budget(trials=1), trial_epochs=1),
            Cluster(),
            Watcher().news.append,
            Watcher().on_results,
        )
