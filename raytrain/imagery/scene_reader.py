"""From a scene's files to pixels of a window: bands put on one grid, in the values that training tiles have.

The grid is that of the finest band that is wanted; a coarser one is brought up by repeating its pixels, so that any
window is a crop of the whole. A scene is never held as a whole. Must not know models, or who asks.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from raytrain import storage
from raytrain.config import Baseline
from raytrain.errors import DataError
from raytrain.imagery import rasters
from raytrain.imagery.arrays import mapped_array
from raytrain.imagery.baseline import REMEDY, Conversion, Evidence, decide
from raytrain.imagery.scene_files import ALL_BANDS, BandFile, SceneSource, shown, utc_text

PixelT = TypeVar("PixelT", bound=np.generic)

TRAINED_PIXEL_M, COARSE_PIXEL_M = 10, 15
"""What members see in training, and the side above which pixels of other instruments than Sentinel-2's are told of."""
TOLERANCE_PX = 0.01
"""How far a corner of a band may lie from that of the finest one, in pixels of the latter."""


@dataclass(frozen=True)
class _Band:
    """A band in an open file; a pixel of it is `ratio` pixels of the scene's grid, each way."""

    name: str
    file: BandFile
    dataset: DatasetReader
    index: int
    ratio: int = 1

    @property
    def nodata(self) -> float | None:
        """The value of no data, of the file or else of its catalogue; None where neither names one."""
        of_file = rasters.holdable(self.dataset.nodatavals[self.index - 1], self.dtype)
        return rasters.holdable(self.file.nodata, self.dtype) if of_file is None else of_file

    @property
    def dtype(self) -> str:
        """The type of the stored values."""
        return str(self.dataset.dtypes[self.index - 1])


class SceneReader:
    """An open scene, for the use of one thread.

    `bands` are those of the wanted that it has, in the order wanted; `notes` say what its masks may suffer from.
    """

    def __init__(self, source: SceneSource, bands: list[_Band], conversion: Conversion, datetime: str | None) -> None:
        finest = next(band.dataset for band in bands if band.ratio == 1)
        self.source = source
        self.bands = tuple(band.name for band in bands)
        self.height: int = finest.height
        self.width: int = finest.width
        self.georeference = rasters.georeference_of(finest)
        self.conversion = conversion
        self.datetime = datetime
        is_sentinel_2 = _is_sentinel_2(source, bands)
        self.notes = _notes(finest, is_sentinel_2=is_sentinel_2)
        self._nodata = [0 if band.nodata is None and is_sentinel_2 else band.nodata for band in bands]
        self._dtype = np.result_type(*(band.dtype for band in bands))
        self._by_file: dict[str, list[_Band]] = {}
        for band in bands:
            self._by_file.setdefault(band.file.uri, []).append(band)

    @property
    def crs(self) -> str | None:
        """The CRS as WKT or authority text; None where it is unknown."""
        return self.georeference.crs

    @property
    def transform(self) -> tuple[float, ...] | None:
        """The transform as (a, b, c, d, e, f); None where it is unknown."""
        return self.georeference.transform

    def read(self, row: int, column: int, height: int, width: int) -> rasters.Raster:
        """Return a window that lies within the scene: reflectance x 10000 `[C, height, width] uint16`, and its place.

        `valid` is by the rule of `rasters`, where 0 is the value of no data of products of Sentinel-2 that name none. A
        pixel is 0 where it is not valid, and nowhere else. Raises `DataError` that names the file for what can't be
        read, and `StoreOutOfReach`.
        """
        assert min(row, column) >= 0, "a window above or left of the scene"
        assert row + height <= self.height, "a window below the scene"
        assert column + width <= self.width, "a window right of the scene"
        stored = self._stored(row, column, height, width)
        valid = rasters.valid_pixels(stored, self._nodata)
        for bands in self._by_file.values():
            mask = _read_mask(bands[0], row, column, height, width)
            if mask is not None:
                valid &= mask
        # In place where it can be, also of int16: windows may be as wide as a scene.
        out = stored.view(np.uint16) if stored.dtype.itemsize == 2 else None
        pixels = self.conversion.apply(stored, valid, out)
        return rasters.Raster(pixels, valid, self._place(row, column))

    def read_small(self, max_px: int) -> rasters.Raster:
        """Return the whole scene averaged down so that no side is longer than `max_px`, in the values of `read`.

        For a look at it: from overviews where a file has them, and what only a file's mask says to be no data is not
        left out. Without overviews GDAL passes over all of a file, and holds no more than its block cache.
        """
        shrink = max(1.0, max(self.height, self.width) / max_px)
        shape = max(1, round(self.height / shrink)), max(1, round(self.width / shrink))
        stored = np.empty((len(self.bands), *shape), self._dtype)
        for bands in self._by_file.values():
            for band in bands:
                with _reading(band, 0):
                    stored[self.bands.index(band.name)] = band.dataset.read(
                        band.index, out_shape=shape, resampling=Resampling.average
                    )
        valid = rasters.valid_pixels(stored, self._nodata)
        return rasters.Raster(self.conversion.apply(stored, valid), valid, self.georeference)

    def small_read_px(self, max_px: int) -> int:
        """Return how many pixels `read_small` decodes, of all bands: of overviews where there are any."""
        shrink = max(1.0, max(self.height, self.width) / max_px)
        return sum(_decoded_px(band, shrink / band.ratio) for bands in self._by_file.values() for band in bands)

    def _stored(self, row: int, column: int, height: int, width: int) -> NDArray[Any]:
        """Return the values of a window as stored `[C, height, width]`."""
        files = list(self._by_file.values())
        if len(files) == 1:
            return _read_file(files[0], row, column, height, width)
        stored = mapped_array((len(self.bands), height, width), self._dtype)
        for bands in files:
            planes = _read_file(bands, row, column, height, width)
            for band, plane in zip(bands, planes, strict=True):
                stored[self.bands.index(band.name)] = plane
        return stored

    def _place(self, row: int, column: int) -> rasters.Georeference:
        if self.transform is None:
            return self.georeference
        moved = Affine(*self.transform) @ Affine.translation(column, row)
        return rasters.Georeference(self.crs, tuple(float(value) for value in moved[:6]))


def _decoded_px(band: _Band, shrink: float) -> int:
    """Return how many pixels GDAL decodes to make a band smaller by `shrink`: of the overview that is large enough."""
    factor = max((each for each in band.dataset.overviews(band.index) if each <= shrink), default=1)
    width, height = int(band.dataset.width), int(band.dataset.height)
    return width * height // int(factor) ** 2


def _is_sentinel_2(source: SceneSource, bands: Sequence[_Band]) -> bool:
    """Tell whether a scene is Sentinel-2's: by a processing baseline, or by the format of ESA's files, JPEG 2000."""
    return source.processing_baseline is not None or any(rasters.is_jp2(band.file.uri) for band in bands)


def _notes(finest: DatasetReader, *, is_sentinel_2: bool) -> tuple[str, ...]:
    """Return a note on pixels that are coarser than those of training, where the CRS tells their side in metres."""
    if finest.crs is None or not finest.crs.is_projected:
        return ()
    step, metres = finest.transform, finest.crs.linear_units_factor[1]
    pixel_m = metres * max(math.hypot(step.a, step.d), math.hypot(step.b, step.e))
    if pixel_m <= (TRAINED_PIXEL_M * 1.01 if is_sentinel_2 else COARSE_PIXEL_M):
        return ()
    return (f"a finest band of {pixel_m:.3g} m; members are trained with pixels of {TRAINED_PIXEL_M} m",)


def _read_file(bands: Sequence[_Band], row: int, column: int, height: int, width: int) -> NDArray[np.integer[Any]]:
    """Return a window of the scene's grid `[C, height, width]` as stored, of bands that one file has."""
    first = bands[0]
    window = _window(first, row, column, height, width)
    pixels = mapped_array((len(bands), window.height, window.width), np.dtype(first.dtype))
    with _reading(first, row):
        first.dataset.read([band.index for band in bands], window=window, out=pixels)
    return _brought_up(pixels, first.ratio, row, column, height, width)


def _read_mask(band: _Band, row: int, column: int, height: int, width: int) -> NDArray[np.bool_] | None:
    """Return where the file of `band` says that a window has data `[height, width]`; None where it has no mask."""
    with _reading(band, row):
        mask = rasters.own_mask(band.dataset, band.index, _window(band, row, column, height, width))
    return None if mask is None else _brought_up(mask, band.ratio, row, column, height, width)


@contextlib.contextmanager
def _reading(band: _Band, row: int) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        raise rasters.unreadable(shown(band.file.uri), f"scene from row {row} on", error) from error


def _window(band: _Band, row: int, column: int, height: int, width: int) -> Window:
    """Return the pixels of a band that a window of the scene's grid lies in."""
    first_row, first_column = row // band.ratio, column // band.ratio
    end_row, end_column = -(-(row + height) // band.ratio), -(-(column + width) // band.ratio)
    return Window(first_column, first_row, end_column - first_column, end_row - first_row)


def _brought_up(pixels: NDArray[PixelT], ratio: int, row: int, column: int, height: int, width: int) -> NDArray[PixelT]:
    """Return a window of the scene's grid `[..., height, width]` of the pixels of a coarser band that it lies in."""
    if ratio == 1:
        return pixels
    top, left = row % ratio, column % ratio
    repeated = pixels.repeat(ratio, axis=-2).repeat(ratio, axis=-1)
    return repeated[..., top : top + height, left : left + width]


@contextlib.contextmanager
def open_scene(source: SceneSource, bands: Sequence[str], baseline: Baseline | None) -> Iterator[SceneReader]:
    """Open the files of a scene that hold any of `bands`; with `baseline` None the shift is decided by what is known.

    Raises `DataError` for a scene that has none of `bands`, a file that is missing, refused or unreadable, a type
    other than uint16 and int16, bands of other places or of no whole ratio of pixels, and values whose shift can't be
    decided or differs between bands; `StoreOutOfReach` where the store does not answer.
    """
    with contextlib.ExitStack() as stack:
        yield _reader(source, bands, baseline, stack)


def _reader(
    source: SceneSource, bands: Sequence[str], baseline: Baseline | None, stack: contextlib.ExitStack
) -> SceneReader:
    """Return the reader of a scene whose files `stack` closes."""
    stack.enter_context(storage.gdal_environment())
    found = _open_bands(source, bands, stack)
    if not found:
        has = ", ".join(_names_found(source, stack)) or "none"
        raise DataError(source.scene_id, f"none of the bands {', '.join(bands)} (bands found: {has})")
    for band in found:
        _check_type(band)
    placed = _on_one_grid(found)
    conversion = _one_conversion(source, placed, baseline)
    return SceneReader(source, placed, conversion, source.datetime or _datetime_of(placed))


def _open_bands(source: SceneSource, bands: Sequence[str], stack: contextlib.ExitStack) -> list[_Band]:
    """Return those of `bands` that the scene has, in order; each file is opened once."""
    opened: dict[str, DatasetReader] = {}
    found = []
    for name in bands:
        file = source.files.get(name) or source.files.get(ALL_BANDS)
        if file is None:
            continue
        if file.uri not in opened:
            opened[file.uri] = stack.enter_context(_open(file.uri))
        index = _index(name, file, opened[file.uri], alone=name in source.files)
        if index is not None:
            found.append(_Band(name, file, opened[file.uri], index))
    _check_different(found)
    return found


def _check_different(bands: Sequence[_Band]) -> None:
    """Raise `DataError` if two bands are the same one of the same file."""
    seen: dict[tuple[str, int], str] = {}
    for band in bands:
        other = seen.setdefault((band.file.uri, band.index), band.name)
        if other != band.name:
            raise DataError(shown(band.file.uri), f"its band {band.index} is said to be {other} and {band.name}")


def _index(name: str, file: BandFile, dataset: DatasetReader, *, alone: bool) -> int | None:
    """Return the number of a band in its file, None if the file has others; `alone` if it was listed by its name."""
    if file.index is not None:
        if file.index > dataset.count:
            found = f"band {file.index} is said to be {name}, but the file has {dataset.count}"
            raise DataError(shown(file.uri), found)
        return file.index
    data = [i for i, colour in enumerate(dataset.colorinterp, start=1) if colour != ColorInterp.alpha]
    if alone and len(data) == 1:
        return data[0]
    descriptions = list(dataset.descriptions)
    names = rasters.named_bands(dataset) if alone else rasters.band_names(dataset)
    names = descriptions if name in descriptions else names
    if name in names:
        return names.index(name) + 1
    if alone:
        raise DataError(
            shown(file.uri), f"{dataset.count} bands, none of them named {name}: which one it is is not known"
        )
    return None


def _names_found(source: SceneSource, stack: contextlib.ExitStack) -> list[str]:
    if ALL_BANDS not in source.files:
        return sorted(source.files)
    dataset = stack.enter_context(_open(source.files[ALL_BANDS].uri))
    names = rasters.band_names(dataset)
    return [name or f"number {i} without a name" for i, name in enumerate(names, start=1)]


@contextlib.contextmanager
def _open(uri: str) -> Iterator[DatasetReader]:
    """Open a file of a scene; what its store says of it, then or later, is about the data."""
    of_body: BaseException | None = None
    try:
        if storage.is_local(uri) and not os.path.exists(storage.path_of(uri)):
            raise FileNotFoundError(uri)
        if storage.is_special(uri):
            raise DataError(shown(uri), "a device or a pipe, expected a file")
        with rasters.open_geotiff(uri, "scene") as dataset:
            try:
                yield dataset
            except BaseException as error:
                of_body = error
                raise
    except FileNotFoundError as error:
        if error is of_body:
            raise
        raise DataError(shown(uri), "no such file") from error
    except PermissionError as error:
        if error is of_body:
            raise
        raise DataError(shown(uri), str(error).removeprefix(f"{shown(uri)}: ")) from error


def _check_type(band: _Band) -> None:
    if band.dtype not in ("uint16", "int16"):
        raise DataError(shown(band.file.uri), f"band {band.name} is {band.dtype}, expected uint16 or int16")


def _on_one_grid(bands: list[_Band]) -> list[_Band]:
    """Return `bands` with their ratios to the finest one; raise `DataError` where one does not fit it."""
    finest = max(bands, key=lambda band: band.dataset.width * band.dataset.height)
    return [_Band(band.name, band.file, band.dataset, band.index, _ratio(band, finest)) for band in bands]


def _ratio(band: _Band, finest: _Band) -> int:
    fine, coarse = finest.dataset, band.dataset
    if fine is coarse:
        return 1
    ratio: int = fine.width // coarse.width
    if (coarse.width * ratio, coarse.height * ratio) != (fine.width, fine.height):
        sizes = f"{coarse.width} x {coarse.height} px, {finest.name} {fine.width} x {fine.height}"
        raise DataError(shown(band.file.uri), f"{band.name} has {sizes}: expected a whole ratio")
    place, expected = rasters.georeference_of(coarse), rasters.georeference_of(fine)
    lies = f"{band.name} lies at {place}, {finest.name} at {expected}"
    if (coarse.crs is None) != (fine.crs is None) or coarse.crs != fine.crs:
        raise DataError(shown(band.file.uri), f"{lies}: expected one CRS")
    if place.transform is None and expected.transform is None:
        return ratio
    if not _corners_meet(coarse, fine):
        found = f"with pixels of {_pixel(coarse)} and {_pixel(fine)}"
        raise DataError(shown(band.file.uri), f"{lies} {found}: expected the same corners, to {TOLERANCE_PX} pixels")
    return ratio


def _corners_meet(coarse: DatasetReader, fine: DatasetReader) -> bool:
    to_fine = ~fine.transform @ coarse.transform
    corners = [(0, 0), (1, 0), (0, 1), (1, 1)]
    found = np.array([to_fine @ (x * coarse.width, y * coarse.height) for x, y in corners])
    expected = np.array([(x * fine.width, y * fine.height) for x, y in corners])
    return bool((abs(found - expected) <= TOLERANCE_PX).all())


def _pixel(dataset: DatasetReader) -> str:
    return f"{dataset.transform.a:.6g} by {dataset.transform.e:.6g}"


def _one_conversion(source: SceneSource, bands: Sequence[_Band], baseline: Baseline | None) -> Conversion:
    """Return what makes reflectance of all bands; raise `DataError` if it can't be decided or differs."""
    found = {
        band.name: decide(f"{source.scene_id} ({shown(band.file.uri)})", _evidence(source, band), baseline)
        for band in bands
    }
    first = found[bands[0].name]
    for name, each in found.items():
        if (each.scale, each.offset) != (first.scale, first.offset):
            raise DataError(
                source.scene_id,
                f"{bands[0].name} is stored by {first.rule}, {name} by {each.rule}: expected one for all; {REMEDY}",
            )
    return first


def _evidence(source: SceneSource, band: _Band) -> Evidence:
    scale, offset = band.dataset.scales[band.index - 1], band.dataset.offsets[band.index - 1]
    return Evidence(
        item_scale=band.file.scale,
        item_offset=band.file.offset,
        file_scale=scale,
        file_offset=offset,
        offset_applied=source.offset_applied,
        processing_baseline=source.processing_baseline,
        is_jp2=rasters.is_jp2(band.file.uri),
    )


def _datetime_of(bands: Sequence[_Band]) -> str | None:
    """Return when the scene was taken by the tags of its files, None where none says it."""
    for band in bands:
        text = _datetime_tag(band.dataset)
        for form in ("%Y:%m:%d %H:%M:%S", "%Y-%m-%d %H:%M:%S"):
            with contextlib.suppress(ValueError):
                return utc_text(datetime.strptime(text, form))
    return None


def _datetime_tag(dataset: DatasetReader) -> str:
    tags: Mapping[str, str] = dataset.tags()
    # The domain in which GDAL puts what it knows of an acquisition; the TIFF tag may be that of the file.
    acquired = dataset.tags(ns="IMAGERY").get("ACQUISITIONDATETIME") or tags.get("ACQUISITIONDATETIME")
    return acquired or tags.get("TIFFTAG_DATETIME", "")
