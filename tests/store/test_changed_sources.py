"""In every kind of store a source that nobody touched is what was listed, and one that somebody did is not."""

from __future__ import annotations

import pytest

from raytrain import storage
from raytrain.imagery.scene_files import SceneSource
from raytrain.scoring.listing import list_scenes
from raytrain.scoring.planning import _chip_source
from raytrain.scoring.sources import chip_has_changed, scene_has_changed
from raytrain.scoring.units import ChipSource
from raytrain.tiles.archive import open_archive

BANDS = ("B02", "B03")


@pytest.mark.parametrize("names", [("s.tif",), ("s/B02.tif", "s/B03.tif")])
def test_scene_changes_with_its_files(store: str, names: tuple[str, ...]) -> None:
    for name in names:
        storage.write_bytes(storage.join(store, "scenes", name), name.encode() * 1000)
    (scene,) = list_scenes(store, BANDS)
    assert isinstance(scene, SceneSource)
    assert len(scene.versions) == len(names)
    assert not scene_has_changed(scene)
    last = storage.join(store, "scenes", names[-1])
    storage.write_bytes(last, names[-1].encode() * 1000)
    assert not scene_has_changed(scene), "the same bytes"
    storage.write_bytes(last, names[-1].upper().encode() * 1000)
    assert scene_has_changed(scene)
    storage.remove(last)
    assert scene_has_changed(scene)


def test_chip_changes_with_its_bands(store: str) -> None:
    for chip in "ab":
        for band in (*BANDS, "B99"):
            storage.write_bytes(storage.join(store, "test_features", chip, f"{band}.tif"), f"{chip}{band}".encode())
    storage.write_bytes(storage.join(store, "test_metadata.csv"), b"chip_id\na\nb\n")
    found = [_chip_source(chip) for chip in open_archive(store, BANDS, for_training=False).chips]
    chips = [each for each in found if isinstance(each, ChipSource)]
    assert [chip_has_changed(chip) for chip in chips] == [False, False]
    storage.write_bytes(storage.join(store, "test_features", "a", "B99.tif"), b"asked for by nobody")
    storage.write_bytes(storage.join(store, "test_features", "b", "B03.tif"), b"other bytes")
    assert [chip_has_changed(chip) for chip in chips] == [False, True]
    storage.remove(storage.join(store, "test_features", "b", "B03.tif"))
    assert [chip_has_changed(chip) for chip in chips] == [False, True]
