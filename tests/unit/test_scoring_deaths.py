"""Who scores may die before any write and any removal: what is left is brought to the same end, with nothing over."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from raytrain import storage
from raytrain.config import change
from raytrain.imagery.scene_files import BandFile, SceneSource
from raytrain.scoring.perform import perform
from raytrain.scoring.plan import PLAN, STARTED, is_started, remove_plan, start, write_plan
from raytrain.scoring.scenes import missing_blocks, opened
from raytrain.scoring.units import Unit
from raytrain.storage import objects
from tests.unit.test_perform import LARGE_WINDOWS, SETTINGS, do_all, files_of, noise, scenes_of, work_at, write_scene


class Death(Exception):
    """The end of a process, as far as what it leaves goes."""


@contextmanager
def dying_before(number: int) -> Iterator[list[str]]:
    """Let the body die before its write or removal `number`; yields the names of those it did."""
    done: list[str] = []

    def counted(act: Callable[..., None]) -> Callable[..., None]:
        def counts(uri: str, *rest: object) -> None:
            if len(done) == number:
                raise Death
            done.append(f"{act.__name__} {uri}")
            act(uri, *rest)

        return counts

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write_bytes", "write_file"):
            patch.setattr(storage, name, counted(getattr(storage, name)))
        patch.setattr(objects, "remove", counted(objects.remove))
        with suppress(Death):
            yield done


def deaths(times: Callable[[int], list[str]]) -> int:
    """Call `times` with 0, 1 and so on, until there are fewer writes and removals; return how many there are."""
    number = 0
    while len(times(number)) == number:
        number += 1
    return number - 1  # writes and removals that there are


@pytest.mark.parametrize("by", ["the same run", "the next run"])
def test_assembly_that_dies_anywhere_is_brought_to_the_same_end(tmp_path: Path, by: str) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(64, 520))
    settings = change(SETTINGS, {**LARGE_WINDOWS, "block_px": 512})
    (scene,) = scenes_of(tmp_path / "in")
    whole = Unit(kind="scene", scene=scene)
    do_all([whole], work_at(tmp_path / "reference", settings))
    before = work_at(tmp_path / "before", settings)
    regions = perform(whole, before).blocks
    for region in regions:
        perform(Unit(kind="block", scene=scene, regions=(region,)), before)
    assembly = Unit(kind="assembly", scene=scene, regions=regions)

    def die_and_go_on(number: int) -> list[str]:
        out = Path(shutil.copytree(tmp_path / "before", tmp_path / by / str(number)))
        work = work_at(out, settings)
        with dying_before(number) as done:
            perform(assembly, work)
        do_all([assembly if by == "the same run" else whole], work)
        _clear(out)
        assert files_of(out) == files_of(tmp_path / "reference"), done
        return done

    # The mask, its item and the entry in the ledger; then a record and a layer of each of two blocks.
    assert deaths(die_and_go_on) == 3 + 2 * 2


def test_assembly_that_is_recorded_needs_its_blocks_no_more(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(64, 520))
    work = work_at(tmp_path / "out", change(SETTINGS, {**LARGE_WINDOWS, "block_px": 512}))
    (scene,) = scenes_of(tmp_path / "in")
    whole = Unit(kind="scene", scene=scene)
    regions = perform(whole, work).blocks
    for region in regions:
        perform(Unit(kind="block", scene=scene, regions=(region,)), work)
    with dying_before(2) as done:  # the mask and the item stand, the entry does not
        perform(Unit(kind="assembly", scene=scene, regions=regions), work)
    assert len(done) == 2
    with opened(scene, work) as source:
        assert missing_blocks(source, regions, work) == ()


def test_block_with_a_layer_gone_is_missing(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(64, 520))
    work = work_at(tmp_path / "out", change(SETTINGS, {**LARGE_WINDOWS, "block_px": 512}))
    (scene,) = scenes_of(tmp_path / "in")
    regions = perform(Unit(kind="scene", scene=scene), work).blocks
    for region in regions:
        perform(Unit(kind="block", scene=scene, regions=(region,)), work)
    (layer,) = (tmp_path / "out" / "blocks").rglob("0-512-mask.tif")
    layer.unlink()
    with opened(scene, work) as source:
        assert [(each.row, each.column) for each in missing_blocks(source, regions, work)] == [(0, 512)]


def test_plan_that_is_half_removed_is_still_under_way(tmp_path: Path) -> None:
    files = {"*": BandFile(uri="s.tif")}
    units = [Unit(kind="scene", scene=SceneSource(scene_id=str(i), files=files, identity="1")) for i in range(3)]

    def die(number: int) -> list[str]:
        uri = str(tmp_path / str(number))
        write_plan(uri, "run", units)
        start(uri)
        with dying_before(number) as done:
            remove_plan(uri)
        assert is_started(uri) == bool(storage.find(storage.join(uri, PLAN))) == (len(done) < 2)
        return done

    assert deaths(die) == 2
    assert STARTED > "part"


def _clear(out: Path) -> None:
    """Take away what the end of a run does, and empty folders."""
    shutil.rmtree(out / "blocks", ignore_errors=True)
