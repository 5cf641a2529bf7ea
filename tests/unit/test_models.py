"""How a net is built: what its encoder starts from and how it fits the bands; the mirror of such weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raytrain import cli, storage
from raytrain.cluster.plan import check_claim, encoder_files, pinned, plan_runs, with_hashes
from raytrain.cluster.runs import RunSettings, TrainJob
from raytrain.config import MemberSettings, ShardSettings, change, parse
from raytrain.errors import ConfigError, WorkNotFinished
from raytrain.recipes import members
from raytrain.tiles.order import Position
from raytrain.tiles.reader import TileReader, select_tiles
from raytrain.training.batch_norm import over_all_ranks
from raytrain.training.checkpoint_files import CheckpointIndex, KeptCheckpoint, index_uri
from raytrain.training.encoder_files import EncoderFile, fetch
from raytrain.training.encoder_tensors import adapt_filters
from raytrain.training.loop import TrainingData, train_member
from raytrain.training.mirror import read_mirror
from raytrain.training.models import build_model
from raytrain.training.ranks import Ranks
from tests.making import shard_chips, tiny_member

EFFNET, BYOB, RESNET = "test_efficientnet.r160_in1k", "test_byobnet.r160_in1k", "test_resnet.r160_in1k"
RGB, FOUR, FIVE = ("B04", "B03", "B02"), ("B02", "B03", "B04", "B08"), ("B11", "B02", "B03", "B04", "B08")


def tiny(encoder: str = EFFNET, bands: tuple[str, ...] = FOUR, **changes: object) -> MemberSettings:
    return tiny_member(encoder=encoder, bands=bands, **{"epochs": 1, **changes})


def make_file(folder: Path, encoder: str) -> Path:
    """Write the tensors of timm's whole network, head and all, with statistics that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.rand(tensor.shape, generator=generator) + 0.5 if tensor.is_floating_point() else tensor
        for name, tensor in timm.create_model(encoder).state_dict().items()
    }
    save_file(tensors, folder / f"{encoder}.safetensors")
    return folder / f"{encoder}.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of weights of each encoder; not to be changed."""
    folder = tmp_path_factory.mktemp("encoders")
    return {encoder: make_file(folder, encoder) for encoder in (EFFNET, BYOB, RESNET)}


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **options: object) -> str:
        raise LocalEntryNotFoundError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)


def features(net: nn.Module, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(net.eval().encoder(image)[1:])  # type: ignore[operator]


@pytest.mark.parametrize("encoder", [EFFNET, BYOB, RESNET])
def test_encoder_with_weights_of_a_file_computes_what_timms_own_network_does(
    files: dict[str, Path], encoder: str
) -> None:
    net = build_model(tiny(encoder, RGB, encoder_weights=str(files[encoder])))
    theirs = timm.create_model(
        encoder, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(files[encoder])}
    ).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(image)
    found = features(net, image)
    assert len(found) == len(expected) == 5
    assert all(torch.equal(ours, other) for ours, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("encoder", [EFFNET, BYOB, RESNET])
@pytest.mark.parametrize("bands", [("B02", "B03", "B04"), ("B03", "B04", "B08"), FOUR, FIVE, ("B08",)])
def test_adapted_net_sees_a_grey_image_as_the_net_of_three_bands_does(
    files: dict[str, Path], encoder: str, bands: tuple[str, ...]
) -> None:
    weights = {"encoder_weights": str(files[encoder])}
    grey = torch.rand(1, 1, 64, 64)
    # Without red, green or blue the filters that are left are not all three: their mean stands for what is lacking.
    three, adapted = (build_model(tiny(encoder, each, **weights)) for each in (RGB, bands))
    if set(RGB) <= set(bands) or not set(RGB) & set(bands):
        expected = features(three, grey.expand(-1, 3, -1, -1))
        found = features(adapted, grey.expand(-1, len(bands), -1, -1))
        assert all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(found, expected, strict=True))
    name = {EFFNET: "conv_stem.weight", BYOB: "stem.conv.weight", RESNET: "conv1.0.weight"}[encoder]
    filters = load_file(files[encoder])[name]
    own = adapted.encoder.model.state_dict()[name]  # type: ignore[union-attr]
    for i, band in enumerate(bands):
        theirs = filters[:, RGB.index(band)] if band in RGB else filters.mean(1)
        assert torch.allclose(own[:, i], theirs * 3 / len(bands), rtol=1e-6)


def test_three_visible_bands_in_any_order_are_a_permutation_bit_by_bit(files: dict[str, Path]) -> None:
    straight = build_model(tiny(bands=RGB, encoder_weights=str(files[EFFNET])))
    for bands in (("B02", "B03", "B04"), ("B03", "B02", "B04")):
        for how in ("adapted", "random"):
            settings = tiny(bands=bands, encoder_weights=str(files[EFFNET]), first_convolution=how)
            own = build_model(settings).encoder.model.conv_stem.weight  # type: ignore[union-attr]
            theirs = straight.encoder.model.conv_stem.weight  # type: ignore[union-attr]
            assert torch.equal(own[:, [bands.index(band) for band in RGB]], theirs)


def test_adaptation_of_known_filters_gives_known_filters() -> None:
    filters = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)
    for bands, expected in (
        (RGB, [1, 2, 6]),
        (("B02", "B03", "B04"), [6, 2, 1]),
        (("B03", "B04", "B08"), [2, 1, 3]),
        (FOUR, [4.5, 1.5, 0.75, 2.25]),
        (FIVE, [1.8, 3.6, 1.2, 0.6, 1.8]),
    ):
        assert adapt_filters(filters, bands).flatten().tolist() == pytest.approx(expected)


def test_random_first_convolution_is_the_fresh_one_and_all_else_is_the_files(files: dict[str, Path]) -> None:
    torch.manual_seed(5)
    fresh = build_model(tiny()).state_dict()
    torch.manual_seed(5)
    settings = tiny(encoder_weights=str(files[EFFNET]), first_convolution="random")
    found = build_model(settings).state_dict()
    torch.manual_seed(5)
    adapted = build_model(change(settings, {"first_convolution": "adapted"})).state_dict()
    theirs = load_file(files[EFFNET])
    for name, tensor in found.items():
        own = name.removeprefix("encoder.model.")
        from_file = own != name and own != "conv_stem.weight"
        assert torch.equal(tensor, theirs[own] if from_file else fresh[name]), name
        assert torch.equal(tensor, adapted[name]) == (own != "conv_stem.weight"), name


def test_file_is_read_by_path_by_file_uri_and_from_a_store_alike(files: dict[str, Path], s3: str) -> None:
    uri = storage.join(s3, "encoders", files[EFFNET].name)
    storage.write_bytes(uri, files[EFFNET].read_bytes())
    found = []
    for place in (str(files[EFFNET]), f"file://{files[EFFNET]}", uri):
        torch.manual_seed(0)
        found.append(build_model(tiny(encoder_weights=place)).state_dict())
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in found[0])
    assert torch.equal(found[0]["encoder.model.bn1.bias"], load_file(files[EFFNET])["bn1.bias"])


def test_half_precision_and_lacking_counters_are_taken(files: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(files[EFFNET])
    half = {name: tensor.half() for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    assert len(half) < len(tensors)
    save_file(half, tmp_path / "half.safetensors")
    own = build_model(tiny(encoder_weights=str(tmp_path / "half.safetensors"))).encoder.model  # type: ignore[union-attr]
    assert torch.equal(own.bn1.bias, tensors["bn1.bias"].half().float())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            "missing",
            r"bad\.safetensors: lacks bn1\.weight \(\d+ tensors in all\): not the weights of encoder 'test_eff",
        ),
        ("shape", r"bad\.safetensors: has tensors of other shapes: bn1\.weight is \[3\], expected \[\d+\]"),
        ("channels", r"other shapes: conv_stem\.weight is \[\d+, 4, 3, 3\], expected \[\d+, 3, 3, 3\]"),
        ("foreign", r"bad\.safetensors: also has blocks\.9\.0\.extra"),
        ("torn", r"bad\.safetensors: damaged or not a safetensors file \(\d+ bytes\)"),
        ("empty", r"bad\.safetensors: damaged or not a safetensors file \(0 bytes\)"),
        ("pickle", r"bad\.safetensors: damaged or not a safetensors file"),
        ("absent", r"no such file of encoder weights: .*bad\.safetensors"),
        ("folder", r"bad\.safetensors: a folder, expected a \.safetensors file"),
    ],
)
def test_file_that_does_not_fit_is_refused_by_name(
    files: dict[str, Path], tmp_path: Path, spoil: str, message: str
) -> None:
    bad, tensors, whole = tmp_path / "bad.safetensors", load_file(files[EFFNET]), files[EFFNET].read_bytes()
    stem = tensors["conv_stem.weight"]
    if spoil == "missing":
        save_file({name: tensor for name, tensor in tensors.items() if name != "bn1.weight"}, bad)
    elif spoil == "shape":
        save_file({**tensors, "bn1.weight": torch.ones(3)}, bad)
    elif spoil == "channels":
        save_file({**tensors, "conv_stem.weight": torch.cat([stem, stem[:, :1]], 1)}, bad)
    elif spoil == "foreign":
        save_file({**tensors, "blocks.9.0.extra": torch.ones(3)}, bad)
    elif spoil == "pickle":
        torch.save(tensors, bad)
    elif spoil == "folder":
        bad.mkdir()
    elif spoil != "absent":
        bad.write_bytes(whole[: len(whole) // 2] if spoil == "torn" else b"")
    with pytest.raises(ConfigError, match=message):
        build_model(tiny(encoder_weights=str(bad)))


def test_weights_of_another_encoder_are_refused(files: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"lacks .* and \d+ more \(.*not the weights of encoder 'test_efficientnet"):
        build_model(tiny(encoder_weights=str(files[BYOB])))


@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights.pt", "weights"])
def test_pickled_weights_are_refused_unread(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80")
    with pytest.raises(ConfigError, match=r"expected weights as \*\.safetensors .*pickled"):
        build_model(tiny(encoder_weights=str(tmp_path / name)))


def test_timms_weights_come_from_the_hub_by_their_tag(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(files[EFFNET])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = build_model(tiny(encoder_weights="timm")).state_dict()
    assert asked == [(f"timm/{EFFNET}", "model.safetensors")]
    assert torch.equal(found["encoder.model.bn1.bias"], load_file(files[EFFNET])["bn1.bias"])
    assert timm.models.get_pretrained_cfg(EFFNET).hf_hub_id == f"timm/{EFFNET}", "timm keeps them elsewhere"


def test_all_published_encoders_have_their_place_on_timms_hub() -> None:
    for member in members(("all", "lite0-4b")):
        config = timm.models.get_pretrained_cfg(member.encoder)
        assert config.hf_hub_id == f"timm/{member.encoder}"
        assert isinstance(config.first_conv, str)


@pytest.mark.parametrize(
    "error",
    [ConnectionError("no route"), LocalEntryNotFoundError("no route"), httpx2.ConnectTimeout("no route")],
    ids=lambda error: type(error).__name__,
)
def test_hub_out_of_reach_is_no_mistake_of_the_caller(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def unreachable(*arguments: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(WorkNotFinished, match=rf"can't fetch pretrained weights of '{EFFNET}' .*no route.*--weights"):
        build_model(tiny(encoder_weights="timm"))


def test_encoder_that_the_hub_has_not_is_a_mistake_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*arguments: object) -> str:
        response = httpx2.Response(404, request=httpx2.Request("GET", "https://hub"))
        raise RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    with pytest.raises(ConfigError, match=r"timm's hub has no model\.safetensors of encoder 'test_eff.*full tag"):
        build_model(tiny(encoder_weights="timm"))


@pytest.mark.parametrize(
    ("name", "digest"), [("small-effnet-4b-20k", "ce710d2d8b1d44f2"), ("small-byob-3b", "8538d140e8c513f3")]
)
def test_first_weights_of_the_small_members_stay_what_they_were(name: str, digest: str) -> None:
    """The scores of the demo hang on them."""
    torch.manual_seed(0)
    found = hashlib.sha256()
    for key, tensor in build_model(members((name,))[0]).state_dict().items():
        found.update(key.encode() + tensor.numpy().tobytes())
    assert found.hexdigest()[:16] == digest


def test_decoder_without_normalisation_has_biases_and_no_batch_norm() -> None:
    with_norm, without = (build_model(tiny(decoder_norm=wanted)) for wanted in (True, False))
    norms = [sum(isinstance(each, nn.BatchNorm2d) for each in net.decoder.modules()) for net in (with_norm, without)]  # type: ignore[union-attr]
    assert norms == [10, 0]
    convolutions = [each for each in without.decoder.modules() if isinstance(each, nn.Conv2d)]  # type: ignore[union-attr]
    assert len(convolutions) == 10
    assert all(each.bias is not None for each in convolutions)


# ---- the mirror


def mirror(files: dict[str, Path], folder: Path | str, *encoders: str) -> int:
    return cli.main(["weights", str(folder), "--file", *(f"{encoder}={files[encoder]}" for encoder in encoders)])


def test_mirror_has_the_files_byte_by_byte_and_says_what_they_are(
    files: dict[str, Path], s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (str(tmp_path / "mirror"), storage.join(s3, "mirror")):
        assert mirror(files, folder, EFFNET, BYOB) == 0
        assert "2 encoders" in capsys.readouterr().out
        found = json.loads(storage.read_bytes(storage.join(folder, "weights.json")))["encoders"]
        assert set(found) == {EFFNET, BYOB}
        for encoder, entry in found.items():
            data = files[encoder].read_bytes()
            assert storage.read_bytes(storage.join(folder, entry["file"])) == data
            assert entry == {
                "file": f"{encoder}.safetensors",
                "sha256": storage.sha256_of(data),
                "bytes": len(data),
                "timm_tag": encoder,
                "source": str(files[encoder]),
            }


def test_rerun_writes_only_what_is_missing_or_damaged(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mirror(files, tmp_path, EFFNET, BYOB) == 0
    effnet, byob = (tmp_path / f"{encoder}.safetensors" for encoder in (EFFNET, BYOB))
    before = effnet.stat().st_mtime_ns
    byob.write_bytes(byob.read_bytes()[:100])
    capsys.readouterr()
    assert mirror(files, tmp_path, EFFNET, BYOB, RESNET) == 0
    assert "3 encoders" in (shown := capsys.readouterr().out)
    assert "(there before: 1)" in shown
    assert effnet.stat().st_mtime_ns == before
    assert byob.read_bytes() == files[BYOB].read_bytes()
    byob.unlink()
    assert mirror(files, tmp_path, BYOB) == 0
    assert byob.read_bytes() == files[BYOB].read_bytes()
    assert set(read_mirror(str(tmp_path)).encoders) == {EFFNET, BYOB, RESNET}, "what it had of others stays"


def test_mirror_takes_the_encoders_of_members_from_the_hub_once_each(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def download(repository: str, name: str) -> str:
        asked.append(repository)
        return str(files[repository.removeprefix("timm/")])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for _ in range(2):
        assert cli.main(["weights", str(tmp_path), "--members", "small", "--json"]) == 0
    assert asked == [f"timm/{EFFNET}", f"timm/{BYOB}"]
    entry = read_mirror(str(tmp_path)).encoders[EFFNET]
    assert entry.source == f"hf://timm/{EFFNET}/model.safetensors"
    text = capsys.readouterr().out
    assert json.loads(text[text.rindex('{\n "uri"') :])["skipped"] == [EFFNET, BYOB]


@pytest.mark.usefixtures("no_hub")
def test_mirror_that_was_cut_off_by_the_hub_goes_on(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["weights", str(tmp_path), "--members", "small", "--file", f"{EFFNET}={files[EFFNET]}"]
    assert cli.main(arguments) == 3
    assert f"can't fetch pretrained weights of '{BYOB}' from timm's hub" in capsys.readouterr().err
    assert set(read_mirror(str(tmp_path)).encoders) == {EFFNET}
    assert cli.main([*arguments, f"{BYOB}={files[BYOB]}"]) == 0
    assert set(read_mirror(str(tmp_path)).encoders) == {EFFNET, BYOB}


def test_mirror_refuses_what_is_no_encoders_weights(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "mirror"
    for name in ("weights.pth", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"\x80")
        assert cli.main(["weights", str(target), "--file", f"{EFFNET}={tmp_path / name}"]) == 2
        assert "pickled" in capsys.readouterr().err
    for given, message in (
        (f"{EFFNET}={files[BYOB]}", "not the weights of encoder 'test_efficientnet.r160_in1k'"),
        (f"resnet1000={files[BYOB]}", "can't build encoder 'resnet1000'"),
        ("nothing", "expected ENCODER=FILE, found 'nothing'"),
        (f"../up={files[BYOB]}", "expected ENCODER=FILE"),
        (f"{EFFNET}={tmp_path}/absent.safetensors", "no such file of encoder weights"),
    ):
        assert cli.main(["weights", str(target), "--file", given]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
    assert not target.exists()


def test_mirror_keeps_the_weights_that_runs_may_have_begun_with(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mirror(files, tmp_path / "mirror", EFFNET) == 0
    tensors = load_file(files[EFFNET])
    save_file({**tensors, "bn1.bias": tensors["bn1.bias"] + 1}, tmp_path / "other.safetensors")
    assert mirror({EFFNET: tmp_path / "other.safetensors"}, tmp_path / "mirror", EFFNET) == 2
    assert "name another destination" in capsys.readouterr().err
    assert (tmp_path / "mirror" / f"{EFFNET}.safetensors").read_bytes() == files[EFFNET].read_bytes()


# ---- what a training does with them


@pytest.fixture(scope="module")
def shards(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    shard_chips(chips, folder, ShardSettings(folds="3"))
    return str(folder)


def plan(shards: str, out: Path, weights: Path | None = None, **changes: object) -> tuple[RunSettings, EncoderFile]:
    """Return the run of one member as `train` plans it, and the file that its ranks are told."""
    settings = {"global_batch": 4, "crop_px": 32, **changes}
    job = TrainJob(shards=shards, out=str(out), members=("small-effnet-4b-20k",), changes=settings)
    runs = plan_runs(job)
    found = encoder_files(runs, None if weights is None else str(weights))
    (run,) = with_hashes(str(out), runs, found)
    file = pinned(found, run)
    assert file is not None
    return run, file


def begin(out: Path, run: RunSettings) -> None:
    """Leave what a run that has learnt something leaves."""
    storage.write_bytes(str(out / run.name / "run.json"), run.model_dump_json().encode())
    kept = KeptCheckpoint("epoch-0001-00000000", Position(1), True, None, 0.0, 0.0, 1)
    index = json.dumps(asdict(CheckpointIndex(1, "", (kept,))))
    storage.write_bytes(index_uri(str(out / run.name), 1), index.encode())


@pytest.mark.usefixtures("no_hub")
def test_training_from_a_mirror_asks_no_hub_and_starts_from_its_weights(
    files: dict[str, Path], shards: str, tmp_path: Path
) -> None:
    assert mirror(files, tmp_path / "mirror", EFFNET) == 0
    run, file = plan(shards, tmp_path / "out", tmp_path / "mirror", encoder_weights="timm", crops_per_tile=1, epochs=1)
    assert file.uri == str(tmp_path / "mirror" / f"{EFFNET}.safetensors")
    assert run.encoder_weights_sha256 == file.sha256 == storage.sha256_of(files[EFFNET].read_bytes())
    assert parse(RunSettings, json.loads(run.model_dump_json())) == run
    reader = TileReader(shards, run.member.bands)
    data = TrainingData(reader, select_tiles(reader, 0, "train"), select_tiles(reader, 0, "validation"))
    still = change(run.member, {"optimiser.lr": 1e-30, "optimiser.schedule": "constant"})
    state = train_member(still, data, Ranks(), lambda *_: None, encoder_file=file)
    own = state.net.state_dict()["encoder.model.blocks.0.0.conv.weight"]
    assert torch.equal(own, load_file(files[EFFNET])["blocks.0.0.conv.weight"])


def test_mirror_without_the_encoder_is_refused_by_its_name(
    files: dict[str, Path], shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mirror(files, tmp_path / "mirror", BYOB) == 0
    capsys.readouterr()
    arguments = ["train", "--shards", shards, "--out", str(tmp_path / "out"), "--members", "small-effnet-4b-20k"]
    arguments += ["--set", "global_batch=4", "encoder_weights=timm", "--weights"]
    assert cli.main([*arguments, str(tmp_path / "mirror")]) == 2
    message = capsys.readouterr().err
    assert f"has no weights of encoder '{EFFNET}'; it has {BYOB}" in message
    assert cli.main([*arguments, str(tmp_path / "nowhere")]) == 2
    assert "no mirror of weights there; `raytrain weights" in capsys.readouterr().err
    assert cli.main([*arguments, str(tmp_path / "mirror"), "--set", "global_batch=4", "encoder_weights=random"]) == 2
    assert "no member asks for timm's weights" in capsys.readouterr().err


def test_hub_out_of_reach_ends_a_training_before_it_starts(
    shards: str, tmp_path: Path, no_hub: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--shards", shards, "--out", str(tmp_path), "--members", "small-effnet-4b-20k"]
    assert cli.main([*arguments, "--set", "global_batch=4", "encoder_weights=timm"]) == 3
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "can't fetch pretrained weights" in line
    assert list(tmp_path.iterdir()) == []


def test_run_goes_on_with_the_weights_it_began_with_and_with_no_others(
    files: dict[str, Path], shards: str, tmp_path: Path
) -> None:
    own, out = Path(shutil.copy(files[EFFNET], tmp_path / "own.safetensors")), tmp_path / "out"
    run, file = plan(shards, out, encoder_weights=str(own))
    assert run.encoder_weights_sha256 == storage.sha256_of(own.read_bytes())
    begin(out, run)
    check_claim(str(out / run.name), plan(shards, out, encoder_weights=f"file://{own}")[0])
    tensors = load_file(own)
    save_file({**tensors, "bn1.bias": tensors["bn1.bias"] + 1}, own)
    with pytest.raises(ConfigError, match=r"begun with other settings \(encoder_weights_sha256: .* -> .*\)"):
        check_claim(str(out / run.name), plan(shards, out, encoder_weights=str(own))[0])
    with pytest.raises(ConfigError, match=r"own\.safetensors: sha256 is .*, expected .* changed or are damaged"):
        fetch(file)


def test_run_begun_from_the_hub_goes_on_without_it_and_from_a_mirror_of_the_same_weights(
    files: dict[str, Path], shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: str(files[EFFNET]))
    run, file = plan(shards, out, encoder_weights="timm")
    assert (file.uri, file.sha256) == (None, storage.sha256_of(files[EFFNET].read_bytes()))
    begin(out, run)

    def unreachable(*arguments: object) -> str:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    assert plan(shards, out, encoder_weights="timm") == (run, file)
    with pytest.raises(WorkNotFinished):
        plan(shards, tmp_path / "fresh", encoder_weights="timm")
    assert mirror(files, tmp_path / "mirror", EFFNET) == 0
    again, _ = plan(shards, out, tmp_path / "mirror", encoder_weights="timm")
    assert again == run
    check_claim(str(out / run.name), again)


def test_relative_path_of_weights_is_made_absolute_for_the_ranks(
    files: dict[str, Path],
    shards: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(files[EFFNET], tmp_path / "own.safetensors")
    monkeypatch.chdir(tmp_path)
    run, file = plan(shards, tmp_path / "out", encoder_weights="own.safetensors")
    assert run.member.encoder_weights == file.uri == str(tmp_path / "own.safetensors")
    monkeypatch.setattr("sys.argv", ["train", "--shards", "/a", "--out", "/b", "--set", "encoder_weights=own.x"])
    assert cli.job("train") == 2
    assert "own.x: a job needs s3://... or an absolute path" in capsys.readouterr().err


def test_settings_of_earlier_versions_are_refused_by_the_name_that_is_gone() -> None:
    values = members(("small-byob-3b",))[0].model_dump(mode="json") | {"pretrained": False}
    with pytest.raises(ConfigError, match=r"run\.json: pretrained: Extra inputs are not permitted \(found False\)"):
        parse(MemberSettings, values, "run.json")
    with pytest.raises(ConfigError, match=r"unknown setting 'pretrained'; known are .*encoder_weights"):
        change(members(("small-byob-3b",))[0], {"pretrained": False})


@pytest.mark.parametrize("encoder", [EFFNET, BYOB])
def test_batch_norm_of_gpu_ranks_is_torchs_own_everywhere_and_keeps_what_timm_fused(encoder: str) -> None:
    """Only its forward pass needs GPUs; that all layers are converted can be seen without."""
    plain = build_model(tiny(encoder))
    parts = {key: part for key, part in plain.named_modules() if isinstance(part, nn.BatchNorm2d)}
    converted = over_all_ranks(build_model(tiny(encoder)), Ranks(0, 2, torch.device("cuda", 0)))
    found = dict(converted.named_modules())
    assert parts
    for key, part in parts.items():
        assert isinstance(found[key], nn.SyncBatchNorm)
        assert (found[key].eps, found[key].momentum) == (part.eps, part.momentum)
        assert type(getattr(found[key], "act", None)) is type(getattr(part, "act", None))
    assert list(converted.state_dict()) == list(plain.state_dict())


def test_encoder_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="can't build encoder 'resnet1000'"):
        build_model(tiny(encoder="resnet1000"))
