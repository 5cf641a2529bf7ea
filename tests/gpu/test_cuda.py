"""What a CPU can't show: on a CUDA device a member trains and an ensemble scores. Where there is one,
`uv run pytest -m gpu tests/gpu`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raytrain.cluster.node_look import gpus, look_at_gpu
from raytrain.config import MemberSettings, Normalisation, ScoreSettings, ShardSettings, change
from raytrain.recipes import members
from raytrain.scoring.ensemble import Ensemble
from raytrain.scoring.inputs import shared_inputs
from raytrain.tiles.reader import TileReader
from raytrain.training.checkpoints import TrainingState
from raytrain.training.loop import TrainingData, train_member
from raytrain.training.models import build_model, compute_dtype
from raytrain.training.ranks import Ranks
from tests.making import restore_from, save_to, shard_chips

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
GPU = Ranks(device=torch.device("cuda", 0))


def settings_of(**changes: object) -> MemberSettings:
    small = {"epochs": 4, "crop_px": 64, "crops_per_tile": 2, "global_batch": 8, "optimiser.lr": 0.02}
    return change(members(("small-effnet-4b-20k",))[0], {**small, **changes})


@pytest.fixture(scope="module")
def data(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    folder = tmp_path_factory.mktemp("shards")
    shard_chips(chips, folder, ShardSettings(folds="3"))
    reader = TileReader(str(folder), ("B02", "B03", "B04", "B08"))
    return TrainingData(reader, np.arange(12), np.arange(4))


def train(settings: MemberSettings, data: TrainingData, ranks: Ranks) -> list[float]:
    losses: list[float] = []
    train_member(settings, data, ranks, lambda report, _: losses.append(report.loss))
    return losses


def test_float32_on_a_gpu_learns_what_a_cpu_learns(data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    settings = settings_of(epochs=1, precision="float32", **{"optimiser.lr": 0.002})
    assert train(settings, data, GPU) == pytest.approx(train(settings, data, Ranks()), rel=1e-3)


@pytest.mark.parametrize(
    "changes", [{}, {"precision": "float16"}, {"compile": True}, {"channels_last": False}], ids=str
)
def test_mixed_precision_learns(data: TrainingData, changes: dict[str, object]) -> None:
    losses = train(settings_of(**changes), data, GPU)
    exact = train(settings_of(precision="float32"), data, GPU)
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(exact, rel=0.1)


def test_auto_is_bfloat16_where_the_device_has_it() -> None:
    has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    assert compute_dtype("auto", GPU.device) == (torch.bfloat16 if has_it else torch.float16)


def test_checkpoint_of_a_gpu_goes_on_on_a_cpu(data: TrainingData, tmp_path: Path) -> None:
    settings = settings_of(precision="float32")

    def keep_second(report: object, state: TrainingState) -> None:
        if state.position.epoch == 2:
            save_to(tmp_path / "second", state, settings)

    train_member(settings, data, GPU, keep_second)
    rest: list[float] = []
    train_member(
        settings,
        data,
        Ranks(),
        lambda report, _: rest.append(report.loss),
        lambda state: restore_from(tmp_path / "second", state, settings),
    )
    assert rest == pytest.approx(train(settings, data, GPU)[2:], rel=0.05)


def score(windows: list[np.ndarray], device: torch.device = GPU.device, **changes: object) -> list[np.ndarray]:
    """Score with two small members of random weights, three windows a pass, mean and disagreement."""
    nets = []
    for name in ("small-effnet-4b-20k", "small-resnet-4b-minmax"):
        torch.manual_seed(0)
        settings = members((name,))[0]
        nets.append((settings, build_model(settings, with_encoder_weights=False)))
    settings = change(ScoreSettings(window_px=64, overlap_px=16, windows_per_pass=3), changes)
    valid = [np.ones(window.shape[1:], bool) for window in windows]
    return Ensemble(nets, settings, device, disagreement=True).layers(windows, valid)


def random_windows(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 65536, (4, 64, 90)).astype(np.uint16) for _ in range(count)]


def test_inputs_on_a_gpu_are_to_the_bit_those_on_a_cpu() -> None:
    bands = ("B02", "B03", "B04", "B08")
    pixels = np.stack(random_windows(2))
    valid = np.random.default_rng(1).random((2, 64, 90)) > 0.1
    kinds = (Normalisation(), Normalisation(kind="minmax"), Normalisation(kind="fixed-maximum", maximum=20000))
    keys = [(bands[: 3 + i % 2], kind) for i, kind in enumerate(kinds)]
    ours, theirs = (shared_inputs(keys, bands, pixels, valid, device) for device in (GPU.device, torch.device("cpu")))
    for key in keys:
        assert torch.equal(ours[key].cpu(), theirs[key])


def test_float32_on_a_gpu_scores_what_a_cpu_scores() -> None:
    windows = random_windows(4)
    for one, two in zip(
        score(windows, precision="float32"), score(windows, torch.device("cpu"), precision="float32"), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_window_on_a_gpu_does_not_depend_on_the_others_or_the_run(precision: str) -> None:
    windows = random_windows(7)
    together = score(windows, precision=precision)
    again = score(windows, precision=precision)
    for window, one, two in zip(windows, together, again, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, score([window], precision=precision)[0])


def test_the_doctor_sees_a_gpu_that_computes() -> None:
    found = look_at_gpu()
    assert not found.problem
    assert found.memory_bytes > 0
    assert found.nccl
    assert found.driver != "unknown"
    assert gpus(counts_gpus=True).seen == torch.cuda.device_count()
