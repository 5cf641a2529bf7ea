"""Masks do not depend on how a scene is cut or a batch is filled; a unit done is not done again."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.errors import RasterioError
from rio_cogeo.cogeo import cog_validate
from torch import Tensor, nn

from raytrain import storage
from raytrain.config import MemberSettings, ScoreSettings, change
from raytrain.errors import ConfigError, DataError
from raytrain.recipes import members
from raytrain.scoring.ensemble import Ensemble
from raytrain.scoring.manifest import EnsembleManifest, TrainedMember, read_manifest, write_manifest
from raytrain.scoring.scenes import blended_strips, score_scene
from raytrain.scoring.units import (
    Scoring,
    check_destination,
    chip_units,
    claim_destination,
    finished_units,
    remove_masks,
    scene_units,
    score_unit,
)
from raytrain.tiles.archive import open_archive

SETTINGS = ScoreSettings(window_px=64, overlap_px=16, windows_per_pass=3, threads=1)
BANDS = ("B02", "B03", "B04", "B08")


def member(**changes: object) -> MemberSettings:
    return change(members(("small-effnet-4b-20k",))[0], {"normalisation.maximum": 10000, **changes})


class Brightness(nn.Module):
    """A member that a test can foresee: the logit is the mean of the bands, minus a bit in the columns on the right."""

    def __init__(self, slope: float = 0.0) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, image: Tensor) -> Tensor:
        columns = torch.arange(image.shape[-1], dtype=torch.float32)
        return 8 * image.mean(1, keepdim=True) + self.slope * columns


def ensemble(settings: ScoreSettings = SETTINGS, slope: float = 0.0) -> Ensemble:
    return Ensemble([(member(), Brightness(slope))], settings, torch.device("cpu"))


def write_scene(path: Path, pixels: np.ndarray, **profile: object) -> str:
    profile = {"crs": "EPSG:32636", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 4e6), "nodata": 0, **profile}
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", dtype=pixels.dtype.name, count=count, height=height, width=width, **profile
    ) as target:
        target.write(pixels)
        for i, band in enumerate(BANDS[:count]):
            target.set_band_description(i + 1, band)
    return str(path)


def random_scene(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 9000, (4, *shape)).astype(np.uint16)


@pytest.mark.parametrize("shape", [(64, 64), (200, 333), (30, 50), (65, 64), (1, 1)])
def test_constant_scene_gives_a_constant_and_strips_cover_every_row_once(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    uri = write_scene(tmp_path / "s.tif", np.full((4, *shape), 7000, np.uint16))
    with rasterio.open(uri) as source:
        strips = list(blended_strips(source, [1, 2, 3, 4], ensemble(), SETTINGS))
    probability = np.concatenate([strip.probability for strip in strips])
    assert probability.shape == shape
    assert [strip.row for strip in strips] == np.cumsum([0, *(len(s.probability) for s in strips)])[:-1].tolist()
    assert probability.dtype == np.float32
    assert np.allclose(probability, probability[0, 0], atol=1e-6)
    assert probability[0, 0] == pytest.approx(1 / (1 + np.exp(-8 * 0.4)), abs=1e-5)


def test_pixelwise_member_is_not_changed_by_windows(tmp_path: Path) -> None:
    pixels = random_scene((150, 170))
    uri = write_scene(tmp_path / "s.tif", pixels)
    with rasterio.open(uri) as source:
        strips = list(blended_strips(source, [1, 2, 3, 4], ensemble(), SETTINGS))
    found = np.concatenate([strip.probability for strip in strips])
    expected = 1 / (1 + np.exp(-8 * (pixels.astype(np.float64).mean(0) / 5000 - 1)))
    assert np.abs(found - expected).max() < 1e-5


def test_memory_is_that_of_some_rows_of_a_scene(tmp_path: Path) -> None:
    # Each constant block compresses to nothing; as one array the four bands would take 17 MB.
    shape = (8192, 256)
    uri = write_scene(tmp_path / "s.tif", np.full((4, *shape), 7000, np.uint16), compress="deflate", tiled=True)
    net = ensemble()
    tracemalloc.start()
    score_scene(uri, str(tmp_path / "m.tif"), net, SETTINGS)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 0.1 * np.prod(shape) * 4 * 2


def test_mask_is_a_cog_with_the_sources_place_and_no_data(tmp_path: Path) -> None:
    pixels = random_scene((200, 150))
    pixels[:, 20:40] = 0
    pixels[2, 100, 100] = 0
    uri = write_scene(tmp_path / "s.tif", pixels)
    sha256 = score_scene(uri, str(tmp_path / "out" / "m.tif"), ensemble(), SETTINGS)
    path = tmp_path / "out" / "m.tif"
    assert storage.sha256_of(path.read_bytes()) == sha256
    assert cog_validate(path)[0]
    with rasterio.open(path) as mask, rasterio.open(uri) as source:
        values = mask.read(1)
        assert (mask.crs, mask.transform, mask.shape) == (source.crs, source.transform, source.shape)
        assert mask.nodata == 255
    assert (values[20:40] == 255).all()
    assert values[100, 100] == 255
    assert (values == 255).sum() == 20 * 150 + 1
    clear = pixels.astype(np.float64).mean(0) < 4999
    assert (values[clear & (values != 255)] == 0).all()


def test_scene_of_no_data_is_all_255_and_asks_no_net(tmp_path: Path) -> None:
    uri = write_scene(tmp_path / "s.tif", np.zeros((4, 100, 100), np.uint16))

    class Forbidden(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            raise AssertionError("no net is asked about no data")

    nets = Ensemble([(member(), Forbidden())], SETTINGS, torch.device("cpu"))
    score_scene(uri, str(tmp_path / "m.tif"), nets, SETTINGS)
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert (mask.read(1) == 255).all()


def test_scene_without_place_is_scored(tmp_path: Path) -> None:
    uri = write_scene(tmp_path / "s.tif", random_scene((70, 70)), crs=None, transform=rasterio.Affine.identity())
    score_scene(uri, str(tmp_path / "m.tif"), ensemble(), SETTINGS)
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert mask.crs is None


def test_scene_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    three = write_scene(tmp_path / "three.tif", random_scene((64, 64))[:3])
    with pytest.raises(DataError, match=r"three\.tif: no band B08 \(bands found: B02, B03, B04\)"):
        score_scene(three, str(tmp_path / "m.tif"), ensemble(), SETTINGS)
    bytes_ = write_scene(tmp_path / "bytes.tif", random_scene((64, 64)).astype(np.uint8))
    with pytest.raises(DataError, match="expected uint16, found uint8"):
        score_scene(bytes_, str(tmp_path / "m.tif"), ensemble(), SETTINGS)
    whole = write_scene(tmp_path / "whole.tif", random_scene((300, 300)))
    data = Path(whole).read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 3])
    with pytest.raises(DataError, match=r"cut\.tif: scene is not a readable GeoTIFF"):
        score_scene(str(tmp_path / "cut.tif"), str(tmp_path / "m.tif"), ensemble(), SETTINGS)
    assert not (tmp_path / "m.tif").exists()


@pytest.mark.parametrize("kind", ["band-maximum", "minmax"])
def test_result_of_a_window_does_not_depend_on_the_others_in_its_pass(kind: str) -> None:
    settings = member(**{"normalisation.kind": kind, "normalisation.maximum": None})
    torch.manual_seed(0)
    from raytrain.training.models import build_model

    nets = Ensemble([(settings, build_model(settings))], SETTINGS, torch.device("cpu"))
    windows = [random_scene((40, 50)) + np.uint16(i) for i in range(7)]
    valid = [np.ones((40, 50), bool)] * 7
    together = nets.probabilities(windows, valid)
    alone = [nets.probabilities([window], [mask])[0] for window, mask in zip(windows, valid, strict=True)]
    backwards = nets.probabilities(windows[::-1], valid)[::-1]
    for one, two, three in zip(together, alone, backwards, strict=True):
        assert one.shape == (40, 50)
        assert (one == two).all()
        assert (one == three).all()


def test_horizontal_flip_is_averaged() -> None:
    windows, valid = [np.full((4, 32, 32), 5000, np.uint16)], [np.ones((32, 32), bool)]
    straight = ensemble(SETTINGS.model_copy(update={"horizontal_flip": False}), slope=0.1)
    (one,), (both,) = straight.probabilities(windows, valid), ensemble(slope=0.1).probabilities(windows, valid)
    assert np.allclose(both, (one + one[:, ::-1]) / 2, atol=1e-6)
    assert not np.allclose(both, one)


def test_members_with_other_bands_get_theirs_and_are_averaged() -> None:
    nir = change(members(("small-byob-3b",))[0], {"bands": ["B08"], "normalisation.kind": "minmax"})
    both = Ensemble([(member(), Brightness()), (nir, Brightness())], SETTINGS, torch.device("cpu"))
    assert both.bands == BANDS
    window, mask = random_scene((32, 32)), np.ones((32, 32), bool)
    first = ensemble().probabilities([window], [mask])[0]
    second = Ensemble([(nir, Brightness())], SETTINGS, torch.device("cpu")).probabilities([window[3:]], [mask])[0]
    assert np.allclose(both.probabilities([window], [mask])[0], (first + second) / 2, atol=1e-6)


def test_chips_become_masks_of_0_and_1_and_a_rerun_writes_the_same_bytes(chips: Path, tmp_path: Path) -> None:
    archive = open_archive(str(chips), BANDS, for_training=False)
    (unit,) = chip_units(archive.chips)
    entry = score_unit(unit, str(tmp_path), ensemble(), SETTINGS)
    assert not entry.problems
    assert set(entry.outputs) == {chip.chip_id for chip in archive.chips}
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    for chip in archive.chips:
        with rasterio.open(tmp_path / f"{chip.chip_id}.tif") as mask, rasterio.open(chip.bands["B02"]) as source:
            assert set(np.unique(mask.read())) <= {0, 1}
            assert (mask.crs, mask.transform, mask.count) == (source.crs, source.transform, 1)
    assert finished_units(str(tmp_path), [unit]) == {unit.unit_id: entry}
    score_unit(unit, str(tmp_path), ensemble(), SETTINGS)
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    (tmp_path / f"{archive.chips[5].chip_id}.tif").unlink()
    assert finished_units(str(tmp_path), [unit]) == {}, "a mask is gone, so the unit is to be done again"


def test_bad_chip_is_a_problem_and_the_others_are_scored(own_chips: Path, tmp_path: Path) -> None:
    archive = open_archive(str(own_chips), BANDS, for_training=False)
    bad = archive.chips[3]
    Path(bad.bands["B04"]).write_bytes(b"II*\x00 nothing")
    (unit,) = chip_units(archive.chips)
    entry = score_unit(unit, str(tmp_path), ensemble(), SETTINGS)
    assert [subject for subject, _ in entry.problems] == [bad.chip_id]
    assert "B04" in entry.problems[0][1]
    assert len(entry.outputs) == 11
    assert finished_units(str(tmp_path), [unit]) == {}, "the chip may have been mended"


def test_chip_gone_bad_keeps_no_mask_of_its_former_pixels(own_chips: Path, tmp_path: Path) -> None:
    (unit,) = chip_units(open_archive(str(own_chips), BANDS, for_training=False).chips)
    out = tmp_path / "masks"
    assert len(score_unit(unit, str(out), ensemble(), SETTINGS).outputs) == 12
    bad = unit.items[3]
    Path(bad.sources["B04"]).write_bytes(b"")
    assert score_unit(unit, str(out), ensemble(), SETTINGS).problems == ((bad.item_id, "B04: an empty file (0 bytes)"),)
    assert not (out / f"{bad.item_id}.tif").exists()
    assert len(list(out.glob("*.tif"))) == 11


def test_scene_that_cannot_be_read_is_a_problem_and_a_full_disk_is_not(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(scenes / "scenes", tmp_path / "scenes"))
    first, second = scene_units(str(source))
    for bad in (b"", b"II*\x00 nothing", Path(first.items[0].sources["scene"]).read_bytes()[:-3000]):
        Path(first.items[0].sources["scene"]).write_bytes(bad)
        ((item_id, found),) = score_unit(first, str(tmp_path / "out"), ensemble(), SETTINGS).problems
        assert item_id == first.items[0].item_id
        assert "is not a readable GeoTIFF" in found

    def full(*arguments: object, **options: object) -> None:
        raise RasterioError("No space left on device")

    monkeypatch.setattr("raytrain.scoring.scenes._write_strip", full)
    with pytest.raises(RasterioError):
        score_unit(second, str(tmp_path / "out"), ensemble(), SETTINGS)
    assert not list((tmp_path / "out").glob("*.tif"))


def test_scenes_of_one_name_in_two_folders_are_refused(scenes: Path, tmp_path: Path) -> None:
    for year in ("2020", "2021"):
        shutil.copytree(scenes / "scenes", tmp_path / "scenes" / year)
    with pytest.raises(ConfigError, match=r"scenes/2020/.*\.tif lies deeper than"):
        scene_units(str(tmp_path))
    assert len(scene_units(str(tmp_path / "scenes" / "2020"))) == 2


def test_scene_units_never_take_the_labels(scenes: Path) -> None:
    units = scene_units(str(scenes))
    assert [unit.items[0].item_id for unit in units] == sorted(path.stem for path in (scenes / "scenes").glob("*.tif"))
    assert len(units) == 2


def test_destination_of_another_ensemble_or_other_settings_is_refused(tmp_path: Path) -> None:
    other = Scoring(source="s", ensemble="b", settings=SETTINGS)
    claim_destination(str(tmp_path), other)
    ours = Scoring(source="s", ensemble="a", settings=SETTINGS)
    check_destination(str(tmp_path), ours, [])  # nothing was made yet
    claim_destination(str(tmp_path), ours)
    (tmp_path / "scene.tif").write_bytes(b"a mask")
    check_destination(str(tmp_path), ours, [])
    with pytest.raises(ConfigError, match="ensemble: a -> b"):
        check_destination(str(tmp_path), other, [])
    with pytest.raises(ConfigError, match=r"settings\.threshold: 0\.5 -> 0\.4"):
        check_destination(
            str(tmp_path), Scoring(source="s", ensemble="a", settings=change(SETTINGS, {"threshold": 0.4})), []
        )
    with pytest.raises(ConfigError, match="source: s -> t"):
        check_destination(str(tmp_path), ours.model_copy(update={"source": "t"}), [])
    slower = Scoring(source="s", ensemble="a", settings=change(SETTINGS, {"threads": 2, "windows_per_pass": 1}))
    check_destination(str(tmp_path), slower, [])


def test_rasters_that_are_no_masks_of_ours_are_never_overwritten(scenes: Path, tmp_path: Path) -> None:
    ours = Scoring(source="s", ensemble="a", settings=SETTINGS)
    source = Path(shutil.copytree(scenes / "scenes", tmp_path / "scenes"))
    with pytest.raises(ConfigError, match=r"the mask of .* would overwrite its source"):
        check_destination(str(source), ours, scene_units(str(source)))
    labels = Path(shutil.copytree(scenes / "scene_labels", tmp_path / "labels"))
    with pytest.raises(ConfigError, match=r"holds 2 \.tif files that are no masks of ours"):
        check_destination(str(labels), ours, scene_units(str(source)))
    check_destination(str(tmp_path), ours, scene_units(str(source)))  # rasters in folders below are not in the way


def test_chip_that_the_listing_finds_bad_keeps_no_mask(tmp_path: Path) -> None:
    for name in ("bad.tif", "good.tif"):
        (tmp_path / name).write_bytes(b"a mask")
    below = tmp_path / "labels" / "x.tif"
    below.parent.mkdir()
    below.write_bytes(b"a label")
    remove_masks(str(tmp_path), [DataError("bad", "x"), DataError("labels/x", "x"), DataError("'../x'", "x")])
    assert sorted(path.name for path in tmp_path.rglob("*.tif")) == ["good.tif", "x.tif"]


def test_damaged_ledger_entry_counts_for_nothing_and_a_damaged_record_is_named(chips: Path, tmp_path: Path) -> None:
    (unit,) = chip_units(open_archive(str(chips), BANDS, for_training=False).chips)
    score_unit(unit, str(tmp_path), ensemble(), SETTINGS)
    (tmp_path / "ledger" / f"{unit.unit_id}.json").write_bytes(b"")
    assert finished_units(str(tmp_path), [unit]) == {}
    (tmp_path / "scoring.json").write_bytes(b"{}")
    with pytest.raises(ConfigError, match=r"scoring\.json: source: Field required"):
        check_destination(str(tmp_path), Scoring(source="s", ensemble="a", settings=SETTINGS), [unit])


def test_weights_that_are_gone_or_changed_are_the_callers_mistake(tmp_path: Path) -> None:
    manifest = EnsembleManifest(raytrain_version="1", shards="s", shards_digest="d", members=(trained(0),))
    with pytest.raises(ConfigError, match=r"w: no such file, but the ensemble names it as the weights of m"):
        Ensemble.load(str(tmp_path), manifest, SETTINGS, torch.device("cpu"))
    (tmp_path / "w").write_bytes(b"other weights")
    with pytest.raises(ConfigError, match=r"weights of member .*: sha256 is .*, but the ensemble names 0"):
        Ensemble.load(str(tmp_path), manifest, SETTINGS, torch.device("cpu"))


def trained(fold: int | None) -> TrainedMember:
    return TrainedMember(name="m", fold=fold, weights="w", sha256="0", settings=member(), score=0.5, epoch=1)


def test_ensemble_file_by_folder_or_by_name_and_its_lowest_fold_by_default(tmp_path: Path) -> None:
    manifest = EnsembleManifest(raytrain_version="1", shards="s", shards_digest="d", members=(trained(2), trained(1)))
    write_manifest(str(tmp_path), manifest)
    for uri in (str(tmp_path), str(tmp_path / "ensemble.json")):
        assert read_manifest(uri) == manifest
    assert [each.fold for each in manifest.of_fold(None).members] == [1]
    assert [each.fold for each in manifest.of_fold(2).members] == [2]
    assert manifest.of_fold("all") == manifest
    with pytest.raises(ConfigError, match="no fold 3; it has 1, 2"):
        manifest.of_fold(3)
    (tmp_path / "ensemble.json").write_text(json.dumps({"format_version": 7}))
    with pytest.raises(ConfigError, match="format version 2"):
        read_manifest(str(tmp_path))
    with pytest.raises(ConfigError, match="no ensemble there"):
        read_manifest(str(tmp_path / "absent"))
