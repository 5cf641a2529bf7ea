"""Scenes of a folder: a file each, or a folder each with a file a band, in the order of names.

`scenes/` below the folder, where it has rasters, is the archive; else the folder itself is. Must not know pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

from raytrain import storage
from raytrain.errors import DataError
from raytrain.imagery.band_names import SENTINEL_2
from raytrain.scoring.listed import Work, band_scene, file_scene, id_by_name, is_raster

_RESOLUTION_FOLDER = re.compile(r"R\d+m")
_GRANULE, _IMAGES, _PRODUCT = "GRANULE", "IMG_DATA", ".SAFE"


@dataclass(frozen=True)
class _Raster:
    """A raster of the listing: its name below the archive, what is known of it, the folder of the scene it is of.

    `folder` is () for a file that is a scene by itself; `granule` tells apart the tiles of an old product.
    """

    name: str
    info: storage.FileInfo
    folder: tuple[str, ...]
    granule: str = ""

    @property
    def group(self) -> tuple[str, ...]:
        """Rasters of one group come one after the other in a listing."""
        return (*self.folder, self.granule) if self.folder else (self.name,)


@dataclass
class _Bands:
    """The best file of each band that one scene has."""

    uris: dict[str, str] = field(default_factory=dict)
    infos: dict[str, storage.FileInfo] = field(default_factory=dict)
    ranks: dict[str, tuple[int, bool, str]] = field(default_factory=dict)

    def offer(self, band: str, rank: tuple[int, bool, str], uri: str, info: storage.FileInfo) -> None:
        if band not in self.ranks or rank < self.ranks[band]:
            self.ranks[band], self.uris[band], self.infos[band] = rank, uri, info


def folder_works(uri: str, bands: Sequence[str]) -> Iterator[Work | DataError]:
    """Yield the work of each scene below `uri`.

    A scene is `<id>.tif` in the archive itself, or a folder at any depth with files named by their bands (`B02.tif`,
    `..._B02.tif`, `..._B02_10m.jp2`): of several for a band, that of the finest pixels, and a GeoTIFF rather than
    JPEG 2000. Resolution folders belong to the folder above, and what is in a product of ESA to the product. A folder
    of other rasters is a `DataError` below `scenes/`, and is left alone elsewhere.
    """
    scenes = storage.join(uri, "scenes")
    strict = any(is_raster(name) for name, _ in storage.walk(scenes))
    root = scenes if strict else uri
    pattern = _band_pattern(bands)
    for _, group in groupby(_rasters(root), key=lambda raster: raster.group):
        rasters = list(group)
        if not rasters[0].folder:
            yield _file_work(root, rasters[0], pattern)
        elif (work := _band_work(root, rasters, pattern, bands)) is not None:
            yield work
        elif strict:
            found = (
                f"lies deeper than scenes/<id>.tif, in a folder of {len(rasters)} rasters none of which names a band"
            )
            yield DataError(storage.join(root, rasters[0].name), found)


def _rasters(root: str) -> Iterator[_Raster]:
    for name, info in storage.walk(root):
        if is_raster(name):
            raster = _placed(storage.name_of(root), name, info)
            if raster is not None:
                yield raster


def _placed(root_name: str, name: str, info: storage.FileInfo) -> _Raster | None:
    """Return where a raster belongs; None for those of a product that are no images (masks, previews)."""
    folders = name.split("/")[:-1]
    if _GRANULE in folders:
        if _IMAGES not in folders:
            return None
        at = folders.index(_GRANULE)
        return _Raster(name, info, tuple(folders[:at]) or (root_name,), "/".join(folders[at + 1 : at + 2]))
    while folders and _RESOLUTION_FOLDER.fullmatch(folders[-1]):
        folders.pop()
    return _Raster(name, info, tuple(folders) or ((root_name,) if "/" in name else ()))


def _band_pattern(bands: Sequence[str]) -> re.Pattern[str]:
    names = "|".join(re.escape(band) for band in sorted({*bands, *SENTINEL_2}, key=lambda band: (-len(band), band)))
    return re.compile(rf"(?:^|[_.-])(?P<band>{names})(?:_(?P<resolution>\d+)m)?\.(?P<kind>tiff?|jp2)$", re.IGNORECASE)


def _file_work(root: str, raster: _Raster, pattern: re.Pattern[str]) -> Work | DataError:
    uri = storage.join(root, raster.name)
    match = pattern.match(raster.name)
    if match is not None and match.start("band") == 0:
        return DataError(uri, "a file of one band right in the archive; name the folder above, where this is a scene")
    return Work(uri, partial(file_scene, uri, info=raster.info), id_by_name(uri))


def _band_work(root: str, rasters: list[_Raster], pattern: re.Pattern[str], bands: Sequence[str]) -> Work | None:
    """Return the work of a folder's scene, None if no raster in it names a band."""
    named = {band.upper(): band for band in bands}
    found = _Bands()
    some = False
    for raster in rasters:
        match = pattern.search(storage.name_of(raster.name))
        if match is None:
            continue
        some = True
        band = named.get(match["band"].upper())
        if band is not None:
            rank = (int(match["resolution"] or 0), match["kind"].lower() == "jp2", raster.name)
            found.offer(band, rank, storage.join(root, raster.name), raster.info)
    if not some:
        return None
    folder = rasters[0].folder
    scene_id = folder[-1].removesuffix(_PRODUCT)
    place = storage.join(root, rasters[0].name)
    ordered = {band: found.uris[band] for band in bands if band in found.uris}
    return Work(place, partial(band_scene, scene_id, ordered, found.infos, place), scene_id)
