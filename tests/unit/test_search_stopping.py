"""Which trials go on, decided below Ray: ASHA on what trials report, rebuilt from the record at any moment."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from raytrain.cluster.judge import Judge
from raytrain.cluster.judge import replay as replay_record
from raytrain.cluster.runs import SCORE
from raytrain.config import change
from raytrain.errors import StoreOutOfReach
from raytrain.recipes import members
from raytrain.search.budget import Budget
from raytrain.search.finals import Finals
from raytrain.search.records import Epoch, Record, SearchSettings, Stopping, Trial
from raytrain.search.search import Search
from tests.bench.search import replay, shares_of, stopping

EPOCHS = 9


def settings(stops: Stopping | None) -> SearchSettings:
    return SearchSettings(
        member=change(members(("small-byob-4b",))[0], {"epochs": EPOCHS}),
        shards="s3://bucket/shards",
        shards_digest="d",
        fold=0,
        kept_back=3,
        space={"optimiser.lr": "loguniform(0.0001, 1)"},
        trial_epochs=EPOCHS,
        stopping=stops,
    )


ASHA = Stopping()


class Run:
    """A search whose trials report what they are told to, one epoch after the other."""

    def __init__(self, folder: Path, stops: Stopping | None = ASHA, budget: Budget | None = None) -> None:
        self.folder, self.stops, self.budget = folder, stops, budget or Budget(trials=100)
        self.open()

    def open(self) -> None:
        """Begin another command on the same record."""
        self.search = Search(Record(str(self.folder)), settings(self.stops), self.budget, Finals(finalists=0))
        self.ends: list[tuple[str, str, str | None]] = []
        self.lost: list[tuple[str, str]] = []
        self.failed: list[BaseException] = []
        self.judge = self.new_judge()

    def new_judge(self) -> Any:
        return Judge(
            self.search,
            self.end,
            lambda name, cause: self.lost.append((name, cause)),
            lambda name, trial: None,
            self.failed.append,
        )

    def end(self, name: str, state: str, cause: str | None = None, judged: Any = None) -> None:
        self.ends.append((name, state, cause))
        self.search.end(name, state, cause, judged)

    def begin(self) -> str:
        trial = self.search.next(1)
        assert trial is not None
        self.judge.on_trial_add(None, given(trial.name))
        return trial.name

    def report(self, name: str, epoch: int, score: float) -> str:
        result = {"what": "epoch", "epoch": epoch, SCORE: score, "loss": 1.0, "learning_rate": 0.1}
        return self.judge.on_trial_result(None, given(name), result | {"epoch_s": 1.0, "validation_s": 0.5})


def given(name: str) -> Any:
    """What Tune hands over: a trial with an id of its own, which says nothing."""
    return SimpleNamespace(trial_id=f"{random.random()}", config={"work": {"name": name}})


GO, STOP = str(TrialScheduler.CONTINUE), str(TrialScheduler.STOP)


def test_a_trial_that_is_behind_is_stopped_and_the_reason_recorded(tmp_path: Path) -> None:
    run = Run(tmp_path)
    names = [run.begin() for _ in range(4)]
    decisions = [run.report(name, 1, score) for name, score in zip(names, (0.5, 0.6, 0.9, 0.2), strict=True)]
    assert decisions == [GO, GO, GO, STOP]
    assert run.ends == [(names[3], "stopped", "behind after 1 epoch")]
    assert run.search.trials[3].state == "stopped"
    assert run.report(names[0], 2, 0.1) == GO, "between rungs nothing is decided"


def test_the_original_is_never_stopped(tmp_path: Path) -> None:
    run = Run(tmp_path)
    original, *others = (run.begin() for _ in range(4))
    for name in others:
        run.report(name, 1, 0.9)
    assert run.report(original, 1, 0.1) == GO
    assert run.report(original, 3, 0.1) == GO


def test_without_stopping_every_trial_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, stops=None)
    names = [run.begin() for _ in range(6)]
    for epoch in range(1, EPOCHS + 1):
        assert {run.report(name, epoch, 1 - i / 10) for i, name in enumerate(names)} == {GO}


def test_the_last_epoch_is_no_reason_to_stop(tmp_path: Path) -> None:
    run = Run(tmp_path)
    names = [run.begin() for _ in range(4)]
    for name in names:
        run.report(name, 1, 0.9)
    scores = dict(zip(names, (0.9, 0.8, 0.7, 0.1), strict=True))
    assert [run.report(name, EPOCHS, score) for name, score in scores.items()] == [GO] * 4
    asha = AsyncHyperBandScheduler(time_attr="epoch", metric=SCORE, mode="max", max_t=EPOCHS + 1, reduction_factor=3)
    assert names[3] in replay_record(asha, run.search.trials), "by itself it would stop it"
    run.search.leave()
    run.open()
    assert run.ends == [], "nor is it one when the command is begun again"


@pytest.mark.parametrize("interrupted_after", range(0, 40, 3))
def test_decisions_are_the_same_after_the_command_was_begun_again(tmp_path: Path, interrupted_after: int) -> None:
    """The same reports to one command, and to two of which the second has read the record."""
    generator = random.Random(1)
    levels = {f"trial-{i:04d}": generator.random() for i in range(12)}

    def drive(run: Run, interrupt: int | None) -> list[tuple[str, int, str]]:
        decided: list[tuple[str, int, str]] = []
        going = {run.begin(): 0 for _ in range(3)}
        while going:
            for name in list(going):
                if interrupt == len(decided):
                    run.search.leave()
                    run.open()
                    for _ in going:
                        run.begin()
                going[name] += 1
                decision = run.report(name, going[name], levels[name] * (1 - 0.5 ** going[name]))
                decided.append((name, going[name], decision))
                if decision == STOP or going[name] == EPOCHS:
                    if decision == GO:
                        run.end(name, "finished")
                    del going[name]
                    if len(run.search.trials) < len(levels):
                        going[run.begin()] = 0
        return decided

    whole = drive(Run(tmp_path / "whole"), None)
    assert drive(Run(tmp_path / "two"), interrupted_after) == whole
    assert {decision for _, _, decision in whole} == {GO, STOP}


def test_what_a_trial_says_at_its_end_is_recorded_with_what_was_judged(tmp_path: Path) -> None:
    run = Run(tmp_path)
    name = run.begin()
    run.report(name, 1, 0.5)
    places = {"a/b": {"intersection": 1, "union": 2, "iou": 0.5, "num_chips": 1}}
    end = {"what": "end", "state": "finished", "cause": None, "judged": json.dumps(places)}
    assert run.judge.on_trial_result(None, given(name), end) == GO
    (trial,) = run.search.trials
    assert (trial.state, trial.score) == ("finished", 0.5)
    assert trial.judged is not None
    assert trial.judged["a/b"].union == 2
    assert run.judge.on_trial_result(None, given(name), end | {"done": True}) == GO
    assert len(run.ends) == 1


def test_a_spent_budget_stops_a_running_trial_with_the_reason(tmp_path: Path) -> None:
    run = Run(tmp_path, budget=Budget(wall_hours=1e-9))
    run.search = Search(Record(str(tmp_path)), settings(Stopping()), Budget(trials=1), Finals(finalists=0))
    run.judge = run.new_judge()
    name = run.begin()
    run.search._budget = Budget(wall_hours=1e-9)
    assert run.report(name, 1, 0.5) == STOP
    assert run.ends == [(name, "stopped", "1e-09 wall-hours are spent")]


def test_a_finalist_without_budget_is_put_aside_for_a_larger_one(tmp_path: Path) -> None:
    record = Record(str(tmp_path))
    for number, lr in ((0, 0.07), (1, 0.01)):
        record.write(curve(number, [0.1 * number] * EPOCHS).model_copy(update={"point": {"optimiser.lr": lr}}))
    run = Run(tmp_path)
    run.search = Search(record, settings(ASHA), Budget(trials=2), Finals(finalists=1, seeds=2))
    run.judge = run.new_judge()
    name = run.begin()
    run.search._budget = Budget(wall_hours=1e-9)
    assert run.report(name, 1, 0.5) == STOP
    assert run.ends == []
    again = Search(Record(str(tmp_path)), settings(ASHA), Budget(trials=2), Finals(finalists=1, seeds=2))
    known = again.next(1)
    assert known is not None
    assert (known.name, len(known.epochs)) == (name, 1) == ("final-0000-seed1", 1)


def test_a_trial_that_the_cluster_lost_is_no_result(tmp_path: Path) -> None:
    run = Run(tmp_path)
    name = run.begin()
    end = {"what": "end", "state": "lost", "cause": "node lost: 10.0.0.2 is gone", "judged": None}
    assert run.judge.on_trial_result(None, given(name), end) == GO
    assert (run.ends, run.lost) == ([], [(name, "node lost: 10.0.0.2 is gone")])
    run.search.put_back(name)
    known = run.search.next(1)
    assert known is not None
    assert (known.name, known.begun, known.state) == (name, 2, "running")


def test_a_stop_that_was_decided_and_not_recorded_is_made_good(tmp_path: Path) -> None:
    """The command is killed between the epoch's record and that of the trial's end."""
    run = Run(tmp_path)
    names = [run.begin() for _ in range(4)]
    for name in names[:3]:
        run.report(name, 1, 0.9)
    values = {"score": 0.1, "loss": 1.0, "learning_rate": 0.1, "train_s": 1.0, "validation_s": 0.5}
    run.search.add_epoch(names[3], 1, values)
    run.search.leave()
    run.open()
    assert run.ends == [(names[3], "stopped", "behind after 1 epoch")]
    assert [trial.state for trial in run.search.trials] == ["running"] * 3 + ["stopped"]


def test_a_store_that_fails_ends_the_search_with_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    name = run.begin()
    error = StoreOutOfReach("s3://bucket/search: out of reach")

    def fails(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(Record, "write", fails)
    assert run.report(name, 1, 0.5) == GO
    assert run.failed == [error]


def curve(number: int, scores: list[float]) -> Trial:
    epochs = [
        Epoch(epoch=i + 1, score=score, loss=1, learning_rate=1, train_s=1, validation_s=0.5, at_s=0)
        for i, score in enumerate(scores)
    ]
    return Trial(
        name=f"trial-{number:04d}",
        kind="search",
        number=number,
        seed=0,
        point={},
        num_epochs=len(scores),
        state="finished",
        epochs=tuple(epochs),
        seconds=2.0 * len(scores),
    )


def test_replayed_curves_are_stopped_as_a_search_would_and_counted() -> None:
    curves = [curve(i, [0.1 * i * (1 - 0.5**n) for n in range(1, 10)]) for i in range(9)]
    rising = replay(curves, grace_epochs=1, reduction=3, slots=1)
    assert rising.best == 8
    assert rising.trained_fraction == 1, "each was better than all before it"
    falling = replay([curves[0], *curves[:0:-1]], grace_epochs=1, reduction=3, slots=1)
    assert falling.best == 8
    assert falling.trained_fraction == pytest.approx((9 + 9 + 9 + 6) / 81), "three whole curves, an epoch of the others"
    row = stopping(curves, orders=20, slots=1).rows[0]
    assert row[:2] == ["1", "1 of 3"]
    assert 0 < int(row[2].rstrip("%")) < 90


def test_share_outside_training_is_of_the_trials_own_time() -> None:
    found = shares_of([curve(0, [0.1] * 4), curve(1, [0.1] * 4)], wall_s=20)
    assert found.outside == pytest.approx(1 - 12 / 16)
    assert (found.train_s, found.validation_s, found.num_trials) == (8, 4, 2)


def test_schedulers_brackets_are_what_is_replayed(tmp_path: Path) -> None:
    """Ray's ASHA keeps what it knows under names; a version that does otherwise would forget it when gone on with."""
    scheduler = AsyncHyperBandScheduler(time_attr="epoch", metric=SCORE, mode="max", max_t=10, reduction_factor=3)
    replay_record(scheduler, [curve(0, [0.5, 0.6, 0.7]), curve(1, [0.4])])
    assert "trial-0000" in scheduler._trial_info
    rungs = dict(scheduler._brackets[0]._rungs)
    assert rungs[1] == {"trial-0000": 0.5, "trial-0001": 0.4}
    assert rungs[3] == {"trial-0000": 0.7}
