"""The source of a finished item found again by what its record says, to be looked at: its files by band.

A record names one URI: the folder of a chip, the STAC item of a scene, or its first file, without a signature that may
have been needed. Nothing is listed, and no file is asked what it is. Records lie at a destination, which may have other
writers: of an archive that is not on this machine none leads to a file of it. Must not know pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from raytrain import storage
from raytrain.config import Baseline
from raytrain.errors import DataError
from raytrain.imagery.scene_files import ALL_BANDS, BandFile, SceneSource
from raytrain.scoring.listed_stac import read_document, unchecked_scene
from raytrain.scoring.totals import Item

_BAND = re.compile(r"(?<![A-Za-z0-9])[Bb](?:0[1-9]|1[0-2]|8[Aa])(?![0-9A-Za-z])")


def source_again(item: Item, bands: Sequence[str], archive: str) -> SceneSource:
    """Return the files of `item`, a chip or a scene of the `archive`, that should have `bands`.

    Raises `DataError` where its document tells of none, and for a file of this machine that a record names of an
    archive elsewhere: no listing of that would have.
    """
    if not storage.is_local(archive):
        for uri in (item.source_uri, item.source_item_uri or archive):
            if storage.is_local(uri):
                raise DataError(
                    item.item_id, f"its record names a file of this machine, not of {storage.shown(archive)}"
                )
    if item.kind == "chip":
        files = {band: BandFile(uri=storage.join(item.source_uri, f"{band}.tif")) for band in bands}
    elif item.source_item_uri is not None:
        return _of_document(item.source_item_uri, item.item_id, bands)
    else:
        files = _beside(item.source_uri, bands)
    return SceneSource(scene_id=item.item_id, files=files, identity="")


def baseline_again(item: Item, asked: Baseline | None) -> Baseline | None:
    """Return what the values of `item` were taken for, where a scoring was asked for `asked`."""
    return "before-04.00" if asked is None and item.kind == "chip" else asked


def _beside(uri: str, bands: Sequence[str]) -> dict[str, BandFile]:
    """Return the files of `bands` that should lie beside that of another one; a file named by none has them all."""
    folder, _, name = uri.rpartition("/")
    found = list(_BAND.finditer(name))
    if not found:
        return {ALL_BANDS: BandFile(uri=uri)}
    before, after = name[: found[-1].start()], name[found[-1].end() :]
    return {band: BandFile(uri=f"{folder}/{before}{band}{after}") for band in bands}


def _of_document(uri: str, item_id: str, bands: Sequence[str]) -> SceneSource:
    """Return the scene of the STAC item that the document at `uri` is, or `#` and its id names in it."""
    place = uri.removesuffix(f"#{item_id}")
    document = read_document(place)
    features = document.get("features")
    if isinstance(features, list):
        named = [each for each in features if isinstance(each, dict) and each.get("id") == item_id]
        if not named:
            raise DataError(storage.shown(place), f"no item {item_id} in this page of the document")
        document = named[0]
    return unchecked_scene(document, place, bands)
