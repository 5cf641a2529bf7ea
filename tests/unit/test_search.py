"""A search as it goes on, with curves instead of trainings: order, budgets, resume, finalists, the verdict, results."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats

from raytrain.command import load_changes
from raytrain.config import MemberSettings, change, parse
from raytrain.errors import ConfigError
from raytrain.evaluation.intervals import mean_over_seeds_and_locations
from raytrain.recipes import members
from raytrain.search.budget import Budget
from raytrain.search.finals import Finals, candidates, final_scores, finalists, judge
from raytrain.search.records import Record, SearchSettings, Trial
from raytrain.search.results import write_best, write_results
from raytrain.search.search import Search
from raytrain.search.space import LogUniform, default_space, settings_of, text_of
from raytrain.search.watchdog import Watchdog

LR = "optimiser.lr"
PLACES = [f"place{i}" for i in range(12)]


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def settings(**values: Any) -> SearchSettings:
    member = change(members(("small-byob-4b",))[0], {"epochs": 4})
    defaults: dict[str, Any] = {
        "member": member,
        "shards": "s3://bucket/shards",
        "shards_digest": "d",
        "fold": 0,
        "kept_back": 3,
        "space": {LR: text_of(LogUniform(1e-4, 1.0))},
        "trial_epochs": 4,
    }
    return SearchSettings(**defaults | values)


def make(
    folder: Path,
    clock: Clock,
    budget: dict[str, Any],
    finals: Finals | None = None,
    **values: Any,
) -> Search:
    return Search(Record(str(folder)), settings(**values), Budget(**budget), finals or Finals(finalists=0), clock)


def quality(trial: Trial, epoch: int) -> float:
    """The score of an epoch: best at a learning rate of 0.01, growing with epochs."""
    return (1 - abs(math.log10(trial.point[LR] / 0.01)) / 4) * (1 - 0.5**epoch)


def add_epoch(search: Search, trial: Trial, epoch: int, score: float | None = None) -> Trial:
    found = quality(trial, epoch) if score is None else score
    values = {"score": found, "loss": 1 - found, "learning_rate": 0.1, "train_s": 8.0, "validation_s": 1.0}
    return search.add_epoch(trial.name, epoch, values)


def judged(value: float) -> dict[str, dict[str, Any]]:
    return {
        place: {"intersection": 1, "union": 2, "iou": value + 0.01 * i, "num_chips": 1}
        for i, place in enumerate(PLACES)
    }


def run(
    search: Search,
    clock: Clock,
    kept_back: Callable[[Trial], float] = lambda trial: 0.5,
    epoch_s: float = 10.0,
    limit: int = 1000,
) -> list[str]:
    """Run up to `limit` trials one after the other; return their names."""
    names: list[str] = []
    while len(names) < limit and (trial := search.next(2)) is not None:
        names.append(trial.name)
        for epoch in range(len(trial.epochs) + 1, trial.num_epochs + 1):
            clock.now += epoch_s
            add_epoch(search, trial, epoch)
            if epoch < trial.num_epochs and (reason := search.spent(trial)):
                search.end(trial.name, "stopped", reason)
                break
        else:
            places = judged(kept_back(trial)) if trial.kind == "final" else None
            search.end(trial.name, "finished", judged=places)
    return names


def test_the_originals_setting_is_the_first_trial_and_the_budget_counts_trials(tmp_path: Path) -> None:
    search = make(tmp_path, Clock(), {"trials": 5})
    assert run(search, Clock()) == [f"trial-{i:04d}" for i in range(5)]
    assert search.is_over
    first = search.trials[0]
    assert first.point == {LR: 0.07}
    assert search.settings_of(first) == change(search.settings.member, {"name": "trial-0000"})
    assert len({trial.point[LR] for trial in search.trials}) == 5


def test_a_running_trial_is_not_given_out_twice_and_keeps_the_search_from_being_over(tmp_path: Path) -> None:
    search = make(tmp_path, Clock(), {"trials": 2})
    first, second = search.next(1), search.next(1)
    assert first is not None
    assert second is not None
    assert (first.name, second.name) == ("trial-0000", "trial-0001")
    assert search.next(1) is None
    assert not search.is_over
    search.end(first.name, "failed", "out of memory")
    search.end(second.name, "diverged", "loss nan")
    assert search.is_over


def test_no_trial_can_begin_while_the_last_ones_run(tmp_path: Path) -> None:
    """Nodes are asked for by this: a cluster would grow for nobody."""
    search = make(tmp_path, Clock(), {"trials": 2})
    assert search.has_next
    first = search.next(1)
    assert search.has_next
    search.next(1)
    assert not search.has_next
    assert first is not None
    search.put_back(first.name)
    assert search.has_next


def test_a_search_that_was_killed_goes_on_where_its_record_stands(tmp_path: Path) -> None:
    """Killed after any write of its record, it draws the same points as one that was not."""
    undisturbed = make(tmp_path / "whole", Clock(), {"trials": 14})
    run(undisturbed, Clock())
    clock = Clock()
    killed = make(tmp_path / "killed", clock, {"trials": 14})
    run(killed, clock, limit=11)
    cut_off = killed.next(2)
    assert cut_off is not None
    add_epoch(killed, cut_off, 1)

    again = make(tmp_path / "killed", clock, {"trials": 14})
    assert again.running == set()
    assert [trial.state for trial in again.trials] == ["finished"] * 11 + ["running"]
    known = again.next(2)
    assert known is not None
    assert (known.name, len(known.epochs), known.begun) == (cut_off.name, 1, 2)
    assert known.point == cut_off.point
    for epoch in (2, 3, 4):
        add_epoch(again, known, epoch)
    again.end(known.name, "finished")
    run(again, clock)
    assert [trial.point for trial in again.trials] == [trial.point for trial in undisturbed.trials]
    assert [trial.score for trial in again.trials] == [trial.score for trial in undisturbed.trials]


def test_an_epoch_that_is_told_twice_counts_once(tmp_path: Path) -> None:
    search = make(tmp_path, Clock(), {"trials": 1})
    trial = search.next(1)
    assert trial is not None
    add_epoch(search, trial, 1, 0.5)
    assert [each.score for each in add_epoch(search, trial, 1, 0.7).epochs] == [0.5]


def test_another_command_with_other_settings_is_refused_with_what_differs(tmp_path: Path) -> None:
    record = Record(str(tmp_path))
    record.claim(settings())
    record.claim(settings())
    with pytest.raises(ConfigError, match=r"trial_epochs: 4 -> 8.*--experiment"):
        record.claim(settings(trial_epochs=8))


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    make(tmp_path, Clock(), {"trials": 1}).next(1)
    path = tmp_path / "search" / "trials" / "trial-0000.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ConfigError, match=r"trial-0000.json: damaged"):
        make(tmp_path, Clock(), {"trials": 1})


def test_nothing_in_the_record_is_pickled(tmp_path: Path) -> None:
    clock = Clock()
    search = make(tmp_path, clock, {"trials": 2}, Finals(finalists=1, seeds=2))
    run(search, clock)
    search.leave()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 1 + 2 + 4
    for path in files:
        json.loads(path.read_text())


@pytest.mark.parametrize(("budget", "num_trials"), [({"rank_hours": 0.2}, 9), ({"wall_hours": 0.1}, 9)])
def test_hours_are_counted_over_ranks_or_by_the_clock_over_all_commands(
    tmp_path: Path, budget: dict[str, Any], num_trials: int
) -> None:
    """A trial takes 40 s on two ranks: 0.2 rank-hours and 0.1 hours are both 360 s."""
    clock = Clock()
    first = make(tmp_path, clock, budget)
    assert len(run(first, clock, limit=4)) == 4
    first.leave()
    clock.now += 5000  # between the commands nothing is spent
    second = make(tmp_path, clock, budget)
    names = run(second, clock)
    assert len(names) == num_trials - 4
    assert second.trials[-1].state == "finished"
    assert second.rank_hours == pytest.approx(0.2)
    assert second.seconds == pytest.approx(360)
    assert second.is_over


def test_a_trial_that_runs_when_the_hours_are_spent_is_stopped_with_the_reason(tmp_path: Path) -> None:
    clock = Clock()
    search = make(tmp_path, clock, {"wall_hours": 50 / 3600})
    assert run(search, clock) == ["trial-0000", "trial-0001"]
    last = search.trials[-1]
    assert (last.state, len(last.epochs)) == ("stopped", 1)
    assert last.cause == "0.0139 wall-hours are spent"


def test_a_share_of_the_hours_is_kept_for_the_finalists(tmp_path: Path) -> None:
    clock = Clock()
    search = make(tmp_path, clock, {"wall_hours": 400 / 3600}, Finals(finalists=1, seeds=2))
    names = run(search, clock)
    assert names[:6] == [f"trial-{i:04d}" for i in range(6)]
    assert [name.split("-")[0] for name in names[6:]] == ["final"] * 4
    assert search.seconds == pytest.approx(400)


@pytest.mark.parametrize("values", [{}, {"trials": 0}, {"wall_hours": -1.0}])
def test_a_search_has_a_budget(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse(Budget, values)


def test_finalists_are_the_original_and_the_best_others_each_seed_of_all_before_the_next(tmp_path: Path) -> None:
    clock = Clock()
    search = make(tmp_path, clock, {"trials": 12}, Finals(finalists=2, seeds=2))
    names = run(search, clock)
    tried = {trial.number: trial.score or 0.0 for trial in search.trials if trial.kind == "search"}
    first, second = sorted((number for number in tried if number), key=lambda number: -tried[number])[:2]
    finals = [f"final-{number:04d}-seed{seed}" for seed in (1, 2) for number in (0, first, second)]
    assert names[12:] == finals
    assert all(search.settings_of(trial).seed == trial.seed for trial in search.trials)


def test_only_the_originals_finals_begin_before_the_last_trial_of_the_search_has_ended(tmp_path: Path) -> None:
    clock = Clock()
    search = make(tmp_path, clock, {"trials": 3}, Finals(finalists=1, seeds=2))
    run(search, clock, limit=2)
    last = search.next(1)
    assert last is not None
    for seed in (1, 2):
        final = search.next(1)
        assert final is not None
        assert (final.name, final.point) == (f"final-0000-seed{seed}", search.trials[0].point)
    assert search.next(1) is None
    add_epoch(search, last, 1, 0.99)
    search.end(last.name, "stopped", "behind")
    final = search.next(1)
    assert final is not None
    assert final.name == "final-0002-seed1"


def test_a_larger_budget_adds_trials_to_a_search_that_was_over(tmp_path: Path) -> None:
    clock = Clock()
    run(make(tmp_path, clock, {"trials": 3}), clock)
    again = make(tmp_path, clock, {"trials": 5})
    assert run(again, clock) == ["trial-0003", "trial-0004"]


def finals_of(differences: Sequence[Sequence[float]], validation: Sequence[float] = (0.5, 0.6)) -> list[Trial]:
    """The original (number 0) and trial 1, whose IoU differs by `differences` (seeds, locations)."""
    tried = [trial_of("search", number, 0, validation[number]) for number in (0, 1)]
    for seed, row in enumerate(differences):
        for number in (0, 1):
            places = {
                f"place{i}": {"intersection": 1, "union": 2, "iou": 0.4 + number * d, "num_chips": 1}
                for i, d in enumerate(row)
            }
            tried.append(trial_of("final", number, seed, validation[number], judged=places))
    return tried


def trial_of(kind: str, number: int, seed: int, score: float, **values: Any) -> Trial:
    epoch = {"epoch": 1, "score": score, "loss": 1, "learning_rate": 1, "train_s": 1, "validation_s": 1, "at_s": 1}
    content = {
        "name": f"trial-{number:04d}" if kind == "search" else f"final-{number:04d}-seed{seed}",
        "kind": kind,
        "number": number,
        "seed": seed,
        "point": {LR: 0.1 * (number + 1)},
        "num_epochs": 1,
        "state": "finished",
        "epochs": [epoch],
    }
    return Trial.model_validate(content | values)


@pytest.mark.parametrize(
    ("mean", "words"), [(0.05, "better"), (0.001, "no difference"), (-0.05, "worse"), (0.0, "no difference")]
)
def test_the_winner_is_better_only_where_the_whole_interval_says_so(mean: float, words: str) -> None:
    generator = np.random.default_rng(0)
    differences = mean + 0.02 * generator.standard_normal((3, 15))
    verdict = judge(finals_of(differences.tolist()), Finals(finalists=1, seeds=3))
    assert verdict is not None
    assert (verdict.winner, verdict.words, verdict.seeds, verdict.num_locations) == (1, words, (0, 1, 2), 15)
    assert verdict.difference is not None
    assert verdict.difference.value == pytest.approx(differences.mean())
    assert verdict.difference.low < differences.mean() < verdict.difference.high


def test_the_validation_fold_chooses_the_winner_not_the_locations_kept_back() -> None:
    verdict = judge(finals_of([[0.3] * 9] * 2, validation=(0.7, 0.6)), Finals(finalists=1, seeds=2))
    assert verdict is not None
    assert (verdict.winner, verdict.words, verdict.difference) == (0, "the original is the best", None)


def test_seeds_that_only_some_have_finished_are_left_out_and_a_failed_finalist_drops_out() -> None:
    trials = finals_of([[0.1] * 9, [0.2] * 9, [0.3] * 9])
    finals = Finals(finalists=1, seeds=3)
    verdict = judge(trials[:-1], finals)
    assert verdict is not None
    assert verdict.seeds == (0, 1)
    assert judge(trials[:-3], finals) is None, "one seed shows nothing of how seeds differ"
    failed = [*trials[:-1], trials[-1].model_copy(update={"state": "diverged", "judged": None})]
    assert judge(failed, finals) is None
    assert candidates(failed, finals) == [0, 1]
    assert candidates(failed, Finals(finalists=0)) == []


def test_a_finalist_that_failed_does_not_take_the_others_scores_with_it() -> None:
    trials = finals_of([[0.1] * 9, [0.2] * 9])
    trials += [trial_of("search", 2, 0, 0.4), trial_of("final", 2, 0, 0.4, state="diverged")]
    finals = Finals(finalists=2, seeds=2)
    assert finalists(trials, finals) == [0, 1]
    scored = final_scores(trials, finalists(trials, finals))
    assert [each.number for each in scored] == [0, 1]
    assert [list(each.by_seed) for each in scored] == [[0, 1], [0, 1]]
    assert judge(trials, finals) is not None


def test_a_point_that_was_drawn_twice_is_one_finalist() -> None:
    tried = [
        trial_of("search", number, 0, 0.5 + 0.1 * number, point={LR: 0.1 if number == 0 else 0.2})
        for number in range(3)
    ]
    tried.append(trial_of("search", 3, 0, 0.55, point={LR: 0.4}))
    assert candidates(tried, Finals(finalists=2)) == [0, 2, 3]


def test_a_finalist_that_failed_once_is_not_trained_with_further_seeds(tmp_path: Path) -> None:
    clock = Clock()
    search = make(tmp_path, clock, {"trials": 3}, Finals(finalists=1, seeds=3))
    run(search, clock, limit=3)
    original, other = search.next(1), search.next(1)
    assert original is not None
    assert other is not None
    assert (original.kind, original.number, other.number > 0) == ("final", 0, True)
    search.end(other.name, "diverged", "loss nan")
    names = [trial.name for trial in iter(lambda: search.next(1), None)]
    assert names == ["final-0000-seed2", "final-0000-seed3"]
    search.end(original.name, "diverged", "loss nan")
    assert search.next(1) is None, "without the original there is nothing to compare with"


@pytest.mark.parametrize(
    ("num_seeds", "num_locations", "of_seeds", "of_locations", "of_cells"),
    [
        (3, 15, 0.01, 0.05, 0.03),
        (3, 40, 0.05, 0.05, 0.05),
        (3, 30, 0.05, 0.02, 0.005),
        (5, 20, 0.0, 0.05, 0.01),
        (2, 9, 0.02, 0.05, 0),
    ],
)
def test_interval_holds_the_truth_as_often_as_it_says(
    num_seeds: int, num_locations: int, of_seeds: float, of_locations: float, of_cells: float
) -> None:
    """Of 2,000 draws where seeds, locations and single cells differ, also where seeds differ most: 93.5 % at least."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        values = of_seeds * generator.standard_normal((num_seeds, 1))
        values = values + of_locations * generator.standard_normal((1, num_locations))
        values = values + of_cells * generator.standard_normal((num_seeds, num_locations))
        found = mean_over_seeds_and_locations(0.02 + values)
        hits += found.low <= 0.02 <= found.high
    assert hits >= 0.935 * 2000, f"{hits} of 2000"


def test_interval_is_that_of_students_t_where_only_locations_differ() -> None:
    values = np.random.default_rng(0).random(12)
    found = mean_over_seeds_and_locations(np.stack([values, values, values]))
    known = scipy.stats.t.interval(0.95, 11, values.mean(), scipy.stats.sem(values))
    assert (found.low, found.high) == pytest.approx(known)
    same = mean_over_seeds_and_locations(np.full((3, 9), 0.25))
    assert (same.low, same.value, same.high) == (0.25, 0.25, 0.25)
    for shape in ((1, 9), (3, 1)):
        with pytest.raises(ValueError, match="two seeds and two locations"):
            mean_over_seeds_and_locations(np.zeros(shape))


def whole_search(folder: Path, kept_back: Callable[[Trial], float], **values: Any) -> Search:
    clock = Clock()
    space = {path: text_of(each) for path, each in default_space(settings().member).items()}
    search = make(folder, clock, {"trials": 12}, Finals(finalists=1, seeds=2), space=space, **values)
    run(search, clock, kept_back)
    return search


def test_best_toml_trains_what_was_tried(tmp_path: Path) -> None:
    changes = {"epochs": 4, "decoder_channels": [8, 8, 8, 4, 4]}
    member = change(members(("small-byob-4b",))[0], changes)
    search = whole_search(tmp_path, lambda trial: 0.5 + 0.2 * (trial.number > 0), member=member)
    uri = write_best(str(tmp_path), search, changes)
    best = max((trial for trial in search.trials if trial.kind == "search"), key=lambda trial: trial.score or 0.0)
    assert best.number > 0
    loaded = change(members(("small-byob-4b",))[0], load_changes(Path(uri)))
    assert loaded == settings_of(member, best.point)
    text = Path(uri).read_text()
    assert text.startswith(f"# Trial {best.number} of a search for small-byob-4b: better than the original (+0.2000")
    assert set(tomllib.loads(text)) == {"epochs", "decoder_channels", "optimiser", "loss"}


def test_best_toml_keeps_the_original_where_the_winner_is_worse(tmp_path: Path) -> None:
    search = whole_search(tmp_path, lambda trial: 0.5 - 0.2 * (trial.number > 0))
    uri = write_best(str(tmp_path), search, {})
    assert change(members(("small-byob-4b",))[0], load_changes(Path(uri)) | {"epochs": 4}) == search.settings.member
    assert "worse than the original, which is kept" in Path(uri).read_text()


def test_a_search_that_is_left_early_leaves_its_best_trial(tmp_path: Path) -> None:
    clock = Clock()
    search = make(tmp_path, clock, {"trials": 12}, Finals())
    assert write_results(str(tmp_path), search, {}).best is None
    assert not (tmp_path / "best.toml").exists()
    run(search, clock, limit=3)
    search.next(1)
    search.leave()
    results = write_results(str(tmp_path), search, {})
    assert results.best is not None
    assert results.verdict is None
    assert "not compared on places kept back" in (tmp_path / "best.toml").read_text()
    assert pq.read_table(tmp_path / "trials.parquet")["state"].to_pylist() == ["finished"] * 3 + ["running"]


@pytest.mark.parametrize("state", ["diverged", "failed"])
def test_a_setting_that_ended_badly_is_never_the_best(tmp_path: Path, state: str) -> None:
    search = make(tmp_path, Clock(), {"trials": 2})
    for score, how in ((0.4, "finished"), (0.9, state)):
        trial = search.next(1)
        assert trial is not None
        add_epoch(search, trial, 1, score)
        search.end(trial.name, how, "a cause")
    results = write_results(str(tmp_path), search, {})
    assert results.best is not None
    assert results.best.number == 0
    assert "0.9000" not in (tmp_path / "best.toml").read_text()


def test_a_record_about_another_trial_or_place_is_refused(tmp_path: Path) -> None:
    make(tmp_path, Clock(), {"trials": 2}).next(1)
    folder = tmp_path / "search" / "trials"
    text = (folder / "trial-0000.json").read_text()
    (folder / "trial-0001.json").write_text(text)
    with pytest.raises(ConfigError, match=r"trial-0001.json: damaged, it is about trial-0000"):
        make(tmp_path, Clock(), {"trials": 2})
    (folder / "trial-0001.json").write_text(text.replace("trial-0000", "../../../evil"))
    with pytest.raises(ConfigError, match="name: String should match pattern"):
        make(tmp_path, Clock(), {"trials": 2})


def test_trials_parquet_has_each_trial_as_it_was_trained(tmp_path: Path) -> None:
    search = whole_search(tmp_path, lambda trial: 0.5)
    write_results(str(tmp_path), search, {})
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [row["name"] for row in rows] == [trial.name for trial in search.trials]
    for row, trial in zip(rows, search.trials, strict=True):
        member: MemberSettings = search.settings_of(trial)
        assert row["loss.dice"] == member.loss.dice
        assert row["optimiser.schedule"] == member.optimiser.schedule
        assert row["scores"] == [each.score for each in trial.epochs]
        assert row["kept_back_iou"] == (pytest.approx(0.555) if trial.kind == "final" else None)
        assert (row["seconds"], row["training_s"]) == (40.0, 36.0)


def test_page_shows_everything_and_fetches_nothing(tmp_path: Path) -> None:
    search = whole_search(tmp_path, lambda trial: 0.5 + 0.2 * (trial.number > 0))
    trial = search.next(1)
    assert trial is None
    write_results(str(tmp_path), search, {})
    page = (tmp_path / "report.html").read_text()
    for heading in (
        "The best over time",
        "Learning curves",
        "The score by each setting",
        "Which settings matter",
        "All settings of all trials",
        "Finalists",
        "The setting in best.toml",
        "All trials",
    ):
        assert f"<h2>{heading}</h2>" in page, heading
    assert page.count("<svg") == 5
    assert "Better than the original (+0.2000 IoU by location" in page
    assert "With fewer than 20 locations" in page
    assert "var(--accent)" in page
    assert page.count("<script") == 1
    assert "#010203" not in page
    links = re.findall(r'(?:href|src)="([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page)
    assert len(links) > 10
    assert all(link.startswith(("data:", "#")) for link in links), links


def test_page_of_failures_has_their_causes_escaped(tmp_path: Path) -> None:
    search = make(tmp_path, Clock(), {"trials": 2})
    for state, cause in (("failed", "out of memory on a <node>"), ("diverged", "loss nan")):
        trial = search.next(1)
        assert trial is not None
        search.end(trial.name, state, cause)
    write_results(str(tmp_path), search, {})
    page = (tmp_path / "report.html").read_text()
    assert "out of memory on a &lt;node&gt;" in page
    assert "No score so far." in page


def test_watchdog_counts_only_while_no_trial_has_places_or_could_have_any() -> None:
    clock = Clock()
    dog = Watchdog(limit_s=60, clock=clock)
    clock.now += 50
    dog.look(2)
    dog.place("a")
    clock.now += 1000
    dog.look(2)
    assert dog.waited_s() is None
    dog.lose("a")
    clock.now += 59
    dog.look(2)
    assert dog.waited_s() is None
    clock.now += 1
    assert dog.waited_s() == 60
    dog.place("b")
    dog.look(1)
    assert dog.waited_s() is None
    clock.now += 70
    dog.look(0)
    assert dog.waited_s() == 70, "it has places that the cluster does not have any more"
