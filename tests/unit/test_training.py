"""The loop: what it learns and refuses; runs that stop anywhere and go on bit by bit; their checkpoints."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from raytrain.config import MemberSettings, ShardSettings, change
from raytrain.errors import ConfigError, DataError, TrainingDiverged
from raytrain.tiles.order import check_batch
from raytrain.tiles.reader import TileReader, read_index, select_tiles
from raytrain.training import loop
from raytrain.training.checkpoints import TrainingState
from raytrain.training.loop import EpochReport, TrainingData, train_member, validate, validation_loader
from raytrain.training.models import build_model, load_weights
from raytrain.training.ranks import Ranks
from raytrain.training.samples import ValidationTransform
from tests.making import make_tile, restore_from, save_to, shard_chips, tiny_member, write_tiles


@pytest.fixture(scope="module")
def data(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """The tiles of the generated archive, in shards written without Ray."""
    folder = tmp_path_factory.mktemp("shards")
    shard_chips(chips, folder, ShardSettings(folds="3"))
    reader = TileReader(str(folder), ("B02", "B03", "B04", "B08"))
    return TrainingData(reader, select_tiles(reader, 0, "train"), select_tiles(reader, 0, "validation"))


def run(settings: MemberSettings, data: TrainingData, folder: Path, start: Path | None = None) -> list[EpochReport]:
    """Train, keeping the checkpoint of every epoch in `folder/<epoch>`; go on from `start`."""
    reports: list[EpochReport] = []

    def on_epoch(report: EpochReport, state: TrainingState) -> None:
        reports.append(report)
        save_to(folder / str(report.epoch), state, settings)

    train_member(settings, data, Ranks(), on_epoch, (lambda s: restore_from(start, s, settings)) if start else None)
    return reports


def test_resumed_run_equals_the_uninterrupted_one_bit_by_bit(data: TrainingData, tmp_path: Path) -> None:
    settings = tiny_member()
    whole = run(settings, data, tmp_path / "whole")
    rest = run(settings, data, tmp_path / "rest", start=tmp_path / "whole" / "0")
    assert [report.epoch for report in rest] == [1, 2]
    assert [report.loss for report in rest] == [report.loss for report in whole[1:]]
    for name in ("weights.safetensors", "momentum.safetensors"):
        assert (tmp_path / "rest" / "2" / name).read_bytes() == (tmp_path / "whole" / "2" / name).read_bytes()
    assert run(settings, data, tmp_path / "nothing", start=tmp_path / "whole" / "2") == []


class Stopped(Exception):
    """Ends a run from within."""


def stop_after(num_steps: int, folder: Path, settings: MemberSettings) -> Callable[[TrainingState], None]:
    """Return an `on_step` that saves the state as `folder` after so many steps and ends the run."""
    steps = itertools.count(1)

    def on_step(state: TrainingState) -> None:
        if next(steps) == num_steps:
            save_to(folder, state, settings)
            raise Stopped

    return on_step


def equal_files(left: Path, right: Path) -> bool:
    names = ("weights.safetensors", "momentum.safetensors")
    return all((left / name).read_bytes() == (right / name).read_bytes() for name in names)


@pytest.fixture(scope="module")
def whole_run(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[EpochReport]]:
    """The run of `tiny_member()` on `data`, two batches an epoch, uninterrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(tiny_member(), data, folder)


@pytest.mark.parametrize("num_steps", range(1, 6))
def test_run_stopped_at_any_step_goes_on_there_and_ends_alike(
    data: TrainingData, tmp_path: Path, whole_run: tuple[Path, list[EpochReport]], num_steps: int
) -> None:
    settings, (whole, reports) = tiny_member(), whole_run
    with pytest.raises(Stopped):
        train_member(settings, data, Ranks(), lambda *_: None, None, stop_after(num_steps, tmp_path / "cut", settings))
    rest = run(settings, data, tmp_path / "rest", start=tmp_path / "cut")
    assert equal_files(tmp_path / "rest" / "2", whole / "2")
    assert [each.loss for each in rest] == [each.loss for each in reports[(num_steps - 1) // 2 :]]
    assert [each.is_best for each in rest] == [each.is_best for each in reports[(num_steps - 1) // 2 :]]
    assert [each.learning_rate for each in rest] == [each.learning_rate for each in reports[(num_steps - 1) // 2 :]]


def test_layers_that_draw_go_on_alike_too(data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(4, 1, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.dropout(self.layer(image), 0.5, self.training)

    monkeypatch.setattr(loop, "build_model", lambda *_, **__: Dropping())
    settings = tiny_member()
    run(settings, data, tmp_path / "whole")
    with pytest.raises(Stopped):
        train_member(settings, data, Ranks(), lambda *_: None, None, stop_after(3, tmp_path / "cut", settings))
    torch.manual_seed(99)
    run(settings, data, tmp_path / "rest", start=tmp_path / "cut")
    assert equal_files(tmp_path / "rest" / "2", tmp_path / "whole" / "2")


@pytest.mark.parametrize("name", ["weights.safetensors", "momentum.safetensors", "state.json"])
def test_torn_checkpoint_is_refused(
    data: TrainingData, tmp_path: Path, whole_run: tuple[Path, list[EpochReport]], name: str
) -> None:
    torn = Path(shutil.copytree(whole_run[0] / "0", tmp_path / "torn"))
    content = (torn / name).read_bytes()
    (torn / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"checkpoint torn: {name}"):
        run(tiny_member(), data, tmp_path / "rest", start=torn)
    (torn / name).unlink()
    with pytest.raises(DataError, match=f"checkpoint torn: {name}"):
        run(tiny_member(), data, tmp_path / "rest", start=torn)


def test_checkpoint_is_whole_or_absent(data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raytrain.training.checkpoints._momentum", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(tiny_member(), data, tmp_path)
    assert not (tmp_path / "0").exists()
    monkeypatch.undo()
    run(tiny_member(), data, tmp_path)
    with pytest.raises(FileExistsError):
        run(tiny_member(), data, tmp_path)


def test_float16_with_a_scaler_learns_and_goes_on_with_its_scale(data: TrainingData, tmp_path: Path) -> None:
    settings = tiny_member(precision="float16")
    reports = run(settings, data, tmp_path / "whole")
    exact = run(tiny_member(), data, tmp_path / "exact")
    assert [each.loss for each in reports] == pytest.approx([each.loss for each in exact], rel=0.05)
    assert [each.loss for each in reports] != [each.loss for each in exact]
    record = json.loads((tmp_path / "whole" / "0" / "state.json").read_text())
    assert record["scaler"]["scale"] > 1
    assert record["scaler"]["_growth_tracker"] == 2
    run(settings, data, tmp_path / "rest", start=tmp_path / "whole" / "0")
    assert equal_files(tmp_path / "rest" / "2", tmp_path / "whole" / "2")


def test_step_that_overflows_float16_is_left_out_and_lowers_the_scale(data: TrainingData, tmp_path: Path) -> None:
    settings = tiny_member(precision="float16", epochs=1)
    weights: list[torch.Tensor] = []
    scales: list[float] = []

    def enormous_scale(state: TrainingState) -> None:
        state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, enabled=True)
        weights.append(next(state.net.parameters()).detach().clone())

    def on_step(state: TrainingState) -> None:
        weights.append(next(state.net.parameters()).detach().clone())
        scales.append(state.scaler.get_scale())

    train_member(settings, data, Ranks(), lambda *_: None, enormous_scale, on_step)
    assert torch.equal(weights[0], weights[-1])
    assert scales == [2.0**119, 2.0**118]


def test_bfloat16_is_near_float32(data: TrainingData, tmp_path: Path) -> None:
    halves, exact = (run(tiny_member(precision=each), data, tmp_path / each) for each in ("bfloat16", "float32"))
    assert [each.loss for each in halves] == pytest.approx([each.loss for each in exact], rel=0.05)
    assert [each.loss for each in halves] != [each.loss for each in exact]


def test_groups_of_the_whole_batch_change_nothing_and_smaller_ones_do(data: TrainingData, tmp_path: Path) -> None:
    reports = [
        [each.loss for each in run(tiny_member(**changes), data, tmp_path / str(i))]
        for i, changes in enumerate(({}, {"batch_norm_group": 4}, {"batch_norm_group": 2}))
    ]
    assert reports[0] == reports[1]
    assert reports[0] != reports[2]
    with pytest.raises(ConfigError, match="batch_norm_group 5 must be at most global_batch 4"):
        tiny_member(batch_norm_group=5)


def test_group_too_small_for_the_ranks_is_refused() -> None:
    check_batch(8, 2, tiny_member(batch_norm_group=2))
    with pytest.raises(ConfigError, match=r"batch_norm_group 2 makes a group of 1 of batches of \[3\]"):
        check_batch(9, 2, tiny_member(global_batch=3, batch_norm_group=2))


def test_plateau_lowers_the_rate_after_so_many_epochs_without_gain(data: TrainingData, tmp_path: Path) -> None:
    optimiser = {"optimiser.schedule": "plateau", "optimiser.plateau_epochs": 2, "optimiser.plateau_factor": 0.1}
    settings = tiny_member(epochs=6, **optimiser, **{"optimiser.lr": 1e-12})
    reports = run(settings, data, tmp_path)
    assert [each.is_best for each in reports] == [True, *[False] * 5], "so small a rate changes no mask"
    rates = [each.learning_rate for each in reports]
    assert rates == pytest.approx([1e-12, 1e-12, 1e-12, 1e-13, 1e-13, 1e-14])
    rest = run(settings, data, tmp_path / "rest", start=tmp_path / "1")
    assert [each.learning_rate for each in rest] == rates[2:]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler: g++ is not installed")
def test_compiled_net_learns_the_same(data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    true_compile = nn.Module.compile
    monkeypatch.setattr(loop, "build_model", lambda *_, **__: nn.Conv2d(4, 1, 3, padding=1))
    monkeypatch.setattr(nn.Module, "compile", lambda net: (compiled.append(net), true_compile(net)))
    settings = tiny_member(epochs=1)
    plain = run(settings, data, tmp_path / "plain")
    assert not compiled
    found = run(change(settings, {"compile": True}), data, tmp_path / "compiled")
    assert len(compiled) == 1
    assert found[0].loss == pytest.approx(plain[0].loss, rel=1e-3)
    names = [set(load_file(tmp_path / each / "0" / "weights.safetensors")) for each in ("plain", "compiled")]
    assert names[0] == names[1]


def test_checkpoint_of_other_settings_is_refused_with_the_difference(data: TrainingData, tmp_path: Path) -> None:
    settings = tiny_member(epochs=1)
    run(settings, data, tmp_path)
    with pytest.raises(ConfigError, match=r"other settings \(optimiser\.lr: 0\.07 -> 0\.01\)"):
        run(change(settings, {"optimiser.lr": 0.01}), data, tmp_path / "other", start=tmp_path / "0")


def test_a_few_tiles_can_be_learned_by_heart(data: TrainingData) -> None:
    """The real thing, on real chips and for each normalisation, stands in tests/learning."""
    changes = {"normalisation.kind": "minmax", "normalisation.maximum": None}
    settings = tiny_member(epochs=25, crop_px=64, **{"optimiser.lr": 0.1}, **changes)
    settings = change(settings, {"decoder_channels": [16, 16, 8, 8, 8]})
    fractions = read_index(data.reader.uri)["cloud_fraction"].to_numpy()
    few = np.flatnonzero((fractions > 0.1) & (fractions < 0.9))[:4]
    few_data = TrainingData(data.reader, few, few)
    reports: list[EpochReport] = []
    train_member(settings, few_data, Ranks(), lambda report, _: reports.append(report))
    assert reports[-1].loss < 0.7 * reports[0].loss
    assert reports[-1].scores is not None
    assert max(report.scores.iou_pooled for report in reports if report.scores) > 0.8


def test_diverged_loss_is_an_error_that_names_the_remedy(data: TrainingData) -> None:
    with pytest.raises(TrainingDiverged, match=r"small-effnet-4b-20k.*smaller optimiser\.lr"):
        train_member(tiny_member(**{"optimiser.lr": 1e30}), data, Ranks(), lambda *_: None)


def test_validation_counts_each_tile_once_whatever_the_grouping(data: TrainingData) -> None:
    """The counts are those of a loop over tiles of three shapes, one tile a forward pass."""
    torch.manual_seed(0)
    settings = tiny_member()
    net = build_model(settings).eval()
    reader = Cut(data.reader)
    all_of_it = TrainingData(reader, data.train, np.arange(len(reader)))
    with validation_loader(settings, all_of_it) as samples:
        found = validate(net, settings, all_of_it, Ranks(), samples)
    expected: dict[str, list[int]] = {}
    for i, location in enumerate(reader.locations):
        bands, label = reader.read(i)
        image, padded = ValidationTransform(settings)(bands, label, 0, i)
        with torch.no_grad():
            cloud = net(image[None])[0, 0].numpy() > 0
        counts = expected.setdefault(location, [0, 0, 0])
        known, truth = padded.numpy() != 255, padded.numpy() == 1
        assert known.sum() == (bands != 0).any(0).sum() - (label[(bands != 0).any(0)] == 255).sum()
        counts[0] += int((cloud & truth & known).sum())
        counts[1] += int(((cloud | truth) & known).sum())
        counts[2] += 1
    assert {
        name: [place.intersection, place.union, place.num_chips] for name, place in found.locations.items()
    } == expected
    assert sum(intersection for intersection, _, _ in expected.values()) > 0
    assert len(set(reader.shapes)) == 3


class Cut(TileReader):
    """The tiles of another reader, cut to three shapes."""

    def __init__(self, whole: TileReader) -> None:
        self.__dict__.update(whole.__dict__)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [((64, 64), (50, 64), (33, 40))[i % 3] for i in range(len(self))]

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        bands, label = super().read(i)
        assert label is not None
        height, width = self.shapes[i]
        return bands[:, :height, :width].copy(), label[:height, :width].copy()


def test_net_that_computes_nothing_finite_is_never_called_best(data: TrainingData) -> None:
    """Its last step had a finite loss, and what is not a number is not above the threshold: it would count as clear."""
    settings = tiny_member(epochs=1, global_batch=8, **{"optimiser.lr": 1e30, "optimiser.warmup_fraction": 0})
    one_step = replace(data, train=data.train[:8])
    reports: list[EpochReport] = []
    for each in (one_step, replace(one_step, validation=data.train[:0])):
        with pytest.raises(TrainingDiverged, match="what the net makes of tiles is not finite"):
            train_member(settings, each, Ranks(), lambda report, _: reports.append(report))
    assert reports == []


@pytest.mark.parametrize("kind", ["band-maximum", "minmax"])
def test_member_of_five_bands_trains_validates_and_is_loaded_again(tmp_path: Path, kind: str) -> None:
    write_tiles(tmp_path / "shards", [make_tile(i, (64, 48)) for i in range(6)], "raw")
    bands = ["B02", "B03", "B04", "B08", "B11"]
    settings = tiny_member("small-byob-4b", bands=bands, epochs=1, **{"normalisation.kind": kind})
    reader = TileReader(str(tmp_path / "shards"), settings.bands)
    reports = run(settings, TrainingData(reader, np.arange(4), np.arange(4, 6)), tmp_path / "run")
    assert reports[0].scores is not None
    assert reports[0].scores.num_chips == 2
    weights = tmp_path / "run" / "0" / "weights.safetensors"
    net = load_weights(settings, weights, hashlib.sha256(weights.read_bytes()).hexdigest())
    image = torch.zeros(1, 5, 32, 32)
    lit = image.clone()
    lit[:, 4] = 1
    assert not torch.equal(net(image), net(lit)), "the fifth band counts"


def test_band_without_a_maximum_is_refused_before_anything_is_read(data: TrainingData) -> None:
    settings = tiny_member("small-byob-4b", bands=["B02", "B12"])
    with pytest.raises(ConfigError, match="no band maximum is known for B12"):
        train_member(settings, data, Ranks(), lambda *_: None)


def test_checkpoint_of_other_tiles_is_refused(data: TrainingData, tmp_path: Path) -> None:
    run(tiny_member(), data, tmp_path)
    with pytest.raises(ConfigError, match="was made with 8 samples an epoch, here are 7: the tiles are others"):
        run(tiny_member(), replace(data, train=data.train[:7]), tmp_path / "rest", start=tmp_path / "0")


def test_without_validation_the_last_epoch_is_kept(data: TrainingData, tmp_path: Path) -> None:
    reports = run(tiny_member(), replace(data, validation=data.train[:0]), tmp_path)
    assert [(each.is_best, each.scores) for each in reports] == [(True, None)] * 3


def test_resumed_run_asks_no_hub(data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def build(settings: MemberSettings, *, with_encoder_weights: bool, **_: object) -> nn.Module:
        asked.append(with_encoder_weights)
        return build_model(settings, with_encoder_weights=False)

    monkeypatch.setattr("raytrain.training.loop.build_model", build)
    wanted = tiny_member(epochs=2, encoder_weights="timm")
    run(wanted, data, tmp_path / "fresh")
    run(wanted, data, tmp_path / "resumed", start=tmp_path / "fresh" / "0")
    assert asked == [True, False]


def test_weights_of_another_hash_are_refused(data: TrainingData, tmp_path: Path) -> None:
    settings = tiny_member(epochs=1)
    run(settings, data, tmp_path)
    with pytest.raises(ConfigError, match=r"sha256 is .* but the ensemble names 00"):
        load_weights(settings, tmp_path / "0" / "weights.safetensors", "00")
