"""A unit done leaves whole outputs and its records: the same bytes however it is cut, and however often it is done."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rio_cogeo.cogeo import cog_validate
from torch import Tensor, nn

from raytrain import storage
from raytrain.config import MemberSettings, ScoreSettings, change
from raytrain.imagery.scene_files import SceneSource
from raytrain.recipes import members
from raytrain.scoring import ledger
from raytrain.scoring.catalogue import write_catalogue
from raytrain.scoring.destination import Scoring
from raytrain.scoring.ensemble import Ensemble
from raytrain.scoring.listing import list_scenes
from raytrain.scoring.perform import perform
from raytrain.scoring.planning import Listing
from raytrain.scoring.records import Record
from raytrain.scoring.scenes import RECORD_BYTES
from raytrain.scoring.schedule import Schedule
from raytrain.scoring.units import Answer, ChipSource, Unit, units_of_chips
from raytrain.scoring.work import Work
from raytrain.tiles.archive import open_archive
from raytrain.tiles.selection import Selection

SETTINGS = ScoreSettings(window_px=64, overlap_px=16, threads=1, baseline="before-04.00", datetime="2022-05-06")
LARGE_WINDOWS = {"window_px": 256, "overlap_px": 64}
BANDS = ("B02", "B03", "B04", "B08")


def member(**changes: object) -> MemberSettings:
    return change(members(("small-effnet-4b-20k",))[0], {"normalisation.maximum": 10000, **changes})


class Neighbours(nn.Module):
    """A net whose output depends on all of its window, on the place in it, and on the sides."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.kernel = nn.Parameter(torch.randn(1, 4, 5, 5, generator=generator))

    def forward(self, image: Tensor) -> Tensor:
        near = torch.nn.functional.conv2d(image, self.kernel[:, : image.shape[1]], padding=2)
        return near + image.mean((1, 2, 3), keepdim=True) + torch.linspace(0, 1, image.shape[-1])


def nets(settings: ScoreSettings) -> Ensemble:
    asked = {"disagreement": settings.disagreement != "none", "member_maps": settings.members != "none"}
    both = [(member(), Neighbours()), (member(name="other", **{"normalisation.maximum": 7000}), Neighbours())]
    return Ensemble(both, settings, torch.device("cpu"), **asked)


def work_at(folder: Path | str, settings: ScoreSettings = SETTINGS) -> Work:
    scoring = Scoring(ensemble="e" * 64, members=("small-effnet-4b-20k", "other"), settings=settings)
    return Work(str(folder), scoring, nets(settings))


def write_scene(path: Path, pixels: NDArray[np.generic], **profile: object) -> Path:
    profile = {"crs": "EPSG:32636", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 4e6), "nodata": 0, **profile}
    count, height, width = pixels.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", dtype=pixels.dtype.name, count=count, height=height, width=width, **profile
    ) as target:
        target.write(pixels)
        for i, band in enumerate(BANDS[:count]):
            target.set_band_description(i + 1, band)
    return path


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint16]:
    pixels = np.random.default_rng(seed).integers(1, 9000, (4, height, width)).astype(np.uint16)
    pixels[:, : height // 5, : width // 3] = 0
    return pixels


def scenes_of(uri: Path) -> list[SceneSource]:
    found = list(list_scenes(str(uri), BANDS))
    assert all(isinstance(each, SceneSource) for each in found), found
    return [each for each in found if isinstance(each, SceneSource)]


def do_all(units: list[Unit], work: Work) -> list[Answer]:
    """Do all units, and what follows from them, one after the other."""
    schedule, answers = Schedule(iter([units]), len(units)), []
    while not schedule.is_over:
        task = schedule.take(alone=True)
        assert task is not None
        answers.append(perform(task.unit, work))
        schedule.finished(task, answers[-1])
    ledger.compact(work.destination)
    write_catalogue(work.destination, work.scoring)
    return answers


def score(uri: Path, work: Work) -> list[Record]:
    do_all([Unit(kind="scene", scene=scene) for scene in scenes_of(uri)], work)
    return list(ledger.read_records(work.destination))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def chips_of(folder: Path) -> list[ChipSource]:
    archive = open_archive(str(folder), BANDS, for_training=False)
    return [ChipSource(chip_id=chip.chip_id, files=chip.bands, identity=chip.identity) for chip in archive.chips]


def test_scene_scored_whole_and_in_blocks_leaves_equal_bytes_and_no_blocks(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(1100, 600))
    layers = {"probability": "float32", "disagreement": "uint8", "members": "uint8"}
    everything = change(SETTINGS, {**LARGE_WINDOWS, **layers})
    score(tmp_path / "in", work_at(tmp_path / "whole", everything))
    cut = change(everything, {"block_px": 512})
    score(tmp_path / "in", work_at(tmp_path / "blocks", cut))
    whole = files_of(tmp_path / "whole")
    assert sorted(name for name in whole if not name.startswith("ledger/")) == [
        "collection.json",
        "disagreement/s.tif",
        "items.parquet",
        "members/other/s.tif",
        "members/small-effnet-4b-20k/s.tif",
        "probability/s.tif",
        "s.tif",
        "stac/s.json",
    ]
    assert files_of(tmp_path / "blocks") == whole


def test_outputs_lie_over_their_source_hold_no_data_and_are_what_the_ledger_says(tmp_path: Path) -> None:
    pixels = noise(300, 200)
    pixels[2, 250, 100] = 0
    path = write_scene(tmp_path / "in" / "s.tif", pixels)
    everything = change(SETTINGS, {"probability": "uint8", "disagreement": "float32", "members": "float32"})
    (record,) = score(tmp_path / "in", work_at(tmp_path / "out", everything))
    valid = (pixels != 0).all(0)
    with rasterio.open(path) as source:
        for kind in ("mask", "probability", "disagreement", *MEMBER_KINDS):
            output = tmp_path / "out" / record.outputs[kind].key
            assert cog_validate(output, strict=True)[0]
            data = output.read_bytes()
            assert (storage.sha256_of(data), len(data)) == (
                record.outputs[kind].sha256,
                record.outputs[kind].num_bytes,
            )
            with rasterio.open(output) as layer:
                assert (layer.crs, layer.transform, layer.shape) == (source.crs, source.transform, source.shape)
                assert (layer.dataset_mask().astype(bool) == valid).all()
    with rasterio.open(tmp_path / "out" / "s.tif") as mask:
        values = mask.read(1)
    assert set(np.unique(values)) == {0, 1, 255}
    assert ((values == 255) == ~valid).all()
    assert (record.valid_px, record.cloud_px) == (valid.sum(), (values == 1).sum())
    item = pystac.Item.from_file(str(tmp_path / "out" / "stac" / "s.json"))
    assert item.properties["eo:cloud_cover"] == pytest.approx(100 * record.cloud_px / record.valid_px, abs=1e-4)
    assert item.datetime is not None
    assert item.datetime.isoformat() == "2022-05-06T00:00:00+00:00"
    assert (record.shift, record.shift_rule) == (0, "asked for: baseline before-04.00")


def test_mask_does_not_depend_on_other_scenes_or_threads_at_once(tmp_path: Path) -> None:
    for i in range(4):
        write_scene(tmp_path / "in" / f"s{i}.tif", noise(200 + 30 * i, 150, i))
    score(tmp_path / "in", work_at(tmp_path / "one"))
    work = work_at(tmp_path / "many")
    units = [Unit(kind="scene", scene=scene) for scene in scenes_of(tmp_path / "in")][::-1]
    threads = [threading.Thread(target=perform, args=(unit, work)) for unit in units]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    ledger.compact(work.destination)
    write_catalogue(work.destination, work.scoring)
    assert files_of(tmp_path / "many") == files_of(tmp_path / "one")


def test_blocks_that_stand_are_not_done_again_and_those_of_other_work_are(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "in" / "s.tif", noise(600, 1100))
    settings = change(SETTINGS, {**LARGE_WINDOWS, "block_px": 512})
    work = work_at(tmp_path / "out", settings)
    (scene,) = scenes_of(tmp_path / "in")
    whole = Unit(kind="scene", scene=scene)
    blocks = perform(whole, work).blocks
    assert len(blocks) == 6
    for block in blocks[:4]:
        perform(Unit(kind="block", scene=scene, regions=(block,)), work)
    assert perform(whole, work).missing == blocks[4:]
    other = work_at(tmp_path / "out", change(settings, {"threshold": 0.4}))
    assert perform(whole, other).missing == blocks
    with rasterio.open(path, "r+") as target:
        target.write(noise(600, 1100, seed=1))
    (changed,) = scenes_of(tmp_path / "in")
    assert perform(Unit(kind="scene", scene=changed), work).missing == blocks


def test_damaged_block_is_done_again_and_changes_nothing(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(600, 600))
    settings = change(SETTINGS, {**LARGE_WINDOWS, "block_px": 512})
    score(tmp_path / "in", work_at(tmp_path / "whole", settings))
    work = work_at(tmp_path / "out", settings)
    (scene,) = scenes_of(tmp_path / "in")
    blocks = perform(Unit(kind="scene", scene=scene), work).blocks
    for block in blocks:
        perform(Unit(kind="block", scene=scene, regions=(block,)), work)
    (layer,) = (tmp_path / "out" / "blocks").rglob("0-512-mask.tif")
    layer.write_bytes(layer.read_bytes()[:-1] + b"x")
    assembly = Unit(kind="assembly", scene=scene, regions=blocks)
    with pytest.raises(FileNotFoundError, match=r"0-512-mask\.tif: damaged"):
        perform(assembly, work)
    assert perform(assembly, work).missing == (blocks[1],)
    score(tmp_path / "in", work)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "record", [b"", b'{"layers": {"mask": "12', b"[" * 100_000, b"\xff", b" " * (RECORD_BYTES + 1)]
)
def test_block_whose_record_is_torn_or_too_large_is_done_again(tmp_path: Path, record: bytes) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(64, 600))
    settings = change(SETTINGS, {**LARGE_WINDOWS, "block_px": 512})
    score(tmp_path / "in", work_at(tmp_path / "whole", settings))
    work = work_at(tmp_path / "out", settings)
    (scene,) = scenes_of(tmp_path / "in")
    blocks = perform(Unit(kind="scene", scene=scene), work).blocks
    for block in blocks:
        perform(Unit(kind="block", scene=scene, regions=(block,)), work)
    (path,) = (tmp_path / "out" / "blocks").rglob("0-512.json")
    path.write_bytes(record)
    assembly = Unit(kind="assembly", scene=scene, regions=blocks)
    with pytest.raises(FileNotFoundError, match="damaged, not what its record says; the block is done again"):
        perform(assembly, work)
    assert perform(assembly, work).missing == (blocks[1],)
    score(tmp_path / "in", work)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_scene_of_no_data_is_all_255_and_asks_no_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scene(tmp_path / "in" / "s.tif", np.zeros((4, 100, 100), np.uint16))
    monkeypatch.setattr(Neighbours, "forward", None)
    (record,) = score(tmp_path / "in", work_at(tmp_path / "out"))
    with rasterio.open(tmp_path / "out" / "s.tif") as mask:
        assert (mask.read(1) == 255).all()
    assert (record.valid_px, record.cloud_px) == (0, 0)
    assert "eo:cloud_cover" not in json.loads((tmp_path / "out" / "stac" / "s.json").read_bytes())["properties"]


def test_scene_without_place_or_date_has_its_mask_and_a_note_and_no_item(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "a.tif", noise(70, 20), crs=None, transform=rasterio.Affine.identity())
    undated = change(SETTINGS, {"datetime": None})
    (record,) = score(tmp_path / "in", work_at(tmp_path / "out", undated))
    assert set(record.outputs) == {"mask"}
    assert record.notes == ("no STAC item: the source has no CRS",)
    write_scene(tmp_path / "in2" / "b.tif", noise(70, 20))
    (record,) = score(tmp_path / "in2", work_at(tmp_path / "out2", undated))
    assert record.notes == ("no STAC item: the source has no date (give --datetime)",)
    assert not (tmp_path / "out2" / "collection.json").exists()


def test_pixels_coarser_than_those_of_training_leave_a_note(tmp_path: Path) -> None:
    product = "S2B_MSIL2A_20220413T150759_N0400_R025_T33XWJ_20220414T082126"
    for name, pixel_m in (("a", 10), (f"{product}_a", 10), ("b", 15), ("c", 30), (f"{product}_b", 12)):
        place = rasterio.Affine(pixel_m, 0, 5e5, 0, -pixel_m, 4e6)
        write_scene(tmp_path / "in" / f"{name}.tif", noise(70, 70), transform=place)
    degrees = rasterio.Affine(20, 0, 0, 0, -20, 0)
    write_scene(tmp_path / "in" / "d.tif", noise(2, 2), crs="EPSG:4326", transform=degrees)
    records = {record.item_id: record for record in score(tmp_path / "in", work_at(tmp_path / "out"))}
    assert {name: record.notes for name, record in records.items() if record.notes} == {
        "c": ("a finest band of 30 m; members are trained with pixels of 10 m",),
        f"{product}_b": ("a finest band of 12 m; members are trained with pixels of 10 m",),
    }
    assert all({"mask", "item"} <= set(record.outputs) for record in records.values())


def test_members_whose_bands_are_missing_are_an_error_or_left_out_and_recorded(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "three.tif", noise(70, 70)[:3])
    (scene,) = scenes_of(tmp_path / "in")
    three = change(members(("v2b0-3b",))[0], {"name": "three"})

    def work(**changes: object) -> Work:
        settings = change(SETTINGS, changes)
        scoring = Scoring(ensemble="e", members=("four", "three"), settings=settings)
        both = [(member(name="four"), Neighbours()), (three, Neighbours())]
        return Work(str(tmp_path / "out"), scoring, Ensemble(both, settings, torch.device("cpu")))

    unit = Unit(kind="scene", scene=scene)
    (problem,) = perform(unit, work()).problems
    assert problem.found.startswith("no band B08 (bands found: B02, B03, B04), needed by four; --set missing_bands=")
    (record,) = perform(unit, work(missing_bands="leave-out")).records
    assert record.members_left_out == ("four",)
    write_scene(tmp_path / "in" / "three.tif", noise(70, 70)[:2])
    unit = Unit(kind="scene", scene=scenes_of(tmp_path / "in")[0])
    (problem,) = perform(unit, work(missing_bands="leave-out")).problems
    assert "needed by four, three" in problem.found
    assert "missing_bands" not in problem.found


def test_scene_that_cannot_be_used_is_a_problem_and_keeps_no_former_output(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "in" / "s.tif", noise(300, 300))
    work = work_at(tmp_path / "out")

    def done() -> Answer:
        (scene,) = scenes_of(tmp_path / "in")
        return perform(Unit(kind="scene", scene=scene), work)

    whole = path.read_bytes()
    cases: list[tuple[bytes | NDArray[np.generic], str]] = [
        (b"", "s.tif: .*is not a readable"),
        (b"II*\x00 nothing", "s.tif: .*is not a readable"),
        (whole[: len(whole) // 3], "is not a readable"),
        (noise(50, 50).astype(np.uint8), "uint8"),
        (noise(50, 50).astype(np.float32), "float32"),
        (noise(50, 50)[:1], "no band B03, B04, B08"),
    ]
    for content, found in cases:
        path.write_bytes(whole)
        assert done().records
        assert {"s.tif", "stac/s.json"} <= files_of(tmp_path / "out").keys()
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            write_scene(path, content)
        (problem,) = done().problems
        assert problem.item_id == "s"

        assert re.search(found, problem.found), problem.found
        assert not {"s.tif", "stac/s.json"} & files_of(tmp_path / "out").keys()


def test_full_disk_is_no_problem_of_the_data_and_nothing_is_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(100, 100))
    (scene,) = scenes_of(tmp_path / "in")

    def full(*arguments: object, **options: object) -> None:
        raise RasterioError("No space left on device")

    monkeypatch.setattr("raytrain.scoring.scenes.finish_cog", full)
    with pytest.raises(RasterioError):
        perform(Unit(kind="scene", scene=scene), work_at(tmp_path / "out"))
    assert files_of(tmp_path / "out") == {}


def test_chips_become_masks_of_0_and_1_and_a_rerun_writes_the_same_bytes(chips: Path, tmp_path: Path) -> None:
    units = list(units_of_chips(chips_of(chips)))
    work = work_at(tmp_path / "out")
    (answer,) = do_all(units, work)
    assert [record.item_id for record in answer.records] == [chip.chip_id for chip in chips_of(chips)]
    before = files_of(tmp_path / "out")
    for chip in chips_of(chips):
        with (
            rasterio.open(tmp_path / "out" / f"{chip.chip_id}.tif") as mask,
            rasterio.open(chip.files["B02"]) as source,
        ):
            assert set(np.unique(mask.read())) <= {0, 1}
            assert (mask.crs, mask.transform, mask.count) == (source.crs, source.transform, 1)
    do_all(units, work)
    assert files_of(tmp_path / "out") == before


def test_mask_of_a_chip_does_not_depend_on_its_unit_its_place_or_how_many_go_together(
    chips: Path, tmp_path: Path
) -> None:
    sources = chips_of(chips)
    do_all(list(units_of_chips(sources)), work_at(tmp_path / "one"))
    backwards = [Unit(kind="chips", chips=tuple(sources[i : i + 5][::-1])) for i in range(0, len(sources), 5)][::-1]
    do_all(backwards, work_at(tmp_path / "two"))
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    three = work_at(tmp_path / "three", change(SETTINGS, {"windows_per_pass": 3}))
    do_all(backwards, three)
    masks = {name: data for name, data in files_of(tmp_path / "one").items() if name.endswith(".tif")}
    assert {name: data for name, data in files_of(tmp_path / "three").items() if name.endswith(".tif")} == masks


def test_bad_chip_is_a_problem_keeps_no_former_mask_and_the_others_are_scored(own_chips: Path, tmp_path: Path) -> None:
    sources = chips_of(own_chips)
    work = work_at(tmp_path / "out")
    do_all(list(units_of_chips(sources)), work)
    bad = sources[3]
    Path(bad.files["B04"]).write_bytes(b"")
    (answer,) = do_all(list(units_of_chips(sources)), work)
    assert [(each.item_id, each.found) for each in answer.problems] == [(bad.chip_id, "B04: an empty file (0 bytes)")]
    assert len(answer.records) == len(sources) - 1
    assert not (tmp_path / "out" / f"{bad.chip_id}.tif").exists()


def test_chip_larger_than_a_window_is_blended_and_its_layers_are_written(tmp_path: Path) -> None:
    for band, plane in zip(BANDS, noise(150, 130), strict=True):
        write_scene(tmp_path / "train_features" / "c" / f"{band}.tif", plane[None])
    write_scene(tmp_path / "in" / "c.tif", noise(150, 130))
    everything = change(SETTINGS, {"probability": "float32", "disagreement": "float32"})
    files = {band: str(tmp_path / "train_features" / "c" / f"{band}.tif") for band in BANDS}
    unit = Unit(kind="chips", chips=(ChipSource(chip_id="c", files=files, identity="1"),))
    (answer,) = do_all([unit], work_at(tmp_path / "chips", everything))
    score(tmp_path / "in", work_at(tmp_path / "scenes", everything))
    for kind in ("probability", "disagreement"):
        assert (tmp_path / "chips" / kind / "c.tif").read_bytes() == (tmp_path / "scenes" / kind / "c.tif").read_bytes()
    with rasterio.open(tmp_path / "chips" / "c.tif") as chip, rasterio.open(tmp_path / "scenes" / "c.tif") as scene:
        assert (chip.read(1) == scene.read(1) % 255).all()
    assert set(answer.records[0].outputs) == {"mask", "probability", "disagreement"}


NAMES = ("small-effnet-4b-20k", "other")
MEMBER_KINDS = tuple(f"member-{name}" for name in NAMES)
PROBABILITIES = ("probability", *(f"members/{name}" for name in NAMES))


def rasters_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder).items() if name.endswith(".tif")}


def values_of(folder: Path, name: str) -> list[NDArray[np.float32]]:
    """Return the probability of an item, and those of its members, in the unit of the file."""
    found = []
    for kind in PROBABILITIES:
        with rasterio.open(folder / kind / name) as source:
            found.append(source.read(1))
    return found


@pytest.fixture
def mixed(tmp_path: Path) -> Callable[[Work], None]:
    """What scores a chip of one window, one of several, a scene, and a scene in blocks."""
    chips = []
    for chip_id, size in (("small", (50, 60)), ("large", (90, 130))):
        for band, plane in zip(BANDS, noise(*size, seed=7), strict=True):
            write_scene(tmp_path / "chips" / chip_id / f"{band}.tif", plane[None])
        files = {band: str(tmp_path / "chips" / chip_id / f"{band}.tif") for band in BANDS}
        chips.append(ChipSource(chip_id=chip_id, files=files, identity="1"))
    write_scene(tmp_path / "in" / "whole.tif", noise(300, 200))
    write_scene(tmp_path / "in" / "blocks.tif", noise(300, 600))

    def score_all(work: Work) -> None:
        scenes = [Unit(kind="scene", scene=scene) for scene in scenes_of(tmp_path / "in")]
        answers = do_all([Unit(kind="chips", chips=tuple(chips)), *scenes], work)
        assert sum(len(answer.blocks) > 1 for answer in answers) == 1

    return score_all


MIXED = {**LARGE_WINDOWS, "window_px": 64, "overlap_px": 16, "block_px": 512}
MIXED_IDS = ("small", "large", "whole", "blocks")


@pytest.mark.parametrize("encoding", ["uint8", "float32"])
def test_maps_of_members_are_written_beside_the_rest_which_keeps_its_bytes(
    encoding: str, mixed: Callable[[Work], None], tmp_path: Path
) -> None:
    layers = {"probability": encoding, "disagreement": "uint8"}
    mixed(work_at(tmp_path / "without", change(SETTINGS, {**MIXED, **layers})))
    mixed(work_at(tmp_path / "with", change(SETTINGS, {**MIXED, **layers, "members": encoding})))
    mixed(work_at(tmp_path / "alone", change(SETTINGS, {**MIXED, "members": encoding})))
    without, found, alone = (rasters_of(tmp_path / name) for name in ("without", "with", "alone"))
    maps = {name: data for name, data in found.items() if name.startswith("members/")}
    assert maps.keys() == {f"members/{member}/{item}.tif" for member in NAMES for item in MIXED_IDS}
    assert {name: data for name, data in found.items() if name not in maps} == without
    assert alone == {name: data for name, data in found.items() if name in maps or "/" not in name}
    assert maps["members/other/whole.tif"] != maps["members/small-effnet-4b-20k/whole.tif"]


def test_mean_of_the_maps_of_members_is_the_probability(mixed: Callable[[Work], None], tmp_path: Path) -> None:
    for encoding in ("uint8", "float32"):
        layers = {"probability": encoding, "members": encoding}
        mixed(work_at(tmp_path / encoding, change(SETTINGS, {**MIXED, **layers})))
    for item in MIXED_IDS:
        probability, one, two = values_of(tmp_path / "float32", f"{item}.tif")
        assert np.isnan(probability).any()
        mean = (one + two) / np.float32(2)
        if item == "small":  # of one window: nothing is blended
            np.testing.assert_array_equal(mean, probability)
        np.testing.assert_allclose(mean, probability, atol=3e-7)
        assert np.nanmax(np.abs(one - two)) > 0.01
        stored, *steps = (values.astype(float) for values in values_of(tmp_path / "uint8", f"{item}.tif"))
        assert ((stored == 255) == np.isnan(probability)).all()
        assert np.abs(np.mean(steps, axis=0) - stored).max() <= 1


def test_map_of_a_member_that_is_gone_is_made_again_to_the_same_bytes(
    mixed: Callable[[Work], None], tmp_path: Path
) -> None:
    work = work_at(tmp_path / "out", change(SETTINGS, {**MIXED, "members": "uint8"}))
    mixed(work)
    before = files_of(tmp_path / "out")
    for name in ("small", "blocks"):
        (tmp_path / "out" / "members" / "other" / f"{name}.tif").unlink()
    known = ledger.Known(work.destination, work.digest, ledger.standing_at(work.destination))
    assert known.num_done == len(MIXED_IDS) - 2
    mixed(work)
    assert files_of(tmp_path / "out") == before


def test_item_that_goes_bad_keeps_no_map_of_a_member(mixed: Callable[[Work], None], tmp_path: Path) -> None:
    work = work_at(tmp_path / "out", change(SETTINGS, {**MIXED, "members": "uint8"}))
    mixed(work)
    before = rasters_of(tmp_path / "out")
    (tmp_path / "in" / "whole.tif").write_bytes(b"II*\0 and no more")
    (tmp_path / "chips" / "small" / "B04.tif").write_bytes(b"")
    mixed(work)
    gone = {name for name in before if Path(name).stem in ("whole", "small")}
    assert len(gone) == 2 * (1 + len(NAMES))
    assert rasters_of(tmp_path / "out") == {name: data for name, data in before.items() if name not in gone}


def test_member_without_its_bands_has_no_map_not_even_a_former_one(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "in" / "s.tif", noise(70, 600))
    files = {}
    for band, plane in zip(BANDS, noise(50, 60), strict=True):
        files[band] = str(write_scene(tmp_path / "chips" / "c" / f"{band}.tif", plane[None]))
    layers = {"probability": "float32", "members": "float32", "missing_bands": "leave-out"}
    settings = change(SETTINGS, {**MIXED, **layers})
    three = change(members(("v2b0-3b",))[0], {"name": "three"})
    both = [(member(name="four"), Neighbours()), (three, Neighbours())]
    scoring = Scoring(ensemble="e", members=("four", "three"), settings=settings)
    work = Work(str(tmp_path / "out"), scoring, Ensemble(both, settings, torch.device("cpu"), member_maps=True))

    def found() -> tuple[dict[str, set[str]], dict[str, bytes]]:
        chip = ChipSource(chip_id="c", files=dict(files), identity=str(len(files)))
        scenes = [Unit(kind="scene", scene=scene) for scene in scenes_of(tmp_path / "in")]
        answers = do_all([Unit(kind="chips", chips=(chip,)), *scenes], work)
        records = [record for answer in answers for record in answer.records]
        return {record.item_id: set(record.outputs) for record in records}, rasters_of(tmp_path / "out")

    kinds, rasters = found()
    assert kinds["c"] == kinds["s"] - {"item"} == {"mask", "probability", "member-four", "member-three"}
    assert len(rasters) == 8
    write_scene(path, noise(70, 600)[:3])
    del files["B08"]
    kinds, rasters = found()
    assert kinds["c"] == kinds["s"] - {"item"} == {"mask", "probability", "member-three"}
    assert {name for name in rasters if name.startswith("members/")} == {"members/three/c.tif", "members/three/s.tif"}
    item = json.loads((tmp_path / "out" / "stac" / "s.json").read_bytes())
    assert item["assets"].keys() == {"mask", "probability", "member-three"}
    for name in "cs":
        with (
            rasterio.open(tmp_path / "out" / "probability" / f"{name}.tif") as all_members,
            rasterio.open(tmp_path / "out" / "members" / "three" / f"{name}.tif") as alone,
        ):
            np.testing.assert_array_equal(all_members.read(1), alone.read(1))


def test_shift_is_taken_off_once_and_recorded(tmp_path: Path) -> None:
    pixels = noise(100, 90)
    write_scene(tmp_path / "before" / "s.tif", pixels)
    write_scene(tmp_path / "from" / "s.tif", np.where(pixels, pixels + 1000, 0).astype(np.uint16))
    (one,) = score(tmp_path / "before", work_at(tmp_path / "a"))
    shifted = change(SETTINGS, {"baseline": "from-04.00"})
    (two,) = score(tmp_path / "from", work_at(tmp_path / "b", shifted))
    assert (one.shift, two.shift) == (0, 1000)
    assert one.outputs["mask"] == two.outputs["mask"]
    undecided = change(SETTINGS, {"baseline": None})
    (scene,) = scenes_of(tmp_path / "before")
    (problem,) = perform(Unit(kind="scene", scene=scene), work_at(tmp_path / "c", undecided)).problems
    assert "--set baseline=" in problem.found


def test_generated_scenes_need_no_setting_for_their_baseline_or_date(scenes: Path, tmp_path: Path) -> None:
    plain = change(SETTINGS, {"baseline": None, "datetime": None})
    items = score(scenes / "scenes.json", work_at(tmp_path / "items", plain))
    files = score(scenes, work_at(tmp_path / "files", plain))
    assert [each.item_id for each in items] == [each.item_id for each in files]
    assert [each.outputs["mask"] for each in items] == [each.outputs["mask"] for each in files]
    assert all(each.datetime for each in items)
    link = json.loads((tmp_path / "items" / items[0].outputs["item"].key).read_bytes())["links"][-1]
    assert link["rel"] == "derived_from"
    shutil.rmtree(tmp_path / "items")


def test_signatures_of_items_stand_nowhere_at_the_destination(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    (scene,) = scenes_of(tmp_path / "in")
    signed = scene.model_copy(update={"item_uri": "https://host/items/s.json?X-Signature=verysecret"})
    do_all([Unit(kind="scene", scene=signed)], work_at(tmp_path / "out"))
    (record,) = ledger.read_records(str(tmp_path / "out"))
    assert record.source_item_uri == record.source_uri == "https://host/items/s.json"
    assert not [name for name, data in files_of(tmp_path / "out").items() if b"verysecret" in data]


def test_chip_that_lacks_a_band_is_scored_by_the_members_that_remain_if_asked_for(
    own_chips: Path, tmp_path: Path
) -> None:
    first, second = chips_of(own_chips)[:2]
    Path(first.files["B08"]).unlink()
    for uri in second.files.values():
        Path(uri).unlink()
    three = change(members(("v2b0-3b",))[0], {"name": "three"})

    def records_and_problems(missing_bands: str) -> tuple[dict[str, Record], dict[str, str]]:
        settings = change(SETTINGS, {"missing_bands": missing_bands})
        scoring = Scoring(ensemble="e", members=("four", "three"), settings=settings)
        both = [(member(name="four"), Neighbours()), (three, Neighbours())]
        work = Work(str(tmp_path / missing_bands), scoring, Ensemble(both, settings, torch.device("cpu")))
        known = ledger.Known(work.destination, scoring.digest(), ledger.Standing([]))
        listing = Listing(str(own_chips), work.destination, BANDS, settings, Selection(), known)
        answers = do_all(list(listing.units()), work)
        problems = [*listing.problems, *(problem for answer in answers for problem in answer.problems)]
        records = {record.item_id: record for answer in answers for record in answer.records}
        return records, {problem.item_id: problem.found for problem in problems}

    strict, refused = records_and_problems("error")
    records, problems = records_and_problems("leave-out")
    assert refused.keys() == {first.chip_id, second.chip_id}
    assert problems.keys() == {second.chip_id}
    assert records.keys() == {first.chip_id, *strict}
    assert records[first.chip_id].members_left_out == ("four",)
    for chip_id, record in strict.items():
        assert records[chip_id].outputs["mask"].sha256 == record.outputs["mask"].sha256
        assert records[chip_id].identity == record.identity
