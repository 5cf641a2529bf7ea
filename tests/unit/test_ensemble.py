"""The fused ensemble: each window by itself, to the bit; every shortcut against the long way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raytrain.config import MemberSettings, Normalisation, ScoreSettings, change
from raytrain.errors import ConfigError
from raytrain.imagery.normalisation import normalise, scale_of
from raytrain.recipes import members
from raytrain.scoring.devices import scoring_dtype
from raytrain.scoring.ensemble import Ensemble
from raytrain.scoring.inputs import shared_inputs
from raytrain.scoring.manifest import EnsembleManifest, TrainedMember
from raytrain.scoring.rewriting import doubling_weight, rewritten
from raytrain.training.models import build_model
from raytrain.training.samples import ValidationTransform

SETTINGS = ScoreSettings(window_px=64, overlap_px=16, windows_per_pass=3, threads=2, precision="float32")
BANDS = ("B02", "B03", "B04", "B08")
CPU = torch.device("cpu")
BAND_MAXIMUM, MINMAX = Normalisation(), Normalisation(kind="minmax")
FIXED = Normalisation(kind="fixed-maximum", maximum=20000)


def member(**changes: object) -> MemberSettings:
    return change(members(("small-effnet-4b-20k",))[0], {"normalisation.maximum": 10000, **changes})


class Brightness(nn.Module):
    """A member that a test can foresee: the logit is the mean of the bands, plus a bit in the columns on the right."""

    def __init__(self, slope: float = 0.0, offset: float = 0.0) -> None:
        super().__init__()
        self.slope, self.offset = slope, offset

    def forward(self, image: Tensor) -> Tensor:
        columns = torch.arange(image.shape[-1], dtype=torch.float32)
        return 8 * image.mean(1, keepdim=True) + self.slope * columns + self.offset


class Watching(Brightness):
    """Tells what it is given, and so does a copy of it."""

    def __init__(self, tell: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.tell = tell

    def forward(self, image: Tensor) -> Tensor:
        self.tell(image.clone())
        return super().forward(image)


def brightness(settings: ScoreSettings = SETTINGS, slope: float = 0.0) -> Ensemble:
    return Ensemble([(member(), Brightness(slope))], settings, CPU)


def trained_net(settings: MemberSettings) -> nn.Module:
    """A net whose batch normalisation has seen something, and so differs from the identity."""
    torch.manual_seed(0)
    net = build_model(settings, with_encoder_weights=False).train()
    with torch.no_grad():
        for _ in range(30):
            net(torch.rand(4, len(settings.bands), 64, 64) * 2 - 1)
    return net.eval()


@pytest.fixture(scope="module")
def nets() -> list[tuple[MemberSettings, nn.Module]]:
    """Three small members of unlike bands and normalisations."""
    chosen = members(("small-effnet-4b-20k", "small-byob-3b", "small-resnet-4b-minmax"))
    return [(settings, trained_net(settings)) for settings in chosen]


def random_windows(count: int, shape: tuple[int, int] = (40, 50)) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator = np.random.default_rng(0)
    windows = [generator.integers(0, 12000, (4, *shape)).astype(np.uint16) for _ in range(count)]
    valid = [generator.random(shape) > 0.1 for _ in range(count)]
    return windows, valid


def straightforward(
    nets: list[tuple[MemberSettings, nn.Module]], window: np.ndarray, valid: np.ndarray
) -> list[np.ndarray]:
    """Each member's probability, the mean over both flips, by the net as it was trained."""
    found = []
    for settings, net in nets:
        pixels = window[[BANDS.index(band) for band in settings.bands]]
        scale = scale_of(pixels, valid, settings.bands, settings.normalisation)
        image = torch.from_numpy(normalise(pixels, valid, scale))[None]
        with torch.no_grad():
            both = torch.sigmoid(net(image)), torch.sigmoid(net(image.flip(-1))).flip(-1)
        found.append(((both[0] + both[1]) / 2)[0, 0].numpy())
    return found


@pytest.mark.parametrize("dtype_end", [12000, 65536])
def test_shared_inputs_are_to_the_bit_those_of_each_member_alone(dtype_end: int) -> None:
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, dtype_end, (3, 4, 33, 47)).astype(np.uint16)
    valid = generator.random((3, 33, 47)) > 0.2
    valid[1] = False
    valid[2] = True
    pixels[0, 2] = 777  # a constant band
    keys = [(BANDS, BAND_MAXIMUM), (BANDS[:3], BAND_MAXIMUM), (("B08", "B02"), MINMAX), (BANDS, MINMAX), (BANDS, FIXED)]
    found = shared_inputs(keys, BANDS, pixels, valid, CPU)
    assert list(found) == keys
    for (bands, normalisation), batch in found.items():
        assert batch.is_contiguous(memory_format=torch.channels_last)
        for i in range(3):
            own = pixels[i][[BANDS.index(band) for band in bands]]
            expected = normalise(own, valid[i], scale_of(own, valid[i], bands, normalisation))
            np.testing.assert_array_equal(batch[i].numpy().view(np.int32), expected.view(np.int32))


def test_result_of_a_window_does_not_depend_on_the_others_their_order_or_the_threads(
    nets: list[tuple[MemberSettings, nn.Module]],
) -> None:
    windows, valid = random_windows(7)
    ensembles = [
        Ensemble(nets, SETTINGS.model_copy(update={"threads": threads, "windows_per_pass": per_pass}), CPU)
        for threads, per_pass in ((1, 1), (2, 3), (5, 7))
    ]
    alone = [ensembles[0].layers([window], [mask])[0] for window, mask in zip(windows, valid, strict=True)]
    assert len({each.tobytes() for each in alone}) == 7
    for each in ensembles:
        together, backwards = each.layers(windows, valid), each.layers(windows[::-1], valid[::-1])[::-1]
        for one, two, three in zip(alone, together, backwards, strict=True):
            assert one.shape == (1, 40, 50)
            assert one.dtype == np.float32
            np.testing.assert_array_equal(one, two)
            np.testing.assert_array_equal(one, three)


def test_layers_are_mean_and_disagreement_of_the_straightforward_way(
    nets: list[tuple[MemberSettings, nn.Module]],
) -> None:
    windows, valid = random_windows(2, (64, 96))
    found = Ensemble(nets, SETTINGS, CPU, disagreement=True).layers(windows, valid)
    for window, mask, layers in zip(windows, valid, found, strict=True):
        maps = np.stack(straightforward(nets, window, mask)).astype(np.float64)
        assert layers.shape == (2, 64, 96)
        assert maps.std(0).max() > 0.01
        np.testing.assert_allclose(layers[0], maps.mean(0), atol=2e-5)
        np.testing.assert_allclose(layers[1], maps.std(0), atol=2e-5)


def test_passes_as_a_gpu_has_them_give_the_same_layers(
    nets: list[tuple[MemberSettings, nn.Module]], monkeypatch: pytest.MonkeyPatch
) -> None:
    windows, valid = random_windows(5)
    usual = Ensemble(nets, SETTINGS, CPU, disagreement=True, member_maps=True).layers(windows, valid)
    batched = Ensemble(nets, SETTINGS, CPU, disagreement=True, member_maps=True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(batched, "_on_cuda", True)
    monkeypatch.setattr(batched, "_per_pass", 3)
    found = batched.layers(windows, valid)
    assert len(found) == 5
    for one, two in zip(usual, found, strict=True):
        assert one.shape == (2 + len(nets), 40, 50)
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_layers_of_members_are_their_probabilities_and_change_none_of_the_others(
    nets: list[tuple[MemberSettings, nn.Module]],
) -> None:
    windows, valid = random_windows(3, (64, 96))
    plain = Ensemble(nets, SETTINGS, CPU, disagreement=True)
    apart = Ensemble(nets, SETTINGS, CPU, names=("a", "b", "c"), disagreement=True, member_maps=True)
    assert plain.layer_kinds(BANDS) == ("probability", "disagreement")
    assert apart.layer_kinds(BANDS) == ("probability", "disagreement", "member-a", "member-b", "member-c")
    without, found = plain.layers(windows, valid), apart.layers(windows, valid)
    for window, mask, two, five in zip(windows, valid, without, found, strict=True):
        np.testing.assert_array_equal(five[:2], two)
        np.testing.assert_allclose(five[2:], np.stack(straightforward(nets, window, mask)), atol=2e-5)
        np.testing.assert_array_equal((five[2] + five[3] + five[4]) / np.float32(3), five[0])


def test_layers_of_members_take_no_further_pass() -> None:
    seen: list[Tensor] = []
    nets = [(member(name=name), Watching(seen.append)) for name in "ab"]
    for asked in (False, True):
        seen.clear()
        Ensemble(nets, SETTINGS, CPU, member_maps=asked).layers(*random_windows(1))
        assert len(seen) == 2 * 2, "each member, each flip"


def test_member_without_its_bands_has_no_layer(nets: list[tuple[MemberSettings, nn.Module]]) -> None:
    windows, valid = random_windows(1)
    bands = ("B08", "B04", "B03")
    ensemble = Ensemble(nets, SETTINGS, CPU, member_maps=True)
    assert ensemble.layer_kinds(BANDS) == ("probability", *(f"member-{settings.name}" for settings, _ in nets))
    assert ensemble.layer_kinds(bands) == ("probability", "member-small-byob-3b")
    (found,) = ensemble.layers([windows[0][[3, 2, 1]]], valid, bands)
    assert found.shape == (2, 40, 50)
    np.testing.assert_array_equal(found[1], found[0])


def test_disagreement_of_members_that_agree_is_0() -> None:
    windows, valid = random_windows(1)
    alike = Ensemble([(member(), Brightness()), (member(), Brightness())], SETTINGS, CPU, disagreement=True)
    assert (alike.layers(windows, valid)[0][1] == 0).all()


def test_horizontal_flip_is_averaged() -> None:
    windows, valid = [np.full((4, 32, 32), 5000, np.uint16)], [np.ones((32, 32), bool)]
    straight = brightness(SETTINGS.model_copy(update={"horizontal_flip": False}), slope=0.1)
    ((one,),), ((both,),) = straight.layers(windows, valid), brightness(slope=0.1).layers(windows, valid)
    assert np.allclose(both, (one + one[:, ::-1]) / 2, atol=1e-6)
    assert not np.allclose(both, one)


def test_members_without_their_bands_are_left_out(nets: list[tuple[MemberSettings, nn.Module]]) -> None:
    ensemble = Ensemble(nets, SETTINGS, CPU)
    assert ensemble.bands == BANDS
    assert ensemble.usable(BANDS) == (tuple(settings.name for settings, _ in nets), ())
    assert ensemble.usable(("B08", "B04", "B03")) == (
        ("small-byob-3b",),
        ("small-effnet-4b-20k", "small-resnet-4b-minmax"),
    )
    assert ensemble.usable(("B02",))[0] == ()
    windows, valid = random_windows(1)
    subset = [window[[3, 2, 1]] for window in windows]
    (alone,) = Ensemble(nets[1:2], SETTINGS, CPU).layers([window[1:] for window in windows], valid)
    np.testing.assert_array_equal(ensemble.layers(subset, valid, bands=("B08", "B04", "B03"))[0], alone)
    with pytest.raises(ConfigError, match=r"no member can be used: bands found B02, B03; members use small-effnet"):
        ensemble.layers([window[:2] for window in windows], valid, bands=("B02", "B03"))


def test_no_window_gives_no_layer_and_seconds_in_nets_are_counted() -> None:
    ensemble = brightness()
    assert ensemble.layers([], []) == []
    assert ensemble.network_s == 0
    ensemble.layers(*random_windows(3))
    first = ensemble.network_s
    ensemble.layers(*random_windows(3))
    assert 0 < first < ensemble.network_s


@pytest.mark.parametrize(
    "name",
    ["small-effnet-4b-20k", "small-byob-4b", "small-resnet-4b-minmax", "lite0-4b", "v2b0-3b", "r34-3b", "b0-4b-30k"],
)
def test_rewritten_net_is_the_same_function_without_batch_normalisation(name: str) -> None:
    (settings,) = members((name,))
    net = trained_net(settings)
    image = torch.rand(2, len(settings.bands), 64, 96) * 2 - 1
    new = rewritten(net, len(settings.bands))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in new.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules()), "the net itself stays as it is"
    with torch.inference_mode():
        expected, found = net.double()(image.double()), new.double()(image.double())
    # In float64, so that only a mistake is left. The weights were folded in float32.
    assert expected.std() > 1e-3
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_batch_normalisation_of_what_others_take_too_stays() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 1, 1)
            self.norm, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(1)

        def forward(self, image: Tensor) -> Tensor:
            made = self.first(image)
            return self.last(self.second(torch.cat([self.norm(made) + made])))

    torch.manual_seed(0)
    net = Shared()
    net(torch.rand(8, 4, 32, 32) * 5)
    image = torch.rand(1, 4, 32, 32)
    new = rewritten(net, 4)
    assert [type(each) for each in (new.norm, new.last)] == [nn.BatchNorm2d, nn.Identity]
    with torch.inference_mode():
        torch.testing.assert_close(new(image), net.eval()(image))


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 4)])
def test_transposed_convolution_is_doubling_then_convolution_up_to_the_edges(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, small = torch.randn(3, 2, 3, 3, dtype=torch.float64), torch.randn(1, 2, *shape, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(small, scale_factor=2, mode="nearest"), weight, padding=1)
    found = F.conv_transpose2d(small, doubling_weight(weight), stride=2, padding=1)
    torch.testing.assert_close(found, expected)


def test_decoder_with_attention_stays() -> None:
    torch.manual_seed(0)
    net = smp.Unet("resnet18", encoder_weights=None, in_channels=3, decoder_attention_type="scse").eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(rewritten(net, 3)(image), net(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalisation", [BAND_MAXIMUM, MINMAX, FIXED])
def test_member_sees_of_a_window_what_it_saw_of_such_a_tile_in_training(normalisation: Normalisation) -> None:
    kind, maximum = normalisation.kind, normalisation.maximum
    settings = member(crop_px=64, **{"normalisation.kind": kind, "normalisation.maximum": maximum})
    seen: list[Tensor] = []
    nets = Ensemble([(settings, Watching(seen.append))], change(SETTINGS, {"horizontal_flip": False}), CPU)
    for size in ((64, 64), (50, 90)):  # the second is reflected up to a multiple of 32 px
        (tile,), _ = random_windows(1, size)
        tile[:, :5] = 0  # without data
        nets.layers([tile], [(tile != 0).any(0)])
        validated = ValidationTransform(settings)(tile, np.zeros(size, np.uint8), 0, 0).image
        torch.testing.assert_close(seen[-1][0], validated, rtol=0, atol=0)


def test_compiled_net_agrees_and_other_sizes_go_the_usual_way() -> None:
    (settings,) = members(("small-byob-4b",))
    nets = [(settings, trained_net(settings))]
    usual, compiled = (Ensemble(nets, change(SETTINGS, {"compile": value}), CPU) for value in (False, True))
    full, other = random_windows(2, (64, 64)), random_windows(2, (40, 90))
    for one, two in zip(usual.layers(*full), compiled.layers(*full), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    np.testing.assert_array_equal(usual.layers(*other), compiled.layers(*other))
    assert compiled.device_record()["compiled"] is True


def test_precision_is_what_was_asked_for_and_none_is_looked_up() -> None:
    assert scoring_dtype("bfloat16", CPU) == torch.bfloat16
    assert scoring_dtype("float32", CPU) == torch.float32
    with pytest.raises(ConfigError, match="float16 is for a GPU"):
        scoring_dtype("float16", CPU)
    with pytest.raises(ConfigError, match="precision"):
        change(SETTINGS, {"precision": "auto"})


def test_bfloat16_differs_from_float32_a_little(nets: list[tuple[MemberSettings, nn.Module]]) -> None:
    windows, valid = random_windows(1, (64, 64))
    (exact,) = Ensemble(nets, SETTINGS, CPU).layers(windows, valid)
    (rough,) = Ensemble(nets, change(SETTINGS, {"precision": "bfloat16"}), CPU).layers(windows, valid)
    assert 0 < np.abs(exact - rough).max() < 0.05


def test_record_of_the_device_is_plain_and_names_what_was_used() -> None:
    record = brightness(change(SETTINGS, {"precision": "bfloat16"})).device_record()
    assert json.loads(json.dumps(record)) == record
    assert record["dtype"] == "bfloat16"
    assert (record["windows_per_pass"], record["threads"], record["compiled"]) == (1, 2, False)
    assert record["torch"] == torch.__version__


def test_weights_that_are_gone_or_changed_are_the_callers_mistake(tmp_path: Path) -> None:
    trained = TrainedMember(name="m", fold=0, weights="w", sha256="0", settings=member(), score=0.5, epoch=1)
    manifest = EnsembleManifest(raytrain_version="1", shards="s", shards_digest="d", members=(trained,))
    with pytest.raises(ConfigError, match=r"w: no such file, but the ensemble names it as the weights of m"):
        Ensemble.load(str(tmp_path), manifest, SETTINGS, CPU)
    (tmp_path / "w").write_bytes(b"other weights")
    with pytest.raises(ConfigError, match=r"weights of member .*: sha256 is .*, but the ensemble names 0"):
        Ensemble.load(str(tmp_path), manifest, SETTINGS, CPU)
