"""Scenes of a folder: a file each, or the files of a band each that stand together in a folder and share a name.

`scenes/` below the folder, where it has rasters, is the archive; else the folder itself is. The rasters of one folder
are held at a time, and those of the folders above it. Must not know pixels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from raytrain import storage
from raytrain.errors import ConfigError, DataError
from raytrain.imagery.band_names import SENTINEL_2
from raytrain.imagery.scene_files import SceneSource, shown
from raytrain.scoring.listed import Work, band_scene, checked_id, file_scene, id_by_name, is_raster, refusal

_RESOLUTION_FOLDER = re.compile(r"R(\d+)m|(10|20|60)m")
_GRANULE, _IMAGES, _PRODUCT = "GRANULE", "IMG_DATA", ".SAFE"
_NO_IMAGES = {"qi", "QI_DATA", "preview", "auxiliary", "AUX_DATA"}
"""Folders of products, as ESA and the open archives write them, with masks, previews and weather."""
_STEPS = {".", ".."}
"""Of keys of a store, which has no folders: what keeps to paths would take such a key for that of another object."""
_MASK = "MSK_"
_SEPARATORS = "_.-"

Listed = Iterable[tuple[str, storage.FileInfo]]
"""Names below an archive, with what its listing says of each."""


@dataclass(frozen=True)
class _Raster:
    """A raster of the listing: its name below the archive, what is known of it, the folder of the scene it is of.

    `folder` is () for the archive itself; `granule` tells apart the tiles of a product; `pixel_m` is the resolution
    that a folder names, 0 where none does.
    """

    name: str
    info: storage.FileInfo
    folder: tuple[str, ...]
    granule: str
    pixel_m: int

    @property
    def has_steps(self) -> bool:
        """Whether its key has a part that is a step in a path."""
        return not _STEPS.isdisjoint(self.name.split("/"))


@dataclass
class _Bands:
    """The best file of each band that one scene has, and the names of all that it has, wanted or not."""

    uris: dict[str, str] = field(default_factory=dict)
    infos: dict[str, storage.FileInfo] = field(default_factory=dict)
    ranks: dict[str, tuple[int, bool, str]] = field(default_factory=dict)
    place: str = ""

    def offer(self, band: str, rank: tuple[int, bool, str], uri: str, info: storage.FileInfo) -> None:
        self.place = self.place or uri
        if band not in self.ranks or rank < self.ranks[band]:
            self.ranks[band], self.uris[band], self.infos[band] = rank, uri, info


def folder_works(uri: str, bands: Sequence[str], outputs: str | None = None) -> Iterator[Work | DataError]:
    """Yield the work of each scene below `uri`, but for what lies below `outputs`.

    A scene is `<id>.tif` in the archive itself, or the files of a folder at any depth that are named by their bands
    (`B02.tif`, `<name>_B02.tif`, `<name>_B02_10m.jp2`) and share `<name>`: of several for a band, that of the finest
    pixels, and a GeoTIFF rather than JPEG 2000. Its id is the path of its folder, joined by "_", with `<name>` where
    there are several in it; that of a product of ESA is the product's name, with the granule's where there are several.
    Resolution folders belong to the folder above. Other rasters of a folder with bands are left out. Those of a folder
    without are scenes by themselves, or below `scenes/`, and in a product, a `DataError`.
    """
    scenes = storage.join(uri, "scenes")
    is_strict = any(True for _ in _rasters(storage.walk(scenes)))
    root = scenes if is_strict else uri
    names = _Names(root, storage.name_of(root), tuple(bands), is_strict)
    listed = storage.walk(root)
    if outputs is not None and outputs.startswith(storage.join(root, "")):
        own = storage.join(outputs.removeprefix(storage.join(root, "")), "")
        listed = ((name, info) for name, info in listed if not name.startswith(own))
    yield from _works(listed, names)


def is_folder(uri: str) -> bool:
    """Tell whether something lies below `uri`, which a list names; raise `DataError` where that can't be known.

    What a store lets nobody list counts as none: it may still give single objects.
    """
    if storage.is_http(uri):
        return False
    try:
        if storage.is_local(uri):
            return Path(storage.path_of(uri)).is_dir()
        return any(True for _ in storage.walk(uri))
    except PermissionError:
        return False
    except (OSError, ConfigError) as error:
        raise refusal(uri, error) from error


def folder_scene(uri: str, bands: Sequence[str], scene_id: str | None = None) -> SceneSource:
    """Return the one scene of the folder at `uri`, by default of the folder's name.

    Raises `DataError` for a folder that has none or several.
    """
    parent, _, name = uri.rstrip("/").rpartition("/")
    names = _Names(parent, name, tuple(bands), is_strict=False)
    try:
        found = list(islice(_works(((f"{name}/{below}", info) for below, info in storage.walk(uri)), names), 2))
    except (OSError, ConfigError) as error:
        raise refusal(uri, error) from error
    if len(found) != 1:
        raise DataError(
            shown(uri),
            "a folder of several scenes; in a list name each of them, or score the folder itself"
            if found
            else "a folder without rasters, expected a scene's or a STAC document",
        )
    if isinstance(found[0], DataError):
        raise found[0]
    scene = found[0].make()
    return scene if scene_id is None else scene.model_copy(update={"scene_id": checked_id(scene_id)})


@dataclass(frozen=True)
class _Names:
    """How names below the archive `root` are understood; where `is_strict`, no file of a subfolder is a scene."""

    root: str
    root_name: str
    bands: tuple[str, ...]
    is_strict: bool

    def band_pattern(self) -> re.Pattern[str]:
        every = sorted({*self.bands, *SENTINEL_2}, key=lambda band: (-len(band), band))
        names = "|".join(re.escape(band) for band in every)
        end = r"(?:_(?P<resolution>\d+)m)?\.(?P<kind>tiff?|jp2)$"
        return re.compile(rf"(?:^|[{_SEPARATORS}])(?P<band>{names}){end}", re.IGNORECASE)


def _works(listed: Listed, names: _Names) -> Iterator[Work | DataError]:
    pattern = names.band_pattern()
    for listed_there in _by_folder(_rasters(listed)):
        rasters = [each for each in listed_there if not each.has_steps]
        for each in listed_there:
            if each.has_steps:
                yield DataError(storage.join(names.root, each.name), "a key with '.' or '..' for a folder; rename it")
        if not rasters:
            continue
        if "/" not in rasters[0].name:
            yield _root_work(rasters[0], names, pattern)
        elif groups := _groups(rasters, names, pattern):
            yield from _band_works(rasters[0].folder, groups, names)
        elif names.is_strict:
            found = (
                f"lies deeper than scenes/<id>.tif, in a folder of {len(rasters)} rasters none of which names a band"
            )
            yield DataError(storage.join(names.root, rasters[0].name), found)
        elif rasters[0].granule:
            yield DataError(
                storage.join(names.root, rasters[0].name),
                f"in a product of {len(rasters)} rasters none of which names a band",
            )
        else:
            yield from (_file_work(raster, names) for raster in rasters)


def _rasters(listed: Listed) -> Iterator[_Raster]:
    for name, info in listed:
        if is_raster(name):
            raster = _placed(name, info)
            if raster is not None:
                yield raster


def _placed(name: str, info: storage.FileInfo) -> _Raster | None:
    """Return where a raster belongs; None for what is hidden, and for those of a product that are no images."""
    *folders, file = name.split("/")
    if file.startswith((".", _MASK)) or any(_is_hidden(each) or each in _NO_IMAGES for each in folders):
        return None
    if _GRANULE in folders and _IMAGES not in folders:
        return None
    pixel_m = 0
    while folders and (match := _RESOLUTION_FOLDER.fullmatch(folders[-1])):
        pixel_m = int(match[1] or match[2])
        folders.pop()
    if _GRANULE not in folders:
        return _Raster(name, info, tuple(folders), "", pixel_m)
    at = folders.index(_GRANULE)
    return _Raster(name, info, tuple(folders[:at]), "".join(folders[at + 1 : at + 2]), pixel_m)


def _is_hidden(folder: str) -> bool:
    return folder.startswith(".") and folder not in _STEPS


def _by_folder(rasters: Iterator[_Raster]) -> Iterator[list[_Raster]]:
    """Yield the rasters of each folder together, once the listing has left it; those of the archive itself alone."""
    entered: dict[tuple[str, ...], list[_Raster]] = {}
    for raster in rasters:
        at = tuple(raster.name.split("/")[:-1])
        for folder in [each for each in entered if at[: len(each)] != each]:
            yield entered.pop(folder)
        if at:
            entered.setdefault(raster.folder, []).append(raster)
        else:
            yield [raster]
    yield from entered.values()


def _root_work(raster: _Raster, names: _Names, pattern: re.Pattern[str]) -> Work | DataError:
    match = pattern.match(raster.name)
    if match is not None and match.start("band") == 0:
        return DataError(
            storage.join(names.root, raster.name),
            "a file of one band right in the archive; name the folder above, where this is a scene",
        )
    return _file_work(raster, names)


def _file_work(raster: _Raster, names: _Names) -> Work:
    uri = storage.join(names.root, raster.name)
    return Work(uri, partial(file_scene, uri, info=raster.info), id_by_name(uri))


def _groups(rasters: list[_Raster], names: _Names, pattern: re.Pattern[str]) -> dict[tuple[str, str], _Bands]:
    """Return the bands of each granule of a folder, and of each name before the bands: an acquisition each."""
    wanted = {band.upper(): band for band in names.bands}
    groups: dict[tuple[str, str], _Bands] = {}
    for raster in rasters:
        file = storage.name_of(raster.name)
        match = pattern.search(file)
        if match is None:
            continue
        group = groups.setdefault((raster.granule, file[: match.start("band")].strip(_SEPARATORS)), _Bands())
        rank = (int(match["resolution"] or raster.pixel_m), match["kind"].lower() == "jp2", raster.name)
        band = match["band"].upper()
        group.offer(wanted.get(band, band), rank, storage.join(names.root, raster.name), raster.info)
    return groups


def _band_works(folder: tuple[str, ...], groups: dict[tuple[str, str], _Bands], names: _Names) -> Iterator[Work]:
    of_granule = Counter(granule for granule, _ in groups)
    for (granule, text), found in groups.items():
        scene_id = _folder_id(folder or (names.root_name,), granule if len(of_granule) > 1 else "")
        if of_granule[granule] > 1 and text:
            scene_id = text if text.startswith(scene_id) else f"{scene_id}_{text}"
        yield Work(found.place, partial(_band_scene, scene_id, names.bands, found), scene_id)


def _folder_id(folder: tuple[str, ...], granule: str) -> str:
    """Return the id of a folder's scene: its path, or of a product, its name and the path in it."""
    products = [number for number, name in enumerate(folder) if name.endswith(_PRODUCT)]
    parts = folder[products[-1] :] if products else folder
    return "_".join([parts[0].removesuffix(_PRODUCT), *parts[1:], *([granule] if granule else [])])


def _band_scene(scene_id: str, bands: Sequence[str], found: _Bands) -> SceneSource:
    uris = {band: found.uris[band] for band in bands if band in found.uris}
    if not uris:
        raise DataError(scene_id, f"none of the bands {', '.join(bands)}; found {', '.join(sorted(found.uris))}")
    return band_scene(scene_id, uris, found.infos, found.place)
