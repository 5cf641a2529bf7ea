"""In every kind of store a source that nobody touched is what was listed, and one that somebody did is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raytrain import storage
from raytrain.config import ScoreSettings
from raytrain.imagery.scene_files import SceneSource
from raytrain.scoring.ledger import Known, standing_at
from raytrain.scoring.listing import list_scenes
from raytrain.scoring.planning import Listing, _chip_source, holds_shards
from raytrain.scoring.sources import chip_has_changed, scene_has_changed, shards_have_changed
from raytrain.scoring.units import ChipSource, Unit
from raytrain.tiles.archive import open_archive
from raytrain.tiles.selection import Selection
from tests.making import make_tile, write_tiles

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


def test_shards_change_with_their_manifest_and_tiles_with_their_pixels(store: str) -> None:
    tiles = [make_tile(i, (4, 4)) for i in range(3)]
    write_tiles(store, tiles, "raw")
    (unit,), (label,) = tiles_of(store), [tiles[1].label]
    assert unit.shards is not None
    assert label is not None
    assert not shards_have_changed(unit.shards)
    write_tiles(store, [tiles[0], replace(tiles[1], label=1 - label), tiles[2]], "raw")
    assert shards_have_changed(unit.shards)
    (relabelled,) = tiles_of(store)
    assert [each.identity for each in relabelled.tiles] == [each.identity for each in unit.tiles]
    pixels = {**tiles[2].bands, "B03": tiles[2].bands["B03"] ^ np.uint16(1)}
    write_tiles(store, [tiles[0], replace(tiles[1], crs="EPSG:32633"), replace(tiles[2], bands=pixels)], "raw")
    (other,) = tiles_of(store)
    is_same = [a.identity == b.identity for a, b in zip(other.tiles, unit.tiles, strict=True)]
    assert is_same == [True, False, False]
    storage.remove(storage.join(store, "manifest.json"))
    assert shards_have_changed(unit.shards)
    assert not holds_shards(store)


def tiles_of(store: str) -> list[Unit]:
    known = Known(storage.join(store, "out"), "digest", standing_at(storage.join(store, "out")))
    listing = Listing(store, storage.join(store, "out"), BANDS, ScoreSettings(), Selection(), known)
    return list(listing.units())
