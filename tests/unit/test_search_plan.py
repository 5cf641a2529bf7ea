"""What a search command comes to before anything starts: folds, shares of tiles, runs of trials, mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytrain.cli import main
from raytrain.cluster.plan import tiles_of
from raytrain.cluster.search_plan import TuneJob, plan_search
from raytrain.config import LoaderSettings, ShardSettings, change
from raytrain.errors import ConfigError
from raytrain.search.budget import Budget
from raytrain.search.records import Stopping
from raytrain.tiles.reader import TileReader
from raytrain.tiles.shares import share_of_locations
from tests.making import shard_chips

TINY = {"epochs": 8, "crop_px": 32, "crops_per_tile": 1, "global_batch": 4, "decoder_channels": [8, 8, 8, 4, 4]}


@pytest.fixture(scope="module")
def shards(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 tiles of 6 places, in three folds of two places."""
    folder = tmp_path_factory.mktemp("plan") / "shards"
    shard_chips(chips, folder, ShardSettings(folds="3"))
    return folder


def job(shards: Path, **values: Any) -> TuneJob:
    defaults: dict[str, Any] = {"shards": str(shards), "out": "/tmp/never", "member": "small-byob-4b", "changes": TINY}
    return TuneJob(**defaults | {"budget": Budget(trials=3)} | values)


def test_trials_never_see_the_fold_that_is_kept_back(shards: Path) -> None:
    plan = plan_search(job(shards, fold=1))
    assert (plan.settings.fold, plan.settings.kept_back) == (1, 2)
    reader = TileReader(str(shards), (), LoaderSettings())
    for is_final in (False, True):
        run, file = plan.run_of(plan.settings.member, is_final=is_final)
        assert file is None
        assert set(reader.folds[tiles_of(reader, run, "train")]) == {0}
        assert set(reader.folds[tiles_of(reader, run, "validation")]) == {1}
    assert plan_search(job(shards, fold=2)).settings.kept_back == 1


def test_trials_see_a_share_of_the_tiles_and_finalists_all(shards: Path) -> None:
    plan = plan_search(job(shards, tiles_fraction=0.5, validation_fraction=0.5, changes=TINY | {"global_batch": 2}))
    reader = TileReader(str(shards), (), LoaderSettings())
    counts = []
    for is_final in (False, True):
        run, _ = plan.run_of(plan.settings.member, is_final=is_final)
        counts.append([len(tiles_of(reader, run, part)) for part in ("train", "validation")])
    assert counts == [[2, 2], [4, 4]]


def test_a_share_is_of_each_location_alike_and_a_smaller_one_lies_within_it() -> None:
    locations = ["a"] * 10 + ["b"] * 5 + ["c"]
    ids = [f"tile{i}" for i in range(len(locations))]
    tiles = np.arange(len(locations))
    quarter, half, whole = (
        set(share_of_locations(tiles, ids, locations, share, 0).tolist()) for share in (0.25, 0.5, 1)
    )
    assert [sum(locations[i] == place for i in half) for place in "abc"] == [5, 3, 1]
    assert [sum(locations[i] == place for i in quarter) for place in "abc"] == [3, 2, 1]
    assert quarter < half < whole == set(range(16))
    assert set(share_of_locations(tiles, ids, locations, 0.5, 1).tolist()) != half
    without_b = share_of_locations(np.array([i for i in tiles if locations[i] != "b"]), ids, locations, 0.5, 0)
    assert set(without_b.tolist()) == {i for i in half if locations[i] != "b"}, "other tiles change nothing"


def test_stopping_begins_behind_two_fifths_of_the_epochs(shards: Path) -> None:
    assert plan_search(job(shards, trial_epochs=30)).settings.stopping == Stopping(grace_epochs=12, reduction=3)
    assert plan_search(job(shards)).settings.stopping == Stopping(grace_epochs=3, reduction=3)
    assert plan_search(job(shards, stops_early=False)).settings.stopping is None


def test_a_run_of_a_trial_has_its_name_its_seed_and_its_epochs(shards: Path) -> None:
    plan = plan_search(job(shards))
    member = change(plan.settings.member, {"name": "trial-0004", "seed": 3, "epochs": 2})
    run, _ = plan.run_of(member, is_final=False)
    assert run.name == plan.run_name("trial-0004") == "trial-0004-fold0"
    assert plan.trial_name(run.name) == "trial-0004"
    assert (run.member.seed, run.member.epochs) == (3, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"member": "small"}, "for one member, not for a group"),
        ({"member": "r35"}, "unknown member"),
        ({"fold": 5}, "no fold 5"),
        ({"kept_back": 0}, "both validated on and kept back"),
        ({"kept_back": 7}, "no fold 7"),
        ({"trial_epochs": 2, "grace_epochs": 3}, "a trial has 2 epochs"),
        ({"workers": 5}, "ranks; use fewer workers"),
        ({"changes": TINY | {"seeds": 1}}, "unknown setting 'seeds'"),
        ({"space": ("lr=uniform(0,1)",)}, "0.0 is no setting"),
        ({"only_space": True}, "an empty space"),
        ({"space": ('bands=choice(["B02"],["B99"])',)}, r"\['B99'\] can't be tried: .*needs B99"),
        ({"space": ("global_batch=choice(1,4)",), "workers": 2}, "1 can't be tried: .*ranks; use fewer workers"),
        ({"space": ("encoder_weights=choice(random,/no/such.safetensors)",)}, "no/such.safetensors"),
        ({"stops_early": False, "grace_epochs": 2}, "--run-to-end stops none"),
    ],
)
def test_what_can_not_be_searched_is_refused_before_anything_starts(
    shards: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_search(job(shards, **values))


def test_shards_of_two_folds_are_too_few(chips: Path, tmp_path: Path) -> None:
    shard_chips(chips, tmp_path / "shards", ShardSettings(folds="2"))
    with pytest.raises(ConfigError, match=r"needs three folds .* the shards have 2"):
        plan_search(job(tmp_path / "shards"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing"),
        (["--member", "small-byob-4b"], "a search needs a budget"),
        (["--member", "small-byob-4b", "--trials", "3", "--experiment", "a/b"], "experiment: String should match"),
        (["--member", "small-byob-4b", "--trials", "0"], "budget.trials: Input should be greater"),
        (["--member", "small-byob-4b", "--trials", "3", "--tiles-fraction", "0"], "tiles_fraction: Input should be"),
        (["--member", "small-byob-4b", "--trials", "3", "--space", "lr=normal(0,1)"], "expected uniform"),
        (["--member", "small-byob-4b", "--trials", "3", "--method", "grid"], "invalid choice"),
        (["--member", "small-byob-4b", "--trials", "3", "--finalists", "0", "--final-seeds", "2"], "of which"),
        (["--member", "small-byob-4b", "--trials", "3", "--final-seeds", "1"], "finals.seeds: Input should be"),
    ],
)
def test_mistakes_of_the_command_are_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["tune", "--shards", str(shards), "--out", str(tmp_path / "never"), *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("raytrain: ")
    assert message in line
    assert not (tmp_path / "never").exists()
