"""The programs of the run on real chips: the threshold on blue, the folds, and a tiny run from end to end."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch import nn

from raytrain.config import MemberSettings, ScoreSettings
from raytrain.errors import ConfigError, TrainingDiverged
from raytrain.recipes import members
from raytrain.scoring.ensemble import Ensemble
from raytrain.tiles.reader import TileReader
from raytrain.training.checkpoint_store import CheckpointStore
from raytrain.training.checkpoints import Snapshot
from raytrain.training.metrics import count_pixels
from tests import making
from tests.bench import blue, real_runs
from tests.bench.curves import BOTTOM_PX, COLOURS, LEFT_PX, PANEL_PX, RIGHT_PX, TOP_PX, Line, draw
from tests.bench.real_chips import changed_members, main
from tests.bench.real_data import RealChip, open_chips, part_folds
from tests.bench.real_runs import Run, plan_run, predict
from tests.bench.real_scores import mean_maps, score_nets, score_table


def blue_chips(seed: int, count: int = 5) -> list[blue.BlueChip]:
    """Chips of different sizes and labels 0, 1, 255, in which cloud is brighter by little."""
    generator = np.random.default_rng(seed)
    chips = []
    for i in range(count):
        label = generator.choice(np.array([0, 1, 255], np.uint8), (8 + i, 9), p=[0.5, 0.3, 0.2])
        b02 = generator.normal(2000 + 3000 * (label == 1), 1500).clip(0, 65535).astype(np.uint16)
        chips.append((b02, label))
    return chips


def test_the_threshold_on_blue_is_the_best_of_all_by_brute_force() -> None:
    for seed in range(10):
        chips = blue_chips(seed)
        ious = []
        for threshold in blue.THRESHOLDS:
            counts = np.array([count_pixels(blue.predict(b02, int(threshold)), label) for b02, label in chips])
            ious.append(counts[:, 0].sum() / counts[:, 1].sum())
        np.testing.assert_array_equal(blue.pooled_ious(chips), ious)
        best = blue.fit(chips)
        assert best == blue.THRESHOLDS[ious.index(max(ious))]
        assert blue.pooled_iou(chips, best) == max(ious)


def test_no_threshold_is_fitted_on_chips_without_cloud() -> None:
    clear = [(b02, np.where(label == 1, 0, label).astype(np.uint8)) for b02, label in blue_chips(0)]
    with pytest.raises(ValueError, match="without any cloud"):
        blue.fit(clear)


def real_chips(counts: dict[str, tuple[str, str, int]]) -> list[RealChip]:
    """Chips of places, from {place: (sensor, split, number of chips)}."""
    chips: list[RealChip] = []
    for place, (sensor, split, count) in counts.items():
        chips += [RealChip(len(chips) + i, f"{place}-{i}", place, sensor, split) for i in range(count)]
    return chips


PLACES = {f"l{i}": ("Landsat", "train" if i % 3 else "val", 1 + i % 3) for i in range(11)}
PLACES |= {f"s{i}": ("Sentinel", "train" if i < 3 else "val", 2) for i in range(4)}


@pytest.mark.parametrize("part", ["folds", "all27"])
@pytest.mark.parametrize("num_folds", [2, 3, 5, 10])
def test_folds_share_no_place_and_every_chip_is_tested_once(part: Literal["folds", "all27"], num_folds: int) -> None:
    chips = real_chips(PLACES)
    pool = {chip.position for chip in chips if part == "all27" or chip.split == "train"}
    folds = part_folds(part, chips, num_folds)
    assert sorted(i for fold in folds for i in fold.test) == sorted(pool)
    for fold in folds:
        assert set(fold.train) == pool - set(fold.test)
        assert not {chips[i].location for i in fold.train} & {chips[i].location for i in fold.test}
    held_out = [{chips[i].location for i in fold.test if chips[i].sensor == "Sentinel"} for fold in folds]
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 1


def test_val_trains_on_train_alone_and_never_on_a_place_of_val() -> None:
    chips = real_chips(PLACES)
    (fold,) = part_folds("val", chips, 4)
    assert {chips[i].split for i in fold.train} == {"train"}
    assert {chips[i].split for i in fold.test} == {"val"}
    assert len(fold.train) + len(fold.test) == len(chips)
    seen = RealChip(len(chips), "seen", chips[fold.train[0]].location, "Landsat", "val")
    with pytest.raises(ConfigError, match=f"fold val.*share {seen.location}"):
        part_folds("val", [*chips, seen], 4)


def test_settings_are_changed_for_all_or_for_one_member_and_seeds_come_by_their_option() -> None:
    first, second = changed_members(["small"], ["epochs=3", "small-byob-4b:encoder=a://b", "optimiser.lr=0.5"])
    assert (first.epochs, second.epochs, first.optimiser.lr, second.optimiser.lr) == (3, 3, 0.5, 0.5)
    assert first.encoder == members(("small",))[0].encoder
    assert second.encoder == "a://b"
    for assignment, match in [("b0-4b-30k:epochs=3", "no member"), ("seed=1", "--seeds"), ("name=x", "which member")]:
        with pytest.raises(ConfigError, match=match):
            changed_members(["small"], [assignment])


def test_the_mean_of_the_maps_is_what_the_product_computes_for_the_ensemble(tmp_path: Path) -> None:
    tile_ids = [making.make_tile(i, (40, 50)) for i in range(2)]
    making.write_tiles(tmp_path, tile_ids, "raw")
    nets: list[tuple[MemberSettings, nn.Module]] = []
    for i, member in enumerate([*members(("small",)), *members(("r34-3b-minmax",))]):
        torch.manual_seed(i)
        nets.append((member, nn.Conv2d(len(member.bands), 1, 3, padding=1)))
    maps = [predict(member, net, TileReader(str(tmp_path), member.bands), [0, 1]) for member, net in nets]
    found = mean_maps([{int(i): values for i, values in each.items()} for each in maps])
    ensemble = Ensemble(nets, ScoreSettings(threads=1), torch.device("cpu"))
    reader = TileReader(str(tmp_path), ensemble.bands)
    for i in (0, 1):
        bands, _ = reader.read(i)
        ((expected,),) = ensemble.layers([bands], [np.asarray(bands.any(axis=0))])
        np.testing.assert_array_equal(found[i], expected)


def test_scores_of_members_seeds_and_ensembles_are_those_of_their_mean_maps_counted_once() -> None:
    generator = np.random.default_rng(0)
    labels = [generator.choice(np.array([0, 1, 255], np.uint8), (9, 8 + i)) for i in range(3)]
    maps = {
        (member, seed): {i: generator.random(label.shape, np.float32) for i, label in enumerate(labels)}
        for seed in (0, 1)
        for member in ("a", "b")
    }
    scored = {(each.name, each.seed): each for each in score_nets(maps, labels)}
    sources = {(m, str(s)): [(m, s)] for m, s in maps}
    sources |= {("ensemble", str(s)): [("a", s), ("b", s)] for s in (0, 1)}
    sources |= {(m, "all"): [(m, 0), (m, 1)] for m in ("a", "b")} | {("ensemble", "all"): list(maps)}
    assert scored.keys() == sources.keys()
    chips = real_chips({"x": ("Sentinel", "val", 1), "y": ("Landsat", "val", 2)})
    headers, rows = score_table(list(scored.values()), chips)
    for (key, names), row in zip([(key, sources[key]) for key in scored], rows, strict=True):
        cut = [np.mean([maps[name][i] for name in names], axis=0) >= 0.5 for i in range(3)]
        hits = [int((cloud & (label == 1)).sum()) for cloud, label in zip(cut, labels, strict=True)]
        either = [
            int(((cloud | (label == 1)) & (label != 255)).sum()) for cloud, label in zip(cut, labels, strict=True)
        ]
        by_header = dict(zip(headers, row, strict=True))
        assert (by_header["what"], by_header["seed"]) == key
        assert by_header["pooled IoU, Sentinel (1)"] == f"{hits[0] / either[0]:.4f}"
        assert by_header["pooled IoU, all (3)"] == f"{sum(hits) / sum(either):.4f}"
        by_place = [hits[0] / either[0], sum(hits[1:]) / sum(either[1:])]
        assert by_header["IoU by place, all (3)"] == f"{np.mean(by_place):.4f}"
        assert by_header["mean IoU of chips, Landsat (2)"] == f"{np.mean(np.divide(hits, either)[1:]):.4f}"


def test_curves_go_through_their_points_and_empty_panels_are_left_out(tmp_path: Path) -> None:
    lines = [Line("a", ((0.0, 0.0), (8.0, 2.0))), Line("b", ((4.0, 1.5),)), Line("a", ((0.0, 1.0), (8.0, 1.0)))]
    draw([("nothing", [Line("a", ())]), ("two", lines)], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == PANEL_PX
        for x, y, colour in [(0.25, 0.25, 0), (0.75, 0.75, 0), (0.5, 0.75, 1), (0.2, 0.5, 0)]:
            column = LEFT_PX + x * (PANEL_PX[0] - LEFT_PX - RIGHT_PX)
            row = TOP_PX + (1 - y) * (PANEL_PX[1] - TOP_PX - BOTTOM_PX)
            around = picture.crop((round(column) - 1, round(row) - 1, round(column) + 2, round(row) + 2))
            assert ImageColor.getrgb(COLOURS[colour]) in [found for _, found in around.getcolors()]
    with pytest.raises(ValueError, match="no curve"):
        draw([("nothing", [Line("a", ())])], tmp_path / "none.png")


@pytest.fixture
def archive(own_chips: Path) -> Path:
    """The generated archive with its provenance: every third place is of split val."""
    with (own_chips / "train_metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    places = sorted({row["location"] for row in rows})
    with (own_chips / "provenance.csv").open("w") as file:
        file.write("chip_id,split,sensor\n")
        for row in rows:
            i = places.index(row["location"])
            file.write(f"{row['chip_id']},{'train' if i % 3 else 'val'},{'Sentinel-2 MSI' if i % 2 else 'Landsat-8'}\n")
    return own_chips


SETTINGS = ["epochs=2", "crop_px=32", "crops_per_tile=1", "global_batch=4", "decoder_channels=[8,8,8,8,4]"]


def run(part: str, archive: Path, out: Path, *more: str) -> None:
    arguments = [part, "--archive", str(archive), "--out", str(out), "--processes", "1"]
    main([*arguments, "--members", "small-byob-3b", "--set", *SETTINGS, *more])


def results(out: Path) -> dict[str, bytes]:
    """What the nets predicted, by the name of their folder."""
    return {path.parent.name: path.read_bytes() for path in out.glob("runs/*/probabilities.npz")}


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_scores_every_chip_and_a_rerun_trains_nothing(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--folds", "2", "--seeds", "0,1", "--watch", "2")
    run("folds", archive, tmp_path / "out", *options)
    found = results(tmp_path / "out")
    assert len(found) == 4
    assert not list(tmp_path.glob("out/runs/*/checkpoints"))
    in_train = [row["chip_id"] for row in read_rows(archive / "provenance.csv") if row["split"] == "train"]
    assert [row["chip"] for row in read_rows(tmp_path / "out" / "folds-chips.csv")] == sorted(in_train)
    rows = read_rows(tmp_path / "out" / "folds.csv")
    assert [(row["what"].split("(")[0], row["seed"]) for row in rows] == [
        ("small-byob-3b", "0"),
        ("small-byob-3b", "1"),
        ("small-byob-3b", "all"),
        ("threshold on B02 ", ""),
    ]
    curves = read_rows(tmp_path / "out" / "folds-curves.csv")
    assert len(curves) == 4 * 2
    assert all(float(row["loss"]) > 0 for row in curves)
    assert [bool(row["watched_iou"]) for row in curves] == [False, True] * 4
    with Image.open(tmp_path / "out" / "folds-curves.png") as picture:
        assert picture.size == (PANEL_PX[0], 2 * PANEL_PX[1])

    def train_nothing(run: Run) -> None:
        raise TrainingDiverged(f"{run.name} is trained")

    monkeypatch.setattr(real_runs, "train_run", train_nothing)
    capsys.readouterr()
    run("folds", archive, tmp_path / "out", *options)
    assert "kept, but" not in capsys.readouterr().out
    assert results(tmp_path / "out") == found
    assert read_rows(tmp_path / "out" / "folds.csv") == rows
    with pytest.raises(SystemExit):
        run("folds", archive, tmp_path / "out", *options, "--set", "optimiser.lr=0.01")
    assert capsys.readouterr().err.count("is trained") == 4
    real_runs.code_digest.cache_clear()
    monkeypatch.setattr(real_runs, "code_digest", lambda: "changed")
    run("folds", archive, tmp_path / "out", *options)
    assert capsys.readouterr().out.count("kept, but raytrain's code has changed") == 4


@pytest.mark.parametrize(
    ("call", "is_kept", "goes_on"), [(4, True, "epoch 2, sample 4"), (3, False, "epoch 1, sample 8")]
)
def test_a_killed_run_goes_on_to_the_same_probabilities_and_curve(
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    call: int,
    is_kept: bool,
    goes_on: str,
) -> None:
    """Killed after a checkpoint in the second epoch; then before that of the first, whose point of the curve stands."""
    run("val", archive, tmp_path / "whole")
    assert "WARNING" in capsys.readouterr().out
    keep = real_runs.CheckpointStore.save
    calls = []

    def keep_and_stop(self: CheckpointStore, snapshot: Snapshot, **options: Any) -> None:
        calls.append(snapshot.position)
        if len(calls) != call or is_kept:
            keep(self, snapshot, **options)
        if len(calls) == call:
            raise KeyboardInterrupt

    monkeypatch.setattr(real_runs, "CHECKPOINT_S", 0)
    monkeypatch.setattr(real_runs.CheckpointStore, "save", keep_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run("val", archive, tmp_path / "killed")
    run("val", archive, tmp_path / "killed")
    assert f"goes on in {goes_on}" in capsys.readouterr().out
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    losses = [[row["loss"] for row in read_rows(tmp_path / name / "val-curves.csv")] for name in ("killed", "whole")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


def test_a_run_has_another_folder_once_a_file_that_a_setting_names_has_changed(archive: Path, tmp_path: Path) -> None:
    found = open_chips(archive, tmp_path)
    fold = part_folds("val", found.chips, 2)[0]
    weights = tmp_path / "weights.safetensors"
    (member,) = changed_members(["small-byob-3b"], [f"encoder={weights}"])
    folders = []
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        folders.append(plan_run(member, fold, found.shards, tmp_path, 0).folder)
    assert folders[0] == folders[2] != folders[1]
