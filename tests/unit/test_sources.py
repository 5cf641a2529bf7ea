"""A source that changes after it was listed is neither scored nor bad: nothing of it stands, the next run does it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from raytrain import storage
from raytrain.config import change
from raytrain.imagery.scene_files import BandFile, FileVersion, SceneSource
from raytrain.scoring import ledger
from raytrain.scoring.perform import perform
from raytrain.scoring.planning import _chip_source
from raytrain.scoring.schedule import Schedule
from raytrain.scoring.sources import CHANGED, chip_has_changed, scene_has_changed
from raytrain.scoring.units import Answer, ChipSource, Unit
from raytrain.scoring.work import Work
from raytrain.tiles.archive import identity_now, open_archive
from tests.unit.test_perform import BANDS, LARGE_WINDOWS, SETTINGS, files_of, noise, scenes_of, work_at, write_scene

BLOCKS = {**LARGE_WINDOWS, "block_px": 512}


def unit_of(folder: Path) -> Unit:
    (scene,) = scenes_of(folder)
    return Unit(kind="scene", scene=scene)


def chips_of(folder: Path) -> list[ChipSource]:
    found = [_chip_source(chip) for chip in open_archive(str(folder), BANDS, for_training=False).chips]
    return [each for each in found if isinstance(each, ChipSource)]


def write_chips(folder: Path, names: str) -> None:
    for name in names:
        for number, band in enumerate(BANDS):
            path = folder / "test_features" / name / f"{band}.tif"
            write_scene(path, noise(64, 64, seed=number)[number : number + 1])
    (folder / "test_metadata.csv").write_text("chip_id\n" + "".join(f"{name}\n" for name in names))


@pytest.mark.parametrize("content", ["another", "torn", "gone"])
def test_scene_that_changed_after_the_listing_leaves_nothing_and_is_not_bad(tmp_path: Path, content: str) -> None:
    path = write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    unit, work = unit_of(tmp_path / "in"), work_at(tmp_path / "out")
    if content == "another":
        write_scene(path, noise(70, 60, seed=1))
    elif content == "torn":
        path.write_bytes(path.read_bytes()[:500])
    else:
        path.unlink()
    answer = perform(unit, work)
    assert (answer.records, answer.problems) == ((), ())
    assert [(each.item_id, each.found) for each in answer.changed] == [("s", CHANGED)]
    assert files_of(tmp_path / "out") == {}
    path.unlink(missing_ok=True)
    write_scene(path, noise(70, 60, seed=1))
    assert perform(unit_of(tmp_path / "in"), work).records


def test_former_outputs_of_a_scene_that_changed_stay_until_it_is_done(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    work = work_at(tmp_path / "out")
    perform(unit_of(tmp_path / "in"), work)
    before = files_of(tmp_path / "out")
    write_scene(path, noise(70, 60, seed=1))
    unit = unit_of(tmp_path / "in")
    write_scene(path, noise(70, 60, seed=2))
    assert perform(unit, work).changed
    assert files_of(tmp_path / "out") == before


def blocks_done(unit: Unit, work: Work) -> tuple[list[Unit], Unit]:
    """Return the units of the blocks of a large scene, and that which puts them together."""
    divided = perform(unit, work)
    assert len(divided.missing) > 1
    each = [Unit(kind="block", scene=unit.scene, regions=(block,)) for block in divided.missing]
    return each, Unit(kind="assembly", scene=unit.scene, regions=divided.blocks)


@pytest.mark.parametrize("num_done", [1, 6])
def test_blocks_of_a_source_that_changed_go(tmp_path: Path, num_done: int) -> None:
    path = write_scene(tmp_path / "in" / "s.tif", noise(1100, 600))
    work = work_at(tmp_path / "out", change(SETTINGS, BLOCKS))
    blocks, assembly = blocks_done(unit_of(tmp_path / "in"), work)
    assert len(blocks) == 6
    for block in blocks[:num_done]:
        assert perform(block, work).changed == ()
    assert files_of(tmp_path / "out")
    write_scene(path, noise(1100, 600, seed=1))
    answer = perform([*blocks, assembly][num_done], work)
    assert [each.item_id for each in answer.changed] == ["s"]
    assert files_of(tmp_path / "out") == {}


def test_source_that_changed_is_a_casualty_at_once_and_not_for_its_data(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "in" / "s.tif", noise(1100, 600))
    work = work_at(tmp_path / "out", change(SETTINGS, BLOCKS))
    schedule, attempts = Schedule(iter([[unit_of(tmp_path / "in")]]), 1), []
    while not schedule.is_over:
        task = schedule.take(alone=True)
        if task is None:  # the other blocks were given up
            continue
        if len(attempts) == 2:
            write_scene(path, noise(1100, 600, seed=1))
        schedule.finished(task, perform(task.unit, work))
        attempts.append(task.unit.kind)
    assert attempts == ["scene", "block", "block"]
    (casualty,) = schedule.casualties
    assert (casualty.problem.item_id, casualty.problem.found, casualty.in_data) == ("s", CHANGED, False)
    assert (schedule.num_done, schedule.num_finished) == (1, 0)


def test_same_bytes_written_again_are_no_change(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    (scene,) = scenes_of(tmp_path / "in")
    shutil.copy(path, tmp_path / "copy")
    os.replace(tmp_path / "copy", path)
    os.utime(path, (0, 0))
    assert not scene_has_changed(scene)


def test_file_of_the_same_size_and_time_but_other_bytes_is_a_change(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    (scene,) = scenes_of(tmp_path / "in")
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert scene_has_changed(scene)


def test_local_file_that_nobody_wrote_to_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for band in BANDS:
        write_scene(tmp_path / "in" / "s" / f"{band}.tif", np.ones((1, 64, 64), np.uint16))
    (scene,) = scenes_of(tmp_path / "in")
    assert len(scene.versions) == len(BANDS)

    def read(*_: object) -> str:
        raise AssertionError("its content was asked for")

    monkeypatch.setattr(storage, "identity_of", read)
    assert not scene_has_changed(scene)


def test_remote_file_is_asked_for_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "s3://b/s.tif"
    scene = SceneSource(
        scene_id="s", files={"*": BandFile(uri=uri)}, identity="1", versions={uri: FileVersion(identity='5:"ab"')}
    )
    for now, changed in (('5:"ab"', False), ("5:ab", False), ('5:"ac"', True), ('6:"ab"', True)):
        monkeypatch.setattr(storage, "identity_of", lambda _, now=now: now)
        assert scene_has_changed(scene) == changed


def test_chip_that_changed_costs_the_others_of_its_unit_nothing(tmp_path: Path) -> None:
    write_chips(tmp_path / "in", "abc")
    chips, work = chips_of(tmp_path / "in"), work_at(tmp_path / "out")
    write_scene(tmp_path / "in" / "test_features" / "b" / "B03.tif", noise(64, 64, seed=9)[:1])
    (tmp_path / "in" / "test_features" / "c" / "B03.tif").write_bytes(b"torn")
    answer: Answer = perform(Unit(kind="chips", chips=tuple(chips)), work)
    assert [record.item_id for record in answer.records] == ["a"]
    assert [(each.item_id, each.found) for each in answer.changed] == [("b", CHANGED), ("c", CHANGED)]
    assert answer.problems == ()
    ledger.compact(work.destination)
    assert [record.item_id for record in ledger.read_records(work.destination)] == ["a"]
    assert {name for name in files_of(tmp_path / "out") if name.endswith(".tif")} == {"a.tif"}


def test_remote_chip_is_held_against_a_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_chips(tmp_path / "in", "ab")
    (tmp_path / "in" / "test_features" / "a" / "B11.tif").write_bytes(b"not asked for")
    monkeypatch.setattr(storage, "is_local", lambda _: False)
    chips = chips_of(tmp_path / "in")
    assert all(not each.versions for each in chips)
    assert [chip_has_changed(each) for each in chips] == [False, False]
    path = tmp_path / "in" / "test_features" / "b" / "B04.tif"
    path.write_bytes(path.read_bytes() + b"more")
    assert [chip_has_changed(each) for each in chips] == [False, True]
    path.unlink()
    assert chip_has_changed(chips[1])
    assert identity_now(str(tmp_path / "nowhere"), BANDS) != chips[0].identity
